"""How a trace that is stored is read: arrays when they are used, chunks by threads."""
