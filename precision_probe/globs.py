"""Globs over the names of modules. Nothing here imports torch."""

import fnmatch

__all__ = ["matches"]


def matches(name: str, glob: str) -> bool:
    """Whether a glob matches a PyTorch module name; a ``*`` stays between two dots.

    Example:
        >>> matches("interactions.0", "interactions.*"), matches("interactions.0.linear", "interactions.*")
        (True, False)
    """
    parts, globs = name.split("."), glob.split(".")
    return len(parts) == len(globs) and all(map(fnmatch.fnmatchcase, parts, globs))
