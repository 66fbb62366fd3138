"""What a page says, read by Python's own parser; and traces that pages are made of."""

from html.parser import HTMLParser

import numpy as np
import pandas as pd
import xarray as xr
from tables_by_hand import TABLES
from traces_by_hand import ATTRIBUTES, results, trace_by_hand, variable

from precision_probe.trace.tables import StoredTable
from precision_probe.trace.trace import Trace

_VOID = ("meta", "link", "input")


# Of the trace by hand's block and what stands around it: energies mostly of the sums, forces of the geometry.
_SHARES = {"geometry": (0.0, 0.9), "products.0": (0.25, 0.2), "sums": (0.75, 0.0), "the rest": (0.0, -0.1)}
CONTRIBUTIONS = StoredTable(
    pd.DataFrame(
        [
            {"precision": "float16", "part": part, "energy": e, "forces": f, "energy_share": e, "forces_share": f}
            for part, (e, f) in _SHARES.items()
        ]
    ),
    "contributions, by hand",
)


class Element:
    """An element: its tag, its attributes, what is in it."""

    def __init__(self, tag, attributes):
        self.tag, self.attributes, self.children = tag, attributes, []

    @property
    def text(self):
        return "".join(child if isinstance(child, str) else child.text for child in self.children)

    def all(self, tag=None):
        """All elements within, or those of a tag."""
        for child in self.children:
            if isinstance(child, Element):
                if tag in (None, child.tag):
                    yield child
                yield from child.all(tag)

    def by_id(self, name):
        return next((each for each in self.all() if each.attributes.get("id") == name), None)


class _Parser(HTMLParser):
    def __init__(self):
        super().__init__()
        self.open = [Element("page", {})]

    def handle_starttag(self, tag, attrs):
        element = Element(tag, dict(attrs))
        self.open[-1].children.append(element)
        if tag not in _VOID:
            self.open.append(element)

    def handle_endtag(self, tag):
        assert self.open.pop().tag == tag

    def handle_data(self, data):
        self.open[-1].children.append(data)


def parsed(page):
    """A page, each of whose elements is closed."""
    parser = _Parser()
    parser.feed(page)
    parser.close()
    (page,) = parser.open
    return page


def table(page, title):
    """The table of a title: {row: {column: number, or text}}."""
    (found,) = (each for each in page.all("table") if next(each.all("caption")).text == title)
    head, *rows = found.all("tr")
    columns = [cell.text for cell in head.children if isinstance(cell, Element)][1:]
    return {next(row.all("th")).text: dict(zip(columns, map(_cell, row.all("td")), strict=True)) for row in rows}


def _cell(cell):
    numbers = list(cell.all("data"))
    return float(numbers[0].attributes["value"]) if numbers else cell.text


def with_nan():
    """The trace by hand with an overflow in float16: the forces, and the block that makes them."""
    trace = trace_by_hand()
    for name in ("forces", "products.0.output"):
        trace.tree[f"propagated/float16/{name}"].values[0, 0] = np.nan
    return trace


def of_two():
    """The trace by hand in float32 and float16, in this order, and every table."""
    trace = trace_by_hand(precisions='["float64", "float32", "float16"]')
    for mode in ("propagated", "isolated"):
        trace.tree[f"{mode}/float32"] = xr.DataTree(results("float32", mode))
    parts = CONTRIBUTIONS.frame
    both = StoredTable(pd.concat([parts, parts.assign(precision="float32")]), "contributions, by hand")
    return trace.with_tables(TABLES | {"contributions": both})


def of_many(n):
    """A trace of so many molecules of three atoms, without blocks, whose force errors are 1, 2, 3, … meV/Å."""
    atoms = {
        "atomic_numbers": variable("atom", np.tile([8, 1, 1], n)),
        "structure_of_atom": variable("atom", np.repeat(np.arange(n), 3)),
        "positions": variable(("atom", "xyz"), np.random.default_rng(0).normal(size=(3 * n, 3)), "Å"),
    }
    structures = {
        "name": variable("structure", np.array([f"molecule {at}" for at in range(n)], object)),
        "n_atoms": variable("structure", np.full(n, 3)),
        "pbc": variable(("structure", "cell_vector"), np.zeros((n, 3), bool)),
    }

    def results(size):
        forces = np.ones((3 * n, 3))
        forces[::3, 0] += size * np.arange(1, n + 1)
        return xr.Dataset(
            {
                "energy": variable("structure", np.full(n, -10.0), "eV"),
                "forces": variable(("atom", "xyz"), forces, "eV/Å"),
                "seconds": variable("structure", np.full(n, np.nan), "s"),
            }
        )

    groups = {
        "/": xr.Dataset(attrs=ATTRIBUTES | {"blocks": "[]", "modes": "[]"}),
        "/structures": xr.Dataset(structures | atoms),
        "/propagated/float64": results(0.0),
        "/propagated/float16": results(1e-3),
    }
    return Trace(xr.DataTree.from_dict(groups))
