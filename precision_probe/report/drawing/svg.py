"""Elements of drawings, as text in which whatever comes from a file is escaped."""

from collections.abc import Sequence

from markupsafe import Markup, escape

from precision_probe.exceptions import printable

__all__ = ["N_SLOTS", "drawing", "element", "marker", "path", "power_of_ten", "shortened", "text"]

_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
# Of the shapes by which series are told apart, beside their colours; the first is a circle.
_CORNERS: tuple[tuple[tuple[float, float], ...], ...] = (
    (),
    ((-1, -1), (1, -1), (1, 1), (-1, 1)),
    ((0, -1.2), (1.1, 0.9), (-1.1, 0.9)),
    ((0, -1.4), (1.2, 0), (0, 1.4), (-1.2, 0)),
    ((-1.3, -0.5), (1.3, -0.5), (1.3, 0.5), (-1.3, 0.5)),
    ((-0.5, -1.3), (0.5, -1.3), (0.5, 1.3), (-0.5, 1.3)),
)
N_SLOTS = len(_CORNERS)


def element(tag: str, *children: str, **attributes: object) -> Markup:
    """An element; ``stroke_width=2`` is the attribute stroke-width, ``class_`` is class, and ``None`` is left out.

    Example:
        >>> element("text", "a < b", x=1.25, class_="label")
        Markup('<text x="1.2" class="label">a &lt; b</text>')
    """
    written = Markup("").join(
        Markup(' {}="{}"').format(name.rstrip("_").replace("_", "-"), _attribute(value))
        for name, value in attributes.items()
        if value is not None
    )
    inside = Markup("").join(child if isinstance(child, Markup) else escape(printable(child)) for child in children)
    return Markup(f"<{tag}{written}>{inside}</{tag}>")  # noqa: S704  (the tag is ours, all else is escaped)


def _attribute(value: object) -> str:
    return f"{value:.1f}".removesuffix(".0") if isinstance(value, float) else printable(str(value))


def drawing(
    size: tuple[float, float], title: str, description: str, *children: Markup, class_: str, role: str = "img"
) -> Markup:
    """A drawing as wide as its place, with what a screen reader says of it.

    Args:
        size: Width and height in units of its own.
        title: What it shows.
        description: What is seen in it.
        children: What is drawn.
        class_: By which its style is found.
        role: ``img``, or ``group`` where parts of it can be reached.
    """
    labels = (element("title", title), element("desc", description))
    box = f"0 0 {size[0]:g} {size[1]:g}"
    return element(
        "svg", *labels, *children, viewBox=box, role=role, aria_label=f"{title}. {description}", class_=class_
    )


def text(at: tuple[float, float], said: str, **attributes: object) -> Markup:
    """A line of text."""
    return element("text", said, x=float(at[0]), y=float(at[1]), **attributes)


def path(points: Sequence[tuple[float, float]], **attributes: object) -> Markup:
    """A line from point to point."""
    return element("path", d="M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points), **attributes)


def marker(at: tuple[float, float], slot: int | None, said: str = "", size: float = 4.0) -> Markup:
    """A point of one of several series, each of which has a shape and a colour, and what it says when it is hovered.

    Without a slot it is a circle in the colour of text. When colours come again, shapes are others.
    """
    x, y = at
    corners = () if slot is None else _CORNERS[(slot + slot // N_SLOTS) % N_SLOTS]
    style = "mark" if slot is None else f"mark s{slot % N_SLOTS}"
    children = [element("title", said)] if said else []
    if not corners:
        return element("circle", *children, cx=float(x), cy=float(y), r=size, class_=style)
    outline = " ".join(f"{x + size * dx:.1f},{y + size * dy:.1f}" for dx, dy in corners)
    return element("polygon", *children, points=outline, class_=style)


def power_of_ten(exponent: int) -> str:
    """Such as 10⁻⁷."""
    return f"10{str(exponent).translate(_SUPERSCRIPTS)}"


def shortened(label: str, most: int) -> str:
    """A label of so many characters at most, its end kept.

    Example:
        >>> shortened("a.very.long.module.name.0.linear", 16)
        'a.ver…e.0.linear'
    """
    label = printable(label)
    head = most // 3
    return label if len(label) <= most else f"{label[:head]}…{label[len(label) - (most - head - 1) :]}"
