"""What tests of workers share."""

import pytest
import torch


@pytest.fixture(scope="package")
def small_file(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "small.model"
    torch.save(model, path)
    return path
