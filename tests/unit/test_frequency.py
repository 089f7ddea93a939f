"""The DCT against scipy's, bands, energy, and what each selection chooses."""

import math
from typing import Any

import numpy as np
import pytest
import scipy.fft
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from mgenb.errors import MgenbError
from mgenb.mge import frequency

TRANSFORMS = (*frequency.TRANSFORMS, "shuffled:0", "shuffled:7", "kernels:2", "inside:2")
BAND: dict[str, Any] = {"transform": "flat", "seed": 0}
SHAPES = st.lists(st.integers(1, 7), min_size=2, max_size=4).map(tuple)


def tensor(shape, seed=0, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def close(a, b, tolerance=1e-5):
    a, b = torch.as_tensor(a).double(), torch.as_tensor(b).double()
    return ((a - b).norm() <= tolerance * b.norm()).item()


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 7, 8, 25, 64, 101, 997, 1000, 4096, 48_000, 99_991, 1_000_000])
def test_dct_is_scipys_orthonormal_dct(n):
    x = tensor((n,))
    expected = scipy.fft.dct(x.double().numpy(), norm="ortho")
    assert close(frequency.dct(x), expected)
    assert close(frequency.idct(torch.as_tensor(expected).float()), x)
    assert frequency.dct(x).dtype == torch.float32


def test_a_large_prime_factor_costs_no_exactness():
    x = tensor((2_359_297,))
    c = frequency.dct(x)
    assert close(c, scipy.fft.dct(x.double().numpy(), norm="ortho"), 1e-6)
    assert close(frequency.idct(c), x, 1e-6)


@pytest.mark.parametrize("n", [1, 6, 101])
def test_dct_in_double_precision_is_exact_to_it(n):
    x = tensor((3, n), dtype=torch.float64)
    assert close(frequency.dct(x), scipy.fft.dct(x.numpy(), norm="ortho"), 1e-13)
    assert close(frequency.idct(frequency.dct(x)), x, 1e-13)


@settings(deadline=None, max_examples=60)
@given(SHAPES, st.sampled_from(TRANSFORMS), st.integers(0, 1000))
def test_the_inverse_undoes_the_transform_and_the_energy_stays(shape, transform, seed):
    weight = tensor(shape, seed)
    coefficients = frequency.to_coefficients(weight, transform)
    assert coefficients.shape == weight.shape
    assert close(frequency.to_weights(coefficients, transform), weight)
    assert coefficients.norm().item() == pytest.approx(weight.norm().item(), rel=1e-5)


@pytest.mark.parametrize("shape", [(6, 1, 5, 5), (4, 3, 3, 3), (84, 120), (7, 2, 1, 1)])
def test_kernel_is_scipys_two_dimensional_dct_of_the_last_axes(shape):
    weight = tensor(shape)
    expected = scipy.fft.dctn(weight.double().numpy(), axes=(-2, -1), norm="ortho")
    assert close(frequency.to_coefficients(weight, "kernel"), expected)


def test_flat_reads_row_after_row_also_from_a_channels_last_tensor():
    weight = tensor((8, 3, 5, 5))
    expected = scipy.fft.dct(weight.double().numpy().reshape(-1), norm="ortho").reshape(weight.shape)
    assert close(frequency.to_coefficients(weight, "flat"), expected)
    last = weight.to(memory_format=torch.channels_last)
    assert close(frequency.to_coefficients(last, "flat"), expected)


def test_a_shuffled_transform_is_orthonormal_and_another_one_for_another_index():
    identity = torch.eye(24, dtype=torch.float64)
    matrix = torch.stack([frequency.to_coefficients(row.reshape(4, 6), "shuffled:3").reshape(-1) for row in identity])
    assert torch.allclose(matrix @ matrix.T, identity, atol=1e-12)
    weight = tensor((4, 6))
    others = [frequency.to_coefficients(weight, name) for name in ("shuffled:3", "shuffled:4", "flat")]
    assert not others[0].allclose(others[1])
    assert not others[0].allclose(others[2])
    assert frequency.to_coefficients(weight, "shuffled:3").equal(others[0])


@pytest.mark.parametrize("shape", [(40, 2, 3, 3), (80, 9)])
def test_kernels_are_kept_whole_or_shuffled_inside(shape):
    weight = torch.arange(720.0).reshape(shape)
    kernels = weight.reshape(80, 9)

    def read(transform):
        return frequency.idct(frequency.to_coefficients(weight, transform).reshape(-1)).round().reshape(80, 9)

    whole, inside = read("kernels:0"), read("inside:0")
    assert not whole.equal(kernels)
    assert whole[whole[:, 0].argsort()].equal(kernels)
    assert not inside.equal(kernels)
    assert inside.sort().values.equal(kernels)
    assert len((inside - kernels).unique(dim=0)) > 1  # each kernel in another order


def test_a_band_that_is_known_already_is_taken_as_it_is():
    weight = tensor((8, 4, 5, 5))
    known = frequency.band_mask(weight, "flat", "high")
    high = frequency.change_band(weight, "high", 50, transform="flat", seed=1)
    assert frequency.change_band(weight, "high", 50, transform="flat", seed=1, inside=known).equal(high)
    again = frequency.change_band(weight, "low", None, transform="flat", seed=1, change="kept", inside=known)
    assert again.equal(frequency.change_band(weight, "high", None, transform="flat", seed=1, change="kept"))


@settings(deadline=None, max_examples=40)
@given(SHAPES, st.sampled_from(TRANSFORMS))
def test_every_coefficient_lies_in_one_band(shape, transform):
    weight = torch.zeros(shape)
    masks = [frequency.band_mask(weight, transform, band) for band in frequency.BANDS]
    assert torch.stack(masks).sum(0).eq(1).all()
    assert frequency.smallest_band(weight, transform) == min(int(mask.sum()) for mask in masks)


def test_flat_bands_are_thirds_of_the_index_and_kernel_bands_rise_with_the_radius():
    bands = [frequency.band_mask(torch.zeros(5, 6), "flat", band).reshape(-1) for band in frequency.BANDS]
    assert [band.nonzero().squeeze(1).tolist() for band in bands] == [
        list(range(10)),
        list(range(10, 20)),
        list(range(20, 30)),
    ]
    radius = frequency.frequency_of(torch.Size((5, 5)), "kernel")
    assert radius[0, 0] == 0
    assert radius[4, 4] == 1
    assert radius[0, 4].item() == pytest.approx(math.sqrt(0.5))
    assert frequency.band_mask(torch.zeros(5, 5), "kernel", "low")[:2, :2].all()


@pytest.mark.parametrize("transform", TRANSFORMS)
def test_changing_nothing_gives_back_the_weights_bit_for_bit(transform):
    weight = tensor((16, 6, 5, 5))
    nothing = torch.zeros_like(weight, dtype=torch.bool)
    changed = frequency.change_coefficients(weight, nothing, torch.full_like(weight, 9.0), transform)
    assert changed.equal(weight)


@pytest.mark.parametrize("transform", TRANSFORMS)
def test_only_the_coefficients_under_the_mask_change(transform):
    weight, values = tensor((8, 4, 3, 3)), tensor((8, 4, 3, 3), 1)
    mask = tensor(weight.shape, 2) > 0
    changed = frequency.change_coefficients(weight, mask, values, transform)
    expected = torch.where(mask, values, frequency.to_coefficients(weight, transform))
    assert close(frequency.to_coefficients(changed, transform), expected)


def test_change_band_zeroes_as_many_coefficients_of_that_band():
    weight = tensor((8, 4, 5, 5))
    for transform in TRANSFORMS:
        for band in frequency.BANDS:
            changed = frequency.change_band(weight, band, 40, transform=transform, seed=1)
            zero = frequency.to_coefficients(changed, transform).abs() < 1e-5
            assert int(zero.sum()) == 40
            assert frequency.band_mask(weight, transform, band)[zero].all()
    with pytest.raises(MgenbError, match="the number of positions is 801; right is a whole number from 0 to"):
        frequency.change_band(weight, "low", 801, transform="flat", seed=1)


def by_scipy(weight, transform, inverse=False):
    """The flat or the kernel DCT, or its inverse, by scipy; float64, in the layer's shape."""
    values, change = weight.double().numpy(), scipy.fft.idctn if inverse else scipy.fft.dctn
    if transform == "kernel":
        return change(values, axes=(-2, -1), norm="ortho")
    return change(values.reshape(-1), norm="ortho").reshape(values.shape)


@pytest.mark.parametrize("transform", ["flat", "kernel"])
@pytest.mark.parametrize("shape", [(8, 4, 5, 5), (7, 11), (1, 2)])
def test_bands_by_size_are_thirds_of_the_ranks(transform, shape):
    weight = tensor(shape)
    size = np.abs(by_scipy(weight, transform)).reshape(-1)
    third = 3 * np.argsort(np.argsort(size)) // size.size
    for index, band in enumerate(frequency.BANDS):
        mask = frequency.band_mask(weight, transform, band, "size")
        assert mask.shape == weight.shape
        assert (mask.reshape(-1).numpy() == (third == index)).all()
    sizes = np.bincount(third, minlength=3)
    assert frequency.smallest_band(weight, transform, "size") == sizes.min()


@pytest.mark.parametrize("bands", frequency.BANDS_BY)
def test_bands_together_are_their_union(bands):
    weight = tensor((6, 5, 3, 3))
    low, mid, both = (frequency.band_mask(weight, "flat", band, bands) for band in ("low", "mid", "low+mid"))
    assert both.equal(low | mid)
    assert both.equal(~frequency.band_mask(weight, "flat", "high", bands))


@pytest.mark.parametrize("transform", ["flat", "kernel"])
@pytest.mark.parametrize("bands", frequency.BANDS_BY)
@pytest.mark.parametrize("band", frequency.BANDS)
def test_noise_in_a_band_has_the_norm_that_zeroing_would_remove(transform, bands, band):
    weight = tensor((8, 4, 5, 5))
    changed = {
        change: frequency.change_band(weight, band, 90, transform=transform, seed=1, change=change, bands=bands)
        for change in ("zeroed", "noise")
    }
    old = by_scipy(weight, transform)
    zeroed, noise = (by_scipy(changed[change] - weight, transform) for change in ("zeroed", "noise"))
    moved = np.abs(noise) > 1e-5
    assert 85 <= moved.sum() <= 90  # a draw may be near 0
    assert frequency.band_mask(weight, transform, band, bands).numpy()[moved].all()
    assert (np.abs(zeroed)[moved] > 0).all()  # the coefficients that the same seed would zero
    assert np.linalg.norm(noise) == pytest.approx(np.linalg.norm(zeroed), rel=1e-4)
    assert np.abs((old + zeroed)[np.abs(zeroed) > 1e-5]).max() < 1e-5
    assert abs((noise * zeroed).sum()) < 0.4 * np.linalg.norm(noise) ** 2


def test_noise_in_a_band_is_gaussian():
    weight = tensor((100, 300))
    changed = frequency.change_band(weight, "mid", 5000, transform="flat", seed=1, change="noise")
    noise = by_scipy(changed - weight, "flat")
    noise = noise[np.abs(noise) > 1e-5]
    assert stats.kstest(noise / noise.std(), stats.norm.cdf).pvalue > 0.001


@pytest.mark.parametrize("transform", ["flat", "kernel"])
@pytest.mark.parametrize("bands", frequency.BANDS_BY)
def test_only_a_band_is_kept(transform, bands):
    weight = tensor((8, 4, 5, 5))
    parts = []
    for band in frequency.BANDS:
        how = {"transform": transform, "seed": 1, "change": "kept", "bands": bands}
        parts.append(frequency.change_band(weight, band, None, **how))
        inside = frequency.band_mask(weight, transform, band, bands).numpy()
        kept = torch.as_tensor(np.where(inside, by_scipy(weight, transform), 0.0))
        assert close(parts[-1], by_scipy(kept, transform, inverse=True))
    assert close(sum(parts), weight)


@pytest.mark.parametrize("change", ["zeroed", "noise"])
def test_no_coefficient_of_a_band_changed_is_the_layer_bit_for_bit(change):
    weight = tensor((8, 4, 5, 5))
    assert frequency.change_band(weight, "low", 0, transform="flat", seed=1, change=change).equal(weight)
    assert not frequency.change_band(weight, "low", 1, transform="flat", seed=1, change=change).equal(weight)


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 300), st.floats(0.001, 0.999), st.integers(0, 100))
def test_the_energy_threshold_keeps_no_more_than_it_needs(n, share, seed):
    values = tensor((n,), seed).double()
    kept = n - frequency.unimportant_count(values, share)
    energy = np.sort(values.numpy() ** 2)[::-1].cumsum() / (values**2).sum().item()
    assert energy[kept - 1] >= share * (1 - 1e-12)
    assert kept == 1 or energy[kept - 2] < share


def test_the_ends_of_the_energy_threshold():
    values = torch.tensor([3.0, 0.0, -1.0, 0.0])
    assert frequency.unimportant_count(values, 1) == 0
    assert frequency.unimportant_count(values, 0) == 4
    assert frequency.unimportant_count(values, 0.9) == 3
    assert frequency.unimportant_count(values, 0.91) == 2
    for share in (-0.1, 1.1, float("nan")):
        with pytest.raises(MgenbError, match="from 0 to 1"):
            frequency.unimportant_count(values, share)


@pytest.mark.parametrize("selection", frequency.SELECTIONS)
@pytest.mark.parametrize("domain", frequency.DOMAINS)
@pytest.mark.parametrize("transform", ["flat", "kernel", "shuffled:1"])
def test_every_selection_has_the_size_asked_for_or_names_its_domain(selection, domain, transform):
    weight = tensor((6, 4, 3, 3))
    natural = frequency.NATURAL.get(selection, domain)
    for count in (0, 1, 77, weight.numel()):
        if domain != natural:
            with pytest.raises(MgenbError, match=f"set domain='{natural}'"):
                frequency.select(weight, selection, count, domain=domain, transform=transform)
            continue
        mask = frequency.select(weight, selection, count, domain=domain, transform=transform)
        assert mask.shape == weight.shape
        assert int(mask.sum()) == count


def lost_norm(weight, selection, count, transform, seed=0):
    mask = frequency.select(weight, selection, count, transform=transform, seed=seed)
    return (frequency.change_coefficients(weight, mask, 0.0, transform) - weight).norm().item()


@pytest.mark.parametrize("transform", ["flat", "kernel"])
def test_zeroing_the_smallest_coefficients_changes_the_weights_least(transform):
    weight, count = tensor((8, 4, 3, 3)), 200
    least = lost_norm(weight, "energy", count, transform)
    others = [lost_norm(weight, name, count, transform) for name in ("high", "largest")]
    others += [lost_norm(weight, "random", count, transform, seed) for seed in range(20)]
    assert least < min(others)
    assert max(others) == lost_norm(weight, "largest", count, transform)
    small = frequency.to_coefficients(weight, transform).abs().reshape(-1).sort().values[:count].norm().item()
    assert least == pytest.approx(small, rel=1e-4)


def test_high_calls_the_lowest_frequencies_unimportant():
    weight = tensor((4, 5, 5))
    flat = frequency.select(weight, "high", 30, transform="flat").reshape(-1)
    assert flat.nonzero().squeeze(1).tolist() == list(range(30))
    kernel = frequency.select(weight, "high", 30, transform="kernel")
    radius = frequency.frequency_of(weight.shape, "kernel")
    assert radius[kernel].max() <= radius[~kernel].min()


@pytest.mark.parametrize("transform", ["flat", "kernel"])
def test_highest_is_what_high_leaves(transform):
    weight = tensor((4, 5, 5))
    for count in (0, 1, 30, 100):
        highest = frequency.select(weight, "highest", count, transform=transform)
        assert highest.equal(~frequency.select(weight, "high", weight.numel() - count, transform=transform))
    flat = frequency.select(weight, "highest", 3, transform="flat").reshape(-1)
    assert flat.nonzero().squeeze(1).tolist() == [97, 98, 99]


def test_first_and_last_are_the_ends_of_the_flattened_layer():
    weight = tensor((4, 5, 5))
    first, last = (frequency.select(weight, name, 3, domain="weights").reshape(-1) for name in ("first", "last"))
    assert first.nonzero().squeeze(1).tolist() == [0, 1, 2]
    assert last.nonzero().squeeze(1).tolist() == [97, 98, 99]


@pytest.mark.parametrize("selection", [name for name in frequency.SELECTIONS if name != "fig7"])  # where numbers tie
@pytest.mark.parametrize("transform", ["flat", "kernel", "shuffled:1"])
def test_select_takes_positions_in_their_order(selection, transform):
    weight = tensor((6, 4, 3, 3))
    options = {"domain": frequency.NATURAL.get(selection, "coefficients"), "transform": transform, "seed": 2}
    order = frequency.order(weight, selection, **options)
    assert sorted(order.tolist()) == list(range(weight.numel()))
    for count in (0, 1, 77, weight.numel()):
        mask = frequency.select(weight, selection, count, **options).reshape(-1)
        assert set(mask.nonzero().squeeze(1).tolist()) == set(order[:count].tolist())


def test_magnitude_and_largest_are_about_the_weights_themselves_in_their_domain():
    weight = tensor((10, 20))
    smallest = frequency.select(weight, "magnitude", 50, domain="weights")
    assert weight[smallest].abs().max() < weight[~smallest].abs().min()
    largest = frequency.select(weight, "largest", 50, domain="weights")
    assert weight[largest].abs().min() > weight[~largest].abs().max()


@pytest.mark.parametrize("band", frequency.BANDS)
def test_fig7_takes_the_weights_that_change_most(band):
    weight = tensor((16, 6, 5, 5))
    change = frequency.fig7_change(weight, band, "flat", 5).abs()
    mask = frequency.select(weight, "fig7", 300, domain="weights", band=band, seed=5)
    assert change[mask].min() >= change[~mask].max()
    assert change.max() > 0
    zeroed = round(frequency.FIG7_SHARE * int(frequency.band_mask(weight, "flat", band).sum()))
    again = frequency.change_band(weight, band, zeroed, transform="flat", seed=6)
    assert change.norm() < 3 * (again - weight).norm()


@pytest.mark.parametrize(("band", "size"), [("low+mid", 1600), ("mid", 800), ("low", 800)])
def test_fig7_zeroes_a_tenth_of_its_band_or_of_both_together(band, size):
    weight = tensor((16, 6, 5, 5))
    zeroed = np.abs(by_scipy(frequency.fig7_change(weight, band, "flat", 5), "flat")).reshape(-1) > 1e-5
    assert zeroed.sum() == pytest.approx(size / 10, abs=3)  # a coefficient may be near 0
    low, high = {"low+mid": (0, 1600), "mid": (800, 1600), "low": (0, 800)}[band]
    assert not zeroed[:low].any()
    assert not zeroed[high:].any()
    if band == "low+mid":
        assert min(zeroed[:800].sum(), zeroed[800:1600].sum()) > 50


def test_fig7_marks_the_weights_that_change_most_or_least():
    weight = tensor((16, 6, 5, 5))
    how: dict[str, Any] = {"domain": "weights", "band": "low+mid", "seed": 5}
    order = frequency.fig7_change(weight, "low+mid", "flat", 5).abs().reshape(-1).numpy().argsort()
    for marks, places in (("most", order[-240:]), ("least", order[:240])):
        mask = frequency.select(weight, "fig7", 240, marks=marks, **how).reshape(-1)
        assert sorted(places) == mask.nonzero().squeeze(1).tolist()
    most = frequency.select(weight, "fig7", 240, marks="most", **how)
    assert frequency.select(weight, "fig7", 240, **how).equal(most)


@pytest.mark.parametrize("tenth", ["first", "smallest", "largest"])
def test_fig7_zeroes_the_tenth_of_its_band_that_it_is_told_to(tenth):
    weight = tensor((16, 6, 5, 5))
    before = by_scipy(weight, "flat").reshape(-1)
    zeroed = np.abs(by_scipy(frequency.fig7_change(weight, "mid", "flat", 5, tenth), "flat")).reshape(-1) > 1e-5
    ranks = {"first": np.arange(800), "smallest": np.abs(before[800:1600]), "largest": -np.abs(before[800:1600])}
    expected = 800 + ranks[tenth].argsort()[:80]
    assert sorted(expected[np.abs(before[expected]) > 1e-5]) == zeroed.nonzero()[0].tolist()
    how: dict[str, Any] = {"domain": "weights", "band": "mid", "tenth": tenth}
    masks = [frequency.select(weight, "fig7", 240, seed=seed, **how) for seed in (1, 2)]
    assert masks[0].equal(masks[1])  # nothing is drawn
    assert not masks[0].equal(frequency.select(weight, "fig7", 240, seed=1, **{**how, "tenth": "random"}))


def test_seeds_decide_random_choices():
    weight = tensor((20, 20))
    one, same, other = (frequency.select(weight, "random", 100, seed=seed) for seed in (1, 1, 2))
    assert one.equal(same)
    assert not one.equal(other)
    assert not frequency.fig7_change(weight, "mid", "flat", 1).equal(frequency.fig7_change(weight, "mid", "flat", 2))


def test_layers_are_weights_and_nothing_else_is_changed():
    state = {"conv.weight": tensor((2, 1, 3, 3)), "conv.bias": tensor((2,)), "bn.steps": torch.tensor([[3]])}
    changed = frequency.change_layers(state, lambda name, weight: weight * 0)
    assert frequency.weight_names(state) == ["conv.weight"]
    assert changed["conv.weight"].eq(0).all()
    assert changed["conv.bias"] is state["conv.bias"]
    assert state["conv.weight"].abs().sum() > 0


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda w: frequency.to_coefficients(w, "kernal"), "did you mean 'kernel'"),
        (lambda w: frequency.to_coefficients(w, "shuffled:x"), "unknown transform"),
        (lambda w: frequency.band_mask(w, "flat", "middle"), "unknown band"),
        (lambda w: frequency.band_mask(w, "flat", "low+middle"), "unknown band 'middle'"),
        (lambda w: frequency.band_mask(w, "flat", "low", "sizes"), "did you mean 'size'"),
        (lambda w: frequency.change_band(w, "low", 1, change="zero", **BAND), "did you mean 'zeroed'"),
        (lambda w: frequency.change_band(w, "low", 1, change="kept", **BAND), "count is 1 with change='kept'"),
        (lambda w: frequency.change_band(w, "low", None, **BAND), "count is None with change='zeroed'"),
        (lambda w: frequency.select(w, "fig7", 1, domain="weights", marks="more"), "unknown marks"),
        (lambda w: frequency.select(w, "fig7", 1, domain="weights", tenth="last"), "unknown tenth"),
        (lambda w: frequency.select(w, "energetic", 1), "did you mean 'energy'"),
        (lambda w: frequency.select(w, "random", 1, domain="weight"), "did you mean 'weights'"),
        (lambda w: frequency.select(w, "energy", 17), "is 17; right is a whole number from 0 to 16"),
        (lambda w: frequency.select(w, "energy", -1), "is -1; right is a whole number from 0 to 16"),
    ],
)
def test_wrong_names_and_counts_are_refused(call, words):
    with pytest.raises(MgenbError, match=words):
        call(tensor((4, 4)))
