"""How differently models behave: known values, and what it is for a model and itself."""

import math

import torch

from mgenb.measure import distance

LABELS = torch.tensor([0, 1, 2, 3])
PREDICTIONS = torch.tensor([[0, 1, 2, 3], [0, 1, 0, 0], [0, 1, 0, 1], [1, 1, 2, 3]])


def test_disagreement_is_the_share_of_images_predicted_differently():
    found = distance.disagreement(PREDICTIONS)
    assert found.diagonal().eq(0).all()
    assert found.equal(found.T)
    assert found[1].tolist() == [0.5, 0, 0.25, 0.75]


def test_overlap_counts_images_wrong_in_both_of_those_wrong_in_either():
    found = distance.error_overlap(PREDICTIONS, LABELS)
    assert found.diagonal().eq(1).all()  # the first has no errors at all
    assert found.equal(found.T)
    assert found[1].tolist() == [0, 1, 1, 0]
    half = distance.error_overlap(torch.tensor([[9, 9, 2, 3], [0, 9, 2, 3]]), LABELS)
    assert half[0, 1] == 0.5


def test_pairs_mean_leaves_the_diagonal_out():
    square = torch.tensor([[9.0, 1.0, 2.0], [1.0, 9.0, 6.0], [2.0, 6.0, 9.0]])
    assert distance.pairs_mean(square) == 3
    assert math.isnan(distance.pairs_mean(torch.zeros(1, 1)))
