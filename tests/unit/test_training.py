"""Training: one seed, one network; interrupted or shared, the weights end the same."""

import dataclasses
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from mgenb import devices, nets, stats, store, training
from mgenb.errors import MgenbError
from mgenb.measure import population

RECIPE = training.RECIPES["mge-sgd-momentum"]


@pytest.fixture
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MGENB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def states_equal(a, b):
    return a.keys() == b.keys() and all(a[name].equal(b[name]) for name in a)


def fitted(small, *, arch="lenet", seed=3, epochs=3, recipe=RECIPE, **options):
    net = training.fresh(arch, small, seed)
    training.fit(net, small.train, recipe, epochs=epochs, seed=seed, **options)
    return net.state_dict()


def test_one_seed_gives_one_network_and_another_seed_another(small):
    one = fitted(small)
    assert states_equal(one, fitted(small))
    other = fitted(small, seed=4)
    assert not any(one[name].equal(other[name]) for name in one if name.startswith("net."))


def test_the_order_of_images_comes_from_the_seed_too(small):
    nets_of_one_start = [training.fresh("lenet", small, 0) for _ in range(2)]
    assert states_equal(*(net.state_dict() for net in nets_of_one_start))
    for seed, net in enumerate(nets_of_one_start):
        training.fit(net, small.train, RECIPE, epochs=1, seed=seed)
    assert not states_equal(*(net.state_dict() for net in nets_of_one_start))


def test_the_global_generator_is_left_alone(small, own_cache):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    training.trained("lenet", small, epochs=1, seed=0)
    assert torch.get_rng_state().equal(before)


@pytest.mark.parametrize("recipe", sorted(training.RECIPES))
def test_training_lowers_the_loss(small, recipe):
    net = training.fresh("lenet", small, 0)
    losses = training.fit(net, small.train, training.RECIPES[recipe], epochs=4, seed=0)
    assert len(losses) == 4
    assert losses[-1] < losses[0]


def test_after_each_epoch_the_net_is_that_of_a_training_so_long(small):
    recipe, seen = training.RECIPES["mge-adam"], {}
    net = training.fresh("lenet", small, 0)

    def keep(done):
        seen[done] = {name: value.clone() for name, value in net.state_dict().items()}

    training.fit(net, small.train, recipe, epochs=2, seed=0, after=keep)
    for epochs in (1, 2):
        alone = training.fresh("lenet", small, 0)
        training.fit(alone, small.train, recipe, epochs=epochs, seed=0)
        assert states_equal(seen[epochs], alone.state_dict())
    assert list(seen) == [1, 2]


@pytest.fixture
def epochs_until_stopped(monkeypatch):
    """Make `fit` stop once, before its epoch of this number; return the numbers of the epochs that were run."""
    fit_epoch, run = training.fit_epoch, []

    def stop_before(number):
        def epoch(*how):
            if len(run) == number and None not in run:
                run.append(None)
                raise KeyboardInterrupt
            run.append(round(how[3][0] * 3))
            return fit_epoch(*how)

        monkeypatch.setattr(training, "fit_epoch", epoch)
        return run

    return stop_before


@pytest.mark.parametrize("recipe", ["mge-sgd-momentum", "mge-adam", "one-cycle"])
def test_an_interrupted_fit_resumes_to_the_same_bits(small, tmp_path, recipe, epochs_until_stopped):
    chosen = training.RECIPES[recipe]
    checkpoint = tmp_path / "half.checkpoint"
    whole = fitted(small, recipe=chosen)
    run = epochs_until_stopped(1)
    with pytest.raises(KeyboardInterrupt):
        fitted(small, recipe=chosen, checkpoint=checkpoint)
    resumed = fitted(small, recipe=chosen, checkpoint=checkpoint)
    assert run == [0, None, 1, 2]
    assert states_equal(resumed, whole)


def test_batchnorm_statistics_survive_an_interruption(small, tmp_path):
    few = small.train.take(6, 0)
    checkpoint = tmp_path / "half.checkpoint"
    states = []
    for cut in (True, False):
        net = training.fresh("vgg11_bn", small, 0)
        if cut:
            training.fit(net, few, RECIPE, epochs=1, seed=0, checkpoint=checkpoint)
            net = training.fresh("vgg11_bn", small, 1)
        training.fit(net, few, RECIPE, epochs=2, seed=0, checkpoint=checkpoint if cut else None)
        states.append(net.state_dict())
    assert states_equal(*states)
    assert states[0]["net.features.1.num_batches_tracked"] == 2


def test_a_trailing_batch_of_one_image_does_not_stop_batchnorm(small):
    net = training.fresh("vgg11_bn", small, 0)
    odd = small.train.take(9, 0)
    losses = training.fit(net, odd, training.Recipe("sgd", 0.001, batch=4), epochs=1, seed=0)
    assert torch.tensor(losses).isfinite().all()


def test_a_second_call_reads_the_cache(small, own_cache, monkeypatch, capsys):
    first = training.trained("lenet", small, epochs=2, seed=1)
    assert "from the cache" not in capsys.readouterr().err

    def refuse(*args, **options):
        raise AssertionError("trained again")

    monkeypatch.setattr(training, "fit", refuse)
    second = training.trained("lenet", small, epochs=2, seed=1)
    assert "lenet on mnist, seed 1: from the cache" in capsys.readouterr().err
    assert states_equal(first.state_dict(), second.state_dict())
    assert not second.training
    for change in ({"seed": 2}, {"epochs": 3}, {"recipe": "mge-sgd"}):
        other: dict[str, Any] = {"epochs": 2, "seed": 1, **change}
        with pytest.raises(AssertionError, match="trained again"):
            training.trained("lenet", small, **other)
    newer = dataclasses.replace(training.RECIPES["mge-adam"], version=2)
    for table, name, value in ((nets.VERSIONS, "lenet", 2), (training.RECIPES, "mge-adam", newer)):
        with monkeypatch.context() as patch:
            patch.setitem(table, name, value)
            with pytest.raises(AssertionError, match="trained again"):
                training.trained("lenet", small, epochs=2, seed=1)


FOUND_AGAIN = """
from mgenb import data, store, training
digits = data.load("mnist", source="samples", train_limit=300, val_limit=100, test_limit=100)
training.trained("lenet_too", digits, epochs=1, seed=1)
training.trained("lenet", digits, epochs=1, seed=1)
print(store.unfinished("merge", {"seed": 1}))
"""


def test_one_more_architecture_and_an_edited_drawing_throw_nothing_away(small, own_cache, tmp_path):
    training.trained("lenet", small, epochs=1, seed=1)
    package = shutil.copytree(Path(nets.__file__).parents[1], tmp_path / "mgenb")
    table = package / "nets/mge.py"
    table.write_text(table.read_text().replace('"lenet": _lenet,', '"lenet": _lenet, "lenet_too": _lenet,'))
    for file in ("nets/mge.py", "training.py", "lab/figures.py"):
        with (package / file).open("a") as code:
            code.write("LATER = 1\n")
    done = subprocess.run([sys.executable, "-c", FOUND_AGAIN], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "lenet on mnist, seed 1: from the cache" in done.stderr
    assert done.stdout.split() == [str(store.unfinished("merge", {"seed": 1}))]


def test_what_is_cached_says_how_it_was_made(small, own_cache):
    training.trained("lenet", small, epochs=2, seed=1)
    (weights,) = (own_cache / "models").glob("*.safetensors")
    settings = store.load_weights(weights)[1]
    assert (settings["arch"], settings["epochs"], settings["seed"]) == ("lenet", 2, 1)
    assert settings["data"]["name"] == "mnist"
    assert settings["recipe"]["rate"] == 0.001
    assert len(settings["losses"]) == 2
    assert list(weights.parent.glob("*.checkpoint")) == []


def test_damaged_weights_are_named_and_nothing_is_lost(small, own_cache):
    net = training.trained("lenet", small, epochs=1, seed=1)
    (weights,) = (own_cache / "models").glob("*.safetensors")
    good = weights.read_bytes()
    weights.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    with pytest.raises(MgenbError, match=r"\.safetensors .* damaged; delete it and run again"):
        training.trained("lenet", small, epochs=1, seed=1)
    assert len(weights.read_bytes()) == len(good)
    weights.unlink()
    again = training.trained("lenet", small, epochs=1, seed=1)
    assert states_equal(net.state_dict(), again.state_dict())
    assert weights.read_bytes() == good


@pytest.mark.parametrize(("field", "value"), [("seed", 2), ("recipe", {"name": "mge-sgd"}), ("epochs", 7)])
def test_the_cached_weights_of_another_network_are_refused(small, own_cache, field, value):
    training.trained("lenet", small, epochs=1, seed=1)
    (weights,) = (own_cache / "models").glob("*.safetensors")
    state, about = store.load_weights(weights)
    store.save_weights(weights, state, {**about, field: value})  # as if two files had been swapped
    with pytest.raises(MgenbError, match=rf"is a network of another {field}; delete it"):
        training.trained("lenet", small, epochs=1, seed=1)


@pytest.mark.parametrize("recipe", ["sgd", "adam"])
def test_training_that_diverges_is_refused_and_not_cached(small, own_cache, monkeypatch, recipe):
    monkeypatch.setitem(training.RECIPES, "wild", training.Recipe(recipe, 1e30))
    with pytest.raises(MgenbError, match=r"training diverged in epoch .*smaller rate"):
        training.trained("lenet", small, recipe="wild", epochs=3, seed=0)
    assert list((own_cache / "models").rglob("*.safetensors")) == []


def test_untrained_networks_score_chance_and_trained_ones_do_not(small, lenet):
    right = [population.correct(training.fresh("lenet", small, seed), small.val).sum() for seed in range(5)]
    low, high = stats.proportion(int(sum(right)), 5 * len(small.val)).interval(0.999)
    assert low <= 0.1 <= high
    assert population.accuracy(lenet, small.val) > 0.5


def test_wrong_requests(small):
    with pytest.raises(MgenbError, match="epochs is 0"):
        training.trained("lenet", small, epochs=0, seed=0)
    with pytest.raises(MgenbError, match="did you mean 'mge-adam'"):
        training.trained("lenet", small, recipe="mgeadam", epochs=1, seed=0)
    with pytest.raises(MgenbError, match="unknown architecture"):
        training.trained("alexnett", small, epochs=1, seed=0)


def test_normalisation_is_that_of_the_training_images(small):
    net = training.fresh("lenet", small, 0)
    out = net.get_submodule("normalise")(small.train.images)[:, :, 2:-2, 2:-2]
    assert out.mean().item() == pytest.approx(0, abs=1e-3)
    assert out.std().item() == pytest.approx(1, abs=1e-3)
    assert set(nets.ARCHITECTURES) >= {"lenet", "vgg11", "vgg16", "resnet18"}


BOTH_AT_ONCE = """
import sys, time
from pathlib import Path
from typing import Any
from mgenb import data, store, training
digits = data.load("mnist", source="samples", train_limit=300, val_limit=100, test_limit=100)
Path(sys.argv[1]).touch()
while not all(Path(name).exists() for name in sys.argv[1:3]):
    time.sleep(0.005)
net = training.trained("lenet", digits, epochs=10, seed=7)
print(store.key_of({name: tensor.tolist() for name, tensor in net.state_dict().items()}))
"""


def test_two_processes_that_want_one_network_train_it_once(own_cache, tmp_path):
    flags = [str(tmp_path / "a"), str(tmp_path / "b")]
    commands = [[sys.executable, "-c", BOTH_AT_ONCE, *order] for order in (flags, flags[::-1])]
    running = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for command in commands
    ]
    outputs = [process.communicate(timeout=120) for process in running]
    assert [process.returncode for process in running] == [0, 0], outputs
    assert outputs[0][0] == outputs[1][0] != ""
    assert sorted("from the cache" in err for _, err in outputs) == [False, True]
    assert len(list((own_cache / "models").rglob("*.safetensors"))) == 1


def test_the_triangle_rises_and_falls_and_constant_stays():
    cycle, flat = training.RECIPES["one-cycle"], training.RECIPES["mge-adam"]
    rates = [training.rate_at(cycle, step / 100) for step in range(101)]
    assert max(rates) == pytest.approx(cycle.rate) == rates[30]
    assert rates[0] == 0
    assert rates[100] == 0
    assert rates[:31] == sorted(rates[:31])
    assert rates[30:] == sorted(rates[30:], reverse=True)
    assert {training.rate_at(flat, step / 100) for step in range(101)} == {flat.rate}


def test_bfloat16_is_another_training_that_leaves_float32(small):
    ends = []
    for name in ("one-cycle", "one-cycle-bf16"):
        net = training.fresh("lenet", small, 0)
        training.fit(net, small.train, training.RECIPES[name], epochs=1, seed=0)
        ends.append(net.state_dict())
        assert all(tensor.dtype == torch.float32 for tensor in ends[-1].values())
    assert not ends[0]["net.conv1.weight"].equal(ends[1]["net.conv1.weight"])
    assert torch.allclose(ends[0]["net.conv1.weight"], ends[1]["net.conv1.weight"], atol=0.1)


def test_an_unknown_precision_is_refused():
    with pytest.raises(MgenbError, match="float32, bfloat16"):
        training.Recipe("adam", 0.01, precision="float16")


@pytest.fixture
def shipped(small, tmp_path, own_cache, monkeypatch):
    """Two LeNets that are shipped, in a folder of their own; the file."""
    monkeypatch.setattr(training, "SHIPPED", tmp_path / "shipped")
    monkeypatch.setattr(training, "_anew", set())
    file = training.ship("lenet", small, recipe="mge-adam", epochs=1, count=2, licence="free")
    training._anew.clear()
    shutil.rmtree(own_cache)
    return file


def test_shipped_networks_come_before_the_cache(small, shipped, monkeypatch, capsys):
    capsys.readouterr()
    found = [training.trained("lenet", small, epochs=1, seed=seed).state_dict() for seed in (0, 1)]
    assert capsys.readouterr().err.count("shipped with mgenb") == 2
    monkeypatch.setattr(training, "SHIPPED", shipped.parent / "none")
    made = [training.trained("lenet", small, epochs=1, seed=seed).state_dict() for seed in (0, 1)]
    assert "shipped" not in capsys.readouterr().err
    assert all(states_equal(one, other) for one, other in zip(found, made, strict=True))
    assert not states_equal(*found)
    # what is in the cache is not taken where it is shipped
    monkeypatch.setattr(training, "SHIPPED", shipped.parent)
    training.trained("lenet", small, epochs=1, seed=0)
    assert "shipped with mgenb" in capsys.readouterr().err


def test_only_the_very_same_network_is_taken_from_what_is_shipped(small, shipped, monkeypatch, capsys):
    newer = dataclasses.replace(training.RECIPES["mge-adam"], version=2)
    fewer = dataclasses.replace(small, train=small.train.take(200, 0))
    for change in ({"seed": 2}, {"epochs": 2}, {"recipe": "mge-sgd"}, {"dataset": fewer}, {"version": newer}):
        wanted = {"dataset": small, "epochs": 1, "seed": 0, **change}
        with monkeypatch.context() as patch:
            if "version" in wanted:
                patch.setitem(training.RECIPES, "mge-adam", wanted.pop("version"))
            training.trained("lenet", **wanted)
        assert "shipped" not in capsys.readouterr().err


def test_shipped_networks_say_how_they_were_made_and_are_checked_on_reading(small, shipped):
    about = json.loads(shipped.with_suffix(".json").read_text())
    assert (about["arch"], about["epochs"], about["count"], about["licence"]) == ("lenet", 1, 2, "free")
    assert (about["data"]["name"], about["torch"], about["cpu"]) == ("mnist", torch.__version__, devices.processor())
    good = shipped.read_bytes()
    shipped.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    with pytest.raises(MgenbError, match="does not match its recorded hash"):
        training.trained("lenet", small, epochs=1, seed=0)


def test_retrain_trains_what_is_there_and_once_in_a_process(small, shipped, monkeypatch, capsys):
    trainings, fit = [], training.fit
    monkeypatch.setattr(training, "fit", lambda *a, **o: trainings.append(1) or fit(*a, **o))
    states = [training.trained("lenet", small, epochs=1, seed=0).state_dict()]
    assert trainings == []
    states += [training.trained("lenet", small, epochs=1, seed=seed, retrain=True).state_dict() for seed in (0, 1)]
    assert trainings == [1, 1]
    capsys.readouterr()
    states.append(training.trained("lenet", small, epochs=1, seed=0, retrain=True).state_dict())
    assert trainings == [1, 1]
    assert "from the cache" in capsys.readouterr().err
    assert states_equal(states[0], states[1])
    assert states_equal(states[0], states[3])
    training._anew.clear()  # as in another process
    training.trained("lenet", small, epochs=1, seed=0, retrain=True)
    assert trainings == [1, 1, 1]


def test_the_training_images_are_hashed_once_a_dataset(small, shipped, monkeypatch):
    hashed, tensor_hash = [], store.tensor_hash
    monkeypatch.setattr(store, "tensor_hash", lambda *a: hashed.append(1) or tensor_hash(*a))
    again = dataclasses.replace(small, train=small.train.take(300, 0))
    for seed in (0, 1):
        training.trained("lenet", again, epochs=1, seed=seed)
    assert hashed == [1]
