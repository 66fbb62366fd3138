"""A model as a graph of its blocks, each with its errors forward and backward and its share of the whole error."""

import itertools
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from precision_probe.report.drawing.scales import CIVIDIS, LogScale, ink
from precision_probe.report.drawing.svg import drawing, element, path, shortened, text
from precision_probe.report.numbers import entry

__all__ = ["Node", "network"]

_LANE, _ROW = 150.0, 82.0  # from one block to the next
_WIDE, _HIGH = 138.0, 60.0  # of a block
_CHIP = 62.0
_LAYER = re.compile(r"(interactions|products|readouts)\.(\d+)$")
_FIRST = {"geometry": (0, 0), "spherical_harmonics": (0, 1), "radial_embedding": (0, 2), "node_embedding": (1, 0)}


@dataclass(frozen=True)
class Node:
    """A block, or what comes before and after all blocks: ``geometry``, ``sums``.

    Attributes:
        name: Its name.
        forward: Relative error of its output; NaN if it is not finite, ``None`` if there is none.
        backward: Of its gradients.
        share: Its part of the squared error of the forces; ``None`` if the trace does not tell.
        said: All its numbers in words, separated by semicolons.
    """

    name: str
    forward: float | None
    backward: float | None
    share: float | None
    said: str


def network(nodes: Sequence[Node], precision: str) -> Markup:
    """Draw the graph.

    Args:
        nodes: In the order in which the model runs them.
        precision: What the errors are of.
    """
    places = _places([node.name for node in nodes])
    forward, backward = (
        LogScale.tight(value for node in nodes if (value := getattr(node, way)) is not None)
        for way in ("forward", "backward")
    )
    lines = [_arrow(places[start], places[end]) for start, end in _arrows(list(places))]
    drawn = [_block(node, places[node.name], forward, backward) for node in nodes]
    width = _LANE * (1 + max(lane for lane, _ in places.values())) - 4
    height = _ROW * (1 + max(row for _, row in places.values())) - 14
    title = f"The network in {precision}"
    said = f"{len(nodes)} blocks, each with its relative error forward and backward. Arrow keys go from block to block."
    return drawing((max(width, 300), height), title, said, *lines, *drawn, role="group", class_="network")


def _places(names: Sequence[str]) -> dict[str, tuple[int, int]]:
    """Lane and row of each block: of a MACE edges, atoms and energies from left to right; else one below another."""
    layers = {name: match for name in names if (match := _LAYER.match(name))}
    if not any(name.startswith("interactions.") for name in layers):
        return {name: (0, row) for row, name in enumerate(names)}
    lanes = {"interactions": (1, 1), "products": (1, 2), "readouts": (2, 2)}
    places = {name: place for name, place in _FIRST.items() if name in names}
    for name, match in layers.items():
        lane, row = lanes[match[1]]
        places[name] = (lane, row + 2 * int(match[2]))
    last = max(row for _, row in places.values())
    rest = [name for name in names if name not in places]
    # what energies are summed from: the isolated atoms' and the scaled, side by side, and their sum below
    ends = {"atomic_energies_fn": (1, last + 1), "scale_shift": (2, last + 1), "sums": (2, last + 2)}
    places |= {name: ends[name] for name in rest if name in ends}
    unknown = [name for name in rest if name not in ends]
    return places | {name: (0, 3 + at) for at, name in enumerate(unknown)}


def _arrows(names: Sequence[str]) -> list[tuple[str, str]]:
    """What is handed from block to block in a MACE; elsewhere, where only the order is known, from each to the next."""
    if not any(name.startswith("interactions.") for name in names):
        return list(itertools.pairwise(names))
    known = [("geometry", "spherical_harmonics"), ("geometry", "radial_embedding")]
    energies = "scale_shift" if "scale_shift" in names else "sums"
    for name in names:
        if not (match := _LAYER.match(name)):
            continue
        layer = int(match[2])
        before = f"products.{layer - 1}" if layer else "node_embedding"
        into = {
            "interactions": [(start, name) for start in ("spherical_harmonics", "radial_embedding", before)],
            "products": [(f"interactions.{layer}", name)],
            "readouts": [(f"products.{layer}", name), (name, energies)],
        }
        known += into[match[1]]
    known += [("scale_shift", "sums"), ("atomic_energies_fn", "sums")]
    return [(start, end) for start, end in known if start in names and end in names]


def _arrow(start: tuple[int, int], end: tuple[int, int]) -> Markup:
    """A line from the bottom of one block to the top of the next, or from side to side where lanes change."""
    (x, y), (to_x, to_y) = (_corner(place) for place in (start, end))
    if start[0] == end[0]:
        around = 8 if end[1] - start[1] > 1 else _WIDE / 2  # beside the blocks between, which stand on the line
        return path([(x + around, y + _HIGH), (to_x + around, to_y)], class_="arrow")
    x, y, to_y = x + _WIDE, y + _HIGH / 2, to_y + _HIGH / 2
    bend = (x + to_x) / 2
    curve = f"M{x:.1f} {y:.1f}C{bend:.1f} {y:.1f} {bend:.1f} {to_y:.1f} {to_x:.1f} {to_y:.1f}"
    return element("path", d=curve, class_="arrow")


def _corner(place: tuple[int, int]) -> tuple[float, float]:
    return _LANE * place[0] + 4, _ROW * place[1] + 4


def _block(node: Node, place: tuple[int, int], forward: LogScale, backward: LogScale) -> Markup:
    """A block: its name, two coloured numbers, and a bar for its share of the error of forces."""
    x, y = _corner(place)
    parts = [
        element("rect", x=x, y=y, width=_WIDE, height=_HIGH, rx=7.0, class_="block"),
        text((x + _WIDE / 2, y + 15), shortened(node.name, 21), class_="name"),
        _chip((x + 4, y + 21), "→", node.forward, forward),
        _chip((x + _WIDE - 4 - _CHIP, y + 21), "←", node.backward, backward),
    ]
    if node.share is not None and math.isfinite(node.share):
        length = min(1.0, abs(node.share)) * (_WIDE - 12)
        parts += [
            element("rect", x=x + 6, y=y + _HIGH - 6, width=length, height=4.0, class_="share"),
            text((x + _WIDE / 2, y + _HIGH - 10), f"{round(100 * node.share)} % of forces", class_="small"),
        ]
    about = {"role": "button", "tabindex": "0", "class_": "node", "aria_label": f"{node.name}; {node.said}"}
    return element("g", *parts, data_x=f"{x:g}", data_y=f"{y:g}", **about)


def _chip(at: tuple[float, float], sign: str, value: float | None, scale: LogScale) -> Markup:
    """A number on its colour; nothing where there is none."""
    if value is None:
        return Markup("")
    shade = scale.shade(value)
    fill = "none" if shade is None else CIVIDIS[shade]
    x, y = at
    box = element("rect", x=x, y=y, width=_CHIP, height=17.0, rx=4.0, fill=fill, class_="chip")
    said = f"{sign} {_short(value)}"
    return box + text((x + _CHIP / 2, y + 12.5), said, fill=None if shade is None else ink(shade), class_="number")


def _short(value: float) -> str:
    """An exponent without the zero before it: there is little room."""
    return (entry(value) or "NaN").replace("e-0", "e-").replace("e+0", "e+")
