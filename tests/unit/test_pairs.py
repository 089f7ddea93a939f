"""The parameter `pairs`: what it says, and what it answers to a slip of the hand."""

import pytest

from mgenb.errors import MgenbError
from mgenb.lab import catalog, pairs

GOOD = "mnist:lenet:mge-adam:6:0:80"


def test_fields_in_order():
    first, second = pairs.parse(f"{GOOD}, gtsrb:resnet18:one-cycle:4:2500:62.5")
    assert first == pairs.Pair("mnist", "lenet", "mge-adam", 6, 0, 80.0)
    assert (second.recipe, second.epochs, second.images, second.floor) == ("one-cycle", 4, 2500, 62.5)
    assert str(second) == "resnet18 on gtsrb"


@pytest.mark.parametrize("notebook", [n for n in catalog.notebooks() if "pairs" in n.defaults("quick")], ids=str)
@pytest.mark.parametrize("profile", catalog.PROFILES)
def test_every_profile_names_pairs_that_can_be_read(notebook, profile):
    assert pairs.parse(notebook.defaults(profile)["pairs"])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "dataset:architecture:recipe"),
        ("mnist:lenet", "entry 'mnist:lenet'; right is dataset:architecture"),
        ("mnst:lenet:mge-adam:6:0:80", "did you mean 'mnist'"),
        ("mnist:lennet:mge-adam:6:0:80", "did you mean 'lenet'"),
        ("mnist:lenet:adam:6:0:80", "did you mean 'mge-adam'"),
        ("mnist:lenet:mge-adam:six:0:80", "not numbers"),
        ("mnist:lenet:mge-adam:0:0:80", "epochs >= 1"),
        ("mnist:lenet:mge-adam:6:-1:80", "images >= 0"),
        ("mnist:lenet:mge-adam:6:0:180", "floor of 0 to 100"),
        (f"{GOOD},{GOOD}", "lenet on mnist twice"),
    ],
)
def test_a_wrong_entry_is_named(text, words):
    with pytest.raises(MgenbError, match=words):
        pairs.parse(text)
