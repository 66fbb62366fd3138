"""kept_errors.py: a trace that keeps errors says of them what one that keeps the tensors does."""

import ase.build
import numpy as np
import pytest
import torch
import xarray as xr
from runs import data_of, molecule, trace_of

import precision_probe as pp
from precision_probe.exceptions import InputError
from precision_probe.trace.trace import Trace, encoded

PRECISIONS = ["float32", "bfloat16", "float16", "e4m3"]  # the last overflows
MAY_CANCEL = {"bias"}  # of errors that sum to next to nothing


@pytest.fixture(scope="module")
def both(model):
    """The same run of molecules and a crystal, of which the tensors or the errors are kept."""
    cell = ase.build.bulk("C", cubic=True)
    cell.rattle(0.05, seed=1)
    structures = [molecule(), cell]
    return {keep: trace_of(model, structures, precisions=PRECISIONS, keep=keep) for keep in ("tensors", "errors")}


def check_same(ours, theirs, by=None):
    keys = ["precision", "mode", "block", "tensor", "direction", "units", "n", *([by] if by else [])]
    assert ours[keys].equals(theirs[keys])
    assert len(ours) > 20
    scale = theirs["mean_abs"].to_numpy(float)
    for name in theirs.columns.difference(keys):
        x, y = ours[name].to_numpy(float), theirs[name].to_numpy(float)
        atol = 1e-12 * np.where(np.isfinite(scale), scale, 0) if name in MAY_CANCEL else 0
        close = np.isclose(x, y, rtol=1e-11, atol=atol, equal_nan=True)
        assert close.all(), (name, ours[keys][~close], x[~close], y[~close])


@pytest.mark.parametrize("by", [None, "irrep", "element"])
def test_errors_are_those_of_the_tensors(both, by):
    tables = [pp.errors(both[keep], by=by) for keep in ("errors", "tensors")]
    assert not np.isfinite(tables[0]["rel_l2"]).all()
    check_same(*tables, by)


def test_the_models_own_results_are_kept_as_they_are(both):
    ours, theirs = (pp.summary(both[keep]).drop(columns=["time", "time_iqr"]) for keep in ("errors", "tensors"))
    assert ours.equals(theirs)


def test_a_file_of_errors_is_much_smaller_and_says_the_same(both, tmp_path):
    paths = {keep: both[keep].save(tmp_path / f"{keep}.h5") for keep in both}
    assert not any("block" in array.attrs for array in both["errors"].group("propagated", "float32").values())
    with pp.open_trace(paths["errors"]) as trace:
        assert (trace.attributes["keep"], trace.keeps_errors) == ("errors", True)
        check_same(pp.errors(trace), pp.errors(both["tensors"]))


def interrupted(model, structures, **options):
    """A run that ends after some structures."""
    probe = pp.attach(model, **options)
    probe.run(structures, progress=False)
    with pytest.warns(RuntimeWarning, match="did not come to its end"):
        probe.__exit__(KeyboardInterrupt)


def test_a_resumed_run_is_that_of_one_go(model, water, crystal, tmp_path):
    structures = [water, crystal, molecule(seed=1)]
    whole, parts = tmp_path / "whole.h5", tmp_path / "parts.h5"
    options = {"precisions": "float16", "device": "cpu", "keep": "errors"}
    with pp.attach(model, output=whole, **options) as probe:
        probe.run(structures, progress=False)
    interrupted(model, structures[:2], output=parts, **options)
    with pp.attach(model, output=parts, resume=True, **(options | {"keep": None})) as probe:
        probe.run(structures, progress=False)
    with pp.open_trace(whole) as a, pp.open_trace(parts) as b:
        for group in ("structures", "errors/propagated/float16", "errors/isolated/float16"):
            assert a.tree[group].to_dataset().identical(b.tree[group].to_dataset())


def test_a_run_that_kept_tensors_is_not_resumed_as_one_of_errors(model, water, tmp_path):
    options = {"precisions": "float16", "device": "cpu", "output": tmp_path / "a.h5"}
    interrupted(model, [water], **options)
    with pytest.raises(InputError, match="its keep is tensors, and here it is errors"):
        pp.attach(model, resume=True, keep="errors", **options)


def test_errors_of_a_trained_models_loss(mine, water, crystal):
    tables = {}
    for keep in ("tensors", "errors"):
        with pp.attach(mine, precisions="float32", keep=keep) as probe:
            mine.train()
            for atoms in (water, crystal):
                out = mine(data_of(atoms, mine), training=True)
                (out["energy"].sum() + (out["forces"] ** 2).sum()).backward()
            mine.eval()
            mine(data_of(water, mine))  # no loss
        tables[keep] = pp.errors(probe.trace())
    assert {"loss", "propagated", "isolated"} == set(tables["errors"]["mode"])
    check_same(tables["errors"], tables["tensors"])


def test_errors_of_a_module_that_is_no_mace():
    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.Tanh(), torch.nn.Linear(5, 2)).double()
    inputs = [torch.randn(4, 3, dtype=torch.float64), torch.randn(7, 3, dtype=torch.float64)]
    tables = {}
    for keep in ("tensors", "errors"):
        with pp.attach(module, call=lambda m, x: m(x), blocks="*", precisions="bfloat16,float16", keep=keep) as probe:
            probe.run(inputs, progress=False)
        tables[keep] = pp.errors(probe.trace())
    check_same(tables["errors"], tables["tensors"])


def test_another_epsilon_is_refused(both):
    with pytest.raises(InputError, match="no arrays"):
        pp.errors(both["errors"], eps=1e-6)


def test_statistics_that_are_not_known_are_refused(both):
    tree = both["errors"].tree.copy()
    tree.attrs["statistics"] = encoded(["count", "median"])
    with pytest.raises(InputError, match="other statistics"):
        pp.errors(Trace(tree))


def test_arrays_that_were_not_kept_are_named_as_not_compared(both):
    table = pp.compare_traces(both["tensors"], both["errors"])
    assert set(table["block"]) == {"model"}
    assert table["equivalent"].all()
    assert table.attrs["left_out"].keys() == set(both["errors"].blocks)
    assert set(table.attrs["left_out"].values()) == {"B kept errors, no arrays"}


def test_nothing_of_the_blocks_is_kept_if_nobody_wants_it(model, water, tmp_path):
    with pp.attach(model, precisions="float32", keep="none", output=tmp_path / "a.h5") as probe:
        probe.run([water], progress=False)
    with pp.open_trace(tmp_path / "a.h5") as trace:
        assert (trace.modes, trace.attributes["keep"]) == ((), "none")
        assert set(pp.errors(trace)["block"]) == {"model"}
        assert pp.summary(trace).loc["float32", "forces"] > 0
        assert not [name for name in trace.tree.children if name not in ("structures", "propagated")]


def test_the_tree_is_of_xarray(both):
    group = both["errors"].group("errors/propagated", "float32")
    assert isinstance(group, xr.Dataset)
    message = group["interactions.0.message"]
    assert message.dims == ("species", "interactions.0.message.part", "statistic")
    assert message.attrs["parts"].split() == list(dict.fromkeys(message.attrs["parts"].split()))
    count = message.values[..., 0].sum()
    tensor = both["tensors"].group("propagated", "float32")["interactions.0.message"]
    assert count == tensor.size
