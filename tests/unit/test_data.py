"""Datasets: what is found where, how it is split, what stays sealed, and that decoding happens once."""

import copy
import csv
import gzip
import hashlib
import io
import os
import pickle
import struct
import time
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torchvision.datasets import CIFAR10

from mgenb import data
from mgenb.data import decode, sources, splits
from mgenb.errors import MgenbError, SealedSplitError

REAL = Path(os.environ.get("MGENB_DATA") or Path(__file__).parents[3] / "shared" / "data")
needs_real = pytest.mark.skipif(not (REAL / "MNIST").is_dir(), reason="the full datasets are not here")


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def _places(monkeypatch, cache):
    monkeypatch.setenv("MGENB_CACHE", str(cache))
    monkeypatch.delenv("MGENB_DATA", raising=False)


@pytest.fixture
def load_from(monkeypatch):
    """What loads a dataset with its folder as MGENB_DATA."""

    def load(folder, name):
        monkeypatch.setenv("MGENB_DATA", str(folder))
        return data.load(name)

    return load


def picture(number, size=(8, 8), mode="RGB", kind="PNG"):
    pixels = np.random.default_rng(number).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(out, kind)
    return out.getvalue()


def tree(spec, **options):
    """Return {path: bytes} for {"train/cat": 3, ...}."""
    names = [f"{folder}/{i}.png" for folder, count in spec.items() for i in range(count)]
    return {name: picture(number, **options) for number, name in enumerate(names)}


def as_zip(path, files):
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def as_folder(path, files):
    for name, content in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(content)
    return path


PETS = {"train/cat": 6, "train/dog": 12, "test/cat": 2, "test/dog": 3}


@pytest.mark.parametrize(
    ("name", "shape", "counts", "classes"),
    [
        ("mnist", (1, 28, 28), (3000, 1000), 10),
        ("fashion_mnist", (1, 28, 28), (3000, 1000), 10),
        ("cifar10", (3, 32, 32), (2500, 1000), 10),
        ("gtsrb", (3, 32, 32), (784, 400), 10),
    ],
)
def test_samples(name, shape, counts, classes):
    ds = data.load(name, source="samples")
    assert (ds.variant, ds.source) == ("sample", "samples shipped with mgenb")
    assert (len(ds.train) + len(ds.val), len(ds.test)) == counts
    assert (ds.channels, ds.size, ds.num_classes) == (shape[0], shape[1], classes)
    for split in (ds.train, ds.val, ds.test.unseal("test")):
        assert split.images.shape == (len(split), *shape)
        assert (split.images.dtype, split.labels.dtype, split.groups.dtype) == (
            torch.uint8,
            torch.int64,
            torch.int64,
        )
        assert split.labels.unique().tolist() == list(range(classes))
        assert split.images.float().std() > 20  # pictures, not a constant
    about = ds.describe()
    assert about["counts"] == {"train": len(ds.train), "val": len(ds.val), "test": counts[1]}
    assert set(about) == {"name", "variant", "source", "digest", "counts", "classes", "seed"}


def test_seed_decides_the_split():
    first, again, other = (data.load("mnist", source="samples", seed=seed) for seed in (0, 0, 1))
    assert torch.equal(first.val.groups, again.val.groups)
    assert first.digest == again.digest
    assert not torch.equal(first.val.groups, other.val.groups)
    assert first.digest != other.digest
    assert torch.equal(first.test.unseal("a").images, other.test.unseal("b").images)


@pytest.mark.parametrize("fraction", [1 / 6, 0.5])
def test_split_is_disjoint_complete_and_stratified(fraction):
    ds = data.load("mnist", source="samples", val_fraction=fraction)
    train, val = set(ds.train.groups.tolist()), set(ds.val.groups.tolist())
    assert train.isdisjoint(val)
    assert train | val == set(range(3000))
    assert len(val) == round(3000 * fraction)
    share = torch.bincount(ds.val.labels) / (torch.bincount(ds.train.labels) + torch.bincount(ds.val.labels))
    assert (share - fraction).abs().max() < 0.01


def test_gtsrb_tracks_are_never_split():
    for seed in range(3):
        ds = data.load("gtsrb", source="samples", seed=seed)
        assert len(ds.train.groups.unique()) < len(ds.train)  # there are tracks of several frames
        assert not set(ds.train.groups.tolist()) & set(ds.val.groups.tolist())
        share = len(ds.val) / (len(ds.train) + len(ds.val))
        assert 0.1 < share < 0.23
        assert ds.val.labels.unique().tolist() == list(range(10))


@given(st.lists(st.integers(1, 6), min_size=4, max_size=40), st.floats(0.05, 0.95), st.integers(0, 99))
def test_groups_of_any_size_stay_whole(sizes, fraction, seed):
    groups = np.repeat(np.arange(len(sizes)), sizes)
    labels = groups % 2
    rng = np.random.default_rng(seed)
    train, val = splits.split_indices(labels, groups, fraction, rng, ["a", "b"])
    assert sorted([*train, *val]) == list(range(len(groups)))
    assert not set(groups[train]) & set(groups[val])
    assert set(labels[train]) == set(labels[val]) == {0, 1}


@given(st.lists(st.integers(1, 1000), min_size=1, max_size=50), st.data())
def test_allocate_is_exact_and_proportional(counts, draw):
    counts = np.array(counts)
    n = draw.draw(st.integers(0, int(counts.sum())))
    shares = splits.allocate(counts, n, np.random.default_rng(0))
    assert shares.sum() == n
    assert (shares <= counts).all()
    assert (np.abs(shares - counts * n / counts.sum()) < 1).all()


def test_limits_are_stratified_and_deterministic():
    limits: dict[str, Any] = {"train_limit": 500, "val_limit": 100, "test_limit": 50}
    first, again, other = (data.load("cifar10", source="samples", seed=s, **limits) for s in (3, 3, 4))
    assert (len(first.train), len(first.val), len(first.test)) == (500, 100, 50)
    assert torch.bincount(first.train.labels).tolist() == [50] * 10
    assert torch.bincount(first.test.unseal("x").labels).tolist() == [5] * 10
    assert torch.equal(first.train.images, again.train.images)
    assert not torch.equal(first.train.images, other.train.images)
    assert first.digest == again.digest
    assert first.digest != data.load("cifar10", source="samples", seed=3).digest
    whole = data.load("cifar10", source="samples", seed=3)
    assert set(first.train.groups.tolist()) <= set(whole.train.groups.tolist())


def test_take():
    train = data.load("mnist", source="samples").train
    some, again, other = train.take(200, 5), train.take(200, 5), train.take(200, 6)
    assert (len(some), some.role) == (200, "train")
    assert torch.equal(some.images, again.images)
    assert not torch.equal(some.images, other.images)
    assert len(some.groups.unique()) == 200
    assert (torch.bincount(some.labels) / 200 - torch.bincount(train.labels) / len(train)).abs().max() <= 0.005
    at = torch.searchsorted(train.groups, some.groups)
    assert torch.equal(train.images[at], some.images)
    assert torch.equal(train.labels[at], some.labels)
    assert torch.equal(train.take(len(train), 0).images, train.images)
    for n in (0, len(train) + 1):
        with pytest.raises(MgenbError, match="right is a whole number from 1 to 2500"):
            train.take(n, 0)


def test_test_split_is_sealed_and_every_look_counts_whatever_the_copy(looks):
    ds = data.load("mnist", source="samples")
    for name in ("images", "labels", "groups", "take"):
        with pytest.raises(SealedSplitError, match=r"run\.final_test"):
            getattr(ds.test, name)
    with pytest.raises(SealedSplitError, match="reason"):
        ds.test.unseal(" ")
    assert looks() == []
    assert ds.to("cpu").test.unseal("moved").role == "test"
    copies = {"again": ds.test, "copied": copy.deepcopy(ds.test), "pickled": pickle.loads(pickle.dumps(ds.test))}
    copies["loaded"] = data.load("mnist", source="samples").test
    for reason, split in copies.items():
        split.unseal(reason)
    assert looks() == ["moved", *copies]
    assert repr(ds.test) == "SealedSplit()"


def test_own_images_zip_and_folder_agree(tmp_path):
    files = tree(PETS)
    junk = {"train/.DS_Store": b"x", "__MACOSX/train/cat/._0.png": b"x", "README.txt": b"x"}
    packed = data.load(str(as_zip(tmp_path / "pets.zip", files | junk)))
    loose = data.load(str(as_folder(tmp_path / "pets", files)))
    for ds in (packed, loose):
        assert (ds.name, ds.variant, ds.classes) == ("pets", "user", ("cat", "dog"))
        assert str(tmp_path) not in str(ds.describe())
    assert packed.digest == loose.digest
    assert torch.equal(packed.train.images, loose.train.images)
    assert torch.bincount(packed.val.labels).tolist() == [1, 2]
    expected = np.asarray(Image.open(io.BytesIO(files["test/dog/1.png"])))
    assert np.array_equal(packed.test.unseal("look").images[3].permute(1, 2, 0), expected)


def test_given_val_is_used_as_it_is(tmp_path):
    spec = PETS | {"val/cat": 1, "val/dog": 1}
    ds = data.load(str(as_zip(tmp_path / "pets.zip", tree(spec, mode="L"))), seed=7)
    assert (len(ds.train), len(ds.val), len(ds.test), ds.channels) == (18, 2, 5, 1)


def test_one_colour_image_makes_all_rgb(tmp_path):
    files = tree(PETS, mode="L") | {"train/cat/0.png": picture(0)}
    ds = data.load(str(as_zip(tmp_path / "pets.zip", files)), val_fraction=0.2)
    assert ds.channels == 3
    images = ds.test.unseal("look").images
    assert torch.equal(images[:, 0], images[:, 2])


def test_few_shot_folder_has_other_classes_in_each_split(tmp_path, load_from):
    spec = {"train/a": 4, "train/b": 4, "val/c": 2, "test/d": 3, "test/e": 3}
    as_zip(tmp_path / "cifar_fs.zip", tree(spec))
    ds = load_from(tmp_path, "cifar_fs")
    assert (ds.classes, ds.variant, ds.source) == (("a", "b"), "subset", "cifar_fs.zip in the data folder")
    assert ds.val.labels.tolist() == [0, 0]
    assert ds.test.unseal("look").labels.tolist() == [0, 0, 0, 1, 1, 1]


def write_idx(path, array, compress=True):
    blob = struct.pack(f">{1 + array.ndim}I", 0x0800 + array.ndim, *array.shape) + array.tobytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(blob) if compress else blob)


def test_search_order_and_unpacked_idx(tmp_path, monkeypatch, load_from):
    monkeypatch.setenv("MGENB_CACHE", str(tmp_path / "cache"))
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (40, 28, 28), dtype=np.uint8), np.arange(40, dtype=np.uint8) % 10

    def place(root, compress):
        for prefix in ("train", "t10k"):
            ending = ".gz" if compress else ""
            write_idx(root / f"MNIST/raw/{prefix}-images-idx3-ubyte{ending}", images, compress)
            write_idx(root / f"MNIST/raw/{prefix}-labels-idx1-ubyte{ending}", labels, compress)

    (tmp_path / "empty").mkdir()
    assert data.load("mnist").variant == "sample"
    assert load_from(tmp_path / "empty", "mnist").source == "samples shipped with mgenb"
    place(tmp_path / "cache/datasets", compress=True)
    assert data.load("mnist").source == "MNIST/raw in the download cache"
    place(tmp_path / "here", compress=False)
    ds = load_from(tmp_path / "here", "mnist")
    assert (ds.source, ds.variant) == ("MNIST/raw in the data folder", "subset")
    assert np.array_equal(ds.test.unseal("look").images[:, 0], images)
    assert load_from(tmp_path / "empty", "mnist").source == "MNIST/raw in the download cache"
    assert data.load("mnist", source="samples").variant == "sample"


def test_download_goes_into_the_cache_once(tmp_path, monkeypatch):
    monkeypatch.setenv("MGENB_CACHE", str(tmp_path))
    fetched = []

    def fetch(root, download):
        fetched.append(root)
        for prefix in ("train", "t10k"):
            write_idx(Path(root, f"MNIST/raw/{prefix}-images-idx3-ubyte.gz"), np.zeros((20, 28, 28), np.uint8))
            write_idx(Path(root, f"MNIST/raw/{prefix}-labels-idx1-ubyte.gz"), np.arange(20, dtype=np.uint8) % 10)

    monkeypatch.setattr("torchvision.datasets.MNIST", fetch)
    for _ in range(2):
        ds = data.load("mnist", download=True)
        assert (ds.source, len(ds.test)) == ("MNIST/raw in the download cache", 20)
    assert len(fetched) == 1


def test_cifar_batches(tmp_path, load_from, monkeypatch):
    rng = np.random.default_rng(0)
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    pixels = rng.integers(0, 256, (6, 20, 3072), dtype=np.uint8)
    names = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]
    contents = {
        name: {"data": block, "labels": [i % 10 for i in range(20)]} for name, block in zip(names, pixels, strict=True)
    }
    contents["batches.meta"] = {"label_names": list("0123456789")}
    sums = {}
    for name, content in contents.items():
        (folder / name).write_bytes(pickle.dumps(content, protocol=3))
        sums[name] = hashlib.md5((folder / name).read_bytes()).hexdigest()
    for kind, members in (("train_list", names[:5]), ("test_list", names[5:])):
        monkeypatch.setattr(CIFAR10, kind, [[name, sums[name]] for name in members])
    monkeypatch.setitem(CIFAR10.meta, "md5", sums["batches.meta"])
    ds = load_from(tmp_path, "cifar10")
    assert (len(ds.train) + len(ds.val), len(ds.test), ds.variant) == (100, 20, "subset")
    assert np.array_equal(ds.test.unseal("look").images, pixels[5].reshape(20, 3, 32, 32))
    assert ds.test.unseal("look").labels.tolist() == [i % 10 for i in range(20)]


def test_torchvision_layout_of_gtsrb(tmp_path, load_from):
    frames = [f"{label}/{track}_{frame}" for label in ("00000", "00001") for track in "01" for frame in "012"]
    files = {f"GTSRB/Training/{f}.ppm": picture(i, (40 + i, 31), kind="PPM") for i, f in enumerate(frames)}
    files |= {f"GTSRB/Final_Test/Images/{i}.ppm": picture(i, (50, 50), kind="PPM") for i in range(3)}
    folder = as_folder(tmp_path / "gtsrb", files)
    with (folder / "GT-final_test.csv").open("w", newline="") as out:
        csv.writer(out, delimiter=";").writerows([["Filename", "ClassId"], *[(f"{i}.ppm", i % 2) for i in range(3)]])
    ds = load_from(tmp_path, "gtsrb")
    assert (ds.size, ds.classes, len(ds.train), len(ds.val)) == (32, ("00000", "00001"), 6, 6)
    assert not set(ds.train.groups.tolist()) & set(ds.val.groups.tolist())
    assert ds.test.unseal("look").labels.tolist() == [0, 0, 1]  # sorted by class, then file


def test_second_load_does_not_decode(tmp_path, monkeypatch):
    path = as_zip(tmp_path / "pets.zip", tree(PETS))
    first = data.load(str(path))

    def refuse(*_):
        raise AssertionError("decoded again")

    monkeypatch.setattr(decode, "_open", refuse)
    again = data.load(str(path))
    assert torch.equal(first.train.images, again.train.images)
    assert first.digest == again.digest
    as_zip(path, tree(PETS | {"train/cat": 7}))
    with pytest.raises(AssertionError, match="decoded again"):
        data.load(str(path))


def test_a_few_jpegs_are_a_subset_before_they_are_jpeg(tmp_path, monkeypatch):
    as_zip(tmp_path / "cifar10.zip", tree({"train/a": 2, "test/a": 1}, kind="JPEG"))
    monkeypatch.setenv("MGENB_DATA", str(tmp_path))
    place = sources.find("cifar10")
    assert (place.source, place.variant(place.read())) == ("cifar10.zip in the data folder", "subset")


@needs_real
@pytest.mark.parametrize(
    ("name", "variant", "counts", "classes"),
    [
        ("mnist", "official", (50000, 10000, 10000), 10),
        ("fashion_mnist", "official", (50000, 10000, 10000), 10),
        ("gtsrb", "subset", (3472, 1720), 43),
        ("omniglot", "subset", (2720, 2120), 136),
    ],
)
def test_full_datasets(name, variant, counts, classes, load_from):
    ds = load_from(REAL, name)
    assert (ds.variant, ds.num_classes) == (variant, classes)
    found = (len(ds.train), len(ds.val), len(ds.test))
    assert found == counts or (found[0] + found[1], found[2]) == counts
    assert len(ds.test.unseal("count").labels.unique()) == (106 if name == "omniglot" else classes)


@needs_real
@pytest.mark.parametrize("name", ["mnist", "fashion_mnist"])
def test_samples_are_official_images(name, monkeypatch):
    monkeypatch.setenv("MGENB_DATA", str(REAL))
    official, sample = (sources.find(name, source).read() for source in ("auto", "samples"))
    for split in ("train", "test"):
        index = np.load(sources.SAMPLES / f"{name}.npz")[f"index_{split}"]
        assert np.array_equal(official.parts[split].images[index], sample.parts[split].images)
        assert np.array_equal(official.parts[split].labels[index], sample.parts[split].labels)


@needs_real
@pytest.mark.parametrize("name", ["cifar10", "gtsrb"])
def test_sample_files_are_those_of_the_full_zip(name):
    with (
        zipfile.ZipFile(REAL / f"{name}.zip") as full,
        zipfile.ZipFile(sources.SAMPLES / f"{name}.zip") as part,
    ):
        assert all(full.read(member) == part.read(member) for member in part.namelist())


@needs_real
@pytest.mark.slow
def test_cifar10_of_60000_jpegs_loads_in_a_second_the_second_time(load_from):
    load_from(REAL, "cifar10")
    started = time.process_time()
    ds = load_from(REAL, "cifar10")
    assert time.process_time() - started < 1
    assert (ds.variant, len(ds.train) + len(ds.val), len(ds.test)) == ("jpeg", 50000, 10000)
    assert torch.bincount(ds.test.unseal("count").labels).tolist() == [1000] * 10
