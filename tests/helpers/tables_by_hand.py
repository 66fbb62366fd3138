"""Every table that explains errors, with numbers that no run made, so that tests know them."""

import numpy as np
import pandas as pd

from precision_probe.trace.tables import StoredTable

PRECISIONS = ("float64", "float16", "float32")  # in no order of size or alphabet


def _range():
    columns = ["precision", "structure", "pass", "kind", "block", "tensor", "where"]
    columns += ["value", "limit", "count", "message"]
    rows = [
        ("float16", "", "weights", "overflow", "atomic_energies_fn", "E", "C", -7e4, 65504.0, 1, "carbon is too heavy"),
        ("float16", "a", "forward", "product", "readouts.0", "output", "O0", 2.0, 65504.0, 3, "a readout overflows"),
        ("float16", "b", "forward", "product", "readouts.0", "output", "O0", 2.0, 65504.0, 3, "a readout overflows"),
    ]
    return pd.DataFrame(rows, columns=columns)


def _by_tensor(**more):
    rows = [
        ("model", "energy", "forward", 1.0),
        ("model", "forces", "backward", 2.0),
        ("readouts.0", "output", "forward", 3.0),
        ("products.0", "output", "forward", 5.0),
        ("products.0", "node_feats", "backward", 4.0),
    ]
    frame = pd.DataFrame(rows, columns=["block", "tensor", "direction", "value"])
    scales = dict(zip(PRECISIONS, (1e-16, 1e-3, 1e-7), strict=True))
    return pd.concat([frame.assign(precision=p, value=scale * frame["value"]) for p, scale in scales.items()])


def _noise():
    return _by_tensor().rename(columns={"value": "spread"}).reset_index(drop=True)


def _equivariance():
    table = _by_tensor().rename(columns={"value": "rel_l2"}).query("tensor != 'node_feats'").drop(columns="direction")
    table["irrep"] = table["block"].map({"model": "", "readouts.0": "0e", "products.0": "1o"})
    rotation = table.assign(motion="rotation", spread=table["rel_l2"] / 5, n_seeds=3)
    inversion = table.assign(motion="inversion", rel_l2=0.0, spread=np.nan, n_seeds=1)
    return pd.concat([rotation, inversion], ignore_index=True)


def _budget():
    sources = [("geometry", ""), ("weights", ""), ("inputs", "products.0"), ("arithmetic", "products.0")]
    sources += [("parts, root of squares", ""), ("all together", ""), ("not explained by the parts", "")]
    rows = [
        {
            "source": source,
            "block": block,
            "forces": 2e-3 * n,
            "forces_mae": u * n * (-1 if n == 7 else 1),
            "precision": p,
        }
        for p, u in (("float16", 1e-3), ("float32", 1e-7))
        for n, (source, block) in enumerate(sources, 1)
    ]
    return pd.DataFrame(rows)


def _sweep():
    rows = [
        (b, n, 0.5 * f, f) for b, k in (("whole model", 4.0), ("a", 1.0)) for n, f in ((23, k / 2**20), (7, k / 16))
    ]
    return pd.DataFrame(rows, columns=["block", "bits", "energy", "forces"])


def _prediction():
    columns = ["precision", "energy_bound", "energy_expected", "forces_expected", "energy", "forces"]
    rows = [("float16", 0.1, 0.02, 0.003, 0.04, 0.005), ("float32", 1e-5, 2e-6, 3e-7, np.nan, 5e-7)]
    return pd.DataFrame(rows, columns=columns)


def _finite_differences():
    columns = ["precision", "difference", "relative", "expected", "step", "energy_noise"]
    rows = [(p, u * 1, u * 2, u * 3, 0.025, u * 4) for p, u in zip(PRECISIONS, (1e-9, 1e-2, 1e-5), strict=True)]
    return pd.DataFrame(rows, columns=columns)


def _displacement():
    """A straight line, and stairs of height 0.2 meV/atom beside it."""
    x = np.linspace(0, 0.01, 101)
    energy = 400 * x
    curves = [("float64", energy), ("float16", np.round(energy / 0.2) * 0.2), ("float32", energy + 1e3 * x**2)]
    return pd.concat(
        [pd.DataFrame({"precision": p, "position": x, "energy": y, "force": -y}) for p, y in curves], ignore_index=True
    )


def _digits():
    rows = [(p, q, d + k, 10.0**-d) for p, d in zip(PRECISIONS, (14.0, 3.0, 6.0), strict=True) for q, k in QUANTITIES]
    return pd.DataFrame(rows, columns=["precision", "quantity", "digits", "spread"])


QUANTITIES = (("energy", 1.25), ("interaction_energy", 0.5), ("forces", 0.0))
TABLES = {
    "range": StoredTable(_range(), "range, by hand"),
    "noise": StoredTable(_noise(), "noise, by hand"),
    "budget": StoredTable(_budget(), "budget, by hand", {"forces": "eV/Å", "forces_mae": "eV/Å"}),
    "sweep": StoredTable(_sweep(), "sweep, by hand", {"energy": "eV/atom", "forces": "eV/Å"}),
    "prediction": StoredTable(_prediction(), "prediction, by hand", {"forces": "eV/Å"}),
    "equivariance": StoredTable(_equivariance(), "equivariance, by hand"),
    "finite_differences": StoredTable(_finite_differences(), "differences, by hand", {"step": "Å"}),
    "displacement": StoredTable(_displacement(), "displacement, by hand", {"position": "Å", "energy": "meV/atom"}),
    "digits": StoredTable(_digits(), "digits, by hand"),
}
