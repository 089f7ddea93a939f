"""MGE (arXiv 2402.17486): models generated from a trained one, accepted by a discriminator, evolved (E-MGE)."""

from mgenb.mge.generator import (
    NOISES,
    SCALES,
    Settings,
    accepts,
    candidate_seed,
    candidates,
    fewest_right,
    generate,
    layer_generator,
    layer_noise,
    model_generator,
    noise_of_same_norm,
    redraw,
    stacks,
    unimportant,
    unstacked,
    with_noise,
)
