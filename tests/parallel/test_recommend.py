"""A search whose errors two workers measure finds what one process finds, bit for bit."""

import contextlib

import ase.io
import pandas as pd
import pytest
import torch
from runs import molecule
from typer.testing import CliRunner

import precision_probe.parallel.cluster
from precision_probe.cli.main import app
from precision_probe.exceptions import ProbeError
from precision_probe.parallel.recommend import recommend
from precision_probe.policy import Policy
from precision_probe.search.measuring import CAST, Candidates
from precision_probe.search.recommendation import recommend as alone
from precision_probe.search.timing import Timed

pytest.importorskip("distributed")
WATERS = [molecule(8 + number) for number in range(4)]
OPTIONS = {"tolerance": {"forces": 1e-4}, "allow": "float32,float16", "granularity": "module", "device": "cpu"}


@pytest.fixture(autouse=True)
def steady(monkeypatch):
    """The times are made up, here where they are measured: the more a policy lowers, the faster."""

    def timed(self, policies, casts=(), **_):
        low = {name: sum(rule.compute != "float64" for rule in policy.rules) for name, policy in policies.items()}
        seconds = {name: 1 / (1 + n) for name, n in low.items()} | {CAST.format(name): 2.0 for name in casts}
        return {name: Timed((each,) * 11, None) for name, each in seconds.items()}

    monkeypatch.setattr(Candidates, "timed", timed)


@pytest.fixture
def measured_here(monkeypatch):
    """The policies that this process measures itself."""
    policies = []
    variant = Candidates.variant
    monkeypatch.setattr(Candidates, "variant", lambda self, policy: policies.append(policy) or variant(self, policy))
    return policies


@pytest.mark.slow
def test_two_workers_find_what_one_process_does(client, small_file, tmp_path, measured_here):
    found = recommend(small_file, WATERS, client=client, log=tmp_path / "shared", progress=False, **OPTIONS)
    assert measured_here == []
    expected = alone(small_file, WATERS, log=tmp_path / "alone", progress=False, **OPTIONS)
    assert len(measured_here) > 20
    pd.testing.assert_frame_equal(found.candidates, expected.candidates, check_exact=True)
    pd.testing.assert_frame_equal(found.blocks, expected.blocks, check_exact=True)
    assert found.policy == expected.policy
    assert found.policy.evidence["runs"] == expected.policy.evidence["runs"]
    logs = [sorted((tmp_path / name).read_text().splitlines()) for name in ("shared", "alone")]
    assert logs[0] == logs[1]


@pytest.mark.slow
def test_what_fails_in_a_worker_ends_the_search_with_a_sentence(client, small_file, tmp_path, monkeypatch):
    path = tmp_path / "gone.model"
    path.write_bytes(small_file.read_bytes())
    errors_of = Candidates.errors_of

    def without_file(*arguments, **options):
        path.unlink()
        return errors_of(*arguments, **options)

    monkeypatch.setattr(Candidates, "errors_of", without_file)
    with pytest.raises(ProbeError, match=r"gone\.model"):
        recommend(path, WATERS, client=client, progress=False, **OPTIONS)


@pytest.mark.slow
def test_the_command_line_has_workers_measure(client, small_file, tmp_path, monkeypatch, measured_here):
    @contextlib.contextmanager
    def connected(n_workers, scheduler):
        assert (n_workers, scheduler) == (2, None)
        yield client

    monkeypatch.setattr(precision_probe.parallel.cluster, "connected", connected)
    monkeypatch.chdir(tmp_path)
    ase.io.write("waters.xyz", WATERS[:2])
    options = ["--allow", "float32", "--device", "cpu", "--workers", "2"]
    result = CliRunner().invoke(app, ["recommend", str(small_file), "waters.xyz", *options])
    assert result.exit_code == 0, result.output
    assert measured_here == []
    expected = alone(small_file, "waters.xyz", {"forces": 1e-3}, allow="float32", device="cpu", progress=False)
    assert measured_here
    assert Policy.load("policy.json") == expected.policy
    assert [path.name for path in tmp_path.glob("policy*")] == ["policy.json"]


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_workers_on_gpus_measure_what_one_process_does(client, small_file, measured_here):
    """But for the order of sums, which changes from run to run there."""
    options = OPTIONS | {"device": "cuda", "granularity": "block"}
    found = recommend(small_file, WATERS, client=client, progress=False, **options)
    assert measured_here == []
    expected = alone(small_file, WATERS, progress=False, **options)
    columns = ["block", "precision", "forces"]
    pd.testing.assert_frame_equal(found.blocks[columns], expected.blocks[columns], rtol=0.2, atol=1e-6)
