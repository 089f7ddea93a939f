"""Bad data and bad requests: one sentence that names the thing, never a traceback from a library."""

import gzip
import io
import os
import time
import urllib.request
import zipfile
from urllib.error import URLError

import numpy as np
import pytest
from PIL import Image

from mgenb import data, store
from mgenb.data import sources
from mgenb.errors import MgenbError


@pytest.fixture(autouse=True)
def _places(monkeypatch, tmp_path):
    monkeypatch.setenv("MGENB_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("MGENB_DATA", raising=False)


def picture(size=(8, 8), dtype=np.uint8):
    out = io.BytesIO()
    Image.fromarray(np.full(size[::-1], 7, dtype=dtype)).save(out, "PNG")
    return out.getvalue()


def good():
    names = ["train/cat/0", "train/cat/1", "train/dog/0", "train/dog/1", "test/cat/0", "test/dog/0"]
    return {f"{name}.png": picture() for name in names}


def zipped(folder, files, name="pets.zip"):
    with zipfile.ZipFile(folder / name, "w") as archive:
        for member, content in files.items():
            archive.writestr(member, content)
    return str(folder / name)


def refused(match, name, folder=None, **options):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MGENB_DATA", str(folder or ""))
        with pytest.raises(MgenbError, match=match) as caught:
            data.load(name, **options)
    assert "\n" not in str(caught.value)


def test_good_zip_loads(tmp_path):
    assert len(data.load(zipped(tmp_path, good()), val_fraction=0.5).val) == 2


def test_unknown_names(tmp_path):
    refused("unknown dataset 'cifar_10'; did you mean 'cifar10'", "cifar_10")
    refused("unknown source 'sample'; did you mean 'samples'", "mnist", source="sample")
    refused("nowhere.zip does not exist", str(tmp_path / "nowhere.zip"))
    (tmp_path / "pets.rar").write_bytes(b"x")
    refused("pets.rar .*neither a folder nor a .zip", str(tmp_path / "pets.rar"))


def test_missing_data_folder(tmp_path):
    refused("MGENB_DATA names .*gone", "mnist", tmp_path / "gone")


@pytest.mark.parametrize("name", ["omniglot", "cifar_fs", "mini_imagenet"])
def test_sets_without_samples_say_what_to_put_where(name):
    refused(f"no images of {name}.*put .*{name}.zip.*MGENB_DATA", name)
    refused(f"no images of {name}", name, source="samples")


@pytest.mark.parametrize("role", ["train", "val", "test"])
def test_limits(role):
    for limit in (0, -3):
        refused(f"{role}_limit={limit}.*a whole number from 1", "gtsrb", source="samples", **{f"{role}_limit": limit})
    refused(f"{role}_limit=99999.*from 1 to [0-9]+, the images there are", "gtsrb", **{f"{role}_limit": 99999})


@pytest.mark.parametrize("fraction", [0, 1, -0.5])
def test_val_fraction(fraction):
    refused("val_fraction is .* between 0 and 1", "mnist", source="samples", val_fraction=fraction)


def test_damaged_zip(tmp_path):
    whole = sources.SAMPLES / "gtsrb.zip"
    (tmp_path / "gtsrb.zip").write_bytes(whole.read_bytes()[:100_000])
    refused("gtsrb.zip cannot be read .*replace it", "gtsrb", tmp_path)
    path = zipped(tmp_path, good())
    content = bytearray((tmp_path / "pets.zip").read_bytes())
    at = content.index(b"IDAT")
    content[at : at + 4] = b"XXXX"
    (tmp_path / "pets.zip").write_bytes(content)
    refused("pets.zip/(test|train)/cat/0.png cannot be read", path)


@pytest.mark.parametrize("cut", [3, 2000, -1])
def test_damaged_idx(tmp_path, monkeypatch, cut):
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    refused("train-images-idx3-ubyte.gz cannot be read .*No such file", "mnist", tmp_path)
    labels = gzip.compress(b"\0\0\x08\x01" + (4).to_bytes(4, "big") + bytes(4))
    images = gzip.compress(b"\0\0\x08\x03" + b"".join(n.to_bytes(4, "big") for n in (4, 28, 28)) + bytes(4 * 784))
    for prefix in ("train", "t10k"):
        (raw / f"{prefix}-labels-idx1-ubyte.gz").write_bytes(labels)
        (raw / f"{prefix}-images-idx3-ubyte.gz").write_bytes(images)
    monkeypatch.setenv("MGENB_DATA", str(tmp_path))
    assert len(data.load("mnist").test) == 4
    bad = raw / "train-images-idx3-ubyte.gz"
    bad.write_bytes(images[:-12] if cut == -1 else gzip.compress(gzip.decompress(images)[:cut]))
    refused("train-images-idx3-ubyte.gz cannot be read", "mnist", tmp_path)
    bad.write_bytes(b"no gzip at all")
    refused("train-images-idx3-ubyte.gz cannot be read", "mnist", tmp_path)
    bad.write_bytes(gzip.compress(b"\0\0\x0d\x03" + gzip.decompress(images)[4:]))
    refused("magic number 0xd03", "mnist", tmp_path)
    bad.write_bytes(gzip.compress(b"\0\0\x08\x03" + b"".join(n.to_bytes(4, "big") for n in (1, 28, 28)) + bytes(784)))
    refused("1 images do not fit 4 labels", "mnist", tmp_path)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (
            {"validation/cat/0.png": b""},
            "wrong layout: found validation/cat/0.png, expected train/<class>/<image>",
        ),
        ({"train/0.png": b""}, "wrong layout: found train/0.png"),
        ({"train/cat/more/0.png": b""}, "wrong layout: found train/cat/more/0.png"),
        ({"train/cow/0.png": picture()}, "class cow is in only one of train and test"),
        ({"val/cat/0.png": picture()}, "class dog is in only one of train and val"),
        ({"train/dog/1.png": picture((9, 8))}, "train/dog/1.png is 9x8: images must be squares of one size, here 8x8"),
        ({"train/dog/1.png": b"hello"}, "train/dog/1.png cannot be read .*cannot identify image"),
        ({"train/dog/1.png": picture()[:-32]}, "train/dog/1.png cannot be read"),
        ({"train/dog/1.png": picture(dtype=np.uint16)}, "train/dog/1.png has pixels of more than 8 bits"),
        ({"train/cat/0.png": picture((9, 8))}, "train/cat/0.png is 9x8: images must be squares"),
    ],
)
def test_own_images(tmp_path, change, match):
    refused(match, zipped(tmp_path, good() | change))


def test_missing_splits(tmp_path):
    only_train = {name: content for name, content in good().items() if name.startswith("train")}
    refused("images for train, but train and test are needed: expected", zipped(tmp_path, only_train))
    (tmp_path / "folder").mkdir()
    refused("images for nothing, but train and test are needed", str(tmp_path / "folder"))


def test_class_too_small_to_split(tmp_path):
    files = good()
    del files["train/dog/1.png"]
    refused("class dog of train has one image", zipped(tmp_path, files))


def test_few_shot_classes_must_not_be_shared(tmp_path):
    zipped(tmp_path, good(), "cifar_fs.zip")
    refused("class cat is in both of train and test", "cifar_fs", tmp_path)


def test_gtsrb_file_without_track(tmp_path):
    zipped(tmp_path, good(), "gtsrb.zip")
    refused("train/cat/0.png is not called <track>_<frame>", "gtsrb", tmp_path)


def test_omniglot_layout(tmp_path):
    (tmp_path / "omniglot-py").mkdir()
    refused("images_background_small1.zip cannot be read .*No such file", "omniglot", tmp_path)
    zipped(tmp_path / "omniglot-py", good(), "images_background_small1.zip")
    refused("expected images_background_small1/<alphabet>", "omniglot", tmp_path)


@pytest.mark.parametrize("name", ["mnist", "cifar10", "gtsrb", "omniglot"])
def test_no_network(name, monkeypatch):
    def unreachable(*_, **__):
        raise URLError("Name or service not known")

    monkeypatch.setattr(urllib.request, "urlopen", unreachable)
    refused(f"{name} could not be downloaded .*put .* into the folder that MGENB_DATA names", name, download=True)
    left = [path.name for path in (store.cache_dir() / "datasets").iterdir() if path.suffix != ".lock"]
    assert left == []  # half a download must not be taken for the dataset


def test_damaged_cache_is_made_again(tmp_path):
    path = zipped(tmp_path, good())
    first = data.load(path, val_fraction=0.5)
    (cached,) = store.cache_dir().glob("arrays/*.safetensors")
    whole = cached.read_bytes()
    for harm in (
        whole[:-5],
        b"x" * len(whole),
        b"",
        whole.replace(b"train images", b"train imagos"),
        whole.replace(b"about", b"aboot"),
        whole[:-1] + bytes([whole[-1] ^ 1]),  # of the arrays themselves
    ):
        cached.write_bytes(harm)
        with pytest.warns(UserWarning, match="damaged .*made again"):
            again = data.load(path, val_fraction=0.5)
        assert again.digest == first.digest
        assert (again.train.images == first.train.images).all()
    cached.unlink()
    assert data.load(path, val_fraction=0.5).digest == first.digest


def test_a_source_that_changed_at_the_same_size_and_time_is_seen(tmp_path):
    folder = tmp_path / "pets"
    for name in good():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((8, 8), 7, dtype=np.uint8)).save(folder / name.replace(".png", ".bmp"))
    first, file = data.load(str(folder), val_fraction=0.5), folder / "train/cat/0.bmp"
    content, stat = file.read_bytes(), file.stat()
    time.sleep(0.02)  # coarse clocks
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert (file.stat().st_size, file.stat().st_mtime_ns) == (stat.st_size, stat.st_mtime_ns)
    assert data.load(str(folder), val_fraction=0.5).digest != first.digest
