"""errors.py: tables of errors against plain computations on the arrays of the file."""

import math
import subprocess
import sys
import textwrap

import ase.build
import h5py
import numpy as np
import pandas as pd
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from runs import trace_of
from traces_by_hand import trace_by_hand

import precision_probe as pp
from precision_probe.analysis import errors as module
from precision_probe.analysis import pairs
from precision_probe.analysis.errors import (
    TOLERANCE_UNITS,
    bits_needed,
    block_errors,
    exceeded,
    parse_tolerances,
    worst_blocks,
)
from precision_probe.analysis.metrics import METRICS
from precision_probe.models.building import build
from precision_probe.precisions import PRECISIONS
from precision_probe.trace.tables import StoredTable
from precision_probe.trace.trace import Trace

NAMES = ("float32", "bfloat16", "float16")
IDENTITY = ["precision", "mode", "block", "tensor", "direction", "units", "n"]
nan, inf = math.nan, math.inf


def diamond():
    atoms = ase.build.bulk("C")
    atoms.rattle(0.05, seed=1)
    return atoms


@pytest.fixture(scope="module")
def trace(model):
    """Of all blocks but one, whose gradients are zero, or beyond float16: a relative error of these needs no array."""
    structures = [ase.build.molecule("CH3OH"), diamond()]
    return trace_of(model, structures, precisions=NAMES, blocks="!atomic_energies_fn")


@pytest.fixture(scope="module")
def path(trace, tmp_path_factory):
    return trace.save(tmp_path_factory.mktemp("trace") / "trace.h5")


@pytest.fixture(scope="module")
def table(path):
    with pp.open_trace(path) as opened:
        return pp.errors(opened)


def doctored(trace, **replaced):
    """The trace with other groups; double underscores stand for slashes."""
    groups = {node.path: node.to_dataset(inherit=False) for node in trace.tree.subtree}
    return Trace(xr.DataTree.from_dict(groups | {f"/{name.replace('__', '/')}": d for name, d in replaced.items()}))


def with_nan(trace, precision, variable, count, value=nan):
    group = trace.tree[f"propagated/{precision}"].to_dataset(inherit=False).copy(deep=True)
    group[variable].values.flat[:count] = value
    return doctored(trace, **{f"propagated__{precision}": group})


class File:
    """The arrays of a trace, read by h5py alone."""

    def __init__(self, path):
        with h5py.File(path) as file:
            self.arrays = {}
            file.visititems(lambda name, item: self.arrays.update({name: item[()]}) if hasattr(item, "shape") else None)
            self.names = {name for name, item in file["isolated/float64"].items() if "block" in item.attrs}
        self.n_atoms = self.arrays["structures/n_atoms"]
        self.periodic = self.arrays["structures/pbc"].all(axis=1)

    def of(self, row, precision):
        """The array that a row of the table is about, in the row's units."""
        if row["block"] == "model":
            values = self.arrays[f"propagated/{precision}/{row['tensor']}"].astype(np.float64)
            if row["units"] == "eV/atom":
                return values / self.n_atoms
            return values[self.periodic] if row["tensor"] == "stress" else values
        suffix = ".grad" if row["direction"] == "backward" else ""
        return self.arrays[f"{row['mode']}/{precision}/{row['block']}.{row['tensor']}{suffix}"]


@pytest.fixture(scope="module")
def file(path):
    return File(path)


def by_definition(y, y_hat, unit_roundoff, eps=1e-12):
    y, y_hat = y.astype(np.longdouble).ravel(), y_hat.astype(np.longdouble).ravel()
    delta = y_hat - y
    relative = np.linalg.norm(delta) / np.linalg.norm(y)
    return {
        "max_abs": np.abs(delta).max(),
        "mean_rel": (np.abs(delta) / (np.abs(y) + eps)).mean(),
        "mean_abs": np.abs(delta).mean(),
        "rms": np.sqrt((delta**2).mean()),
        "bias": delta.mean(),
        "rel_l2": relative,
        "amplification": relative / unit_roundoff,
        "sqnr_db": -20 * np.log10(relative),
        "cosine": (y @ y_hat) / np.linalg.norm(y) / np.linalg.norm(y_hat),
        "nonfinite": (~np.isfinite(y_hat)).sum(),
        "flushed": ((y != 0) & (y_hat == 0)).sum(),
    }


# errors


def test_one_row_for_each_array(table, file, trace):
    assert table.columns.tolist() == [*IDENTITY, *METRICS, "floor", "noise", "resolved"]
    arrays = {
        name.removesuffix(".grad") + (" backward" if name.endswith(".grad") else " forward") for name in file.names
    }
    assert len(arrays) > 20
    blocks = table[table["block"] != "model"]
    for (precision, mode), rows in blocks.groupby(["precision", "mode"]):
        assert precision in NAMES
        assert mode in ("propagated", "isolated")
        names = (rows["block"] + "." + rows["tensor"] + " " + rows["direction"]).tolist()
        assert sorted(names) == sorted(arrays)
    assert blocks.groupby(["precision", "mode"]).ngroups == 6
    assert list(dict.fromkeys(blocks["block"])) == list(trace.blocks)
    model = table[table["block"] == "model"]
    assert set(model["mode"]) == {"propagated"}
    assert model["tensor"].tolist() == ["energy", "interaction_energy", "forces", "stress"] * 3


def test_every_row_is_its_arrays_compared(table, file):
    for row in table.to_dict("records"):
        y, y_hat = file.of(row, "float64"), file.of(row, row["precision"])
        assert row["n"] == y.size > 0
        expected = pp.compare(y, y_hat, PRECISIONS[row["precision"]])
        assert {name: row[name] for name in METRICS} == expected


def test_every_row_follows_from_the_definitions(table, file):
    for row in table.to_dict("records"):
        y, y_hat = file.of(row, "float64"), file.of(row, row["precision"])
        expected = by_definition(y, y_hat, PRECISIONS[row["precision"]].unit_roundoff)
        for name, value in expected.items():
            near = pytest.approx(float(value), rel=1e-6, abs=1e-9 * row["max_abs"])
            assert row[name] == near, (row["precision"], row["block"], row["tensor"], name)


@pytest.mark.parametrize(("name", "dtype"), [("float16", np.float16), ("float32", np.float32)])
def test_the_floor_is_the_error_of_casting_the_reference(table, file, name, dtype):
    rows = table[table["precision"] == name].to_dict("records")
    assert len(rows) > 50
    for row in rows:
        y = file.of(row, "float64")
        expected = np.linalg.norm(y.astype(dtype).astype(np.float64) - y) / np.linalg.norm(y)
        assert row["floor"] == pytest.approx(expected, rel=1e-9, abs=1e-300), (row["block"], row["tensor"])


def test_results_of_the_model_are_no_better_than_their_floor(table):
    stored = table[table["block"] == "model"].query("tensor in ['forces', 'stress']")
    assert (stored["rel_l2"] >= stored["floor"] * (1 - 1e-12)).all()
    assert (stored["floor"] > 0).all()


# noise


def with_noise(trace, factors):
    """The trace with a table of noise: these factors times the errors themselves; block gradients in it as well."""
    errors = pp.errors(trace).set_index(["mode", "precision", "block", "tensor", "direction"])["rel_l2"]["propagated"]
    rows = [(*key, factor * errors[key]) for key, factor in factors.items()]
    frame = pd.DataFrame(rows, columns=["precision", "block", "tensor", "direction", "spread"])
    return trace.with_tables({"noise": StoredTable(frame, "made by hand")})


NOISE = {
    ("float16", "model", "forces", "backward"): 0.5,
    ("float32", "model", "forces", "backward"): 2.0,
    ("float32", "products.1", "output", "forward"): 3.0,
    ("float32", "products.1", "node_feats", "backward"): 1.0,
    ("float32", "readouts.0", "output", "forward"): nan,  # its norm is zero
}


def test_noise_is_that_of_the_table_and_errors_below_it_are_not_resolved(trace, table):
    keys = ["precision", "block", "tensor", "direction"]
    noisy = pp.errors(with_noise(trace, NOISE))
    pd.testing.assert_frame_equal(noisy.drop(columns=["noise", "resolved"]), table.drop(columns=["noise", "resolved"]))
    for row, before in zip(noisy.to_dict("records"), table["resolved"], strict=True):
        factor = NOISE.get(tuple(row[key] for key in keys), nan) if row["mode"] == "propagated" else nan
        assert row["noise"] == pytest.approx(factor * row["rel_l2"], nan_ok=True)
        assert row["resolved"] == (before and not factor > 1), row
    assert (~noisy["resolved"] & table["resolved"]).sum() == 2


def test_a_block_below_the_noise_is_not_the_worst(trace):
    worst = worst_blocks(pp.errors(trace).query("mode == 'propagated'"))["float32"]
    rows = pp.errors(trace).query(f"precision == 'float32' and direction == 'forward' and block == '{worst}'")
    noise = {("float32", worst, tensor, "forward"): 1.5 for tensor in rows["tensor"]}
    noisy = pp.errors(with_noise(trace, noise)).query("mode == 'propagated'")
    assert worst_blocks(noisy)["float32"] != worst


def test_noise_and_floor_of_resolved_parts(trace):
    parts = pp.errors(with_noise(trace, NOISE), by="element")
    assert parts["noise"].isna().all()
    assert np.isfinite(parts["floor"]).all()


def test_without_a_table_nothing_is_known_of_noise(table):
    assert table["noise"].isna().all()


def test_units(table):
    units = {
        (row["block"], row["tensor"]): row["units"] for row in table.to_dict("records") if row["mode"] == "isolated"
    }
    assert units["radial_embedding", "edge_lengths"] == "1/Å"
    assert units["products.0", "output"] == "1"
    model = table[table["block"] == "model"].set_index("tensor")["units"].to_dict()
    assert model == {"energy": "eV/atom", "interaction_energy": "eV/atom", "forces": "eV/Å", "stress": "eV/Å³"}
    propagated = table[
        (table["mode"] == "propagated") & (table["direction"] == "backward") & (table["block"] != "model")
    ]
    assert set(propagated["units"]) == {"eV", "eV/Å"}


def test_eps_changes_mean_rel_alone(trace, table):
    other = pp.errors(trace, eps=1.0)
    assert (other["mean_rel"] < table["mean_rel"]).any()
    same = [name for name in table.columns if name != "mean_rel"]
    pd.testing.assert_frame_equal(other[same], table[same], check_dtype=False)


def test_a_variant_that_equals_the_reference_has_no_error(trace):
    reference = {mode: trace.tree[f"{mode}/float64"].to_dataset(inherit=False) for mode in trace.modes}
    same = doctored(trace, **{f"{mode}__{name}": data for mode, data in reference.items() for name in NAMES})
    table = pp.errors(same)
    assert len(table) > 150
    zero = [
        "max_abs",
        "mean_rel",
        "mean_abs",
        "rms",
        "bias",
        "rel_l2",
        "amplification",
        "ulp_max",
        "nonfinite",
        "flushed",
    ]
    assert not table[zero].to_numpy().any()
    assert (table["cosine"] == 1).all()
    assert (table["sqnr_db"] == inf).all()
    summary = pp.summary(same)
    assert not summary.drop(columns=["time"]).to_numpy().any()
    assert (summary["time"] == 1).all()


def test_resolved_is_false_where_the_exact_gradient_is_zero(table, file):
    """The squares of normalised spherical harmonics have a constant sum, so their gradient is rounding noise."""
    noise = table[~table["resolved"]]
    assert set(map(tuple, noise[["mode", "block", "tensor", "direction"]].to_numpy())) == {
        ("isolated", "spherical_harmonics", "vectors", "backward")
    }
    assert set(noise["precision"]) == set(NAMES)
    squares = (file.arrays["isolated/float64/spherical_harmonics.edge_attrs"] ** 2).sum(axis=1)
    np.testing.assert_allclose(squares, squares[0], rtol=1e-14)
    assert np.abs(file.arrays["isolated/float64/spherical_harmonics.vectors.grad"]).max() < 1e-12


@pytest.mark.parametrize("modes", ["propagated", "isolated"])
def test_one_mode_alone(model, modes):
    trace = trace_of(model, ase.build.molecule("H2O"), modes=modes)
    table = pp.errors(trace)
    assert set(table.loc[table["block"] == "model", "mode"]) == {"propagated"}
    assert set(table.loc[table["block"] != "model", "mode"]) == {modes}
    assert set(worst_blocks(table)) == {"float32"}
    assert pp.summary(trace).loc["float32", "forces"] > 0


# summary


def test_summary_by_hand(path, file):
    with pp.open_trace(path) as opened:
        summary = pp.summary(opened)
    assert summary.index.tolist() == ["float64", *NAMES]
    arrays = file.arrays
    for name, row in summary.iterrows():
        ours = {key.rsplit("/", 1)[1]: v for key, v in arrays.items() if key.startswith(f"propagated/{name}/")}
        exact = {key.rsplit("/", 1)[1]: v for key, v in arrays.items() if key.startswith("propagated/float64/")}
        difference = {key: ours[key].astype(np.float64) - exact[key] for key in ("energy", "forces", "stress")}
        assert row["energy"] == pytest.approx(np.max(np.abs(difference["energy"]) / file.n_atoms), rel=1e-6)
        assert row["forces"] == np.abs(difference["forces"]).max()
        assert row["forces_mae"] == pytest.approx(np.abs(difference["forces"]).mean())
        assert row["stress"] == np.abs(difference["stress"][file.periodic]).max()
        assert row["nonfinite"] == 0
        ratio = ours["seconds"] / exact["seconds"]
        assert row["time"] == pytest.approx(np.median(ratio))
        assert row["time_iqr"] == pytest.approx(abs(ratio[1] - ratio[0]) / 2)
    assert (summary.loc[list(NAMES), ["energy", "interaction_energy", "forces", "stress"]] > 0).all(axis=None)


def test_summary_has_no_stress_without_a_periodic_structure(model):
    assert "stress" not in pp.summary(trace_of(model, ase.build.molecule("H2O"), blocks="readouts.1"))


# What is not finite


@pytest.mark.parametrize("value", [nan, inf])
def test_a_variant_that_is_not_finite_is_counted(trace, value):
    broken = with_nan(trace, "float16", "forces", 5, value)
    summary = pp.summary(broken)
    assert summary["nonfinite"].to_dict() == {"float64": 0, "float32": 0, "bfloat16": 0, "float16": 5}
    assert not np.isfinite(summary.loc["float16", "forces"])
    assert math.isnan(summary.loc["float16", "forces"]) == math.isnan(value)
    row = pp.errors(broken).query("precision == 'float16' and tensor == 'forces'").iloc[0]
    assert (row["nonfinite"], row["resolved"]) == (5, True)
    assert not np.isfinite(row["max_abs"])
    assert set(exceeded(summary, {"forces": 1e30})["precision"]) == {"float16"}


@pytest.mark.parametrize("formula", ["H2O", "CH4"])
def test_an_isolated_atom_energy_beyond_float16_is_a_result(config, formula):
    """In float16 it is infinite, and 0 × ∞ makes the energy of every atom NaN, its element present or not."""
    model = build(config | {"atomic_energies": [-13.6, -1029.5, -70000.0]}, seed=3)
    trace = trace_of(model, ase.build.molecule(formula), precisions="float32,float16")
    summary = pp.summary(trace)
    assert math.isnan(summary.loc["float16", "energy"])
    assert np.isfinite(summary.loc["float16", ["interaction_energy", "forces"]].astype(float)).all()
    assert summary["nonfinite"].tolist() == [0, 0, 1]
    energy = pp.errors(trace).query("precision == 'float16' and tensor == 'energy'").iloc[0]
    assert math.isnan(energy["rel_l2"])
    assert energy["nonfinite"] == 1


# Tolerances

limits = st.dictionaries(
    st.sampled_from(sorted(TOLERANCE_UNITS)), st.floats(min_value=0, exclude_min=True, allow_infinity=False), min_size=1
)


@settings(deadline=None)
@given(limits, st.sampled_from([",", ", ", " , "]), st.sampled_from(["=", " = "]))
def test_parse_tolerances_reads_back_what_was_written(tolerance, comma, equals):
    text = comma.join(f"{name}{equals}{value!r}" for name, value in tolerance.items())
    assert parse_tolerances(text) == tolerance


BAD_TOLERANCES = ["", "forces", "forces=", "forces=x", "forces=0", "forces=-1", "forces=nan", "force=1", "Forces=1"]
BAD_TOLERANCES += ["=1", "1e-3", "forces==1", "forces=1,", "forces=1;energy=2", "forces=1 energy=1"]


@pytest.mark.parametrize("text", BAD_TOLERANCES)
def test_parse_tolerances_refuses(text):
    with pytest.raises(pp.InputError, match="forces"):
        parse_tolerances(text)


errors_or_nan = st.floats(min_value=0) | st.just(nan)


@settings(deadline=None)
@given(st.dictionaries(st.sampled_from(NAMES), st.tuples(errors_or_nan, errors_or_nan), min_size=1), limits)
def test_exceeded_lists_each_error_above_its_limit_and_each_nan(errors, tolerance):
    table = pd.DataFrame.from_dict(errors, orient="index", columns=["energy", "forces"])
    over = exceeded(table, tolerance)
    assert over.columns.tolist() == ["precision", "quantity", "error", "tolerance", "unit"]
    expected = {
        (precision, quantity)
        for precision, values in errors.items()
        for quantity, error in zip(("energy", "forces"), values, strict=True)
        if quantity in tolerance and (math.isnan(error) or error > tolerance[quantity])
    }
    assert set(zip(over["precision"], over["quantity"], strict=True)) == expected
    assert len(over) == len(expected)
    for row in over.to_dict("records"):
        assert row["tolerance"] == tolerance[row["quantity"]]
        assert row["unit"] == TOLERANCE_UNITS[row["quantity"]]


@settings(deadline=None)
@given(st.floats(min_value=1e-300, max_value=1e300), st.floats(min_value=1, max_value=1e5))
def test_exceeded_judges_the_limit_itself_as_within(error, factor):
    table = pd.DataFrame({"forces": [error]}, index=["float16"])
    assert exceeded(table, {"forces": error * factor}).empty
    assert len(exceeded(table, {"forces": math.nextafter(error, 0)})) == 1


# Blocks


def errors_table(*rows):
    """A table of errors with what block_errors and worst_blocks look at; every metric is rel_l2."""
    columns = ["precision", "mode", "block", "tensor", "direction", "rel_l2", "resolved"]
    table = pd.DataFrame(rows, columns=columns)
    return table.assign(units="1", n=1, **dict.fromkeys(METRICS, table["rel_l2"]))


TABLE = errors_table(
    ("float16", "propagated", "model", "forces", "backward", 9.0, True),
    ("float16", "propagated", "b", "x", "forward", 0.1, True),
    ("float16", "propagated", "b", "y", "forward", 0.3, True),
    ("float16", "propagated", "b", "v", "backward", 0.2, True),
    ("float16", "propagated", "a", "x", "forward", 0.7, True),
    ("float16", "isolated", "b", "x", "forward", 0.5, True),
    ("float16", "isolated", "b", "y", "forward", 0.4, True),
    ("float16", "isolated", "b", "v", "backward", 8.0, False),
    ("float16", "isolated", "a", "x", "forward", 6.0, False),
    ("float16", "isolated", "a", "y", "forward", 0.2, True),
    ("bfloat16", "propagated", "b", "x", "forward", 0.9, True),
    ("bfloat16", "isolated", "b", "x", "forward", 0.9, True),
    ("bfloat16", "isolated", "a", "x", "forward", 0.8, True),
    ("bfloat16", "isolated", "a", "y", "forward", nan, True),
)


def test_block_errors_take_the_tensor_with_the_largest_error():
    widest = block_errors(TABLE)
    assert widest.index.names == ["precision", "block", "direction"]
    assert widest.index.tolist() == [
        ("float16", "b", "forward"),
        ("float16", "b", "backward"),
        ("float16", "a", "forward"),
        ("bfloat16", "b", "forward"),
        ("bfloat16", "a", "forward"),
    ]
    assert widest["tensor", "propagated"].tolist()[:4] == ["y", "v", "x", "x"]
    assert widest["tensor", "isolated"].tolist() == ["x", "v", "y", "x", "y"]
    assert widest["rel_l2", "isolated"].tolist()[:4] == [0.5, 8.0, 0.2, 0.9]
    assert math.isnan(widest["rel_l2", "isolated"].iloc[4])
    assert widest["resolved", "isolated"].tolist() == [True, False, True, True, True]


def test_worst_blocks_go_by_their_own_forward_error():
    assert worst_blocks(TABLE) == {"float16": "b", "bfloat16": "a"}
    assert worst_blocks(TABLE[TABLE["mode"] == "propagated"]) == {"float16": "a", "bfloat16": "b"}


# Bits


def test_bits_needed_are_the_fewest_within_the_tolerance_and_above():
    rows = [("a", 4, 0.5), ("a", 8, 0.01), ("a", 12, 0.2), ("a", 16, 0.001), ("b", 4, 1.0), ("b", 16, 0.9)]
    table = pd.DataFrame(rows, columns=["block", "bits", "forces"])
    bits = bits_needed(table, 0.05)
    assert bits["a"] == 16  # 8 was luck: 12 is not enough
    assert pd.isna(bits["b"])


def test_bits_that_hold_on_what_was_searched_must_hold_on_what_was_held_out():
    """Eight bits do for those searched on, of those held out one needs ten; an overflow there is not within either."""
    table = pd.DataFrame({"block": "a", "bits": [12, 10, 8, 6], "forces": [0.01, 0.02, 0.04, 0.08]})
    table = table.assign(energy=table["forces"], held_out_forces=[0.01, 0.03, 0.06, 0.09])
    assert bits_needed(table, 0.05)["a"] == 10
    assert bits_needed(table, 0.05, searched_only=True)["a"] == 8
    assert bits_needed(table, 0.05, "energy")["a"] == 8  # of which nothing was held out
    assert bits_needed(table.assign(held_out_forces=[0.01, nan, 0.02, 0.02]), 0.05)["a"] == 12
    assert bits_needed(table.assign(held_out_forces=1.0), 0.05).isna()["a"]


# On a machine that has neither torch nor mace


def test_a_trace_is_read_without_torch_mace_and_e3nn(model, tmp_path):
    trace = trace_of(model, [ase.build.molecule("CH3OH"), diamond()], precisions="float16", blocks="readouts.1")
    n_rows = len(pp.errors(trace))
    code = """
        import sys

        refused = {"torch", "mace", "e3nn", "ase"}

        class Refuse:
            def find_spec(self, name, path=None, target=None):
                if name.partition(".")[0] in refused:
                    raise ImportError(f"{name} is not installed here")

        sys.meta_path.insert(0, Refuse())
        import precision_probe as pp

        try:
            pp.attach
            raise AssertionError("torch was found")
        except ImportError as error:
            assert "is not installed here" in str(error)

        with pp.open_trace(sys.argv[1]) as trace:
            assert "ScaleShiftMACE" in repr(trace)
            assert list(pp.summary(trace).index) == ["float64", "float16"]
            assert pp.compare_traces(trace, trace)["equivalent"].all()
            refused.remove("ase")  # which has the units and elements of physical errors
            assert list(pp.by_structure(trace)["structure"]) == 2 * ["CH4O", "C2", "all"]
            print(len(pp.errors(trace)))
        assert not {"torch", "mace", "e3nn"} & set(sys.modules)
        refused.add("ase")
        from precision_probe.cli.main import app

        app(["errors", sys.argv[1], "--format", "csv"])
    """
    command = [sys.executable, "-c", textwrap.dedent(code), str(trace.save(tmp_path / "trace.h5"))]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == str(n_rows)
    assert len(lines) == n_rows + 2


def test_tables_do_not_depend_on_the_number_of_threads(monkeypatch):
    monkeypatch.setattr(pairs, "_BLOCK", 8)
    trace = trace_by_hand()
    tables = []
    for n_threads in (1, 4):
        monkeypatch.setattr(module, "MOST_BLOCKS", n_threads)
        with np.errstate(all="raise"):  # which is that of the thread that asks
            tables.append(pp.errors(trace))
    assert tables[0].equals(tables[1])
