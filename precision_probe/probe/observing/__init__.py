"""One sample run through every variant: what is captured of it, and what of that is kept, tensors or their errors."""
