"""Few-shot learning: episodes, nearest prototypes, and fine-tuning on few images a class.

MGE (arXiv 2402.17486) names no protocol. Episodes are those of Vinyals et al. (2016). Two ways to classify in them:
the nearest prototype (Snell et al. 2017) in the space that the last linear layer reads, without training; and plain
fine-tuning of the whole network on the support images.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from torch.nn import functional
from torchvision.models import ViT_B_16_Weights, vit_b_16

from mgenb import stats
from mgenb.data import Split
from mgenb.data.classes import ClassSplit
from mgenb.devices import one_thread, precise
from mgenb.errors import MgenbError, choose, demand
from mgenb.measure import population
from mgenb.seeds import numpy_generator, torch_generator
from mgenb.store import State

DISTANCES = ("euclidean", "cosine")
AT_ONCE = 64  # episodes that are classified together: what they gather fits a cache
# what ImageNet's 1,000 classes hold of a dataset's, so that weights trained on them have seen it
SEEN_IN_IMAGENET = {
    "mini_imagenet": "all its classes, the novel ones too, are ImageNet's",
    "cifar_fs": "many of its classes, novel ones too, are in ImageNet in kind",
    "cifar10": "all its classes, the novel ones too, are in ImageNet in kind",
    "fashion_mnist": "kinds of clothing are in ImageNet, as photographs",
    "gtsrb": "none of its classes is in ImageNet, where all street signs are one",
    "omniglot": "none of its classes is in ImageNet",
    "mnist": "none of its classes is in ImageNet",
}


@dataclass(frozen=True)
class Episodes:
    """How episodes are drawn: `count` times `ways` classes, `shots` support and `queries` query images of each."""

    ways: int = 5
    shots: int = 1
    queries: int = 15
    count: int = 600
    seed: int = 0

    def __post_init__(self) -> None:
        demand(self, ways=2, shots=1, queries=1, count=1)


@dataclass(frozen=True, eq=False)
class Drawn:
    """Episodes of one split: labels of their classes, and indices of their images.

    classes: int64 [count, ways]; support: int64 [count, ways, shots]; query: int64 [count, ways, queries].
    """

    classes: torch.Tensor
    support: torch.Tensor
    query: torch.Tensor


def draw(split: Split, episodes: Episodes) -> Drawn:
    """Draw episodes by their seed, the same for every network.

    Each support image is from another group (a GTSRB track: one physical sign), and no query image is from the
    groups of the support. Raises MgenbError where classes or images are too few.
    """
    members = _members(split, episodes, {})
    rng = numpy_generator(episodes.seed, "episodes")
    classes = np.array([rng.permutation(list(members))[: episodes.ways] for _ in range(episodes.count)])
    parts = [[_draw_class(*members[label], episodes, rng) for label in row] for row in classes.tolist()]
    support, query = (torch.tensor(np.array([[one[k] for one in row] for row in parts])) for k in (0, 1))
    device = split.images.device
    return Drawn(torch.tensor(classes).to(device), support.to(device), query.to(device))


def _draw_class(
    images: np.ndarray, groups: np.ndarray, episodes: Episodes, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Return support [shots] and query [queries] of one class; `groups` counts from 0."""
    rank = rng.permutation(int(groups.max()) + 1)[groups]  # the groups in random order
    order = rng.permutation(len(images))
    images, rank = images[order], rank[order]
    first = np.unique(rank, return_index=True)[1]
    return images[first[: episodes.shots]], images[rank >= episodes.shots][: episodes.queries]


def _members(split: Split, episodes: Episodes, names: Mapping[int, str]) -> dict[int, tuple[np.ndarray, np.ndarray]]:
    """Return label -> (its images' indices, their groups counted from 0), after checking that they are enough."""
    labels, groups = split.labels.cpu().numpy(), split.groups.cpu().numpy()
    members = {}
    for label in np.unique(labels).tolist():
        images = np.flatnonzero(labels == label)
        inverse, sizes = np.unique(groups[images], return_inverse=True, return_counts=True)[1:]
        _enough(names.get(label, str(label)), sizes, episodes)
        members[label] = images, inverse
    _enough_classes(len(members), split.role, episodes)
    return members


def _enough(name: str, sizes: np.ndarray, episodes: Episodes) -> None:
    """Refuse a class, with groups of `sizes`, whose images may not do for an episode, whichever groups are drawn."""
    left = int(np.sort(sizes)[::-1][episodes.shots :].sum())
    if left < episodes.queries:
        tracks = f" in {len(sizes)} tracks" if sizes.max() > 1 else ""
        raise MgenbError(
            f"class {name} has {sizes.sum()} images{tracks}: beside {episodes.shots} for support {left} are left for"
            f" {episodes.queries} queries; ask for fewer"
        )


def _enough_classes(found: int, what: str, episodes: Episodes) -> None:
    if found < episodes.ways:
        raise MgenbError(f"{found} {what} classes do not do for {episodes.ways} ways; right is at most {found} ways")


def check(split: ClassSplit, select: Episodes, novel: Episodes) -> None:
    """Raise MgenbError where episodes cannot be drawn, of the selection or of novel classes: before training."""
    _enough_classes(len(split.novel), "novel", novel)
    for name, images in zip(split.novel, split.data.test.counts(), strict=True):
        _enough(name, np.ones(images, dtype=np.int64), novel)
    _members(split.selection, select, dict(enumerate(split.val or split.base)))


def features(net: nn.Module, split: Split, state: State | None = None) -> torch.Tensor:
    """Return what the network's last linear layer reads, float32 [n, d], on the split's device.

    The network runs as in `population.logits`. Raises MgenbError where a feature is not finite.
    """
    found = _features(net, split, state)
    if not found.isfinite().all():
        raise MgenbError(f"features of {int((~found.isfinite()).any(1).sum())} of {len(found)} images are not finite")
    return found


def _features(net: nn.Module, split: Split, state: State | None) -> torch.Tensor:
    read: list[torch.Tensor] = []
    hook = net.get_submodule(head_of(net)).register_forward_pre_hook(lambda _, inputs: read.append(inputs[0]))
    try:
        population.logits(net, split, state)
    finally:
        hook.remove()
    return torch.cat(read).float()


def head_of(net: nn.Module) -> str:
    """Return the name of the last linear layer. Raises MgenbError for a network without one."""
    names = [name for name, module in net.named_modules() if isinstance(module, nn.Linear)]
    if not names:
        raise MgenbError("the network has no linear layer; few-shot learning reads what the last one reads")
    return names[-1]


def nearest_prototype(found: torch.Tensor, drawn: Drawn, distance: str = "euclidean") -> torch.Tensor:
    """Return whether each query image is nearest to its class's prototype, bool [count, ways, queries], on the CPU.

    found: features, float [n, d]. A prototype is the mean of the support's features. distance: 'euclidean', of which
    a mean is the natural centre (Snell et al., 2.3); or 'cosine'. Queries at NaN are wrong.
    """
    if choose("distance", distance, DISTANCES) == "cosine":
        found = functional.normalize(found, dim=1)
    right = []
    for support, query in zip(drawn.support.split(AT_ONCE), drawn.query.split(AT_ONCE), strict=True):
        prototypes, queries = found[support].mean(2), found[query]
        if distance == "cosine":
            prototypes = functional.normalize(prototypes, dim=2)
        # |q - p|^2 without |q|^2, which is the same for all classes
        scores = torch.einsum("ewqd,epd->ewqp", queries, prototypes) - prototypes.square().sum(2)[:, None, None] / 2
        truth = torch.arange(query.shape[1], device=query.device)[None, :, None]
        right.append(population.classes_of(scores) == truth)
    return torch.cat(right).cpu()


def by_episode(right: torch.Tensor) -> np.ndarray:
    """Return the accuracy of each episode in percent, float64 [count], from bool [count, ways, queries]."""
    return 100 * right.double().mean((1, 2)).numpy()


def over_classes(right: torch.Tensor, drawn: Drawn) -> stats.Estimate:
    """Return the accuracy in percent with an interval over classes, each of which counts once.

    Episodes are drawn again and again from the same classes and images: an interval over episodes tells how well
    these are measured, an interval over classes what to expect of other classes.
    """
    values = 100 * right.double().mean(2).flatten().numpy()
    return stats.clustered(values, drawn.classes.flatten().tolist(), "classes")


def accuracy_of(net: nn.Module, split: Split, episodes: Episodes, distance: str = "euclidean") -> population.Criterion:
    """Return the criterion few-shot accuracy, in [0, 1]: of each state_dict, on the same episodes of `split`.

    A network whose features are not finite has NaN. Raises SealedSplitError for the test split.
    """
    population.refuse_test(split)
    drawn = draw(split, episodes)

    def criterion(states: Iterable[State]) -> list[float]:
        return [_accuracy(_features(net, split, state), drawn, distance) for state in states]

    return criterion


def _accuracy(found: torch.Tensor, drawn: Drawn, distance: str) -> float:
    if not found.isfinite().all():
        return math.nan
    return nearest_prototype(found, drawn, distance).double().mean().item()


@dataclass(frozen=True)
class FineTuning:
    """How to fine-tune on a support set: Adam at `rate` for `steps`, each on all its images, with cross-entropy.

    BatchNorm uses and keeps its running statistics, since a handful of images has none of its own.
    """

    steps: int = 50
    rate: float = 0.001

    def __post_init__(self) -> None:
        if self.steps < 0 or not self.rate > 0:
            raise MgenbError(f"fine-tuning of {self.steps} steps at rate {self.rate}; right is at least 0, and above 0")


def fine_tune(
    net: nn.Module, split: Split, drawn: Drawn, settings: FineTuning, seed: int, state: State | None = None
) -> torch.Tensor:
    """Return whether each query image is right after fine-tuning on its episode, bool [count, ways, queries], CPU.

    Every episode starts from the same weights, `state` or the network's own, with a new linear layer of `ways`
    classes, drawn by `seed` for that episode: the same for all networks that are compared. `net` stays as it is.
    """
    scratch, ways = population.quick_copy(net, state), drawn.classes.shape[1]
    name = head_of(scratch)
    width = scratch.get_parameter(f"{name}.weight").shape[1]
    head = nn.utils.skip_init(nn.Linear, width, ways, device=split.images.device)  # leaves the global generator alone
    scratch.set_submodule(name, head)
    start = population.state_of(scratch)
    right = []
    with one_thread(), precise():  # few images: with busy cores two threads were three to seven times slower
        for episode, (support, query) in enumerate(zip(drawn.support, drawn.query, strict=True)):
            scratch.load_state_dict(start)
            _draw_head(head, torch_generator(seed, "head", episode))
            _train(scratch, split.images[support.flatten()], ways, settings)
            with torch.inference_mode():
                found = population.classes_of(scratch(split.images[query.flatten()]))
            right.append(found.reshape(query.shape) == torch.arange(ways, device=found.device)[:, None])
    return torch.stack(right).cpu()


def _draw_head(head: nn.Linear, generator: torch.Generator) -> None:
    """Draw a head as PyTorch draws one by default, but for its bias, which is 0."""
    bound = 1 / math.sqrt(head.in_features)
    with torch.no_grad():
        head.weight.copy_(torch.empty(head.weight.shape).uniform_(-bound, bound, generator=generator))
        head.bias.zero_()


def _train(net: nn.Module, images: torch.Tensor, ways: int, settings: FineTuning) -> None:
    labels = torch.arange(ways, device=images.device).repeat_interleave(len(images) // ways)
    optimiser = torch.optim.Adam(net.parameters(), lr=settings.rate)
    for _ in range(settings.steps):
        optimiser.zero_grad(set_to_none=True)
        functional.cross_entropy(net(images), labels).backward()
        optimiser.step()


class ForImageNet(nn.Module):
    """Make 28 or 32 pixel images what a network for ImageNet expects: 224 pixels, three channels, normalised."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406]))
        self.register_buffer("std", torch.tensor([0.229, 0.224, 0.225]))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Map [n, 1 or 3, h, w] (uint8, or float in [0, 1]) to float32 [n, 3, 224, 224]."""
        x = images.float() / 255 if images.dtype == torch.uint8 else images
        x = functional.interpolate(x.expand(-1, 3, -1, -1), 224, mode="bilinear", antialias=True)
        return (x - self.get_buffer("mean")[:, None, None]) / self.get_buffer("std")[:, None, None]


def imagenet_vit(dataset: str) -> tuple[nn.Sequential | None, str]:
    """Return ViT-B/16 with ImageNet weights and what they have seen; None and why, where they cannot be had.

    `dataset` is the name of the few-shot data. The weights (346 MB) are downloaded into torch's own cache.
    """
    try:
        weights = ViT_B_16_Weights.IMAGENET1K_V1.get_state_dict(progress=False, check_hash=True)
    except (OSError, RuntimeError) as error:  # no network; a broken download
        why = " ".join(str(error).split())
        return None, f"no ImageNet weights ({why}): the Vision Transformer is the small one trained on base classes"
    net = vit_b_16()
    net.load_state_dict(weights)
    told = SEEN_IN_IMAGENET.get(dataset, "what ImageNet holds of its classes is not known")
    return nn.Sequential(ForImageNet(), net).eval(), f"ViT-B/16 trained on ImageNet; {dataset}: {told}"
