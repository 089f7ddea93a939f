"""The explorer: what it shows is what a direct evaluation gives, and its controls move the picture."""

from itertools import product

import matplotlib.pyplot as plt
import pytest
from matplotlib.figure import Figure

from mgenb import seeds
from mgenb.errors import MgenbError, SealedSplitError
from mgenb.lab import explore
from mgenb.measure import population
from mgenb.mge import frequency

SHARES = (0.5, 1.0)
LAYERS = [f"net.{name}.weight" for name in ("conv1", "conv2", "conv3", "fc1", "fc2")]


def texts(figure):
    return [text.get_text() for axes in figure.axes for text in axes.get_yticklabels()]


def test_accuracies_are_those_of_a_direct_evaluation(lenet, small):
    base, seen = population.state_of(lenet), set()
    for layer, transform, share in product(LAYERS[::2], frequency.TRANSFORMS, SHARES):
        shown = texts(explore.frame(lenet, small.val, layer, transform, "low", share))
        assert f"unchanged\n{100 * population.correct(lenet, small.val).double().mean():.1f} %" in shown
        count = round(share * frequency.smallest_band(base[layer], transform))
        seed = seeds.derive(0, "explore", layer, transform)
        for band in frequency.BANDS:
            changed = frequency.change_band(base[layer], band, count, transform=transform, seed=seed)
            right = population.correct(lenet, small.val, {**base, layer: changed})
            seen.add(f"{band}\n{100 * right.double().mean():.1f} %")
            assert f"{band}\n{100 * right.double().mean():.1f} %" in shown
    assert len(seen) > 5
    assert all(tensor.equal(base[name]) for name, tensor in lenet.state_dict().items())


def test_every_combination_of_options_gives_a_figure_of_three_panels(lenet, small):
    titles, opened = set(), plt.get_fignums()
    choices = list(product(LAYERS, frequency.TRANSFORMS, frequency.BANDS, SHARES[:1]))
    choices += product(LAYERS[2:3], frequency.TRANSFORMS, frequency.BANDS, SHARES[1:])
    for choice in choices:
        figure = explore.frame(lenet, small.val, *choice)
        assert isinstance(figure, Figure)
        assert len(figure.axes) == 3
        assert all(axes.get_xlabel() for axes in figure.axes)
        titles.add(figure.get_suptitle())
    assert len(titles) == len(choices)
    assert plt.get_fignums() == opened


def test_the_menus_move_the_shown_figure(lenet, small, capsys):
    opened = plt.get_fignums()
    box = explore.widget(lenet, small.val, shares=SHARES)
    *menus, picture = box.children
    shown = [picture.value]
    for menu, value in zip(menus, (LAYERS[2], "kernel", "high", 1.0), strict=True):
        assert menu.value != value
        menu.value = value
        shown.append(picture.value)
    assert len(set(shown)) == len(shown)
    for menu, value in zip(menus, (LAYERS[0], "flat", "low", SHARES[0]), strict=True):
        menu.value = value
    assert picture.value == shown[0]
    assert plt.get_fignums() == opened


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"layer": "net.conv4.weight"}, r"unknown layer .*did you mean 'net\.conv3\.weight'"),
        ({"layer": "net.conv1.bias"}, "unknown layer"),
        ({"transform": "kernal"}, "did you mean 'kernel'"),
        ({"band": "centre"}, "unknown band"),
        ({"share": 0.0}, "above 0 and up to 1"),
        ({"share": 1.5}, "above 0 and up to 1"),
    ],
)
def test_wrong_choices_name_the_right_ones(lenet, small, wrong, words):
    choice = {"layer": LAYERS[0], "transform": "flat", "band": "low", "share": 0.5, **wrong}
    with pytest.raises(MgenbError, match=words):
        explore.frame(lenet, small.val, **choice)


def test_the_test_split_is_refused(lenet, small):
    for split in (small.test, small.test.unseal("a test of the refusal")):
        with pytest.raises(SealedSplitError, match="not the test split"):
            explore.frame(lenet, split, LAYERS[0], "flat", "low", 0.5)
