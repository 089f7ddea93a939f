"""What runs on a GPU alone: skipped where there is none."""

import pytest
import torch

from mgenb import data, training


def pytest_collection_modifyitems(items):
    if not torch.cuda.is_available():
        for item in items:
            if item.path.parent.name == "gpu":
                item.add_marker(pytest.mark.skip(reason="no GPU here"))


@pytest.fixture(scope="session")
def digits():
    return data.load("mnist", source="samples")


@pytest.fixture(scope="session")
def lenet(digits):
    """A LeNet on the CPU that reads most digits, trained on the GPU."""
    there = digits.to("cuda")
    net = training.fresh("lenet", there, 0)
    training.fit(net, there.train, training.RECIPES["mge-adam"], epochs=6, seed=0)
    return net.cpu().eval()
