"""The generator and the discriminator: what changes, by how much, and what never does."""

from itertools import product

import numpy as np
import pytest
import scipy.fft
import torch
from scipy import stats

from mgenb import mge
from mgenb.errors import MgenbError
from mgenb.measure import population
from mgenb.mge import frequency, generator

Z = 0.2
IN_DOMAIN = sorted({(s, frequency.NATURAL.get(s, d)) for s, d in product(frequency.SELECTIONS, frequency.DOMAINS)})


@pytest.fixture(scope="module")
def base():
    generator = torch.Generator().manual_seed(0)
    shapes = {"conv.weight": (16, 6, 5, 5), "conv.bias": (16,), "fc.weight": (30, 40), "bn.weight": (16,)}
    state = {name: 0.1 * torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    return {**state, "bn.num_batches_tracked": torch.tensor(5)}


def same(a, b):
    return a.keys() == b.keys() and all(a[name].equal(b[name]) for name in a)


def draws(noise, z=Z, n=100_000, seed=3):
    """Draws of Eq. 1: a layer of which everything is redrawn."""
    weight, settings = torch.zeros(1, n), mge.Settings("random", noise=noise, z=z, scale="absolute", domain="weights")
    return mge.redraw(weight, torch.ones_like(weight, dtype=torch.bool), settings, seed)


@pytest.mark.parametrize("noise", mge.NOISES)
@pytest.mark.parametrize(
    ("selection", "domain"), [("energy", "coefficients"), ("fig7", "weights"), ("random", "weights")]
)
def test_base_settings_and_seed_decide_every_bit(base, noise, selection, domain):
    settings = mge.Settings(selection=selection, domain=domain, noise=noise)
    one = mge.generate(base, settings, 4)
    assert same(one, mge.generate(dict(reversed(base.items())), settings, 4))
    other = mge.generate(base, settings, 5)
    assert all(not other[name].equal(one[name]) for name in frequency.weight_names(base))


@pytest.mark.parametrize(("selection", "domain"), IN_DOMAIN)
@pytest.mark.parametrize("transform", ["flat", "kernel", "shuffled:2"])
def test_one_generator_gives_what_a_fresh_one_gives_in_any_order_of_seeds(base, selection, domain, transform):
    settings = mge.Settings(selection=selection, domain=domain, transform=transform)
    before = {name: tensor.clone() for name, tensor in base.items()}
    generated = mge.model_generator(base, settings)
    found = {seed: generated(seed) for seed in (9, 4, 7)}
    assert not found[9]["fc.weight"].equal(found[7]["fc.weight"])
    for seed in (4, 7, 9, 9):
        assert same(found[seed], mge.generate(base, settings, seed))
        assert same(found[seed], generated(seed))
    assert same(base, before)


@pytest.mark.parametrize("selection", ["random", "fig7"])
def test_a_drawn_selection_is_drawn_again_for_each_seed(base, selection):
    settings = mge.Settings(selection=selection, domain="weights", t=0.95)
    generated = mge.layer_generator(base["conv.weight"], settings)
    moved = [generated(seed) != base["conv.weight"] for seed in range(3)]
    assert len({int(mask.sum()) for mask in moved}) == 1
    assert not moved[0].equal(moved[1])
    assert not moved[1].equal(moved[2])


def test_the_global_generator_has_no_say_and_is_left_alone(base):
    torch.manual_seed(1)
    before = torch.get_rng_state()
    one = mge.generate(base, mge.Settings(), 4)
    assert torch.get_rng_state().equal(before)
    torch.manual_seed(2)
    assert same(one, mge.generate(base, mge.Settings(), 4))


@pytest.mark.parametrize("selection", frequency.SELECTIONS)
@pytest.mark.parametrize("transform", frequency.TRANSFORMS)
def test_no_noise_and_all_energy_kept_is_the_base(base, selection, transform):
    domain = frequency.NATURAL.get(selection, "coefficients")
    settings = mge.Settings(selection=selection, domain=domain, transform=transform, z=0.0, t=1.0)
    assert same(mge.generate(base, settings, 1), base)


def test_no_energy_kept_and_no_noise_leaves_nothing_of_the_layers(base):
    changed = mge.generate(base, mge.Settings(t=0.0, z=0.0), 1)
    assert changed["conv.weight"].abs().max() < 1e-6
    assert changed["conv.bias"].equal(base["conv.bias"])


@pytest.mark.parametrize("domain", frequency.DOMAINS)
def test_biases_batchnorm_and_counters_are_never_touched(base, domain):
    changed = mge.generate(base, mge.Settings(selection="random", domain=domain, t=0.5), 1)
    untouched = set(base) - {"conv.weight", "fc.weight"}
    assert all(changed[name].equal(base[name]) for name in untouched)
    assert not changed["conv.weight"].equal(base["conv.weight"])


@pytest.mark.parametrize("selection", ["fig7", "random", "magnitude", "largest"])
def test_in_the_weight_domain_nothing_outside_the_mask_changes(base, selection):
    weight = base["conv.weight"]
    settings = mge.Settings(selection=selection, domain="weights", t=0.7)
    mask = mge.unimportant(weight, settings, 3)
    changed = mge.redraw(weight, mask, settings, 3)
    assert 0 < mask.sum() < weight.numel()
    assert changed[~mask].equal(weight[~mask])
    assert changed[mask].ne(weight[mask]).all()


def test_important_coefficients_stay_and_hold_the_energy(base):
    weight, settings = base["fc.weight"], mge.Settings(t=0.8)
    mask = mge.unimportant(weight, settings, 3)
    old = frequency.to_coefficients(weight, "flat")
    new = frequency.to_coefficients(mge.redraw(weight, mask, settings, 3), "flat")
    assert (new - old)[~mask].abs().max() < 1e-5 * old.abs().max()
    assert old[~mask].square().sum() >= 0.8 * old.square().sum()


def test_every_selection_redraws_as_many_as_the_papers(base):
    weight = base["conv.weight"]
    sizes = set()
    for selection in frequency.SELECTIONS:
        domain = frequency.NATURAL.get(selection, "coefficients")
        sizes.add(int(mge.unimportant(weight, mge.Settings(selection=selection, domain=domain), 1).sum()))
    assert len(sizes) == 1


@pytest.mark.parametrize("noise", mge.NOISES)
def test_draws_come_from_the_seed_and_nothing_else(noise):
    torch.manual_seed(1)
    one = draws(noise, n=1000)
    torch.manual_seed(2)
    before = torch.get_rng_state()
    assert draws(noise, n=1000).equal(one)
    assert torch.get_rng_state().equal(before)
    assert draws(noise, z=2 * Z, n=1000).allclose(2 * one)
    assert not draws(noise, n=1000, seed=4).equal(one)


@pytest.mark.parametrize(
    ("noise", "expected"),
    [
        ("truncated", stats.truncnorm(-1, 1, scale=Z)),
        ("literal", stats.norm(-Z, Z)),
        ("gaussian", stats.norm(0, Z)),
        ("uniform", stats.uniform(-Z, 2 * Z)),
    ],
)
def test_draws_have_the_distribution_of_their_name(noise, expected):
    values = draws(noise).double().numpy()[0]
    assert stats.kstest(values, expected.cdf).pvalue > 0.001
    low, high = expected.support()
    assert low - 1e-7 <= values.min() <= values.max() <= high + 1e-7  # Z in float32


def flat_dct(values, inverse=False):
    """The flat DCT of an array by scipy."""
    change = scipy.fft.idct if inverse else scipy.fft.dct
    return change(np.asarray(values, dtype=np.float64).reshape(-1), norm="ortho")


@pytest.mark.parametrize("share", [0.0, 0.1, 0.2, 0.333, 1.0])
@pytest.mark.parametrize("part", [0.0, 0.1, 0.5, 1.0])
def test_a_share_is_of_all_values_and_a_part_is_the_most_unimportant_of_them(base, share, part):
    weight = base["fc.weight"]
    order = np.abs(flat_dct(weight)).argsort()
    for t in (0.0, 0.8, 1.0):  # has no say
        mask = mge.unimportant(weight, mge.Settings(t=t, share=share, part=part), 0)
        assert mask.reshape(-1).nonzero().squeeze(1).tolist() == sorted(order[: round(part * round(share * 1200))])


def test_a_part_of_what_lies_outside_the_energy_share(base):
    squares = np.sort(flat_dct(base["fc.weight"]) ** 2)[::-1].cumsum()
    outside = 1200 - (int((squares < 0.8 * squares[-1]).sum()) + 1)
    for part in (0.1, 1.0):
        mask = mge.unimportant(base["fc.weight"], mge.Settings(t=0.8, part=part), 0)
        assert mask.sum() == round(part * outside)


@pytest.mark.parametrize(("selection", "domain"), IN_DOMAIN)
def test_a_part_lies_within_the_whole_of_every_selection(base, selection, domain):
    settings = [mge.Settings(selection, domain=domain, share=0.3, part=part) for part in (0.1, 1.0)]
    some, every = (mge.unimportant(base["conv.weight"], one, 5) for one in settings)
    assert some.sum() == 72
    assert every[some].all()


@pytest.mark.parametrize("noise", mge.NOISES)
@pytest.mark.parametrize("nothing", [{"t": 1.0}, {"share": 0.0}, {"part": 0.0}])
@pytest.mark.parametrize("placed", ["replaced", "added"])
def test_nothing_unimportant_is_the_base_bit_for_bit(base, noise, nothing, placed):
    settings = mge.Settings(noise=noise, placed=placed, **nothing)
    assert same(mge.generate(base, settings, 1), base)


@pytest.mark.parametrize("noise", mge.NOISES)
def test_added_is_the_kept_part_and_a_draw_of_every_weight(base, noise):
    weight, how = base["fc.weight"], {"noise": noise, "scale": "absolute", "share": 0.4}
    settings = mge.Settings(placed="added", **how)
    old = flat_dct(weight)
    small = np.abs(old).argsort()[:480]
    kept = old.copy()
    kept[small] = 0
    added = mge.layer_generator(weight, settings)(3).double().numpy().reshape(-1)
    draw = added - flat_dct(kept, inverse=True)
    # the same random numbers stand in place of coefficients
    replaced = flat_dct(mge.layer_generator(weight, mge.Settings(**how))(3))
    assert np.abs(replaced[small] - draw[small]).max() < 1e-5
    assert stats.ks_2samp(draw, draws(noise).numpy()[0]).pvalue > 0.001


def test_zeros_are_drawn_alike_wherever_they_are_placed(base):
    for drawn in (False, True):
        settings = [mge.Settings(z=0.0, z_drawn=drawn, placed=placed) for placed in ("replaced", "added")]
        one, other = (mge.generate(base, setting, 1) for setting in settings)
        assert same(one, other)
        assert not one["fc.weight"].equal(base["fc.weight"])


@pytest.mark.parametrize("noise", mge.NOISES)
def test_a_drawn_z_is_uniform_and_new_for_each_layer_and_model(base, noise):
    how = {"selection": "magnitude", "domain": "weights", "share": 1.0, "noise": noise}
    fixed, drawn = (mge.model_generator(base, mge.Settings(z_drawn=z_drawn, **how)) for z_drawn in (False, True))
    shares = []
    for seed in range(300):
        models = fixed(seed), drawn(seed)
        for name in ("conv.weight", "fc.weight"):
            a, b = (model[name].double().numpy().reshape(-1) for model in models)
            shares.append((a @ b) / (a @ a))
            assert np.allclose(b, shares[-1] * a, rtol=1e-5, atol=1e-8)
    assert stats.kstest(shares, stats.uniform.cdf).pvalue > 0.001
    assert abs(np.corrcoef(shares[::2], shares[1::2])[0, 1]) < 0.2
    assert same(drawn(7), mge.generate(base, mge.Settings(z_drawn=True, **how), 7))


@pytest.mark.parametrize(("noise", "mean"), [("literal", -Z), ("gaussian", 0.0)])
def test_literal_and_gaussian_are_normals_of_deviation_z(noise, mean):
    values = draws(noise)
    assert values.mean().item() == pytest.approx(mean, abs=4 * Z / 100_000**0.5)
    assert values.std().item() == pytest.approx(Z, rel=0.02)
    assert values.abs().max() > 3 * Z


def test_relative_scale_follows_the_layer_and_absolute_does_not(base):
    spread = {}
    for scale in mge.SCALES:
        settings = mge.Settings(t=0.0, noise="gaussian", scale=scale)
        spread[scale] = mge.layer_generator(base["conv.weight"], settings)(1).std().item()
    assert spread["absolute"] == pytest.approx(Z, rel=0.1)
    assert spread["relative"] == pytest.approx(Z * base["conv.weight"].std().item(), rel=0.1)


@pytest.mark.parametrize(
    ("fitness", "base_fitness", "eps", "accepted"),
    [
        (0.91, 0.90, 0.05, True),
        (1.00, 0.50, 0.05, True),
        (0.90, 0.90, 0.05, True),
        (0.851, 0.90, 0.05, True),
        (0.85, 0.90, 0.05, False),
        (0.90, 0.95, 0.05, False),
        (0.849, 0.90, 0.05, False),
        (0.90, 0.90, 0.0, False),
        (0.9001, 0.90, 0.0, True),
        (float("nan"), 0.90, 0.05, False),
    ],
)
def test_the_discriminator(fitness, base_fitness, eps, accepted):
    assert mge.accepts(fitness, base_fitness, eps) is accepted


def test_exactly_eps_below_is_refused_for_every_pair_of_counts():
    for hits in range(50, 1001):
        assert not mge.accepts((hits - 50) / 1000, hits / 1000, 0.05)
        assert mge.accepts((hits - 49) / 1000, hits / 1000, 0.05)


@pytest.mark.parametrize("total", [1, 3, 20, 100, 997])
@pytest.mark.parametrize("eps", [0.0, 0.01, 0.05, 0.1, 1.0])
def test_fewest_right_is_where_the_discriminator_begins_to_accept(total, eps):
    for base_right in sorted({0, 1, total // 2, 9 * total // 10, total - 1, total}):
        fewest = mge.fewest_right(base_right, total, eps)
        accepted = [mge.accepts(right / total, base_right / total, eps) for right in range(total + 1)]
        assert accepted == [right >= fewest for right in range(total + 1)]


def test_fewest_right_at_its_ends():
    assert mge.fewest_right(1000, 1000, 0.0) == 1001  # nothing is better than a perfect base
    assert mge.fewest_right(999, 1000, 0.0) == 1000
    assert mge.fewest_right(950, 1000, 0.05) == 901  # exactly eps below is refused
    assert mge.fewest_right(30, 1000, 0.05) == 0


def test_candidates_repeat_and_differ_from_each_other(base):
    found = list(mge.candidates(base, mge.Settings(), 7, 3))
    assert len({seed for seed, _ in found}) == 3
    for seed, state in found:
        assert same(state, mge.generate(base, mge.Settings(), seed))
    assert [seed for seed, _ in mge.candidates(base, mge.Settings(), 7, 2)] == [seed for seed, _ in found[:2]]
    assert [seed for seed, _ in found] == [mge.candidate_seed(7, index) for index in range(3)]
    assert mge.candidate_seed(8, 0) not in {mge.candidate_seed(7, index) for index in range(1000)}


def test_noise_of_same_norm_matches_layer_by_layer(base):
    changed = mge.generate(base, mge.Settings(t=0.7), 1)
    noisy = mge.noise_of_same_norm(base, changed, 2)
    for name in frequency.weight_names(base):
        wanted, got = (changed[name] - base[name]).norm(), (noisy[name] - base[name]).norm()
        assert got.item() == pytest.approx(wanted.item(), rel=1e-4)
        cosine = ((changed[name] - base[name]) * (noisy[name] - base[name])).sum() / (wanted * got)
        assert abs(cosine.item()) < 0.15
    assert noisy["conv.bias"].equal(base["conv.bias"])
    assert same(noisy, mge.noise_of_same_norm(base, changed, 2))
    assert same(mge.noise_of_same_norm(base, base, 2), base)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"selection": "energi"}, "did you mean 'energy'"),
        ({"noise": "normal"}, "unknown noise"),
        ({"scale": "Absolute"}, "did you mean 'absolute'"),
        ({"domain": "weight"}, "did you mean 'weights'"),
        ({"domain": "weights"}, "set domain='coefficients'"),
        ({"selection": "fig7"}, "set domain='weights'"),
        ({"transform": "flatt"}, "did you mean 'flat'"),
        ({"band": "middle"}, "unknown band"),
        ({"z": -0.1}, "z is -0.1; right is a number from 0 to 1e"),
        ({"z": float("nan")}, "z is nan"),
        ({"t": 1.5}, "t is 1.5; right is a number from 0 to 1"),
        ({"t": -0.1}, "t is -0.1"),
        ({"t": True}, "t is True"),
        ({"t": float("nan")}, "t is nan"),
        ({"share": 1.1}, "share is 1.1; right is a number from 0 to 1"),
        ({"part": -0.1}, "part is -0.1; right is a number from 0 to 1"),
        ({"part": None}, "part is None"),
        ({"placed": "add"}, "did you mean 'added'"),
        ({"placed": "added", "domain": "weights", "selection": "magnitude"}, "placed='added' is about coefficients"),
    ],
)
def test_wrong_settings_are_refused_at_once(wrong, words):
    with pytest.raises(MgenbError, match=words):
        mge.Settings(**wrong)


@pytest.mark.parametrize(
    "changed",
    [
        {},
        {"transform": "kernel"},
        {"transform": "shuffled:1"},
        {"noise": "literal", "scale": "absolute"},
        {"selection": "magnitude", "domain": "weights", "noise": "gaussian"},
        {"selection": "highest", "share": 0.2},
        {"part": 0.1, "noise": "uniform"},
        {"placed": "added"},
        {"placed": "added", "transform": "kernel", "noise": "literal"},
        {"placed": "added", "share": 0.0},
    ],
)
def test_stacks_hold_the_models_of_the_generator_in_order(changed, lenet, monkeypatch):
    settings, base = mge.Settings(**changed), population.state_of(lenet)
    seeds = [mge.candidate_seed(3, index) for index in range(5)]
    monkeypatch.setattr(
        generator, "STACK_ELEMENTS", 2 * sum(base[name].numel() for name in frequency.weight_names(base))
    )
    with torch.inference_mode():  # as populations are evaluated
        stacks = list(mge.stacks(base, settings, seeds))
    assert [len(next(iter(stack.values()))) for stack in stacks] == [2, 2, 1]
    made = [model for stack in stacks for model in mge.unstacked(stack)]
    for seed, model in zip(seeds, made, strict=True):
        wanted = mge.generate(base, settings, seed)
        assert list(model) == frequency.weight_names(base)
        assert all((tensor - wanted[name]).norm() < 1e-6 * wanted[name].norm() for name, tensor in model.items())


@pytest.mark.parametrize("changed", [{"selection": "random"}, {"z_drawn": True}])
def test_what_a_seed_decides_besides_the_draws_is_not_stacked(changed, base):
    with pytest.raises(MgenbError, match="stacks have one mask and one z"):
        list(mge.stacks(base, mge.Settings(**changed), [1]))
    assert len(list(mge.candidates(base, mge.Settings(**changed), 1, 2))) == 2


def test_there_are_no_stacks_of_nothing(lenet):
    assert list(mge.stacks(population.state_of(lenet), mge.Settings(), [])) == []
