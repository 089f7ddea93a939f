"""Attacks on images in [0, 1]: FGSM and PGD from torchattacks, Carlini and Wagner's here; white-box and transferred.

torchattacks 3.3.0 works on the object that it is given, prints, and draws from the global generator. So an attack
here is a frozen description, and `craft` makes a fresh object on a copy of the network for each use. Its C&W is not
used: see `_CarliniWagner`.
"""

import contextlib
import io
from dataclasses import dataclass, replace
from typing import Any

import torch
import torchattacks
from torch import nn
from torch.optim.adam import adam  # the class would import the compiler, which takes seconds

from mgenb.data import Split
from mgenb.devices import precise
from mgenb.errors import MgenbError, demand
from mgenb.measure import population
from mgenb.seeds import derive
from mgenb.store import State, usable

ADAM: Any = {"beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "weight_decay": 0.0, "amsgrad": False, "maximize": False}
SHRINK = 1 - 1e-4  # of [-1, 1] before arctanh: a pixel at exactly 0 or 1 must have a finite place there, and a slope


@dataclass(frozen=True)
class FGSM:
    """One step of eps in the direction of the gradient's sign (Goodfellow et al. 2015); eps on the [0, 1] scale."""

    eps: float

    def __post_init__(self) -> None:
        demand(self, of="FGSM", eps=0.0)

    def on(self, net: nn.Module) -> Any:
        """Return torchattacks' object for `net`."""
        return torchattacks.FGSM(net, eps=self.eps)


@dataclass(frozen=True)
class PGD:
    """Steps of length 2.5 eps / steps along the gradient's sign, in a ball of eps, from a random start (Madry 2018)."""

    eps: float
    steps: int = 10

    def __post_init__(self) -> None:
        demand(self, of="PGD", eps=0.0, steps=1)

    def on(self, net: nn.Module) -> Any:
        """Return torchattacks' object for `net`."""
        length = 2.5 * self.eps / self.steps
        return torchattacks.PGD(net, eps=self.eps, alpha=length, steps=self.steps, random_start=True)


@dataclass(frozen=True)
class CW:
    """Carlini and Wagner's L2 attack (2017): the smallest change for which the goal's logit leads by `kappa`.

    searches: values of c that are tried for each image, from 1 on; iterations: Adam's steps for each, of size `rate`.
    """

    kappa: float = 0.0
    searches: int = 6
    iterations: int = 100
    rate: float = 0.1

    def __post_init__(self) -> None:
        demand(self, of="CW", kappa=0.0, searches=1, iterations=1, rate=1e-9)

    def on(self, net: nn.Module) -> Any:
        """Return the attack's object for `net`."""
        return _CarliniWagner(net, self)


Attack = FGSM | PGD | CW


@torch.inference_mode(False)
@torch.enable_grad()
@precise()
def craft(
    net: nn.Module,
    images: torch.Tensor,
    labels: torch.Tensor,
    attack: Attack,
    *,
    targets: torch.Tensor | None = None,
    state: State | None = None,
    seed: int = 0,
) -> torch.Tensor:
    """Return adversarial images, float32 [n, channels, h, w] in [0, 1], on the images' device.

    images: uint8, or floats in [0, 1]; labels: int64 [n], the classes to leave; targets: int64 [n], the classes to
    reach instead, for a targeted attack. With `state` the network computes as if it held those tensors. It and
    torch's global generator stay as they are. `seed` gives PGD its starts: one depends on the image's place in
    `images`, not on the other images. Raises MgenbError for images, labels or targets that cannot be attacked, and
    for a network of NaNs or without gradients.
    """
    scratch, pixels, classes = _prepared(net, images, state)
    goals = _classes("labels", labels, pixels, classes)
    made = attack.on(scratch)
    if targets is not None:
        labels, goals = goals, _classes("targets", targets, pixels, classes)
        if len(same := (goals == labels).nonzero()):
            raise MgenbError(f"target {int(same[0])} is the label of that image; right is another class")
        with contextlib.redirect_stdout(io.StringIO()):  # it tells its mode
            made.set_mode_targeted_by_function(lambda images, goals: goals)
    with torch.random.fork_rng(devices=[pixels.device] if pixels.is_cuda else []):
        torch.manual_seed(derive(seed, "attack"))
        parts = [made(x, y) for x, y in population.batches(Split(pixels, goals, goals, "attacked"))]
    return torch.cat(parts).to(images.device)


def right_under(net: nn.Module, split: Split, state: State | None, attack: Attack, *, seed: int = 0) -> torch.Tensor:
    """Return which images are still classified rightly under an untargeted attack, bool [n], on the CPU.

    White-box: crafted on the network itself, with `state`. With `functools.partial(right_under, attack=...)` it is a
    measure for `run.final_test`.
    """
    images = craft(net, split.images, split.labels, attack, state=state, seed=seed)
    return population.correct(net, replace(split, images=images), state)


class _CarliniWagner(torchattacks.attack.Attack):
    """Carlini and Wagner's L2 attack, in which each image has its own c, its own best result and no early stop.

    torchattacks' CW has one c for all, stops when the cost summed over the batch rises, cannot move a pixel at
    exactly 0 or 1, and masks logits by multiplication, which is wrong where they are negative. An image for which
    no c succeeds is returned unchanged, and so is one that is already what is asked for.
    """

    def __init__(self, net: nn.Module, settings: CW) -> None:
        super().__init__("CarliniWagner", net)
        self.supported_mode = ["default", "targeted"]
        self.settings = settings

    def forward(self, images: torch.Tensor, goals: torch.Tensor) -> torch.Tensor:
        """Return the best image found for each of `images`; goals: labels to leave, or targets to reach."""
        best, already = images, self._shortfall(images, goals) < 0
        distance = torch.where(already, 0.0, torch.inf)
        low, high = torch.zeros_like(distance), torch.full_like(distance, torch.inf)
        c = torch.ones_like(distance)
        for _ in range(self.settings.searches):
            reached, nearest = self._descend(images, goals, c)
            high, low = torch.where(reached.isfinite(), c, high), torch.where(reached.isfinite(), low, c)
            c = torch.where(high.isinf(), 10 * c, (low + high) / 2)
            best = torch.where((reached < distance)[:, None, None, None], nearest, best)
            distance = torch.minimum(reached, distance)
        return best

    def _descend(self, images: torch.Tensor, goals: torch.Tensor, c: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the smallest squared distance at which each image reaches its goal (inf: never), and where."""
        place = torch.atanh((2 * images - 1) * SHRINK).requires_grad_()
        moments, steps = ([torch.zeros_like(place)], [torch.zeros_like(place)]), [torch.zeros(())]
        best, nearest = images, torch.full_like(c, torch.inf)
        for _ in range(self.settings.iterations):
            x = (place.tanh() + 1) / 2
            distance, shortfall = (x - images).square().flatten(1).sum(1), self._shortfall(x, goals)
            better = (shortfall < 0) & (distance < nearest)  # no indexing by it, which would wait for a GPU
            nearest = torch.where(better, distance.detach(), nearest)
            best = torch.where(better[:, None, None, None], x.detach(), best)
            (slope,) = torch.autograd.grad((distance + c * shortfall.clamp(min=0)).sum(), place)
            with torch.no_grad():  # element by element: no image knows of another
                adam([place], [slope], *moments, [], steps, lr=self.settings.rate, **ADAM)
        return nearest, best

    def _shortfall(self, images: torch.Tensor, goals: torch.Tensor) -> torch.Tensor:
        """Return by how much the margin of the logits lacks `kappa`; below 0 where the attack has succeeded."""
        logits, at = self.get_logits(images), goals[:, None]
        lead = logits.gather(1, at)[:, 0] - logits.scatter(1, at, -torch.inf).amax(1)
        return self.settings.kappa + (-lead if self.targeted else lead)


def _prepared(net: nn.Module, images: torch.Tensor, state: State | None) -> tuple[nn.Module, torch.Tensor, int]:
    """Return a copy of the network to work on, the images as float32 on its device, and its number of classes."""
    weights = usable(net.state_dict() if state is None else state)
    scratch = population.quick_copy(net, weights).requires_grad_(False)
    pixels = images.float() / 255 if images.dtype == torch.uint8 else images.detach().float()
    if pixels.ndim != 4 or not len(pixels) or not (pixels.min() >= 0 and pixels.max() <= 1):  # NaN is neither
        right = "[n, channels, h, w], n at least 1, of uint8 or of floats in [0, 1]"
        raise MgenbError(f"images are {_described(images)}; right is {right}")
    pixels = pixels.to(next(scratch.parameters()).device)
    logits = scratch(pixels[:1].clone().requires_grad_())
    if not (logits.requires_grad and logits.isfinite().all()):
        raise MgenbError("the network's logits are not finite, or have no gradient by its input; an attack needs both")
    return scratch, pixels, logits.shape[-1]


def _classes(what: str, given: torch.Tensor, pixels: torch.Tensor, classes: int) -> torch.Tensor:
    whole = not given.is_floating_point() and given.dtype != torch.bool
    if given.shape != pixels.shape[:1] or not whole or given.min() < 0 or given.max() >= classes:
        right = f"a whole number from 0 to {classes - 1} for each of {len(pixels)} images"
        raise MgenbError(f"{what} are {_described(given)}; right is {right}")
    return given.to(pixels.device, torch.int64)


def _described(tensor: torch.Tensor) -> str:
    extent = f" from {tensor.min():g} to {tensor.max():g}" if tensor.numel() else ""
    return f"{tensor.dtype} {list(tensor.shape)}{extent}"
