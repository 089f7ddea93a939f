"""Algorithm 1: what it keeps and spends, and a cached search that is the plain one bit for bit."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from mgenb import mge, nets
from mgenb.data import Split
from mgenb.errors import MgenbError
from mgenb.measure import population
from mgenb.measure.population import Count
from mgenb.mge import algorithm1, frequency
from mgenb.seeds import derive

SETTINGS = mge.Settings(selection="magnitude", domain="weights")  # cheap to redraw


def drawn(seed, tries):
    """The recipe of a search whose last tries were taken."""
    return {name: derive(seed, name, attempt) for name, attempt in tries.items()}


def same(a, b):
    return a.keys() == b.keys() and all(a[name].equal(b[name]) for name in a)


@pytest.fixture(scope="module")
def base():
    generator = torch.Generator().manual_seed(0)
    shapes = {"conv.weight": (8, 6, 3, 3), "conv.bias": (8,), "fc.weight": (30, 40)}
    return {name: 0.1 * torch.randn(shape, generator=generator) for name, shape in shapes.items()}


class Scripted:
    """A fitness of 90 % for the base, then of what `then` says of a call; it notes each state it is asked about."""

    def __init__(self, then):
        self.then, self.seen = then, []

    def __call__(self, state, name):
        state = dict(state)

        def right_with(weight, fewest):
            self.seen.append({**state, name: weight})
            return Count(90 if len(self.seen) == 1 else self.then(len(self.seen)), 100, 100)

        return right_with


def test_one_try_a_layer_when_all_are_accepted(base):
    fitness = Scripted(lambda call: 90)
    result = algorithm1.search(base, SETTINGS, 1, fitness, tries=5)
    assert result.tries == {"conv.weight": 1, "fc.weight": 1}
    assert result.recipe == drawn(1, result.tries)
    assert len(fitness.seen) == 3
    assert all(not result.state[name].equal(base[name]) for name in result.tries)
    assert result.state["conv.bias"].equal(base["conv.bias"])


def test_layers_for_which_nothing_is_found_are_kept(base):
    fitness = Scripted(lambda call: 10)
    result = algorithm1.search(base, SETTINGS, 1, fitness, tries=5)
    assert same(result.state, base)
    assert result.tries == {"conv.weight": 5, "fc.weight": 5}
    assert result.recipe == {}
    assert len(fitness.seen) == 11


def test_the_try_that_passes_is_taken_and_built_on(base):
    fitness = Scripted(lambda call: 90 if call in (4, 5) else 10)
    result = algorithm1.search(base, SETTINGS, 1, fitness, tries=5)
    seen = fitness.seen
    assert same(seen[0], base)
    assert result.tries == {"conv.weight": 3, "fc.weight": 1}
    assert result.recipe == drawn(1, result.tries)
    assert same(result.state, seen[4])
    assert seen[4]["conv.weight"].equal(seen[3]["conv.weight"])
    assert not seen[1]["conv.weight"].equal(seen[2]["conv.weight"])


def test_the_seed_and_eps_decide(base):
    first, again, other = (algorithm1.search(base, SETTINGS, seed, Scripted(lambda call: 90)) for seed in (1, 1, 2))
    assert same(first.state, again.state)
    assert not same(first.state, other.state)
    # 85 of 100 are not closer to 90 than 0.05
    for right, eps, taken in ((85, 0.05, 0), (86, 0.05, 2), (85, 0.06, 2), (90, 0.0, 0), (91, 0.0, 2)):
        fitness = Scripted(lambda call, right=right: right)
        assert len(algorithm1.search(base, SETTINGS, 1, fitness, eps=eps, tries=1).recipe) == taken


def test_it_needs_a_try(base):
    with pytest.raises(MgenbError, match="tries is 0"):
        algorithm1.search(base, SETTINGS, 1, Scripted(lambda call: 100), tries=0)


@pytest.mark.parametrize("selection", ["energy", "fig7"])
def test_a_recipe_gives_the_state_again(base, selection):
    domain = "weights" if selection == "fig7" else "coefficients"
    settings = mge.Settings(selection=selection, domain=domain)
    base = {**base, "fc2.weight": base["fc.weight"].flip(0)}
    result = algorithm1.search(base, settings, 5, Scripted(lambda call: 90 if call in (4, 7) else 10), tries=3)
    assert result.recipe == drawn(5, {"conv.weight": 3, "fc.weight": 3})
    assert result.tries["fc2.weight"] == 3
    assert same(algorithm1.replay(base, settings, result.recipe), result.state)
    assert not same(algorithm1.replay(base, settings, drawn(6, result.tries)), result.state)
    assert same(algorithm1.replay(base, settings, {}), base)


def settled(arch, n):
    """Return a network with the BatchNorm statistics of `n` images, and these with its own predictions as labels."""
    torch.manual_seed(0)
    net = nets.build(arch, 1, 28, 10)
    images = torch.randint(0, 256, (n, 1, 28, 28), dtype=torch.uint8)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    with torch.no_grad():
        net(images)
        labels = net.eval()(images).argmax(1)
    return net, Split(images, labels, torch.arange(n), "val")


def noted(fitness, values):
    """Return the fitness without its early stop; it also adds each count that it gives to `values`."""

    def at(state, name):
        count = fitness(state, name)

        def note(weight, fewest):
            values.append(count(weight, None))
            return values[-1]

        return note

    return at


@pytest.mark.parametrize(
    ("arch", "n", "every", "z", "eps"),
    [
        ("lenet", 20, 1, 5.0, 0.2),
        ("vgg11_bn", 8, 4, 1.0, 0.3),
        ("resnet18", 8, 4, 1.0, 0.2),
        ("vit", 20, 1, 3.0, 0.2),
        ("densenet121", 8, 20, 0.5, 0.3),
    ],
)
def test_the_cached_search_is_the_plain_one_bit_for_bit(arch, n, every, z, eps, monkeypatch):
    monkeypatch.setattr(population, "CPU_BATCH", n // 2 + 1)  # two batches of unequal size
    net, images = settled(arch, n)
    base = population.state_of(net)
    net.train()
    some = frequency.weight_names(base)[::every]
    monkeypatch.setattr(frequency, "weight_names", lambda state: some)
    settings = mge.Settings(selection="magnitude", domain="weights", z=z)
    results, values = [], []
    for way in (algorithm1.plain, algorithm1.cached):
        values.append([])
        fitness = noted(way(net, images), values[-1])
        results.append(algorithm1.search(base, settings, 4, fitness, eps=eps, tries=2))
    plain, cached = results
    assert values[0] == values[1]
    assert (cached.tries, cached.recipe) == (plain.tries, plain.recipe)
    assert same(cached.state, plain.state)
    assert values[0][0] == Count(n, n, n)
    assert len(set(values[0])) > 2
    assert list(plain.tries) == some
    assert 0 < len(plain.recipe) < len(some)  # some layers were redrawn, and some kept
    assert all(module.training for module in net.modules())
    assert same(population.state_of(net), base)
    assert same(algorithm1.replay(base, settings, cached.recipe), plain.state)


def test_a_cached_try_ends_early_and_is_decided_as_the_whole_one(monkeypatch):
    monkeypatch.setattr(population, "CPU_BATCH", 7)
    net, images = settled("lenet", 40)
    base = population.state_of(net)
    name = "net.conv3.weight"
    whole, cached = (way(net, images)(base, name) for way in (algorithm1.plain, algorithm1.cached))
    generated = mge.layer_generator(base[name], mge.Settings(selection="magnitude", domain="weights", z=5.0))
    seen = []
    for seed in range(12):
        weight = generated(seed)
        right = whole(weight, None).right
        for fewest in (0, 1, 10, 20, 30, 39, 40, 41):
            count = cached(weight, fewest)
            assert count.passes(fewest) is (right >= fewest)
            assert count.right <= right <= count.most
            seen.append(count.seen)
    assert min(seen) == 7
    assert max(seen) > 28
    assert sum(seen) / len(seen) < 30


def test_layers_can_be_tried_in_turn():
    net, images = settled("lenet", 20)
    base = population.state_of(net)
    other = mge.generate(base, mge.Settings(t=0.5, z=2.0), 1)
    names = ["net.conv1.weight", "net.conv3.weight", "net.fc2.weight"]
    states = [base, other, base]
    plain, cached = algorithm1.plain(net, images), algorithm1.cached(net, images)
    at = [(name, plain(state, name), cached(state, name)) for state, name in zip(states, names, strict=True)]
    values = []
    for seed in range(4):
        for name, plainly, quickly in at:
            weight = mge.layer_generator(base[name], mge.Settings(t=0.5, z=3.0))(seed)
            values.append(plainly(weight, None))
            assert quickly(weight, None) == values[-1]
    assert len(set(values)) > 4
    for state, (name, plainly, quickly) in zip(states, at, strict=True):
        assert quickly(state[name], None) == plainly(state[name], None)


@pytest.mark.parametrize("layers", [mge.layer_generator, mge.layer_noise])
def test_a_recipe_gives_the_state_again_whatever_made_the_layers(layers):
    net, images = settled("lenet", 20)
    base, settings, fitness = population.state_of(net), mge.Settings(z=2.0), algorithm1.cached(net, images)
    results = [algorithm1.search(base, settings, seed, fitness, layers=layers, tries=2) for seed in (3, 4)]
    for result in results:
        assert result.recipe
        assert same(algorithm1.replay(base, settings, result.recipe, layers), result.state)
    assert not same(results[0].state, results[1].state)


class Awkward(nn.Module):
    """A network that changes in place, after its second layer, what that layer read, and drops out by its mode."""

    def __init__(self):
        super().__init__()
        self.flatten, self.relu = nn.Flatten(), nn.ReLU(inplace=True)
        self.first, self.second, self.head = nn.Linear(784, 30), nn.Linear(30, 30), nn.Linear(30, 10)

    def forward(self, images):
        x = functional.dropout(self.first(self.flatten(images)), training=self.training)
        y = self.second(x)
        return self.head(y + self.relu(x).mul_(2))


def test_what_a_network_changes_in_place_is_whole_again_for_the_next_try():
    torch.manual_seed(0)
    net, pixels = Awkward(), torch.rand(40, 1, 28, 28)
    with torch.no_grad():
        images = Split(pixels, net.eval()(pixels).argmax(1), torch.arange(40), "val")
    base = population.state_of(net.train())
    plain, cached = (way(net, images)(base, "second.weight") for way in (algorithm1.plain, algorithm1.cached))
    generated = mge.layer_generator(base["second.weight"], mge.Settings(t=0.2, z=3.0))
    weights = [generated(seed) for seed in range(5)]
    values = [plain(weight, None) for weight in weights]
    assert len(set(values)) > 2
    assert [cached(weight, None) for weight in weights] == values
    assert cached(base["second.weight"], None).right == 40


def test_a_layer_of_nans_is_never_accepted():
    net, images = settled("lenet", 20)
    base = population.state_of(net)
    for way in (algorithm1.plain, algorithm1.cached):
        right_with = way(net, images)(base, "net.conv2.weight")
        assert right_with(torch.full_like(base["net.conv2.weight"], float("nan")), 1).right == 0
        assert right_with(base["net.conv2.weight"], None).right == 20
