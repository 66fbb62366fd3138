"""The model in a precision or under a policy, and the hooks that say what its blocks compute.

Here belongs what makes the same model compute otherwise: clones, rounding, casts, matmul modes. Imports ``models`` and
the package's own modules.
"""
