"""One GPU for each worker; imported where dask.distributed is there."""

import os

from distributed import Worker
from distributed.diagnostics.plugin import WorkerPlugin

__all__ = ["OneGPU"]


class OneGPU(WorkerPlugin):  # type: ignore[misc]
    """Has each worker, also one in place of another that was killed, see one GPU alone where there are several.

    A process that sees them all has the first as its current one, and kernels that TorchScript compiles for another
    fail there.
    """

    def setup(self, worker: Worker) -> None:
        """Called as a worker starts, before it has touched a GPU."""
        import torch

        visible = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(torch.cuda.device_count()))))
        devices = [each for each in visible.split(",") if each]
        if len(devices) > 1:
            os.environ["CUDA_VISIBLE_DEVICES"] = devices[int(worker.name) % len(devices)]
