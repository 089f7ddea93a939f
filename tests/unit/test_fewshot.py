"""Few-shot: classes dealt apart, episodes that share nothing, prototypes by hand, behaviour that is known."""

import io
import math
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.optimize import minimize
from scipy.special import logsumexp
from torch import nn

from mgenb import data, nets, stats, training
from mgenb.data import sources
from mgenb.data.splits import split_classes
from mgenb.errors import MgenbError, SealedSplitError
from mgenb.measure import fewshot, population
from mgenb.measure.fewshot import Episodes

REAL = Path(os.environ.get("MGENB_DATA") or Path(__file__).parents[3] / "shared" / "data")
needs_real = pytest.mark.skipif(not (REAL / "MNIST").is_dir(), reason="the full datasets are not here")


@pytest.fixture(scope="module")
def signs(session_cache):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MGENB_CACHE", str(session_cache))
        return data.load("gtsrb", source="samples")


@pytest.fixture(scope="module")
def digits(session_cache):
    """Five digits to train on, and a LeNet that was trained on them; the other five are novel."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MGENB_CACHE", str(session_cache))
        return split_classes(data.load("mnist", source="samples"), novel=5)


@pytest.fixture(scope="module")
def trained(session_cache, digits):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MGENB_CACHE", str(session_cache))
        return training.trained("lenet", digits.data, epochs=4, seed=0)


@pytest.fixture(scope="module")
def untrained(digits):
    return training.fresh("lenet", digits.data, 0).eval()


def accuracy(net, split, episodes):
    right = fewshot.nearest_prototype(fewshot.features(net, split), fewshot.draw(split, episodes))
    return stats.mean(100 * right.double().mean((1, 2)))


def made(count, classes, dimensions=4, size=1):
    """A split of `count` images a class without pixels, in groups of `size`."""
    labels = torch.arange(classes).repeat_interleave(count)
    images = torch.zeros(len(labels), 1, 1, dimensions, dtype=torch.uint8)
    return data.Split(images, labels, torch.arange(len(labels)) // size, "val")


# ---------------------------------------------------------------- classes


def test_classes_are_dealt_apart_and_relabelled(signs):
    split = split_classes(signs, val=3, novel=4, seed=1)
    dealt = [*split.base, *split.val, *split.novel]
    assert sorted(dealt) == sorted(signs.classes)
    assert split.data.classes == split.base
    for part, names, ours in (
        (signs.train, split.base, split.data.train),
        (signs.val, split.base, split.data.val),
    ):
        assert len(ours) == sum(int((part.labels == signs.classes.index(name)).sum()) for name in names)
        for label, name in enumerate(names):
            theirs = part.labels == signs.classes.index(name)
            assert torch.equal(ours.images[ours.labels == label], part.images[theirs])
            assert torch.equal(ours.groups[ours.labels == label], part.groups[theirs])


def test_val_and_novel_classes_have_all_images_of_the_train_part(signs):
    split = split_classes(signs, val=3, novel=4)
    novel = split.data.test.unseal("compare")
    assert (split.selection.role, novel.role) == ("val", "test")
    for part, names in ((split.selection, split.val), (novel, split.novel)):
        for label, name in enumerate(names):
            number = signs.classes.index(name)
            found = int((part.labels == label).sum())
            assert found == int((signs.train.labels == number).sum() + (signs.val.labels == number).sum())
    groups = [set(part.groups.tolist()) for part in (split.data.train, split.data.val, split.selection, novel)]
    assert sum(map(len, groups)) == len(set.union(*groups))


def test_without_val_classes_selection_sees_base_classes(signs):
    split = split_classes(signs, novel=5)
    assert split.selection is split.data.val
    assert (len(split.base), split.val) == (5, ())


def test_novel_classes_are_sealed_and_looks_at_them_count(signs, looks):
    split = split_classes(signs, novel=5)
    with pytest.raises(SealedSplitError, match=r"run\.final_test"):
        split.data.test.images  # noqa: B018
    assert len(split.data.test.counts()) == 5
    assert split.data.test.unseal("the end").role == "test"
    assert looks() == ["the end"]


def test_the_seed_deals_and_the_number_of_val_classes_leaves_the_novel_ones(signs):
    deals = [split_classes(signs, val=val, novel=5, seed=seed) for val, seed in ((0, 3), (0, 3), (2, 3), (0, 4))]
    first, again, more, other = deals
    assert (first.base, first.novel, first.data.digest) == (again.base, again.novel, again.data.digest)
    assert first.novel == more.novel
    assert first.novel != other.novel
    assert len({one.data.digest for one in deals}) == 3


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ({"novel": 11}, "11 novel classes of gtsrb were asked for; right is at most 10"),
        ({"novel": 5, "val": 6}, "6 val classes of gtsrb were asked for; right is at most 5"),
        ({"novel": 5, "val": 4}, "gtsrb has 1 classes left as base; right is at least 2"),
        ({"novel": -1}, "-1 novel classes"),
    ],
)
def test_too_few_classes_are_told(signs, counts, message):
    with pytest.raises(MgenbError, match=message):
        split_classes(signs, **counts)


@pytest.mark.parametrize(
    ("counts", "episodes", "message"),
    [
        ({"novel": 4}, {"queries": 5}, "4 test classes do not do for 5 ways"),
        ({"novel": 5, "val": 3}, {}, "3 val classes do not do for 5 ways"),
        (
            {"novel": 5},
            {"queries": 40},
            r"class 0 has 13 images in 13 groups, too few for 1 support images and 40 queries",
        ),
        ({"novel": 5}, {"shots": 5}, r"class 0 has 13 images in 13 groups, too few for 5"),
    ],
)
def test_episodes_that_cannot_be_drawn_are_told(signs, counts, episodes, message):
    split = split_classes(signs, **counts)

    def draw_both():
        fewshot.draw(split.selection, Episodes(**episodes))
        fewshot.draw(split.data.test.unseal("a test"), Episodes(**episodes))

    with pytest.raises(MgenbError, match=message):
        draw_both()


def picture(number):
    pixels = np.random.default_rng(number).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


def tree(**parts):
    names = [f"{part}/{part}{c}/{i}.png" for part, classes in parts.items() for c in range(classes) for i in range(12)]
    return {name: picture(number) for number, name in enumerate(names)}


def test_a_folder_with_its_own_val_classes(tmp_path, monkeypatch):
    monkeypatch.setenv("MGENB_DATA", str(tmp_path))
    for name, content in tree(train=4, val=3, test=6).items():
        path = tmp_path / "cifar_fs" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    dataset = data.load("cifar_fs")
    split = split_classes(dataset)
    assert split.base == ("train0", "train1", "train2", "train3")
    assert (len(split.val), len(split.novel), split.data.test.counts()) == (3, 6, [12] * 6)
    assert torch.bincount(split.data.train.labels).tolist() == [10] * 4
    assert torch.bincount(split.data.val.labels).tolist() == [2] * 4
    assert not set(split.data.train.groups.tolist()) & set(split.data.val.groups.tolist())
    assert torch.equal(split.selection.images, dataset.val.images)
    fewer = split_classes(dataset, val=2, novel=5)
    assert (len(fewer.base), fewer.data.num_classes, len(fewer.val), len(fewer.novel)) == (4, 4, 2, 5)
    assert fewer.selection.labels.unique().tolist() == [0, 1]
    assert fewshot.draw(split.selection, Episodes(ways=3, shots=2, queries=10)).classes.shape == (600, 3)
    with pytest.raises(MgenbError, match="3 val classes do not do for 6 ways"):
        fewshot.draw(split.selection, Episodes(ways=6, shots=2, queries=10))


def test_a_zip_without_val_holds_classes_of_train_out(tmp_path, monkeypatch):
    monkeypatch.setenv("MGENB_DATA", str(tmp_path))
    with zipfile.ZipFile(tmp_path / "mini_imagenet.zip", "w") as archive:
        for name, content in tree(train=6, test=5).items():
            archive.writestr(name, content)
    split = split_classes(data.load("mini_imagenet"), val=3)
    assert len({*split.base, *split.val}) == 6
    assert split.novel == tuple(f"novel {label}" for label in range(5))
    assert torch.bincount(split.selection.labels).tolist() == [12] * 3


@needs_real
def test_real_signs_and_characters(monkeypatch):
    monkeypatch.setenv("MGENB_DATA", str(REAL))
    signs = split_classes(data.load("gtsrb"), val=10, novel=13)
    assert (len(signs.base), len(signs.val), len(signs.novel)) == (20, 10, 13)
    drawn = fewshot.draw(signs.selection, Episodes(shots=5, count=50))
    assert_apart(signs.selection, drawn)
    novel = signs.data.test.unseal("a test")
    assert_apart(novel, fewshot.draw(novel, Episodes(shots=5, count=50)))
    characters = split_classes(data.load("omniglot"), val=30)
    assert (len(characters.base), len(characters.val), len(characters.novel)) == (106, 30, 106)
    assert characters.data.test.counts() == [20] * 106
    assert_apart(characters.selection, fewshot.draw(characters.selection, Episodes(shots=5, count=50)))


# ---------------------------------------------------------------- episodes


def assert_apart(split, drawn):
    count, ways, _ = drawn.support.shape
    for e in range(count):
        assert len(set(drawn.classes[e].tolist())) == ways
        for w in range(ways):
            support, query = drawn.support[e, w], drawn.query[e, w]
            assert len({*support.tolist(), *query.tolist()}) == len(support) + len(query)
            assert (split.labels[torch.cat([support, query])] == drawn.classes[e, w]).all()
            groups = split.groups[support].tolist()
            assert len(set(groups)) == len(groups)
            assert not set(groups) & set(split.groups[query].tolist())


def test_support_and_query_share_no_track(signs):
    drawn = fewshot.draw(signs.train, Episodes(shots=3, queries=5, count=100))
    assert drawn.support.shape == (100, 5, 3)
    assert drawn.query.shape == (100, 5, 5)
    assert_apart(signs.train, drawn)
    frames = signs.train.groups[drawn.query]
    assert any(len(set(row.tolist())) < 5 for row in frames.flatten(0, 1))  # queries may share one with each other


def test_episodes_follow_their_seed_alone(digits):
    first, again, other = (fewshot.draw(digits.selection, Episodes(count=20, seed=seed)) for seed in (0, 0, 1))
    for name in ("classes", "support", "query"):
        assert torch.equal(getattr(first, name), getattr(again, name))
    assert not torch.equal(first.query, other.query)


def test_every_class_and_image_has_its_turn():
    drawn = fewshot.draw(made(20, 8), Episodes(count=400))
    turns = torch.bincount(drawn.classes.flatten(), minlength=8)
    assert (turns.float() - 250).abs().max() < 4 * math.sqrt(250 * 3 / 8)
    assert len(drawn.support.unique()) == len(drawn.query.unique()) == 160


@pytest.mark.parametrize("wrong", [{"ways": 1}, {"shots": 0}, {"queries": 0}, {"count": 0}])
def test_impossible_episodes(wrong):
    with pytest.raises(MgenbError, match=rf"{next(iter(wrong))} is \d; right is a whole number of at least"):
        Episodes(**wrong)


def test_images_too_few_for_shots_and_queries():
    fewshot.draw(made(16, 5), Episodes())
    with pytest.raises(MgenbError, match="class 0 has 15 images in 15 groups, too few for 1"):
        fewshot.draw(made(15, 5), Episodes())
    fewshot.draw(made(20, 5, size=5), Episodes())
    with pytest.raises(MgenbError, match="class 0 has 20 images in 4 groups, too few for 2"):
        fewshot.draw(made(20, 5, size=5), Episodes(shots=2))


# ---------------------------------------------------------------- prototypes


def test_nearest_prototype_is_what_a_loop_finds():
    split = made(12, 6)
    found = torch.randn(72, 4, generator=torch.Generator().manual_seed(0)) + split.labels[:, None] / 3
    drawn = fewshot.draw(split, Episodes(ways=4, shots=3, queries=6, count=70))
    right = fewshot.nearest_prototype(found, drawn)
    assert 0.3 < right.double().mean() < 0.9
    for e in (0, 33, 69):
        prototypes = [found[drawn.support[e, w]].mean(0) for w in range(4)]
        for w in range(4):
            for k, image in enumerate(drawn.query[e, w].tolist()):
                nearest = int(np.argmin([(found[image] - p).norm() for p in prototypes]))
                assert bool(right[e, w, k]) == (nearest == w)


@pytest.mark.parametrize("classify", [fewshot.nearest_prototype, fewshot.linear_head])
def test_a_perfect_embedding_is_always_right(classify):
    split = made(20, 7)
    drawn = fewshot.draw(split, Episodes(count=30))
    assert classify(torch.eye(7)[split.labels], drawn).all()


def penalised_loss(flat, images, labels):
    weights = flat.reshape(images.shape[1], -1)
    scores = images @ weights
    return (logsumexp(scores, axis=1) - scores[range(len(labels)), labels]).sum() + np.square(weights).sum() / 2


def test_a_linear_head_has_the_least_penalised_loss_in_each_episode():
    split, labels = made(20, 6), np.repeat(range(4), 5)
    found = torch.randn(120, 8, generator=torch.Generator().manual_seed(0)) + torch.eye(8)[split.labels]
    drawn = fewshot.draw(split, Episodes(ways=4, shots=5, queries=6, count=10))
    right = fewshot.linear_head(found, drawn)
    unit, same = (found / found.norm(dim=1, keepdim=True)).double().numpy(), []
    for support, query, ours in zip(drawn.support, drawn.query, right, strict=True):
        weights = minimize(penalised_loss, np.zeros(32), (unit[support.flatten()], labels)).x.reshape(8, 4)
        theirs = (unit[query.flatten()] @ weights).argmax(1).reshape(4, 6) == np.arange(4)[:, None]
        same.append((theirs == ours.numpy()).mean())
    assert 0.3 < right.double().mean() < 0.9
    assert np.mean(same) > 0.99


def test_labels_that_mean_nothing_give_chance(digits, trained):
    images = digits.selection
    shuffled = images.labels[torch.randperm(len(images), generator=torch.Generator().manual_seed(0))]
    split = data.Split(images.images, shuffled, images.groups, "val")
    low, high = accuracy(trained, split, Episodes(count=400)).interval(0.999)
    assert low < 20 < high
    assert high - low < 4


def test_known_behaviour_on_novel_digits(digits, trained, untrained):
    novel = digits.data.test.unseal("test of known behaviour")
    one, five = Episodes(count=200), Episodes(shots=5, count=200)
    found = {
        (name, e): accuracy(net, novel, e) for name, net in (("t", trained), ("u", untrained)) for e in (one, five)
    }
    assert found["u", one].interval(0.999)[0] > 20
    assert found["t", one].interval(0.999)[0] > found["u", one].interval(0.999)[1]
    assert found["t", five].interval(0.999)[0] > found["t", one].interval(0.999)[1]
    assert found["u", five].interval(0.999)[0] > found["u", one].interval(0.999)[1]


def test_accuracy_by_class_by_hand():
    right = torch.tensor([[[True, True], [False, True]], [[False, False], [True, False]]])
    drawn = fewshot.Drawn(torch.tensor([[3, 5], [5, 8]]), torch.empty(2, 2, 1), torch.empty(2, 2, 2))
    assert fewshot.by_class(right, drawn) == {3: 100, 5: 25, 8: 50}  # 5: 50 and 0


# ---------------------------------------------------------------- features


def test_features_are_what_the_last_layer_reads(digits, trained):
    split, (normalise, net) = digits.selection, trained
    with torch.inference_mode():
        expected = net[:-1](normalise(split.images))
    found = fewshot.features(trained, split)
    assert (found.shape, found.dtype) == ((len(split), 84), torch.float32)
    assert torch.allclose(found, expected, atol=1e-5)
    assert not found.requires_grad
    assert not net[-1]._forward_pre_hooks
    state = {name: 2 * t if name == "net.fc1.weight" else t for name, t in population.state_of(trained).items()}
    assert not torch.allclose(fewshot.features(trained, split, state), found, atol=1e-2)
    assert torch.equal(fewshot.features(trained, split), found)


@pytest.mark.parametrize(("arch", "width"), [("conv4", 256), ("vit", 96), ("resnet18", 512), ("vgg11", 512)])
def test_features_of_every_kind_of_network(arch, width):
    net = nets.build(arch, 3, 32, 7).train()
    images = torch.rand(3, 3, 32, 32)
    split = data.Split(images, torch.zeros(3, dtype=torch.int64), torch.arange(3), "val")
    before = population.state_of(net)
    found = fewshot.features(net, split)
    assert found.shape == (3, width)
    assert net.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
    head = net.get_submodule(fewshot.head_of(net))
    with torch.no_grad():
        assert torch.allclose(head(found), net.eval()(images), atol=1e-4)


def test_features_that_are_not_finite_are_wrong_and_a_failed_individual(digits, trained):
    state = population.state_of(trained)
    broken = {**state, "net.fc1.bias": torch.full((84,), math.nan)}
    drawn = fewshot.draw(digits.selection, Episodes(count=20))
    for classify in (fewshot.nearest_prototype, fewshot.linear_head):
        assert not classify(fewshot.features(trained, digits.selection, broken), drawn).any()
    fine, failed = fewshot.accuracy_of(trained, digits.selection, Episodes(count=20))([state, broken])
    assert fine > 0.5
    assert math.isnan(failed)


def test_the_criterion_is_the_accuracy_of_each_state_and_refuses_the_test_images(digits, trained, untrained):
    episodes = Episodes(shots=2, queries=5, count=50)
    states = [population.state_of(net) for net in (trained, untrained)]
    found = fewshot.accuracy_of(trained, digits.selection, episodes)(iter(states))
    expected = [accuracy(net, digits.selection, episodes).estimate / 100 for net in (trained, untrained)]
    assert found == pytest.approx(expected)
    assert found[0] > found[1]
    with pytest.raises(SealedSplitError):
        fewshot.accuracy_of(trained, digits.data.test.unseal("to be refused"), episodes)


# ---------------------------------------------------------------- fine-tuning


@pytest.fixture(scope="module")
def few(digits):
    return fewshot.draw(digits.selection, Episodes(shots=5, count=6))


def test_fine_tuning_learns_from_its_support(digits, untrained, few):
    before, after = (
        fewshot.fine_tune(untrained, digits.selection, few, steps, seed=0).double().mean() for steps in (0, 30)
    )
    assert before < 0.35  # a head that was just drawn
    assert after > 0.6


def test_fine_tuning_from_a_trained_start_is_better_and_repeats(digits, trained, untrained, few):
    steps, before = 20, population.state_of(trained)
    found = fewshot.fine_tune(trained, digits.selection, few, steps, seed=0)
    assert found.shape == (6, 5, 15)
    assert all(torch.equal(tensor, before[name]) for name, tensor in trained.state_dict().items())
    generator = torch.get_rng_state()
    assert torch.equal(found, fewshot.fine_tune(untrained, digits.selection, few, steps, seed=0, state=before))
    assert torch.equal(generator, torch.get_rng_state())
    assert not torch.equal(found, fewshot.fine_tune(trained, digits.selection, few, steps, seed=1))
    other = fewshot.fine_tune(untrained, digits.selection, few, steps, seed=0)
    assert found.double().mean() > other.double().mean()


def test_an_episode_is_fine_tuned_whatever_stands_before_it(digits, trained, few):
    steps = 5
    alone = fewshot.Drawn(few.classes[:1], few.support[:1], few.query[:1])
    found = fewshot.fine_tune(trained, digits.selection, few, steps, seed=0)
    assert torch.equal(found[:1], fewshot.fine_tune(trained, digits.selection, alone, steps, seed=0))


def test_fine_tuning_keeps_the_running_statistics_and_trains_the_rest(digits):
    net = training.fresh("conv4", digits.data, 0)
    calls = []

    class Watched(nn.Sequential):
        def forward(self, x):
            calls.append(self.training)
            return super().forward(x)

    watched = Watched(net).train()
    drawn = fewshot.draw(digits.selection, Episodes(count=1, queries=5))
    fewshot.fine_tune(watched, digits.selection, drawn, 2, seed=0)
    assert calls == [False] * 3


# ---------------------------------------------------------------- ImageNet


def test_without_a_network_there_are_no_imagenet_weights_and_it_says_why(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")  # nobody listens there
    monkeypatch.delenv("no_proxy", raising=False)
    with pytest.raises(MgenbError, match=r"no ImageNet weights \(<urlopen error .*imagenet=false"):
        fewshot.imagenet_vit()


def test_small_images_are_made_ready_for_imagenet(monkeypatch):
    monkeypatch.setattr(fewshot, "vit_b_16", lambda **_: nn.Identity())
    net = fewshot.imagenet_vit()
    grey = torch.full((2, 1, 28, 28), 255, dtype=torch.uint8)
    x = net(grey)
    assert x.shape == (2, 3, 224, 224)
    assert x[0, :, 5, 5].tolist() == pytest.approx([(1 - 0.485) / 0.229, (1 - 0.456) / 0.224, (1 - 0.406) / 0.225])
    colour = torch.rand(1, 3, 32, 32)
    assert torch.allclose(net((255 * colour).round().to(torch.uint8)), net(colour), atol=0.02)
    large = nn.functional.interpolate(colour, 224, mode="bilinear", antialias=True)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    assert torch.allclose(net(colour), (large - mean[:, None, None]) / std[:, None, None], atol=1e-6)


def test_what_imagenet_has_seen_is_known_for_every_few_shot_dataset():
    assert set(fewshot.SEEN_IN_IMAGENET) == {*sources.FEW_SHOT, "gtsrb"}
