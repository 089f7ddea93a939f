"""The explorer: what it shows is what a direct evaluation gives, and its controls move the picture."""

import copy
from itertools import product

import matplotlib.pyplot as plt
import pytest
import torch
from matplotlib.figure import Figure

from mgenb import lab
from mgenb.errors import MgenbError, SealedSplitError
from mgenb.measure import population
from mgenb.mge import frequency

SHARES = (0.5, 1.0)
LAYERS = [f"net.{name}.weight" for name in ("conv1", "conv2", "conv3", "fc1", "fc2")]


@pytest.fixture
def explorer(lenet, small):
    return lab.explore.frequency_explorer(lenet, small.val, shares=SHARES)


def test_accuracies_are_those_of_a_direct_evaluation(explorer, lenet, small):
    assert explorer.layers == LAYERS
    base = lenet.state_dict()
    seen = set()
    for choice in product(LAYERS[::2], frequency.TRANSFORMS, frequency.BANDS, SHARES):
        state = {**base, choice[0]: explorer.changed(*choice)}
        seen.add(explorer.accuracy(*choice))
        assert explorer.accuracy(*choice) == pytest.approx(population.accuracy(lenet, small.val, state))
    assert len(seen) > 5
    unchanged = f"unchanged\n{population.accuracy(lenet, small.val):.1f} %"
    assert unchanged in texts(explorer.frame(LAYERS[0], "flat", "low", 0.5))


def test_what_is_changed_is_that_share_of_that_band_in_that_layer(explorer, lenet):
    weight = lenet.state_dict()["net.conv2.weight"]
    for transform, band, share in product(frequency.TRANSFORMS, frequency.BANDS, SHARES):
        changed = explorer.changed("net.conv2.weight", transform, band, share)
        moved = frequency.to_coefficients(changed - weight, transform).abs() > 1e-5
        wanted = round(share * frequency.smallest_band(weight, transform))
        assert int(moved.sum()) == pytest.approx(wanted, abs=2)  # a coefficient may be near 0 as it is
        assert frequency.band_mask(weight, transform, band)[moved].all()
    assert weight.equal(explorer.state["net.conv2.weight"])


def test_it_shows_the_network_as_it_was(lenet, small):
    net = copy.deepcopy(lenet)
    explorer = lab.explore.frequency_explorer(net, small.val, shares=SHARES)
    before = explorer.accuracy(LAYERS[0], "flat", "high", 0.5)
    with torch.no_grad():
        for weights in net.parameters():
            weights.zero_()
    assert explorer.accuracy(LAYERS[0], "flat", "high", 0.5) == before


def texts(figure):
    return [text.get_text() for axes in figure.axes for text in axes.get_yticklabels()]


def test_every_combination_of_options_gives_a_figure_of_three_panels(explorer):
    titles = set()
    choices = list(product(LAYERS, frequency.TRANSFORMS, frequency.BANDS, SHARES[:1]))
    choices += product(LAYERS[2:3], frequency.TRANSFORMS, frequency.BANDS, SHARES[1:])
    for choice in choices:
        figure = explorer.frame(*choice)
        assert isinstance(figure, Figure)
        assert len(figure.axes) == 3
        assert all(axes.get_xlabel() for axes in figure.axes)
        titles.add(figure.get_suptitle())
        assert f"{choice[2]}\n{explorer.accuracy(*choice):.1f} %" in texts(figure)
    assert len(titles) == len(choices)
    assert plt.get_fignums() == []


def test_the_controls_move_the_shown_figure(explorer):
    box = explorer.widget()
    controls, image, errors = box.children
    shown = [bytes(image.value)]
    assert shown[0].startswith(b"\x89PNG")
    for control, value in zip(controls.children, (LAYERS[2], "kernel", "high", 1.0), strict=True):
        assert control.value != value
        control.value = value
        shown.append(bytes(image.value))
    assert len(set(shown)) == len(shown)
    for control, value in zip(controls.children, (LAYERS[0], "flat", "low", SHARES[0]), strict=True):
        control.value = value
    assert bytes(image.value) == shown[0]
    assert errors.outputs == ()
    assert plt.get_fignums() == []


def test_wrong_choices_name_the_right_ones(explorer):
    with pytest.raises(MgenbError, match=r"unknown layer .*did you mean 'net\.conv3\.weight'"):
        explorer.frame("net.conv4.weight", "flat", "low", 0.5)
    with pytest.raises(MgenbError, match="unknown layer"):
        explorer.accuracy("net.conv1.bias", "flat", "low", 0.5)
    with pytest.raises(MgenbError, match="did you mean 'kernel'"):
        explorer.accuracy(LAYERS[0], "kernal", "low", 0.5)
    with pytest.raises(MgenbError, match="unknown band"):
        explorer.frame(LAYERS[0], "flat", "centre", 0.5)
    with pytest.raises(MgenbError, match=r"share '0\.4'.* known: 0\.5, 1\.0|did you mean"):
        explorer.accuracy(LAYERS[0], "flat", "low", 0.4)


def test_the_test_split_and_odd_shares_are_refused(lenet, small):
    with pytest.raises(SealedSplitError):
        lab.explore.frequency_explorer(lenet, small.test)
    with pytest.raises(SealedSplitError, match="not the test split"):
        lab.explore.frequency_explorer(lenet, small.test.unseal("a test of the refusal"))
    for shares in ((), (0.0,), (1.5,)):
        with pytest.raises(MgenbError, match="above 0 and up to 1"):
            lab.explore.frequency_explorer(lenet, small.val, shares=shares)
