"""Attacks: what they find, that no image knows of another, and that networks and random state are left as they came."""

import dataclasses
from typing import Any

import foolbox
import pytest
import torch
import torchattacks
from torch import nn
from torch.nn import functional

from mgenb import data, nets, training
from mgenb.data import Split
from mgenb.errors import MgenbError
from mgenb.measure import attacks, population
from mgenb.measure.attacks import CW, FGSM, PGD, Attack, craft

QUICK = CW(searches=3, iterations=30, rate=0.25)
SHORT = CW(searches=2, iterations=8, rate=0.4)  # where it need not be good
ATTACKS: list[Attack] = [FGSM(0.1), PGD(0.1, steps=4), SHORT]


@pytest.fixture(scope="module")
def seen(small, lenet):
    """12 validation images that the LeNet has right, with a target for each that is not its label."""
    right = population.correct(lenet, small.val).nonzero()[:12, 0]
    labels = small.val.labels[right]
    assert len(right) == 12
    return small.val.images[right], labels, (labels + 1 + torch.arange(12) % 9) % 10


@pytest.fixture(scope="module")
def found(lenet, seen):
    """C&W's results on them, targeted or not."""
    images, labels, targets = seen
    return {True: craft(lenet, images, labels, QUICK, targets=targets), False: craft(lenet, images, labels, QUICK)}


def predict(net, images):
    return population.predict(net, Split(images, torch.zeros(len(images)).long(), torch.arange(len(images)), "val"))


def size(adversarial, images):
    return (adversarial - images.float() / 255).flatten(1).norm(dim=1)


def scaled(net, factor, shift=0.0):
    """Return the state in which all logits are `factor` times as large, plus `shift`."""
    state = population.state_of(net)
    return {
        **state,
        "net.fc2.weight": factor * state["net.fc2.weight"],
        "net.fc2.bias": factor * state["net.fc2.bias"] + shift,
    }


@pytest.mark.parametrize("targeted", [False, True])
def test_fgsm_is_one_step_in_the_direction_of_the_gradients_sign(lenet, seen, targeted):
    images, labels, targets = seen
    x = (images.float() / 255).requires_grad_()
    goals, sign = (targets, -1) if targeted else (labels, 1)
    functional.cross_entropy(population.quick_copy(lenet)(x), goals).backward()
    expected = (x.detach() + sign * 0.1 * x.grad.sign()).clamp(0, 1)
    assert craft(lenet, images, labels, FGSM(0.1), targets=targets if targeted else None).equal(expected)
    assert craft(lenet, x.detach().double(), labels, FGSM(0.1), targets=targets if targeted else None).equal(expected)


@pytest.mark.parametrize("attack", ATTACKS)
def test_adversarial_images_are_images_and_change_what_the_network_sees(lenet, seen, attack):
    images, labels, _ = seen
    adversarial = craft(lenet, images, labels, attack)
    assert adversarial.shape == images.shape
    assert adversarial.dtype == torch.float32
    assert not adversarial.requires_grad
    assert adversarial.min() >= 0
    assert adversarial.max() <= 1
    assert (predict(lenet, adversarial) != labels).sum() > 1
    if not isinstance(attack, CW):
        assert (adversarial - images.float() / 255).abs().max() <= 0.1 + 1e-6
    again = craft(lenet, images.float() / 255, labels, attack)
    assert again.equal(adversarial)


@pytest.mark.parametrize("attack", [FGSM(0.0), PGD(0.0, steps=3)])
def test_an_eps_of_0_changes_nothing(lenet, seen, attack):
    images, labels, targets = seen
    assert craft(lenet, images, labels, attack).equal(images.float() / 255)
    assert craft(lenet, images, labels, attack, targets=targets).equal(images.float() / 255)


def test_cw_needs_less_change_than_fgsm_on_the_images_that_fgsm_turns(lenet, seen, found):
    images, labels, _ = seen
    assert (predict(lenet, found[False]) != labels).all()
    for eps in (0.1, 0.2, 0.3):
        adversarial = craft(lenet, images, labels, FGSM(eps))
        turned = predict(lenet, adversarial) != labels
        assert turned.any()
        assert size(found[False], images)[turned].mean() < 0.7 * size(adversarial, images)[turned].mean()


def test_targeted_attacks_reach_their_targets(lenet, seen, found):
    images, labels, targets = seen
    assert predict(lenet, found[True]).equal(targets)
    assert size(found[True], images).median() > size(found[False], images).median()
    strong = predict(lenet, craft(lenet, images, labels, PGD(0.4, steps=20), targets=targets))
    assert (strong == targets).double().mean() > 0.9


def compared_with_foolbox(net, images, labels, targets, attack):
    """Return (success, median L2 where it succeeds) of our C&W and of foolbox's; targets: None where untargeted."""
    goal: Any = foolbox.criteria.Misclassification(labels)
    if targets is not None:
        goal = foolbox.criteria.TargetedMisclassification(targets)
    model = foolbox.PyTorchModel(population.quick_copy(net), bounds=(0, 1), device="cpu")
    rival = foolbox.attacks.L2CarliniWagnerAttack(
        attack.searches, attack.iterations, attack.rate, confidence=attack.kappa, initial_const=1.0, abort_early=False
    )
    ours, both = craft(net, images, labels, attack, targets=targets), []
    for made in (ours, rival(model, images.float() / 255, goal, epsilons=None)[1]):
        reached = predict(net, made) != labels if targets is None else predict(net, made) == targets
        both.append((reached.double().mean().item(), size(made, images)[reached].median().item()))
    return both


@pytest.mark.parametrize("targeted", [False, True])
def test_cw_agrees_with_foolbox(lenet, seen, targeted):
    images, labels, targets = seen
    attack = CW(searches=4, iterations=40, rate=0.25)
    ours, theirs = compared_with_foolbox(lenet, images, labels, targets if targeted else None, attack)
    assert ours[0] == pytest.approx(theirs[0], abs=0.1)
    assert min(ours[0], theirs[0]) > 0.9
    assert ours[1] == pytest.approx(theirs[1], rel=0.1)


@pytest.mark.slow
@pytest.mark.parametrize("kappa", [0.0, 2.0])
def test_cw_agrees_with_foolbox_on_200_examples(kappa):
    digits = data.load("mnist", source="samples")
    net = training.trained("lenet", digits, recipe="mge-adam", epochs=6, seed=0)  # it is shipped
    right = population.correct(net, digits.val).nonzero()[:200, 0]
    images, labels = digits.val.images[right], digits.val.labels[right]
    assert len(right) == 200
    targets = (labels + 1 + torch.arange(200) % 9) % 10
    attack = CW(kappa, searches=6, iterations=60, rate=10 / 60)  # as notebook 08 attacks in its cpu profile
    ours, theirs = compared_with_foolbox(net, images, labels, targets, attack)
    assert ours[0] == pytest.approx(theirs[0], rel=0.05)
    assert ours[1] == pytest.approx(theirs[1], rel=0.05)


def test_a_pixel_at_0_or_1_can_move(lenet, seen, found):
    images, labels, _ = seen
    for end, ink in ((0, found[False]), (255, 1 - found[False])):
        assert (images == end).any()
        assert ink[images == end].max() > 0.2
    # the fault that this guards against: they map to infinity, and do not move
    theirs = torchattacks.CW(population.quick_copy(lenet), steps=5)(images.float() / 255, labels)
    assert theirs[images == 0].nan_to_num(0).max() == 0


def test_logits_below_0_have_the_same_margin(lenet, seen, found):
    images, labels, targets = seen
    with torch.no_grad():
        assert population.quick_copy(lenet, scaled(lenet, 1.0, -100.0))(images).max() < 0
    for targeted, one in found.items():
        goals = targets if targeted else None
        shifted = craft(lenet, images, labels, QUICK, targets=goals, state=scaled(lenet, 1.0, -100.0))
        assert size(shifted, images).mean().item() == pytest.approx(size(one, images).mean().item(), rel=0.02)


@pytest.mark.parametrize("factor", [1e-3, 20.0])
def test_c_is_searched_until_it_suits_the_logits(lenet, seen, found, factor):
    images, labels, targets = seen
    state = scaled(lenet, factor)
    made = craft(lenet, images, labels, dataclasses.replace(QUICK, searches=6), targets=targets, state=state)
    assert predict(lenet, made).equal(targets)
    assert size(made, images).mean().item() == pytest.approx(size(found[True], images).mean().item(), rel=0.15)
    once = craft(lenet, images, labels, dataclasses.replace(QUICK, searches=1), targets=targets, state=state)
    if factor < 1:
        unchanged = size(once, images) == 0
        assert unchanged.double().mean() > 0.7
        assert predict(lenet, once)[unchanged].equal(labels[unchanged])
    else:
        assert size(once, images).mean() > 1.3 * size(made, images).mean()


def test_kappa_is_the_lead_of_the_goal_and_costs_distance(lenet, seen, found):
    images, labels, targets = seen
    net = population.quick_copy(lenet)
    before = size(found[True], images)
    for kappa in (0.5, 1.0):
        made = craft(lenet, images, labels, dataclasses.replace(QUICK, kappa=kappa), targets=targets)
        with torch.no_grad():
            logits = net(made)
        others = logits.scatter(1, targets[:, None], -torch.inf).amax(1)
        assert (logits.gather(1, targets[:, None])[:, 0] - others).min() > kappa - 1e-4
        assert size(made, images).mean() > before.mean()
        before = size(made, images)


def test_an_image_that_is_already_what_is_asked_for_is_returned_as_it_is(lenet, small):
    wrong = (~population.correct(lenet, small.val)).nonzero()[:5, 0]
    assert len(wrong)
    images, labels = small.val.images[wrong], small.val.labels[wrong]
    assert craft(lenet, images, labels, QUICK).equal(images.float() / 255)
    assert not craft(lenet, images, labels, dataclasses.replace(QUICK, kappa=1.0)).equal(images.float() / 255)


@pytest.mark.parametrize("targeted", [False, True])
@pytest.mark.parametrize("attack", [FGSM(0.1), SHORT])
def test_an_image_does_not_know_of_its_batch(lenet, seen, attack, targeted):
    images, labels, targets = seen
    images = torch.cat([images, torch.randint(0, 256, images.shape, dtype=torch.uint8)])  # noise is hard to turn
    labels, targets = labels.repeat(2), targets.repeat(2)
    whole = craft(lenet, images[:12], labels[:12], attack, targets=targets[:12] if targeted else None)
    among_noise = torch.cat([torch.arange(6), torch.arange(12, 18)])
    goals = targets if targeted else labels
    for chosen, most in ((among_noise, 0), (torch.arange(1), 0.01)):  # one alone: other kernels round otherwise
        some = {"targets": goals[chosen]} if targeted else {}
        other, kept = craft(lenet, images[chosen], labels[chosen], attack, **some), min(6, len(chosen))
        assert ((other[:kept] - whole[:kept]).abs() > 1e-5).double().mean() <= most
        assert other[:kept].equal(whole[:kept]) or most


def test_a_start_of_pgd_depends_on_the_place_and_the_seed_and_on_nothing_else(lenet, seen):
    images, labels, _ = seen
    attack = PGD(0.1, steps=2)
    one = craft(lenet, images, labels, attack, seed=1)
    torch.rand(7)
    others = torch.cat([images[:6], images.flip(0)[:6]])
    again = craft(lenet, others, torch.cat([labels[:6], labels.flip(0)[:6]]), attack, seed=1)
    assert again[:6].equal(one[:6])
    assert not again[6:].equal(one[6:])
    assert not craft(lenet, images, labels, attack, seed=2).equal(one)


@pytest.mark.parametrize("attack", ATTACKS)
def test_a_batch_after_the_other_gives_what_one_batch_gives(lenet, seen, attack, monkeypatch):
    images, labels, targets = seen
    whole = craft(lenet, images, labels, attack, targets=targets)
    monkeypatch.setattr(population, "CPU_BATCH", 5)
    parts = craft(lenet, images, labels, attack, targets=targets)
    assert (parts - whole).abs().flatten(1).amax(1).median() < 1e-4


def test_one_use_does_not_set_the_mode_of_the_next_and_nothing_is_printed(lenet, seen, capsys):
    images, labels, targets = seen
    for attack in ATTACKS:
        before = craft(lenet, images, labels, attack)
        assert not craft(lenet, images, labels, attack, targets=targets).equal(before)
        assert craft(lenet, images, labels, attack).equal(before)
    assert capsys.readouterr().out == ""


class Fragile(nn.Module):
    """A network with a dropout, a BatchNorm and a frozen part, that fails at its `fails`-th forward pass."""

    def __init__(self, fails=None):
        super().__init__()
        body = (nn.Flatten(), nn.Linear(784, 20), nn.BatchNorm1d(20), nn.ReLU(), nn.Dropout(0.5), nn.Linear(20, 10))
        self.body, self.passes, self.fails = nn.Sequential(*body), 0, fails

    def forward(self, images):
        self.passes += 1
        if self.passes == self.fails:
            raise RuntimeError("out of order")
        return self.body(images.float())


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("fails", [None, 2])
def test_a_network_and_the_random_state_are_left_as_they_came_after_an_exception_too(attack, fails, seen):
    images, labels, targets = seen
    torch.manual_seed(0)
    net = Fragile(fails).train()
    net.body[2].eval()
    modes, before, random = [m.training for m in net.modules()], population.state_of(net), torch.get_rng_state()
    if fails:
        with pytest.raises(RuntimeError, match="out of order"):
            craft(net, images, labels, attack, targets=targets)
    else:
        one = craft(net, images, labels, attack)
        assert craft(net.eval(), images, labels, attack).equal(one)  # without dropout, with BatchNorm's statistics
        net.train()
        net.body[2].eval()
    assert [m.training for m in net.modules()] == modes
    assert torch.get_rng_state().equal(random)
    assert all(before[name].equal(tensor) for name, tensor in net.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in net.parameters())


def test_with_a_state_it_is_as_if_the_network_held_it(lenet, seen):
    images, labels, _ = seen
    other = nets.build("lenet", 1, 28, 10)
    other.load_state_dict(scaled(lenet, 1.5, 0.3))
    before = population.state_of(lenet)
    for attack in ATTACKS:
        assert craft(lenet, images, labels, attack, state=other.state_dict()).equal(
            craft(other, images, labels, attack)
        )
    assert all(before[name].equal(tensor) for name, tensor in lenet.state_dict().items())
    lacking = {name: tensor for name, tensor in before.items() if name != "net.conv2.bias"}
    with pytest.raises(MgenbError, match=r"lacks 'net\.conv2\.bias'"):
        craft(lenet, images, labels, FGSM(0.1), state=lacking)


def test_it_takes_gradients_where_they_are_switched_off(lenet, seen):
    images, labels, _ = seen
    for attack in ATTACKS:
        expected = craft(lenet, images, labels, attack)
        with torch.no_grad():
            assert craft(lenet, images, labels, attack).equal(expected)
        with torch.inference_mode():
            floats, state = images.float() / 255, {k: v.clone() for k, v in lenet.state_dict().items()}
            assert craft(lenet, floats, labels, attack, state=state).equal(expected)
        assert craft(lenet, floats, labels, attack, state=state).equal(expected)


def test_right_under_an_attack_on_itself(lenet, small):
    split = small.val.take(40, 0)
    other = scaled(lenet, 1.0)
    other["net.conv2.weight"] = other["net.conv2.weight"].flip(0)
    itself = attacks.right_under(lenet, split, None, FGSM(0.1))
    images = craft(lenet, split.images, split.labels, FGSM(0.1))
    assert itself.equal(population.correct(lenet, dataclasses.replace(split, images=images)))
    assert itself.sum() < population.correct(lenet, split).sum()
    images = craft(lenet, split.images, split.labels, FGSM(0.1), state=other)
    of_other = population.correct(lenet, dataclasses.replace(split, images=images), other)
    assert attacks.right_under(lenet, split, other, FGSM(0.1)).equal(of_other)
    assert attacks.right_under(lenet, split, other, FGSM(0.0)).equal(population.correct(lenet, split, other))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: FGSM(-0.1), "eps of FGSM is -0.1; right is a number of at least 0"),
        (lambda: FGSM(float("nan")), "eps of FGSM is nan"),
        (lambda: FGSM("0.1"), "eps of FGSM is '0.1'"),  # type: ignore[arg-type]
        (lambda: PGD(0.1, steps=0), "steps of PGD is 0; right is a whole number of at least 1"),
        (lambda: PGD(0.1, steps=2.5), "steps of PGD is 2.5"),  # type: ignore[arg-type]
        (lambda: PGD(float("inf")), "eps of PGD is inf"),
        (lambda: CW(-1.0), "kappa of CW is -1.0"),
        (lambda: CW(searches=True), "searches of CW is True"),
        (lambda: CW(rate=0.0), "rate of CW is 0.0"),
    ],
)
def test_an_attack_of_wrong_numbers_is_refused(make, message):
    with pytest.raises(MgenbError, match=message):
        make()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"images": torch.full((2, 1, 28, 28), 1.5)}, "from 1.5 to 1.5; right is .* of uint8 or of floats in"),
        ({"images": torch.full((2, 1, 28, 28), -0.1)}, "images are .* from -0.1 to -0.1"),
        ({"images": torch.full((2, 1, 28, 28), float("nan"))}, "images are .* from nan to nan"),
        ({"images": torch.full((2, 1, 28, 28), 255)}, r"images are torch\.int64 .* from 255 to 255"),
        ({"images": torch.zeros(1, 28, 28)}, r"images are torch\.float32 \[1, 28, 28\]"),
        ({"images": torch.zeros(0, 1, 28, 28), "labels": torch.zeros(0).long()}, "n at least 1"),
        (
            {"labels": torch.tensor([1, 2, 3])},
            r"labels are torch\.int64 \[3\] from 1 to 3; right is a whole number from 0 to 9 for each of 2",
        ),
        ({"labels": torch.tensor([1.0, 2.0])}, r"labels are torch\.float32"),
        ({"labels": torch.tensor([1, 10])}, "labels are .* from 1 to 10; right is a whole number from 0 to 9"),
        ({"labels": torch.tensor([-1, 1])}, "labels are .* from -1 to 1"),
        ({"targets": torch.tensor([3])}, r"targets are torch\.int64 \[1\]"),
        ({"targets": torch.tensor([3, 11])}, "targets are .* from 3 to 11"),
        ({"targets": torch.tensor([3, 2])}, "target 1 is the label of that image; right is another class"),
    ],
)
@pytest.mark.parametrize("attack", [FGSM(0.1), QUICK])
def test_what_cannot_be_attacked_is_refused(lenet, attack, given, message):
    fine = {"images": torch.zeros(2, 1, 28, 28), "labels": torch.tensor([1, 2])}
    with pytest.raises(MgenbError, match=message):
        craft(lenet, attack=attack, **{**fine, **given})


def test_a_network_that_gives_no_gradient_is_refused(lenet):
    images, labels = torch.zeros(2, 1, 28, 28), torch.tensor([1, 2])

    class Detached(nn.Sequential):
        def forward(self, x):
            return super().forward(x).detach()

    overflowing = {name: 1e38 * tensor for name, tensor in population.state_of(lenet).items()}
    for net, state in ((Detached(nn.Flatten(), nn.Linear(784, 10)), None), (lenet, overflowing)):
        with pytest.raises(MgenbError, match="logits are not finite, or have no gradient by its input"):
            craft(net, images, labels, FGSM(0.1), state=state)
