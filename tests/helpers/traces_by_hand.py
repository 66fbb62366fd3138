"""A trace written down by hand: two structures, two precisions, one block, with a table."""

import json

import numpy as np
import pandas as pd
import xarray as xr

from precision_probe.trace.tables import StoredTable
from precision_probe.trace.trace import Trace

ATTRIBUTES = {
    "schema_version": 1,
    "precisions": json.dumps(["float64", "float16"]),
    "blocks": json.dumps(["products.0"]),
    "modes": json.dumps(["propagated", "isolated"]),
    "model_name": "by hand",
    "complete": "true",
}
IRREPS = ["0e", "1o", "1o", "1o"]


def variable(dims, values, unit="1", **more):
    """A variable with the attributes that every one has."""
    return xr.Variable(dims, values.copy(), {"units": unit, "long_name": "something", **more})


def structures():
    """A molecule of two atoms and one of one, with three edges."""
    return {
        "name": variable("structure", np.array(["pair", "atom"], object)),
        "n_atoms": variable("structure", np.array([2, 1])),
        "n_edges": variable("structure", np.array([2, 1])),
        "sender": variable("edge", np.array([0, 1, 0], "i4")),
        "receiver": variable("edge", np.array([1, 0, 0], "i4")),
        "image": variable(("edge", "cell_vector"), np.zeros((3, 3), "i2")),
        "atomic_numbers": variable("atom", np.array([1, 8, 6])),
        "positions": variable(("atom", "xyz"), np.arange(9.0).reshape(3, 3), "Å"),
        "cell": variable(("structure", "cell_vector", "xyz"), np.zeros((2, 3, 3)), "Å"),
        "pbc": variable(("structure", "cell_vector"), np.zeros((2, 3), bool)),
        "structure_of_atom": variable("atom", np.array([0, 0, 1])),
    }


def results(dtype, mode):
    """What a precision gave: of the model, where it is propagated, and of its block."""
    about = {"block": "products.0", "native_dtype": dtype}
    width = "f8" if dtype == "float64" else "f4"
    forward = {"tensor": "output", "direction": "forward", "pass": "forward", "irreps": "1x0e+1x1o"}
    backward = {"tensor": "skip", "direction": "backward", "pass": "backward"}
    exact = np.linspace(0.1, 3.1, 12).reshape(3, 4)
    rounded = exact.astype(dtype).astype(width)
    of_block = {
        "products.0.output": variable(("atom", "products.0.feature"), rounded, **about, **forward),
        "products.0.skip.grad": variable(("atom", "products.0.skip.feature"), rounded[:, :2], **about, **backward),
    }
    of_model = {
        "energy": variable("structure", exact[0, :2].astype(dtype).astype(width), "eV", native_dtype=dtype),
        "forces": variable(("atom", "xyz"), rounded[:, :3], "eV/Å", native_dtype=dtype),
        "seconds": variable("structure", np.array([0.1, 0.2]), "s"),
    }
    return xr.Dataset((of_model if mode == "propagated" else {}) | of_block)


def trace_by_hand(**attributes):
    """The trace; attributes of its root may be given, encoded."""
    irreps = variable("products.0.feature", np.array(IRREPS, object))
    groups = {
        "/": xr.Dataset(coords={"products.0.feature": irreps}, attrs=ATTRIBUTES | attributes),
        "/structures": xr.Dataset(structures()),
        **{
            f"/{mode}/{name}": results(name, mode)
            for mode in ("propagated", "isolated")
            for name in ("float64", "float16")
        },
    }
    frame = pd.DataFrame({"precision": ["float64", "float16"], "quantity": ["forces"] * 2, "digits": [14.1, 2.9]})
    return Trace(xr.DataTree.from_dict(groups)).with_tables({"digits": StoredTable(frame, "Digits")})
