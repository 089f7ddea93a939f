"""The DCT against scipy's, bands, energy, and what each selection chooses."""

import math

import numpy as np
import pytest
import scipy.fft
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mgenb.errors import MgenbError
from mgenb.mge import frequency

TRANSFORMS = (*frequency.TRANSFORMS, "shuffled:0", "shuffled:7")
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


def test_zero_band_zeroes_as_many_coefficients_of_that_band():
    weight = tensor((8, 4, 5, 5))
    for transform in TRANSFORMS:
        for band in frequency.BANDS:
            changed = frequency.zero_band(weight, band, 40, transform=transform, seed=1)
            zero = frequency.to_coefficients(changed, transform).abs() < 1e-5
            assert int(zero.sum()) == 40
            assert frequency.band_mask(weight, transform, band)[zero].all()
    with pytest.raises(MgenbError, match="cannot choose 801 positions of"):
        frequency.zero_band(weight, "low", 801, transform="flat", seed=1)


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
    again = frequency.zero_band(weight, band, zeroed, transform="flat", seed=6)
    assert change.norm() < 3 * (again - weight).norm()


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
        (lambda w: frequency.select(w, "energetic", 1), "did you mean 'energy'"),
        (lambda w: frequency.select(w, "random", 1, domain="weight"), "did you mean 'weights'"),
        (lambda w: frequency.select(w, "energy", 17), "17 of 16"),
        (lambda w: frequency.select(w, "energy", -1), "-1 of 16"),
    ],
)
def test_wrong_names_and_counts_are_refused(call, words):
    with pytest.raises(MgenbError, match=words):
        call(tensor((4, 4)))
