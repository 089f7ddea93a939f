"""The parameter `networks`: names, what they stand for, and what it answers to a slip of the hand."""

import json

import pytest

from mgenb.errors import MgenbError
from mgenb.lab import catalog, parameters
from mgenb.lab.parameters import Network, chosen

MINE = {"dataset": "mnist", "arch": "lenet", "recipe": "mge-adam", "epochs": 2, "floor": 0.5}


@pytest.fixture
def own(tmp_path):
    """Write a file with the network "mine"; None leaves a key out."""

    def write(**fields):
        entry = {key: value for key, value in {**MINE, **fields}.items() if value is not None}
        file = tmp_path / "mine.toml"
        file.write_text("[networks.mine]\n" + "".join(f"{key} = {json.dumps(v)}\n" for key, v in entry.items()))
        return str(file)

    return write


def test_a_name_stands_for_what_the_profile_trains():
    (quick,), (cpu,), (paper,) = (chosen(["lenet/mnist"], profile) for profile in catalog.PROFILES)
    assert quick == Network("lenet/mnist", "mnist", "lenet", "mge-adam", 6, 0.8)
    assert (cpu.epochs, cpu.floor) == (3, 0.95)
    assert (paper.epochs, paper.floor) == (10, 0.98)
    assert str(paper) == "lenet on mnist"


def test_a_file_of_ones_own_adds_networks(own, tmp_path):
    (tmp_path / "images").mkdir()
    first, second = chosen(["lenet/cifar10", "mine"], "quick", own(dataset="./images", images=300))
    assert (first.name, second.name, second.images) == ("lenet/cifar10", "mine", 300)
    assert second.dataset == str(tmp_path / "images")  # a relative path starts where the file lies


@pytest.mark.parametrize("profile", catalog.PROFILES)
def test_every_shipped_network_can_be_read(profile):
    import tomllib
    from importlib.resources import files

    names = tomllib.loads(files("mgenb.lab").joinpath("networks.toml").read_text())["networks"]
    assert all(chosen([name], profile)[0].name == name for name in names)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"dataset": "mnst"}, "network 'mine': unknown dataset 'mnst'; did you mean 'mnist'"),
        ({"arch": "lennet"}, "network 'mine': unknown arch 'lennet'; did you mean 'lenet'"),
        ({"recipe": "adam"}, "did you mean 'mge-adam'"),
        ({"epochs": 0}, "epochs is 0; right is a whole number of at least 1"),
        ({"epochs": "six"}, "epochs is 'six'"),
        ({"images": 0}, "images is 0"),
        ({"floor": 80}, "floor is 80; right is a number from 0 to 1"),
        ({"floor": None}, "look at floor; its keys are dataset, arch, recipe, epochs, floor"),
        ({"epoch": 3}, "look at epoch; its keys are"),
    ],
)
def test_a_wrong_entry_is_named(own, fields, words):
    with pytest.raises(MgenbError, match=words):
        chosen(["mine"], "quick", own(**fields))


def test_a_wrong_choice_is_named(own, tmp_path):
    with pytest.raises(MgenbError, match="unknown network 'lenet/mnst'; did you mean 'lenet/mnist'"):
        chosen(["lenet/mnst"], "quick")
    with pytest.raises(MgenbError, match="networks has lenet on mnist twice"):
        chosen(["lenet/mnist", "mine"], "quick", own())
    with pytest.raises(MgenbError, match="cannot be read"):
        chosen(["mine"], "quick", str(tmp_path / "nothing.toml"))
    for text in ("", "networks = 3", "[networks]\nmine = 3", "[networks"):
        (tmp_path / "other.toml").write_text(text)
        with pytest.raises(MgenbError, match=r"other\.toml cannot be read"):
            chosen(["mine"], "quick", str(tmp_path / "other.toml"))
    (tmp_path / "known.toml").write_text('[networks."lenet/mnist"]\nepochs = 1\n')
    with pytest.raises(MgenbError, match="names 'lenet/mnist', which is known already"):
        chosen(["lenet/mnist"], "quick", str(tmp_path / "known.toml"))


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("networks", "lenet/mnist", ["lenet/mnist"]),
        ("networks", "lenet/mnist, lenet/cifar10", ["lenet/mnist", "lenet/cifar10"]),
        ("networks", '["lenet/mnist"]', ["lenet/mnist"]),
        ("kappas", "[0, 1]", [0, 1]),
        ("kappas", "0, 2.5", [0, 2.5]),
        ("kappas", "5", [5]),
        ("t", "0", 0.0),
        ("val", "all", "all"),
    ],
)
def test_text_of_a_command_line_is_read(name, text, value):
    settings = parameters.check(catalog.find("08"), "quick", {name: text}).settings
    assert settings[name] == value
    assert type(settings[name]) is type(value)


@pytest.mark.parametrize(("text", "value"), [("true", True), ("False", False), ("null", True), (None, True)])
def test_true_false_and_not_given(text, value):
    checked = parameters.check(catalog.find("13"), "quick", {"finish": text})
    assert checked.settings["finish"] is value
    assert checked.by_hand == ("" if value else "finish=False")


def test_zero_means_zero():
    checked = parameters.check(catalog.find("13"), "quick", {"tune_epochs": 0})
    assert checked.settings["tune_epochs"] == 0
    assert checked.by_hand == "tune_epochs=0"


def test_a_relative_file_of_networks_is_the_callers_and_what_was_given_is_handed_on(tmp_path, monkeypatch):
    (tmp_path / "own.toml").write_text("[networks]")
    monkeypatch.chdir(tmp_path)
    given = {"networks_file": "own.toml", "t": "0", "networks": "vgg11/mnist", "val": None}
    checked = parameters.check(catalog.find("04"), "cpu", given)
    assert checked.given == {"networks_file": str(tmp_path / "own.toml"), "t": 0.0, "networks": ["vgg11/mnist"]}
    assert checked.by_hand == "networks=vgg11/mnist, t=0.0"
