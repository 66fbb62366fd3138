"""An audit that two workers share is that of one process; what a killed worker leaves is gone on with."""

import contextlib
import json
import os
import shutil
import signal
import threading
import time

import ase.build
import ase.io
import pytest
from runs import check_same_trace, molecule
from typer.testing import CliRunner

import precision_probe as pp
import precision_probe.parallel.cluster
from precision_probe.cli.main import app
from precision_probe.exceptions import InputError, ProbeError
from precision_probe.files import unfinished
from precision_probe.parallel.audit import _counted, audit
from precision_probe.parallel.cluster import connected
from precision_probe.parallel.work import _claimed

pytest.importorskip("distributed")
OPTIONS = {"precisions": "float32,e5m10", "device": "cpu", "keep": "tensors"}


@pytest.fixture(scope="module")
def structures():
    return [molecule(seed) for seed in range(5)] + [ase.build.molecule("CH4"), ase.build.bulk("C", cubic=True)]


def check_same(folder, small_file, structures, **options):
    """Compare a folder with what one process records."""
    with pp.attach(small_file, **{**OPTIONS, "time": False} | options) as probe:
        probe.run(structures, progress=False)
        probe.explain(structures, only=("contributions",), progress=False)
    whole = probe.trace()
    with pp.open_trace(folder) as trace:
        assert trace.attributes["complete"] is True
        check_same_trace(trace, whole)
        for key in whole.attributes.keys() - {"created", "settings"}:
            if key != "device":  # which says how many threads there are
                assert trace.attributes[key] == whole.attributes[key], key


def kill_writer(folder):
    """Kill a process that writes a part, if there is one."""
    for lock in folder.glob("*.lock"):
        with contextlib.suppress(OSError, ValueError):
            os.kill(json.loads(lock.read_text())["pid"], signal.SIGKILL)
            return True
    time.sleep(0.02)
    return False


def test_two_workers_record_what_one_process_does(client, small_file, structures, tmp_path):
    counts = []
    done = audit(small_file, structures, tmp_path / "out", client, options=OPTIONS, told=counts.append)
    assert done.path == tmp_path / "out"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]
    assert sorted(path.name for path in done.path.iterdir()) == ["part-0000.h5", "part-0001.h5"]
    assert counts == sorted(counts)
    assert max(counts, default=0) <= len(structures)
    check_same(done.path, small_file, structures)


@pytest.mark.slow
def test_batches_are_those_of_one_process(client, small_file, structures, tmp_path):
    options = {"batch_edges": 20, "keep": "errors"}
    done = audit(small_file, structures, tmp_path / "out", client, options=OPTIONS | options)
    check_same(done.path, small_file, structures, **options)


def test_a_worker_that_is_killed_costs_what_it_had_not_written(client, small_file, structures, tmp_path):
    many = structures[:5] * 10
    folder = tmp_path / "out.partial"

    killer = threading.Thread(target=lambda: [None for _ in iter(lambda: kill_writer(folder), True)])
    killer.start()
    done = audit(small_file, many, tmp_path / "out", client, options=OPTIONS | {"blocks": "readouts.*"})
    killer.join()
    check_same(done.path, small_file, many, blocks="readouts.*")


def test_that_a_worker_was_lost_is_logged(caplog):
    class Client:
        def subscribe_topic(self, run, add):
            for at, (part, worker, n) in enumerate([(0, "a", 1), (1, "b", 1), (0, "a", 2), (0, "c", 2)]):
                add((float(at), {"part": part, "worker": worker, "n_structures": n}))

        def unsubscribe_topic(self, run):
            pass

    counts = []
    with caplog.at_level("WARNING", "precision_probe"), _counted(Client(), "run", counts.append):
        pass
    assert counts == [1, 2, 3, 3]
    assert [record.getMessage() for record in caplog.records] == ["worker a was lost: part 0 goes on with c"]


def test_what_fails_leaves_what_was_done_and_another_run_goes_on(client, small_file, structures, tmp_path):
    wrong = [*structures * 6, ase.build.molecule("SH2")]
    wrong[-1].info["name"] = "the odd one"
    with pytest.raises(InputError, match=r"Structure the odd one has S, which the model does not know"):
        audit(small_file, wrong, tmp_path / "out", client, options=OPTIONS)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.partial"]
    assert not list((tmp_path / "out.partial").glob("*.lock"))  # the other worker was stopped
    with pytest.raises(InputError, match=r"out.partial exists"):
        audit(small_file, structures, tmp_path / "out", client, options=OPTIONS)
    with pytest.raises(InputError, match=r"is of a run with --workers"):
        pp.attach(small_file, **OPTIONS, output=tmp_path / "out", resume=True)
    audit(small_file, wrong[:-1], tmp_path / "out", client, options=OPTIONS, resume=True)
    check_same(tmp_path / "out", small_file, wrong[:-1])


@pytest.mark.slow
def test_finished_parts_are_compared_with_what_is_to_be_run(client, small_file, structures, tmp_path):
    audit(small_file, structures, tmp_path / "out", client, options=OPTIONS)
    (tmp_path / "out").rename(tmp_path / "out.partial")
    moved = [atoms.copy() for atoms in structures]
    moved[2].positions += 0.01
    with pytest.raises(InputError, match="to be run in its place"):
        audit(small_file, moved, tmp_path / "out", client, options=OPTIONS, resume=True)
    done = audit(small_file, structures, tmp_path / "out", client, options=OPTIONS, resume=True)
    assert done.n_resumed == len(structures)
    check_same(done.path, small_file, structures)


@pytest.mark.slow
def test_an_output_is_replaced_only_with_force_and_when_the_new_one_is_complete(
    client, small_file, structures, tmp_path
):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("precious")
    with pytest.raises(InputError, match="out exists"):
        audit(small_file, structures, tmp_path / "out", client, options=OPTIONS)
    with pytest.raises(InputError, match="device"):
        audit(small_file, structures, tmp_path / "out", client, options=OPTIONS | {"device": "nowhere"}, force=True)
    assert (tmp_path / "out" / "mine").read_text() == "precious"
    shutil.rmtree(tmp_path / "out.partial")
    audit(small_file, structures, tmp_path / "out", client, options=OPTIONS, force=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]
    assert not (tmp_path / "out" / "mine").exists()


def test_the_lock_of_a_worker_on_another_machine_is_taken_over_and_its_file_is_another_one_then(tmp_path):
    path = tmp_path / "part-0000.h5"
    owner = {"host": "elsewhere", "boot": "", "pid": 1, "namespace": "", "start": "", "since": "", "token": "x"}
    (tmp_path / "part-0000.h5.lock").write_text(json.dumps(owner))
    unfinished(path).write_bytes(b"what it had")
    before = unfinished(path).stat().st_ino
    with _claimed(path) as claim:
        assert claim.is_resumed
        assert unfinished(path).read_bytes() == b"what it had"
        assert unfinished(path).stat().st_ino != before
    assert [each.name for each in tmp_path.iterdir()] == ["part-0000.h5.partial"]


def test_without_workers_nothing_is_begun(monkeypatch):
    monkeypatch.setattr(precision_probe.parallel.cluster, "_CONNECTING", 1)
    with pytest.raises(InputError, match="At least one worker"), connected(0):
        pass
    with (
        pytest.raises(InputError, match=r"tcp://127\.0\.0\.1:9 .* cannot be reached"),
        connected(1, "tcp://127.0.0.1:9"),
    ):
        pass


@pytest.mark.slow
def test_a_part_that_kills_its_workers_is_an_error(client, small_file, structures, tmp_path):
    is_over = threading.Event()
    killer = threading.Thread(
        target=lambda: [kill_writer(tmp_path / "out.partial") for _ in iter(is_over.is_set, True)]
    )
    killer.start()
    with pytest.raises(ProbeError, match="killed again and again"):
        audit(small_file, structures[:1], tmp_path / "out", client, options=OPTIONS)
    is_over.set()
    killer.join()


def test_the_command_line_uses_workers_that_are_there(client, small_file, structures, tmp_path, monkeypatch):
    client.wait_for_workers(2, timeout=60)  # others have killed some
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    ase.io.write("waters.xyz", structures[:3])
    options = [
        "-p",
        "float32",
        "--device",
        "cpu",
        "--scheduler",
        client.scheduler.address,
        "--tolerance",
        "forces=1e-9",
    ]
    result = CliRunner().invoke(app, ["audit", str(small_file), "waters.xyz", *options])
    assert result.exit_code == 1, result.output  # the tolerance is exceeded
    assert "with 2 worker(s)" in result.stderr
    assert "Trace written to small-waters-1" in result.stderr
    assert "Block by block" in result.stdout
    assert {path.name for path in tmp_path.iterdir()} == {"waters.xyz", "state", "small-waters-1"}
    assert "3 structures" in repr(pp.open_trace("small-waters-1"))
    assert CliRunner().invoke(app, ["validate", "small-waters-1"]).exit_code == 0
