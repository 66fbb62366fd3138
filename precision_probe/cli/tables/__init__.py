"""Tables as a terminal shows them, one module for what each is of."""
