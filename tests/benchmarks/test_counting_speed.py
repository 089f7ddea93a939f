"""Generating and counting populations: against the plain way, with an early stop, and by batch size."""

import copy
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from time import perf_counter

import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import ToTensor

from mgenb import mge
from mgenb.measure import population, speed


class Pictures(Dataset):
    """A split as torchvision's MNIST gives it: a PIL image, made a tensor each time it is asked for."""

    def __init__(self, split):
        self.images, self.labels, self.transform = split.images[:, 0].cpu().numpy(), split.labels.tolist(), ToTensor()

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        return self.transform(Image.fromarray(self.images[index])), self.labels[index]


def plain_count(net, split, state):
    """The plain way: a model with the state, a fresh DataLoader, batches of 64."""
    model, device, right = copy.deepcopy(net).eval(), split.images.device, 0
    model.load_state_dict(state)
    with torch.no_grad():
        for images, labels in DataLoader(Pictures(split), batch_size=64):
            right += int((model(images.to(device)).argmax(1) == labels.to(device)).sum())
    return right


def states(base, settings, count):
    return (state for _, state in mge.candidates(base, settings, 0, count))


def counted(net, split, settings, seeds):
    """How many images each generated model has right, with one thread: the work of one process."""
    torch.set_num_threads(1)
    generated = mge.model_generator(population.state_of(net), settings)
    return [one.right for one in population.count(net, split, map(generated, seeds))]


@pytest.mark.parametrize("workers", [1, 2])
def test_twenty_lenets_on_5000_images_against_the_plain_way(against, lenet, digits, workers):
    if digits.variant == "sample":
        pytest.skip("5,000 validation images are not there: MGENB_DATA names no folder with MNIST")
    base, settings, val = population.state_of(lenet), mge.Settings(), digits.val
    seeds = [mge.candidate_seed(0, index) for index in range(20)]

    def plain():
        return [plain_count(lenet, val, mge.generate(base, settings, seed)) for seed in seeds]

    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
        list(pool.map(counted, *zip(*[(lenet, val, settings, seeds[:1])] * 2 * workers, strict=True)))  # starts them

        def ours():
            shares = [seeds[first::workers] for first in range(workers)]
            parts = list(pool.map(counted, *zip(*[(lenet, val, settings, share) for share in shares], strict=True)))
            return [right for together in zip(*parts, strict=True) for right in together]

        pairs = against(ours, plain, note="; bar: at least 3.5 with two workers")
    for mine, theirs in pairs:
        assert mine == theirs
        assert len(mine) == 20


def test_an_early_stop_against_the_full_pass(against, lenet, digits):
    base, settings = population.state_of(lenet), mge.Settings(z=0.6)
    drawn = list(states(base, settings, 20))
    right, total = int(population.correct(lenet, digits.val).sum()), len(digits.val)
    fewest = mge.fewest_right(right, total)

    def decisions(**options):
        return [one.passes(fewest) for one in population.count(lenet, digits.val, drawn, **options)]

    for early, full in against(lambda: decisions(fewest=fewest), decisions):
        assert early == full


@pytest.mark.parametrize(("arch", "n", "rounds"), [("lenet", 5000, 5), ("vgg11", 500, 3)])
def test_the_ways_of_a_cpu(benchmark, arch, n, rounds, request, digits, monkeypatch, capsys):
    if digits.train.images.is_cuda:
        pytest.skip("on a GPU the batch size is another one, and the memory order is left as it is")
    net, images = request.getfixturevalue(arch), digits.val.take(min(n, len(digits.val)), 0)
    best = {}

    def timed(way):
        monkeypatch.setattr(population, "fastest", lambda *_: way)
        start = perf_counter()
        counted = population.count(net, images, [net.state_dict()])
        best[way] = min(best.get(way, float("inf")), perf_counter() - start)
        return counted[0].right

    def every():
        return {timed(way) for way in speed.WAYS}

    found = benchmark.pedantic(every, rounds=rounds, warmup_rounds=1)
    benchmark.extra_info["best_s"] = {str(way): seconds for way, seconds in best.items()}
    assert len(found) == 1
    with capsys.disabled():
        for (last, batch), seconds in sorted(best.items(), key=lambda item: item[1]):
            order = "channels last" if last else "contiguous"
            print(f"\n{arch}, {len(images)} images, batch {batch}, {order}: {seconds:.3f} s", end="")
        print()
