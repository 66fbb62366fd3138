"""
A cluster
=========

An audit and a search shared by workers of dask.distributed: here two processes of this machine, elsewhere the GPUs of a
batch job, whose scheduler ``Client(scheduler_file=…)`` finds.
"""

import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
from distributed import Client, LocalCluster

import precision_probe as pp
from precision_probe.parallel.audit import audit
from precision_probe.probe.options import Options

# %%
# Each worker runs a part of the structures, and writes a file of its own into a folder that all of them see. The folder
# is the trace. A worker that is killed costs what it had not yet written; the same call with ``resume=True`` goes on.
#
# Processes that are started import this file anew, hence the usual guard.


def main(folder: Path) -> pp.Trace:
    """Audit the demo on two workers, each with one thread."""
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None, silence_logs="ERROR") as cluster,
        Client(cluster) as client,
    ):
        options = Options(precisions="float32,float16", device="cpu")
        done = audit("demo", "demo", folder, client, options=options, explain=())
    return pp.open_trace(done.path)


if __name__ == "__main__":
    output = Path(tempfile.mkdtemp()) / "audit"
    trace = main(output)
    print(*sorted(file.name for file in output.iterdir()), sep="\n")
    print(trace.attributes["n_parts"], "parts,", trace.structures.sizes["structure"], "structures")
    print(pp.summary(trace)[["energy", "forces"]])
    _, ax = plt.subplots(figsize=(8, 4.5), layout="constrained")
    pp.plot_growth(trace, ax=ax)
    plt.show()
