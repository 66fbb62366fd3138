"""The script for SLURM, with an ``srun`` of our own that starts as many tasks, on this machine."""

import os
import subprocess
import sys
from pathlib import Path

import ase.io
import pytest
from runs import ROOT, molecule

import precision_probe as pp

pytest.importorskip("distributed")
SRUN = '#!/bin/bash\nfor ((task = 0; task < SLURM_NTASKS; task++)); do "$@" & done\nwait\n'


@pytest.mark.slow
def test_a_job_audits_on_all_its_tasks(small_file, tmp_path):
    ase.io.write(tmp_path / "waters.xyz", [molecule(seed) for seed in range(4)])
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "srun").write_text(SRUN)
    (tmp_path / "bin" / "srun").chmod(0o755)
    job = {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "2", "SLURM_CPUS_PER_TASK": "1", "XDG_STATE_HOME": str(tmp_path)}
    path = os.pathsep.join([str(tmp_path / "bin"), str(Path(sys.executable).parent), os.environ["PATH"]])
    command = ["bash", str(ROOT / "examples" / "audit.sbatch"), str(small_file), "waters.xyz", "-o", "out"]
    done = subprocess.run(
        [*command, "-p", "float32", "--device", "cpu"],
        cwd=tmp_path,
        env={**os.environ, **job, "PATH": path},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "with 2 worker(s)" in done.stderr
    assert not list(tmp_path.glob("scheduler-*"))
    with pp.open_trace(tmp_path / "out") as trace:
        assert trace.attributes["complete"]
        assert trace.attributes["n_parts"] == 2
        assert trace.structures.sizes["structure"] == 4
