"""A trace → errors: in numbers, in physical terms, and of one trace against another.

Here belongs what is computed from recorded arrays alone. Imports ``trace`` and the package's own modules, and neither
torch nor mace; ``metrics`` takes torch's tensors as it takes any library's.
"""
