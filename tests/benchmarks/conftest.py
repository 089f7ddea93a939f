"""Two ways of the same work, timed in turn in one run: a noisy machine disturbs both alike.

No time is asserted: what came out is printed, and written with pytest's --benchmark-json. One thread, unless
OMP_NUM_THREADS says otherwise: threads that wait for a core which another process has make any ratio.
"""

import os
import statistics
from time import perf_counter

import pytest
import torch

from mgenb import data, training
from mgenb.data import Split
from mgenb.measure import population


@pytest.fixture(scope="session", autouse=True)
def _threads():
    before = torch.get_num_threads()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", 1)))
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def digits():
    """MNIST with 5,000 training and validation images, or all that the shipped samples have."""
    found = data.load("mnist")
    limit = None if found.variant == "sample" else 5000
    dataset = data.load("mnist", train_limit=limit, val_limit=limit)
    return dataset.to("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture(scope="session")
def lenet(digits):
    return training.trained("lenet", digits, epochs=1, seed=0)


@pytest.fixture(scope="session")
def vgg11(digits):
    """A VGG11 as it is drawn: how long it takes does not depend on what it knows."""
    return training.fresh("vgg11", digits, 0)


@pytest.fixture(scope="session")
def relabelled(digits):
    """(network, n) -> n validation images with the network's own predictions as labels: all of them right."""

    def relabel(net, n):
        images = digits.val.take(n, 0)
        labels = population.predict(net, images).to(images.labels.device)
        return Split(images.images, labels, images.groups, "val")

    return relabel


@pytest.fixture
def against(benchmark, request, capsys):
    """Return a function that times `ours` and `other` in turn and gives what both returned, [(ours, other)]."""

    def compare(ours, other, *, rounds=3, note=""):
        times, others, own = [], [], []

        def before():
            start = perf_counter()
            others.append(other())
            times.append(perf_counter() - start)

        benchmark.pedantic(lambda: own.append(ours()), setup=before, rounds=rounds)
        if benchmark.stats is not None:  # None: with --benchmark-disable
            mine = benchmark.stats.stats.data
            ratios = sorted(slow / quick for quick, slow in zip(mine, times, strict=True))
            found = {
                "threads": torch.get_num_threads(),
                "other_s": statistics.median(times),
                "ratios": ratios,
                "ratio": statistics.median(ratios),
            }
            benchmark.extra_info.update(found)
            with capsys.disabled():
                print(
                    f"\n{request.node.name}: {statistics.median(mine):.2f} s against {found['other_s']:.2f} s,"
                    f" {found['ratio']:.1f} times as fast ({ratios[0]:.1f} to {ratios[-1]:.1f}){note}"
                )
        return list(zip(own, others, strict=True))

    return compare
