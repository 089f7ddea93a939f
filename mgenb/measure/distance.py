"""How differently models behave: disagreement of their predictions and overlap of their errors.

`predictions` is int64 [models, images], as `population.predict` gives them row by row.
"""

import torch


def disagreement(predictions: torch.Tensor) -> torch.Tensor:
    """Return the share of images on which two models predict different classes, float64 [models, models]."""
    return torch.stack([(predictions != row).double().mean(1) for row in predictions])


def error_overlap(predictions: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return the Jaccard overlap of the images that two models get wrong, float64 [models, models] in [0, 1].

    1: the same images; two models without errors overlap wholly.
    """
    wrong = (predictions != labels).double()
    both = wrong @ wrong.T
    either = wrong.sum(1)[:, None] + wrong.sum(1)[None, :] - both
    return torch.where(either > 0, both / either.clamp(min=1), 1.0)


def pairs_mean(square: torch.Tensor) -> float:
    """Return the mean over all pairs of different models of a symmetric [models, models]; NaN for fewer than two."""
    models = len(square)
    above = square[tuple(torch.triu_indices(models, models, 1))]
    return above.double().mean().item()
