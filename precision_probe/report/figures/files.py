"""Files of figures. Needs matplotlib (the extra ``plots``), and neither torch nor mace."""

from pathlib import Path
from typing import TYPE_CHECKING

from precision_probe.exceptions import InputError
from precision_probe.files import check_writable

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["NO_MATPLOTLIB", "check_figure", "save_figure"]

NO_MATPLOTLIB = "Figures need matplotlib. Install it with: pip install 'precision-probe[plots]'"


def check_figure(path: str | Path, *, force: bool = False) -> Path:
    """Return the path, once it is known that a figure can be drawn there: asked before hours of work, not after.

    Raises:
        InputError: If matplotlib is not installed or does not know the suffix, or the file cannot be written, or is
            there without ``force``.
    """
    path = Path(path)
    try:
        from matplotlib.backend_bases import FigureCanvasBase
    except ImportError as error:
        raise InputError(NO_MATPLOTLIB) from error
    if path.suffix.lower().removeprefix(".") not in FigureCanvasBase.get_supported_filetypes():
        raise InputError(f"The figure {path} has the suffix {path.suffix!r}. Name it .png, .svg or .pdf.")
    return check_writable(path, force=force)


def save_figure(ax: "Axes", path: str | Path, *, force: bool = False) -> Path:
    """Write the figure that axes are in; the suffix says which format.

    Raises:
        InputError: If matplotlib does not know the suffix, the file cannot be written, or is there without ``force``.
    """
    path = check_figure(path, force=force)
    figure = ax.get_figure(root=True)
    try:
        figure.savefig(path, dpi=150)  # type: ignore[union-attr]
    except OSError as error:  # a disk that is full, say, which could not be asked before
        raise InputError(f"The figure {path} cannot be written ({error.strerror or error}).") from error
    return path
