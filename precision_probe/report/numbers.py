"""How many digits a number gets where it is read: in tables of the command line, and on the page."""

import numpy as np
import pandas as pd

__all__ = ["entry", "number"]


def entry(value: str | float | None) -> str:
    """A cell: text as it is, a number with three digits, nothing for what is missing.

    Example:
        >>> entry("O3"), entry(12.3456), entry(1.23e-7), entry(None)
        ('O3', '12.3', '1.2e-07', '')
    """
    if isinstance(value, str):
        return value
    if value is None or pd.isna(value):
        return ""
    return f"{value:.3g}" if 0.1 <= abs(value) < 1e4 else number(float(value))


def number(value: float) -> str:
    """Two digits are what an error is worth."""
    if isinstance(value, int | np.integer):
        return str(value)
    return "0" if value == 0 else f"{value:.1e}"
