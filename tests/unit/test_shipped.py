"""The networks that are shipped: what the quick profiles start from, small enough, and what training gives today."""

from collections import Counter

import pytest
import torch

from mgenb import data, devices, nets, store, training
from mgenb.lab import catalog, parameters, shipping

LIMIT = 6_000_000  # bytes
LEFT_OUT = {("lenet", "gtsrb")}
ENTRIES = shipping.listed()["bases"]


def kind(entry):
    return entry["arch"], entry["dataset"], entry["recipe"], entry["epochs"], entry.get("images")


def file_of(entry):
    images = shipping.images_of(entry)
    return training._file(training._settings(entry["arch"], images, entry["recipe"], entry["epochs"], None))


def wanted():
    """Return how many copies of each kind of network a quick profile asks for at most, unless it trains its own."""
    most = Counter()
    for notebook in catalog.notebooks():
        chosen = parameters.check(notebook, "quick", {})
        settings = chosen.settings
        pair = 2 if notebook.stem in ("11_mega_fitness", "12_mega_pairs") else 1
        count = settings["models"] * settings["trees"] if "trees" in settings else pair * settings.get("bases", 0)
        for network in chosen.networks:
            how = network.arch, network.dataset, network.recipe, network.epochs, network.images
            most[how] = max(most[how], count)
    return {how: count for how, count in most.items() if count and how[:2] not in LEFT_OUT}


def test_what_the_quick_profiles_ask_for_is_shipped_and_nothing_else():
    assert {kind(entry): entry["count"] for entry in ENTRIES} == wanted()
    assert {file_of(entry) for entry in ENTRIES} == {*training.SHIPPED.glob("*.safetensors")}
    assert all(network[0] in nets.ARCHITECTURES and network[1] in data.NAMES for network in LEFT_OUT)


def test_it_is_small_and_whole():
    files = [path for path in training.SHIPPED.iterdir() if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= LIMIT
    assert {path.suffix for path in files} == {".safetensors", ".json", ".toml", ".md"}
    for entry in ENTRIES:
        stacked, about = store.load_weights(file_of(entry))
        assert about["licence"] == shipping.listed()["licences"][entry["dataset"]]
        assert about["count"] == entry["count"]
        assert {len(tensors) for tensors in stacked.values()} == {entry["count"]}
        assert {tensor.dtype for tensor in stacked.values()} <= {torch.float32, torch.int64}
        assert all(tensor.isfinite().all() for tensor in stacked.values())


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: f"{entry['arch']}-{entry['dataset']}")
def test_they_are_found_and_know_their_images(entry, own_cache, capsys):
    images = shipping.images_of(entry)
    last = entry["count"] - 1
    net = training.trained(entry["arch"], images, recipe=entry["recipe"], epochs=entry["epochs"], seed=last)
    assert f"seed {last}: shipped with mgenb" in capsys.readouterr().err
    stacked, _ = store.load_weights(file_of(entry))
    assert all(tensor.equal(stacked[name][last]) for name, tensor in net.state_dict().items())


@pytest.mark.slow
@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: f"{entry['arch']}-{entry['dataset']}")
def test_training_gives_what_is_shipped(entry, own_cache):
    images, (stacked, about) = shipping.images_of(entry), store.load_weights(file_of(entry))
    how = {"recipe": entry["recipe"], "epochs": entry["epochs"]}
    state = training.trained(entry["arch"], images, seed=0, retrain=True, **how).state_dict()
    old = {name: tensors[0] for name, tensors in stacked.items()}
    if (about["torch"], about["cpu"]) == (torch.__version__, devices.processor()):
        assert all(tensor.equal(old[name]) for name, tensor in state.items())
    # with the kernels of another processor, rounding noise grew to 0.4 % of a norm and a fifth of the distance to zero
    weights = [name for name, tensor in state.items() if tensor.ndim > 1]
    for name in weights:
        assert state[name].norm().item() == pytest.approx(old[name].norm().item(), rel=1e-2), name
    ours, theirs = (torch.cat([tensors[name].flatten() for name in weights]) for tensors in (state, old))
    assert (ours - theirs).norm() < 0.5 * theirs.norm()  # of another seed: 1.4 times


@pytest.fixture
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MGENB_CACHE", str(tmp_path / "cache"))
