"""Few-shot learning: episodes, nearest prototypes, and fine-tuning on few images a class.

MGE (arXiv 2402.17486) names no protocol. Episodes are those of Vinyals et al. (2016). Three ways to classify in them:
the nearest prototype (Snell et al. 2017) in the space that the last linear layer reads, without training; a linear
head on that space; and plain fine-tuning of the whole network on the support images.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from torch.nn import functional
from torchvision.models import ViT_B_16_Weights, vit_b_16
from torchvision.transforms import v2

from mgenb.data import Split, refuse_test
from mgenb.data.sources import KNOWN
from mgenb.devices import one_thread, precise
from mgenb.errors import MgenbError, demand
from mgenb.measure import population
from mgenb.seeds import numpy_generator, torch_generator
from mgenb.store import State

RATE = 0.001  # Adam's, in fine-tuning
SEEN_IN_IMAGENET = {name: known.imagenet for name, known in KNOWN.items() if known.imagenet}


@dataclass(frozen=True)
class Episodes:
    """How episodes are drawn: `count` times `ways` classes, `shots` support and `queries` query images of each."""

    ways: int = 5
    shots: int = 1
    queries: int = 15
    count: int = 600
    seed: int = 0

    def __post_init__(self) -> None:
        demand(self, ways=2, shots=1, queries=1, count=1, seed=0)


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
    groups of the support. Raises MgenbError where classes or images are too few, whichever groups are drawn.
    """
    members = _members(split)
    _enough({str(label): np.bincount(groups) for label, (_, groups) in members.items()}, episodes, split.role)
    rng = numpy_generator(episodes.seed, "episodes")
    classes = np.array([rng.permutation(list(members))[: episodes.ways] for _ in range(episodes.count)])
    dealt = [_draw_class(*members[label], episodes, rng) for label in classes.flatten().tolist()]
    shape, device = (*classes.shape, -1), split.images.device
    support, query = (torch.tensor(np.array(images)).reshape(shape) for images in zip(*dealt, strict=True))
    return Drawn(torch.tensor(classes).to(device), support.to(device), query.to(device))


def _members(split: Split) -> dict[int, tuple[np.ndarray, np.ndarray]]:
    """Return label -> (its images' indices, their groups counted from 0)."""
    labels, groups = split.labels.cpu().numpy(), split.groups.cpu().numpy()
    images = {label: np.flatnonzero(labels == label) for label in np.unique(labels).tolist()}
    return {label: (own, np.unique(groups[own], return_inverse=True)[1]) for label, own in images.items()}


def _draw_class(
    images: np.ndarray, groups: np.ndarray, episodes: Episodes, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Return support [shots] and query [queries] of one class; `groups` counts from 0."""
    rank = rng.permutation(int(groups.max()) + 1)[groups]  # the groups in random order
    order = rng.permutation(len(images))
    images, rank = images[order], rank[order]
    first = np.unique(rank, return_index=True)[1]
    return images[first[: episodes.shots]], images[rank >= episodes.shots][: episodes.queries]


def _enough(sizes: Mapping[str, np.ndarray], episodes: Episodes, what: str) -> None:
    """Refuse classes, with groups of these sizes, that may not do for an episode."""
    if len(sizes) < episodes.ways:
        raise MgenbError(f"{len(sizes)} {what} classes do not do for {episodes.ways} ways; right is at most as many")
    for name, size in sizes.items():
        left = int(np.sort(size)[::-1][episodes.shots :].sum())
        if left < episodes.queries:
            wanted = f"{episodes.shots} support images and {episodes.queries} queries from other groups"
            raise MgenbError(f"class {name} has {size.sum()} images in {len(size)} groups, too few for {wanted}")


def features(net: nn.Module, split: Split, state: State | None = None) -> torch.Tensor:
    """Return what the network's last linear layer reads, float32 [n, d], on the split's device.

    The network runs as in `population.logits`.
    """
    read: list[torch.Tensor] = []
    hook = net.get_submodule(head_of(net)).register_forward_pre_hook(lambda _, inputs: read.append(inputs[0]))
    try:
        population.logits(net, split, state)
    finally:
        hook.remove()
    return torch.cat(read).float()


def head_of(net: nn.Module) -> str:
    """Return the name of the last linear layer."""
    return [name for name, module in net.named_modules() if isinstance(module, nn.Linear)][-1]


def nearest_prototype(embedded: torch.Tensor, drawn: Drawn) -> torch.Tensor:
    """Return whether each query image is nearest to its class's prototype, bool [count, ways, queries], on the CPU.

    embedded: features, float [n, d]. A prototype is the mean of the support's features, the natural centre for the
    Euclidean distance (Snell et al., 2.3). Where a feature is NaN the query is wrong.
    """
    prototypes, queries = embedded[drawn.support].mean(2), embedded[drawn.query]
    # |q - p|^2 without |q|^2, which is the same for all classes
    scores = torch.einsum("ewqd,epd->ewqp", queries, prototypes) - prototypes.square().sum(2)[:, None, None] / 2
    return population.classes_of(scores).cpu() == torch.arange(queries.shape[1])[:, None]


def by_class(right: torch.Tensor, drawn: Drawn) -> dict[int, float]:
    """Return label -> the accuracy in percent on queries of that class, mean over the episodes that have it.

    Episodes are drawn again and again from the same classes and images: an interval over episodes tells how well
    these are measured, an interval over classes what to expect of other classes.
    """
    accuracies, labels = 100 * right.double().mean(2), drawn.classes.cpu()
    return {label: accuracies[labels == label].mean().item() for label in labels.unique().tolist()}


def linear_head(embedded: torch.Tensor, drawn: Drawn, steps: int = 100) -> torch.Tensor:
    """Return whether each query image is right by a linear head on features, bool [count, ways, queries], on the CPU.

    embedded: features, float [n, d]; they are scaled to norm 1, as in Tian et al. (2020). The head of an episode
    minimises the cross-entropy summed over its support plus half its squared norm, by `steps` of L-BFGS at most.
    Where features are not finite all are wrong.
    """
    if not embedded.isfinite().all():
        return torch.zeros(drawn.query.shape, dtype=torch.bool)
    embedded, (count, ways, shots) = functional.normalize(embedded, dim=1), drawn.support.shape
    support, query = (embedded[index].flatten(1, 2) for index in (drawn.support, drawn.query))
    labels = torch.arange(ways, device=embedded.device).repeat_interleave(shots).expand(count, -1)
    weights = torch.zeros(count, embedded.shape[1], ways, device=embedded.device, requires_grad=True)
    optimiser = torch.optim.LBFGS([weights], max_iter=steps, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimiser.zero_grad()
        total = functional.cross_entropy((support @ weights).mT, labels, reduction="sum") + weights.square().sum() / 2
        total.backward()
        return total

    optimiser.step(loss)
    guessed = population.classes_of(query @ weights.detach()).reshape(drawn.query.shape)
    return guessed.cpu() == torch.arange(ways)[:, None]


def accuracy_of(net: nn.Module, split: Split, episodes: Episodes) -> population.Criterion:
    """Return the criterion few-shot accuracy, in [0, 1]: of each state_dict, on the same episodes of `split`.

    A network whose features are not finite has NaN. Raises SealedSplitError for the test split.
    """
    refuse_test(split)
    drawn = draw(split, episodes)

    def accuracy(state: State) -> float:
        embedded = features(net, split, state)
        right = nearest_prototype(embedded, drawn).double().mean().item()
        return right if embedded.isfinite().all() else math.nan

    return lambda states: [accuracy(state) for state in states]


def fine_tune(
    net: nn.Module, split: Split, drawn: Drawn, steps: int, seed: int, state: State | None = None
) -> torch.Tensor:
    """Return whether each query image is right after fine-tuning on its episode, bool [count, ways, queries], CPU.

    Every episode starts from the same weights, `state` or the network's own, with a new linear layer of `ways`
    classes, drawn by `seed` for that episode: the same for all networks that are compared. It takes `steps` of Adam,
    each on all support images, with cross-entropy; BatchNorm keeps its running statistics, since a handful of images
    has none of its own. `net` stays as it is.
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
            _train(scratch, split.images[support.flatten()], ways, steps)
            with torch.inference_mode():
                guessed = population.classes_of(scratch(split.images[query.flatten()]))
            right.append(guessed.reshape(query.shape) == torch.arange(ways, device=guessed.device)[:, None])
    return torch.stack(right).cpu()


def _draw_head(head: nn.Linear, generator: torch.Generator) -> None:
    """Draw a head as PyTorch draws one by default, but for its bias, which is 0."""
    bound = 1 / math.sqrt(head.in_features)
    with torch.no_grad():
        head.weight.copy_(torch.empty(head.weight.shape).uniform_(-bound, bound, generator=generator))
        head.bias.zero_()


def _train(net: nn.Module, images: torch.Tensor, ways: int, steps: int) -> None:
    labels = torch.arange(ways, device=images.device).repeat_interleave(len(images) // ways)
    optimiser = torch.optim.Adam(net.parameters(), lr=RATE)
    for _ in range(steps):
        optimiser.zero_grad(set_to_none=True)
        functional.cross_entropy(net(images), labels).backward()
        optimiser.step()


def imagenet_vit() -> nn.Sequential:
    """Return ViT-B/16 with ImageNet weights (346 MB, in torch's own cache), for images of any size, grey ones too.

    Raises MgenbError where they cannot be had.
    """
    weights = ViT_B_16_Weights.IMAGENET1K_V1
    try:
        net = vit_b_16(weights=weights, progress=False)
    except (OSError, RuntimeError) as error:  # no network; a broken download
        why = " ".join(str(error).split())
        raise MgenbError(f"no ImageNet weights ({why}); leave them out with imagenet=false") from error
    ready = v2.ToDtype(torch.float32, scale=True), v2.RGB(), weights.transforms(resize_size=224)
    return nn.Sequential(*ready, net).eval()
