"""What many tests do: a molecule, its data as MACE takes it, a trace of a model, a distance, a conversion."""

import copy
import functools
import inspect
import math
from pathlib import Path

import ase
import numpy as np
import pytest
import torch
import xarray as xr

import precision_probe as pp
from precision_probe.models.dtypes import default_dtype
from precision_probe.models.graphs import Graph, build_graph
from precision_probe.structures import read_structures

ROOT = Path(__file__).parents[2]


def molecule(seed=0):
    """A bent, uneven water molecule, another for each seed."""
    atoms = ase.Atoms("OHH", [(0, 0, 0.1), (0, 0.8, -0.5), (0.1, -0.7, -0.4)])
    atoms.rattle(0.05, seed=seed)
    return atoms


def data_of(atoms, model=None):
    """What MACE is called with for atoms, or for a graph that is there already: a copy, which it may change."""
    if not isinstance(atoms, Graph):
        (structure,) = read_structures(atoms)
        atoms = build_graph(structure, model)
    return {key: value.clone() for key, value in atoms.data.items()}


def trace_of(model, structures, **options):
    """The trace of structures run through a model's variants on the CPU, float32 if nothing else is said."""
    with pp.attach(model, **({"precisions": "float32", "device": "cpu"} | options)) as probe:
        probe.run(structures, progress=False)
    return probe.trace()


def check_same_trace(trace, whole):
    """Compare two traces, number by number and attribute by attribute, but for what is said of a run as a whole."""
    assert trace.tree.groups == whole.tree.groups
    for node in whole.tree.subtree:
        ours, theirs = (each.tree[node.path].to_dataset(inherit=False).load() for each in (trace, whole))
        if node.path == "/":
            ours.attrs, theirs.attrs = {}, {}
        xr.testing.assert_identical(ours, theirs)


def rel_l2(y, y_hat):
    """‖ŷ − y‖₂ / ‖y‖₂ in float64, of arrays or tensors."""
    y, y_hat = (
        np.asarray(x.detach().cpu().double() if torch.is_tensor(x) else x, dtype=np.float64) for x in (y, y_hat)
    )
    return float(np.linalg.norm(y_hat - y) / np.linalg.norm(y))


def convert(model, layout="ir_mul", device="cpu"):
    """A model converted to cuEquivariance by mace-torch itself, which would leave the default dtype changed."""
    pytest.importorskip("cuequivariance_torch")
    from mace.cli.convert_e3nn_cueq import run

    dtype = next(model.parameters()).dtype
    with default_dtype(dtype), torch.random.fork_rng(devices=[]):
        return run(copy.deepcopy(model).to(device), device=device, layout=layout).eval()


def out_of_memory(monkeypatch, model, most_edges):
    """Let the first interaction of a MACE have no memory for more edges than it is told, by precision."""
    kind = type(model.interactions[0])
    forward = kind.forward

    @functools.wraps(forward)
    def limited(self, *args, **kwargs):
        given = inspect.signature(forward).bind(self, *args, **kwargs).arguments  # by name or by place
        precision = str(given["edge_feats"].dtype).removeprefix("torch.")
        if given["edge_index"].shape[1] > most_edges.get(precision, math.inf):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(kind, "forward", limited)
