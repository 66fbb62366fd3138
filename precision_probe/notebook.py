"""What notebooks show of an object: a small table, whose texts are shown as they are."""

import html
from collections.abc import Mapping

from precision_probe.exceptions import printable

__all__ = ["as_html"]


def as_html(title: str, rows: Mapping[str, object]) -> str:
    """A table of two columns.

    Args:
        title: Its caption.
        rows: What stands beside what.

    Example:
        >>> as_html("Policy", {"a": "1 < 2"})
        '<table><caption>Policy</caption><tr><th scope="row">a</th><td>1 &lt; 2</td></tr></table>'
    """
    lines = "".join(
        f'<tr><th scope="row">{_shown(name)}</th><td>{_shown(value)}</td></tr>' for name, value in rows.items()
    )
    return f"<table><caption>{_shown(title)}</caption>{lines}</table>"


def _shown(value: object) -> str:
    return html.escape(printable(str(value)))
