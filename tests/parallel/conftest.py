"""What tests of workers share."""

import pytest
import torch

from precision_probe.parallel.cluster import connected


@pytest.fixture(scope="package")
def small_file(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "small.model"
    torch.save(model, path)
    return path


@pytest.fixture(scope="package")
def client():
    pytest.importorskip("distributed")
    with connected(2) as client:
        yield client


@pytest.fixture(autouse=True)
def one_thread():
    """As the workers have, so that sums are in the same order."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
