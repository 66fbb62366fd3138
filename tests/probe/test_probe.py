"""probe.py: attach() and what it records, from structures given to it and from the calls of the attached model."""

import random
from functools import partial

import ase
import ase.build
import numpy as np
import pytest
import torch
import xarray as xr
from mace.calculators import MACECalculator
from runs import data_of, molecule, trace_of

import precision_probe as pp
from precision_probe.exceptions import InputError
from precision_probe.models.attributes import weights_sha256
from precision_probe.models.building import build
from precision_probe.models.dtypes import default_dtype
from precision_probe.probe.observing import observer
from precision_probe.probe.probe import attach
from precision_probe.variants import captured_run
from precision_probe.variants.variant import Variant

FLOAT16 = {"precisions": "float16", "device": "cpu"}
HEADLINE = FLOAT16 | {"modes": "propagated", "gradients": False}
READOUTS = {"precisions": "float32", "device": "cpu", "blocks": "readouts.*", "modes": "isolated"}
BLOCKS = ["node_embedding", "radial_embedding", "spherical_harmonics", "interactions.0", "products.0"]
BLOCKS += ["interactions.1", "products.1", "readouts.0", "readouts.1", "scale_shift", "atomic_energies_fn"]


def solid():
    atoms = ase.build.bulk("C")
    atoms.rattle(0.05, seed=2)
    return atoms


half_trace = partial(trace_of, precisions="float16")


def arrays(trace):
    """Every array of a trace but the times, by path."""
    nodes = {node.path: node.to_dataset(inherit=False) for node in trace.tree.subtree}
    found = {f"{path}/{name}": variable for path, node in nodes.items() for name, variable in node.data_vars.items()}
    return {path: variable for path, variable in found.items() if not path.endswith("/seconds")}


def assert_same(left, right, besides=()):
    assert left.keys() == right.keys()
    for name in left.keys() - set(besides):
        np.testing.assert_array_equal(left[name].values, right[name].values, err_msg=name)


def n_hooks(model):
    eager = [module for module in model.modules() if not isinstance(module, torch.jit.ScriptModule)]
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) + len(m._backward_hooks) for m in eager)


@pytest.fixture(scope="module")
def recorded(model):
    """A molecule, a solid and a lone atom in two precisions."""
    return trace_of(model, [molecule(), solid(), ase.Atoms("C")], precisions="float32,float16")


# what can be attached


def test_module_and_path_give_the_same(mine, model_file, recorded):
    for source, name in ((mine, "ScaleShiftMACE"), (model_file, "small"), (str(model_file), "small")):
        trace = trace_of(source, solid(), **HEADLINE)
        assert trace.attributes["model_name"] == name
        assert trace.attributes["model_sha256"] == weights_sha256(mine)
        forces = recorded.group("propagated", "float16")["forces"][3:5]
        np.testing.assert_array_equal(trace.group("propagated", "float16")["forces"], forces)


def test_demo():
    trace = trace_of("demo", molecule(), **HEADLINE)
    assert trace.attributes["model_name"] == "demo"
    assert trace.group("propagated", "float16")["forces"].shape == (3, 3)


def test_default_precisions(mine):
    with attach(mine, device="cpu") as probe:
        assert probe.precision_names == "float64, float32, bfloat16, float16"


def test_heads_are_chosen_by_name(config, water):
    energies = [[-13.6, -1029.5, -2042.0], [-10.0, -20.0, -30.0]]
    model = build(
        config
        | {
            "heads": ["dft", "cc"],
            "atomic_energies": energies,
            "atomic_inter_scale": [0.8, 0.9],
            "atomic_inter_shift": [0.1, 0.2],
        }
    )
    found = {}
    for head in ("dft", "cc", None):
        with attach(model, **READOUTS, head=head) as probe:
            probe.run(water, progress=False)
        found[head] = probe.trace().group("propagated", "float64")
        assert probe.trace().attributes["head"] == (head or "cc")
    for head, (hydrogen, _, oxygen) in zip(("dft", "cc"), energies, strict=True):
        isolated = found[head]["energy"].values - found[head]["interaction_energy"].values
        np.testing.assert_allclose(isolated, 2 * hydrogen + oxygen, rtol=1e-12)
    np.testing.assert_array_equal(found[None]["energy"], found["cc"]["energy"])
    assert any("cc" in note for note in probe.notes)
    with pytest.raises(InputError, match=r"no head 'mp'.*dft, cc"):
        attach(model, **READOUTS, head="mp")


BAD = [{"precisions": "float17"}, {"precisions": []}, {"precisions": "tf32"}, {"modes": "emulated"}, {"modes": []}]
BAD += [{"every": 0}, {"blocks": "interactions.9"}, {"device": "tpu9"}, {"device": "cuda"}]
BAD += [{"device": "tpu9", "precisions": None}, *({"gradients": each} for each in ("both", "", "none", None, 2))]


@pytest.mark.parametrize("options", BAD, ids=str)
def test_bad_options_leave_no_hook(mine, monkeypatch, options):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError):
        attach(mine, **FLOAT16 | options)
    assert n_hooks(mine) == 0


# what is recorded


def test_several_structures_as_one_at_a_time(model, recorded):
    structures = molecule(), solid(), ase.Atoms("C")
    singles = [arrays(trace_of(model, atoms, precisions="float32,float16")) for atoms in structures]
    for name, variable in arrays(recorded).items():
        parts = [single[name].values for single in singles if name in single]
        if name.endswith("structure_of_atom"):
            parts = [part + index for index, part in enumerate(parts)]
        if name.endswith("/stress"):  # which only the solid has
            assert len(parts) == 1
            parts = [np.full((1, 3, 3), np.nan), *parts, np.full((1, 3, 3), np.nan)]
        np.testing.assert_array_equal(variable.values, np.concatenate(parts), err_msg=name)


def test_groups_and_provenance(model, recorded):
    names = {f"/{mode}/{name}" for mode in recorded.modes for name in ("float64", "float32", "float16")}
    assert set(recorded.tree.groups) == {"/", "/structures", "/propagated", "/isolated", *names}
    attributes = recorded.attributes
    assert attributes["precisions"] == ["float64", "float32", "float16"]
    assert attributes["modes"] == ["propagated", "isolated"]
    assert attributes["blocks"] == BLOCKS
    assert attributes["gradients"] == "per_block"
    assert attributes["model_sha256"] == weights_sha256(model)
    assert attributes["model_dtype"] == "float64"


def test_shapes_and_dimensions(recorded):
    sizes = {"structure": 3, "atom": 6, "edge": int(recorded.structures["n_edges"].sum())}
    assert recorded.structures["n_atoms"].values.tolist() == [3, 2, 1]
    seen = set()
    for path, variable in arrays(recorded).items():
        about = variable.attrs
        assert variable.shape[0] == sizes[variable.dims[0]], path
        assert about["units"], path
        assert about["long_name"], path
        if "block" in about:
            _, mode, precision, name = path.split("/")
            suffix = ".grad" if about["direction"] == "backward" else ""
            assert about["pass"] == about["direction"]
            assert name == f"{about['block']}.{about['tensor']}{suffix}"
            assert all(dim.startswith(f"{about['block']}.") for dim in variable.dims[1:]), path
            assert variable.dims[0] == ("edge" if about["tensor"].startswith(("edge", "vectors")) else "atom"), path
            assert about["native_dtype"] == precision
            assert variable.dtype == ("float64" if precision == "float64" else "float32")
            seen.add((mode, about["block"]))
    assert seen == {(mode, block) for mode in ("propagated", "isolated") for block in BLOCKS}
    message = recorded.group("propagated", "float16")["interactions.0.message"]
    assert message.shape == (6, 4, 9)
    assert message.dims == ("atom", "interactions.0.channel", "interactions.0.component")
    assert message["interactions.0.component"].values.tolist() == ["0e", *["1o"] * 3, *["2e"] * 5]


def test_reference_is_the_model_itself(model, recorded):
    reference = recorded.group("propagated", "float64")
    bare = [model(data_of(solid(), model), compute_stress=True) for _ in range(3)][-1]
    np.testing.assert_array_equal(reference["forces"][3:5], bare["forces"].detach())
    np.testing.assert_array_equal(reference["energy"][1], bare["energy"][0].detach())
    np.testing.assert_allclose(reference["stress"][1], bare["stress"][0].detach(), rtol=1e-12)
    np.testing.assert_array_equal(recorded.structures["positions"][3:5], solid().positions)


def test_isolated_float64_outputs_are_the_propagated_ones(recorded):
    propagated, isolated = (recorded.group(mode, "float64") for mode in ("propagated", "isolated"))
    outputs = [name for name, variable in isolated.data_vars.items() if variable.attrs["direction"] == "forward"]
    assert len(outputs) == 13
    for name in outputs:
        np.testing.assert_array_equal(isolated[name], propagated[name], err_msg=name)


def test_isolated_blocks_have_no_error_of_others(recorded):
    propagated, isolated = (recorded.group(mode, "float16") for mode in ("propagated", "isolated"))
    np.testing.assert_array_equal(propagated["node_embedding.output"], isolated["node_embedding.output"])
    assert (propagated["interactions.1.message"] != isolated["interactions.1.message"]).any()


@pytest.mark.parametrize("mode", ["propagated", "isolated"])
@pytest.mark.parametrize("gradients", [True, False])
def test_modes_and_gradients(model, recorded, mode, gradients):
    trace = half_trace(model, [molecule(), solid(), ase.Atoms("C")], modes=mode, gradients=gradients)
    assert trace.modes == (mode,)
    assert trace.attributes["gradients"] == ("per_block" if gradients else "none")
    expected = {
        path: variable
        for path, variable in arrays(recorded).items()
        if "/float32/" not in path
        and ("block" not in variable.attrs or path.startswith(f"/{mode}/"))
        and (gradients or not path.endswith(".grad"))
    }
    assert_same(arrays(trace), expected)


def test_blocks_asked_for(model, recorded):
    trace = half_trace(model, [molecule(), solid(), ase.Atoms("C")], blocks=["readouts.1", "interactions.*.conv_tp"])
    assert trace.blocks == ("readouts.1", "interactions.0.conv_tp", "interactions.1.conv_tp")
    group, whole = (each.group("isolated", "float16") for each in (trace, recorded))
    np.testing.assert_array_equal(group["readouts.1.output"], whole["readouts.1.output"])
    assert group["interactions.0.conv_tp.output"].dims[0] == "edge"
    assert {variable.attrs["block"] for variable in group.data_vars.values()} == set(trace.blocks)


def test_nothing_recorded_until_all_structures_are_good(mine):
    with attach(mine, **FLOAT16) as probe:
        with pytest.raises(InputError, match="Au"):
            probe.run([molecule(), ase.Atoms("Au")])
        assert probe.n_structures == 0
        with pytest.raises(InputError, match="Nothing has been recorded"):
            probe.trace()


def test_interrupted_run_keeps_what_was_finished(mine, monkeypatch):
    predict = Variant.predict

    def interrupted(self, graph):
        if graph.n_atoms == 2 and self.precision.name == "float16":
            raise KeyboardInterrupt
        return predict(self, graph)

    expected = half_trace(mine, molecule())
    monkeypatch.setattr(Variant, "predict", interrupted)
    probe = attach(mine, **FLOAT16)
    with pytest.raises(KeyboardInterrupt), probe:
        probe.run([molecule(), solid(), molecule()])
    assert probe.n_structures == 1
    assert_same(arrays(probe.trace()), arrays(expected))
    assert n_hooks(mine) == 0


def test_overflow_is_recorded_and_raises_nothing(mine):
    mine.atomic_energies_fn.atomic_energies.view(-1)[1] = -70_000.0  # of carbon, which is absent
    group = half_trace(mine, molecule()).group("propagated", "float16")
    assert np.isnan(group["energy"]).all()
    assert np.isfinite(group["forces"]).all()


def test_notes(mine):
    with attach(mine, **HEADLINE) as probe:
        assert probe.notes == []
        probe.run([molecule(), ase.Atoms("C", info={"name": "lonely"})])
        (note,) = probe.notes
        assert "lonely" in note
        assert "3 Å" in note


def test_structures_run_later_meet_the_weights_of_that_moment(mine, water):
    with attach(mine, **READOUTS) as probe:
        with torch.no_grad():
            mine.readouts[1].linear_2.weight.mul_(3.0)
        probe.run(water, progress=False)
        expected = mine(data_of(water, mine))["energy"].item()
    first, observed = probe.trace().group("propagated", "float64")["energy"].values
    assert first == observed == expected


FAILING = [(observer.Observer, "predict", 0)]  # where a failure may come, after how many calls that work
FAILING += [(captured_run, "gradients", 0), (captured_run, "gradients", 1), (observer, "replay", 0)]
FAILING += [(observer, "replay", 1), (observer, "input_gradients", 0), (observer, "input_gradients", 1)]


@pytest.mark.parametrize(("home", "stage", "calls"), FAILING, ids=lambda each: getattr(each, "__name__", str(each)))
def test_an_observation_that_fails_leaves_the_trace_as_it_was(model, water, monkeypatch, home, stage, calls):
    carbon = ase.Atoms("CC", [(0.0, 0.0, 0.0), (0.0, 0.1, 1.3)])
    works, remaining = getattr(home, stage), [calls]

    def fails(*args, **kwargs):
        if not remaining[0]:
            raise RuntimeError("no luck")
        remaining[0] -= 1
        return works(*args, **kwargs)

    with attach(model, **FLOAT16, blocks="products.*") as probe:
        probe.run(water, progress=False)
        before = probe.trace()
        with monkeypatch.context() as patch:
            patch.setattr(home, stage, fails)
            with pytest.raises(RuntimeError, match="no luck"):
                probe.run(carbon, progress=False)
        after = probe.trace()
        assert probe.n_structures == 1
        assert (before.attributes["complete"], after.attributes["complete"]) == (True, False)
        after.tree.attrs["complete"] = before.tree.attrs["complete"]
        xr.testing.assert_identical(after.tree, before.tree)
        probe.run(carbon, progress=False)
    assert probe.trace().structures["n_atoms"].values.tolist() == [3, 2]


@pytest.fixture
def asked(monkeypatch):
    """How often each sample was to be timed."""
    observe, asked = observer.Observer.observe, []

    def noted(self, sample, *, repeats=1, **options):
        asked.append(repeats)
        return observe(self, sample, repeats=min(repeats, 1), **options)

    monkeypatch.setattr(observer.Observer, "observe", noted)
    return asked


@pytest.mark.parametrize(("n_structures", "repeats"), [(1, 5), (2, 3), (4, 2), (5, 1), (6, 0)])
def test_few_structures_are_timed_more_often(model, asked, n_structures, repeats):
    with attach(model, **HEADLINE, blocks="readouts.1") as probe:
        probe.run([ase.Atoms("C")] * n_structures, progress=False)
    assert asked == [repeats] * n_structures
    seconds = probe.trace().group("propagated", "float64")["seconds"].values
    assert (np.isnan(seconds) == (repeats == 0)).all()


@pytest.mark.parametrize(("time", "repeats"), [(None, 0), (False, 0), (True, 5)])
def test_large_structures_are_timed_if_somebody_wants_it(model, asked, monkeypatch, time, repeats):
    monkeypatch.setattr("precision_probe.probe.batches._SMALL", 2)
    with attach(model, **HEADLINE, blocks="readouts.1", time=time) as probe:
        probe.run(molecule(), progress=False)
    assert asked == [repeats]


@pytest.mark.parametrize(
    ("gradients", "time", "repeats"),
    [("per_block", None, 1), ("shared", None, 0), ("shared", True, 1), (True, False, 0)],
)
def test_calls_are_timed_where_that_takes_no_evaluation_of_its_own(model, asked, gradients, time, repeats):
    with attach(model, precisions="float32", gradients=gradients, blocks="readouts.1", time=time) as probe:
        model(data_of(ase.Atoms("C"), model))
    assert asked == [repeats]
    assert probe.n_structures == 1


# batches


def test_structures_in_one_graph_are_those_by_themselves(model, tmp_path):
    """In float64 up to the order of sums; whether in memory, in a file, or in one that another run goes on with."""
    structures = [molecule(0), solid(), ase.Atoms("C"), molecule(1), molecule(2)]
    options = {"precisions": "float32", "device": "cpu", "keep": "errors"}
    alone = trace_of(model, structures, **options)
    with attach(model, batch_edges=10**6, output=tmp_path / "a.h5", **options) as probe:
        probe.run(structures, progress=False)
    together = probe.trace()
    assert (alone.attributes["batch_edges"], together.attributes["batch_edges"]) == (None, 10**6)
    xr.testing.assert_identical(alone.structures, together.structures)
    for name in ("energy", "forces", "stress"):
        ours, theirs = (trace.group("propagated", "float64")[name].values for trace in (together, alone))
        np.testing.assert_allclose(ours, theirs, rtol=1e-11, atol=1e-12)
    ours, theirs = (pp.errors(trace) for trace in (together, alone))
    keys = ["precision", "mode", "block", "tensor", "direction", "n"]
    assert ours[keys].equals(theirs[keys])
    resolved = theirs["resolved"] & (theirs["rel_l2"] > 0)
    np.testing.assert_allclose(ours["rel_l2"][resolved], theirs["rel_l2"][resolved], rtol=0.5)


def test_a_batch_is_recorded_whole_or_not_at_all(model, tmp_path):
    structures = [molecule(seed) for seed in range(5)]
    options = {**HEADLINE, "blocks": "readouts.1", "batch_edges": 12, "time": False, "output": tmp_path / "a.h5"}
    probe = attach(model, **options)
    probe.run(structures[:2], progress=False)
    with pytest.warns(RuntimeWarning, match="did not come to its end"):
        probe.__exit__(KeyboardInterrupt)
    with pytest.raises(InputError, match="its batch_edges is 12, and here it is 6"):
        attach(model, resume=True, **(options | {"batch_edges": 6}))
    with attach(model, resume=True, **options) as probe:
        probe.run(structures, progress=False)
    assert (probe.n_structures, probe.n_resumed) == (5, 2)
    whole = trace_of(model, structures, **(options | {"output": tmp_path / "b.h5"}))
    xr.testing.assert_identical(probe.trace().group("propagated", "float16"), whole.group("propagated", "float16"))


@pytest.mark.parametrize("wrong", [0, -1, 2.5, True, "64", "most"])
def test_batches_of_no_edges_are_refused(model, wrong):
    with pytest.raises(InputError, match="batch_edges"):
        attach(model, batch_edges=wrong)


def test_batches_of_modules_that_are_no_mace_are_refused():
    with pytest.raises(InputError, match="batch_edges= joins structures"):
        attach(torch.nn.Linear(3, 1), call=lambda module, x: module(x), blocks="*", batch_edges=64)


# calls of the attached model


def test_attached_model_computes_the_same_before_during_and_after(mine):
    def results():
        out = mine(data_of(solid(), mine), compute_stress=True)
        return {key: out[key].detach() for key in ("energy", "forces", "stress", "node_feats")}

    before = [results() for _ in range(3)][-1]
    with attach(mine, **FLOAT16) as probe:
        during = [results(), results()]
    for found in (*during, results()):
        assert all(torch.equal(found[key], value) for key, value in before.items())
    assert probe.n_structures == 2


def test_calculator_in_situ(mine):
    atoms = solid()
    with default_dtype(torch.float64):  # a MACECalculator sets it for good
        calculator = MACECalculator(models=mine, device="cpu", default_dtype="float64")

        def results():
            calculator.calculate(atoms)
            return {key: np.copy(calculator.results[key]) for key in ("energy", "forces", "stress")}

        before = [results() for _ in range(3)][-1]
        with attach(calculator, **FLOAT16) as probe:
            during = results()
        after = results()
    for key, value in before.items():
        np.testing.assert_array_equal(during[key], value)
        np.testing.assert_array_equal(after[key], value)
    trace = probe.trace()
    np.testing.assert_array_equal(trace.group("propagated", "float64")["forces"], before["forces"])
    np.testing.assert_array_equal(trace.structures["positions"], atoms.positions)
    np.testing.assert_array_equal(trace.structures["cell"][0], atoms.cell)


@pytest.mark.parametrize("every", [1, 2, 3])
def test_each_nth_call_is_observed_with_its_own_geometry(mine, every):
    frames = [molecule(seed) for seed in range(5)]
    with attach(mine, **HEADLINE, every=every) as probe:
        for index, atoms in enumerate(frames):
            data = data_of(atoms, mine)
            mine(data=data) if index % 2 else mine(data)
    structures = probe.trace().structures
    assert structures["name"].values.tolist() == [f"call {number}" for number in range(every, 6, every)]
    positions = np.concatenate([atoms.positions for atoms in frames[every - 1 :: every]])
    np.testing.assert_array_equal(structures["positions"], positions)


def test_observed_call_as_a_run(mine):
    with attach(mine, **FLOAT16) as probe:
        mine(data_of(solid(), mine), compute_force=False)
    assert_same(arrays(probe.trace()), arrays(half_trace(mine, solid())), besides=["/structures/name"])


def test_calls_without_autograd_stay_without(mine):
    with attach(mine, **FLOAT16) as probe, torch.no_grad():
        out = mine(data_of(molecule(), mine), compute_force=False)
        assert not torch.is_grad_enabled()
    assert not out["energy"].requires_grad
    assert np.abs(probe.trace().group("propagated", "float64")["readouts.1.node_feats.grad"]).max() > 0


def test_training_step_has_the_same_gradients(mine):
    def step():
        mine.zero_grad()
        out = mine(data_of(molecule(), mine), training=True)
        (out["energy"].sum() + out["forces"].square().sum()).backward()
        return [p.grad.clone() for p in mine.parameters() if p.grad is not None]

    before = [step() for _ in range(3)][-1]
    with attach(mine, **HEADLINE) as probe:
        during = step()
    assert len(before) > 10
    assert all(map(torch.equal, before, during))
    assert probe.n_structures == 1


def test_float32_model_is_observed_and_its_reference_noted(mine):
    mine.float()
    data = {key: v.float() if v.is_floating_point() else v for key, v in data_of(solid(), mine).items()}
    with attach(mine, **FLOAT16) as probe:
        forces = mine(dict(data))["forces"]
    assert forces.dtype is torch.float32
    reference, geometry = probe.notes
    assert "float32" in reference
    assert "in 1 of 1 calls the reference has the positions as the call rounded them" in geometry
    trace = probe.trace()
    assert trace.attributes["calls_with_rounded_geometry"] == 1
    assert trace.attributes["model_dtype"] == "float32"
    np.testing.assert_array_equal(trace.structures["positions"], data["positions"].detach().double())
    reference = trace.group("propagated", "float64")["forces"]
    assert reference.dtype == np.float64
    assert 0 < np.abs(reference - forces.numpy()).max() < 1e-4 * np.abs(reference).max()


@pytest.mark.parametrize(("every", "seen"), [(1, ["call 2", "call 3"]), (2, ["call 4"])])
def test_failed_call_is_not_observed(mine, every, seen):
    def fail(*_):
        raise ArithmeticError

    with attach(mine, **HEADLINE, every=every) as probe:
        for _ in range(every - 1):  # so that the call that fails is one to be observed
            mine(data_of(molecule(1), mine))
        hook = mine.readouts[0].register_forward_pre_hook(fail)
        with pytest.raises(ArithmeticError):
            mine(data_of(molecule(), mine))
        hook.remove()
        for _ in range(2):
            mine(data_of(solid(), mine))
    assert probe.trace().structures["name"].values.tolist() == seen


# the model and the process are left alone


def test_detach_and_the_end_of_with_remove_the_hooks(mine):
    probe = attach(mine, **HEADLINE)
    assert n_hooks(mine) == 2
    mine(data_of(molecule(), mine))
    for _ in range(2):
        probe.detach()
        assert n_hooks(mine) == 0
    mine(data_of(molecule(), mine))
    assert probe.n_structures == 1
    with pytest.raises(ArithmeticError), attach(mine, **FLOAT16):
        raise ArithmeticError
    assert n_hooks(mine) == 0


@pytest.mark.parametrize("training", [True, False])
def test_model_and_random_state_are_unchanged(mine, training):
    mine.train(training)
    for index, parameter in enumerate(mine.parameters()):
        parameter.requires_grad_(index % 2 == 0)

    def state():
        flags = [(p.requires_grad, p.grad is None) for p in mine.parameters()], [m.training for m in mine.modules()]
        numpys = np.random.get_state()[1].tolist()  # noqa: NPY002
        return weights_sha256(mine), flags, torch.get_rng_state().tolist(), random.getstate(), numpys

    before = state()
    half_trace(mine, [molecule(), solid()])
    assert state() == before


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_memory_is_that_of_one_precision_and_the_clones(config):
    model = build(config | {"hidden_irreps": "64x0e + 64x1o"}).cuda()
    atoms = ase.build.bulk("C", cubic=True).repeat(4)

    def peak(precisions):
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        with attach(model, precisions=precisions) as probe:
            probe.run(atoms)
        return torch.cuda.max_memory_allocated()

    peak("float32")  # warm-up
    weights = sum(t.numel() * t.element_size() for t in (*model.parameters(), *model.buffers()))
    clones = weights / 2  # two, of a quarter each
    assert peak("float32,bfloat16,float16") <= 1.05 * (peak("float32") + clones)


@pytest.mark.cuda
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="no second CUDA device")
def test_a_gpu_that_is_not_the_current_one(config):
    """What TorchScript compiles for it fails where another is current; and the current one stays."""
    model = build(config)
    structures = [molecule(), molecule(), molecule(), solid()]  # it compiles in the second call
    found = {}
    for device in ("cuda:0", "cuda:1"):
        with attach(model, precisions="float32", device=device) as probe:
            probe.run(structures)
            probe.explain(structures, only=("contributions",))
        found[device] = probe.trace()
        assert torch.cuda.current_device() == 0
    first, second = (trace.group("propagated", "float64")["forces"].values for trace in found.values())
    np.testing.assert_allclose(first, second, rtol=0, atol=1e-12)
    assert found["cuda:1"].attributes["complete"]
    with attach(model.to("cuda:1"), precisions="float32") as probe:  # calls of a model that is there
        model({name: each.to("cuda:1") for name, each in data_of(structures[0], model).items()})
    assert probe.n_structures == 1
