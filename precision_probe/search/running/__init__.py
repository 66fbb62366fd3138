"""How a model is run: called or launched, by which library, by mace-torch's calculator, and as users get it."""
