"""Networks by any name, and how their images are scaled."""

import sys

import pytest
import torch
from torch import nn

from mgenb import nets
from mgenb.errors import MgenbError
from mgenb.nets import factory

IMAGES = torch.randint(256, (5, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
ONE = torch.full((3,), 0.5), torch.full((3,), 0.25)
MINE = """
import torch
from torch import nn

imported = True

class Net(nn.Linear):
    def __init__(self):
        super().__init__(3 * 32 * 32, 10)

    def forward(self, x):
        return super().forward(x.flatten(1))

def sized(num_classes=7, bias=True):
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, num_classes))

def fixed():
    return sized(7)

def no_net():
    return 3

def needy(width):
    return None

def broken():
    raise ValueError("too small\\nby far")

def pairs():
    return nn.Identity()
"""


@pytest.fixture(autouse=True)
def _mine(tmp_path, monkeypatch):
    (tmp_path / "mine_of_factory.py").write_text(MINE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path.copy())
    yield
    sys.modules.pop("mine_of_factory", None)


def build(arch, classes=10, channels=3, size=32):
    return factory.build(arch, channels, size, classes, *(tensor[:channels] for tensor in ONE))


@pytest.mark.parametrize("name", ["Net", "sized"])
def test_a_function_or_class_of_the_users_own_makes_the_network(name):
    net = build(f"mine_of_factory:{name}")
    assert isinstance(net, nn.Sequential)
    pixels = (IMAGES.float() / 255 - 0.5) / 0.25
    assert torch.allclose(net(IMAGES), net.get_submodule("net")(pixels), atol=1e-5)
    assert net(IMAGES).shape == (5, 10)


def test_nothing_of_the_users_is_imported_unless_it_is_named():
    for arch in ("lenet", "shufflenet_v2_x0_5", "mine_of_factory"):
        try:
            build(arch)
        except MgenbError:
            assert arch == "mine_of_factory"
    assert "mine_of_factory" not in sys.modules


@pytest.mark.parametrize(
    ("arch", "why"),
    [
        ("lenett", "unknown architecture 'lenett'; did you mean 'lenet'"),
        ("shufflenet_v2_x0_6", "unknown architecture .*did you mean 'shufflenet_v2_x0_5'"),
        ("os.path:absent", "os.path:absent makes no network for .*: module .* has no attribute 'absent'"),
        ("no_such_module_here:net", "no_such_module_here:net makes no network .*: No module named"),
        ("mine_of_factory:no_net", "returns int; right is a torch.nn.Module"),
        ("mine_of_factory:needy", "makes no network .*: .*missing 1 required positional argument"),
        ("mine_of_factory:broken", "makes no network for 3 x 32 x 32 images and 10 classes: too small$"),
        ("mine_of_factory:fixed", r"maps two images to \[2, 7\]; right are logits \[2, 10\]"),
        ("mine_of_factory:pairs", r"maps two images to \[2, 3, 32, 32\]; right are logits"),
    ],
)
def test_what_makes_no_network_is_told_in_one_sentence(arch, why):
    with pytest.raises(MgenbError, match=why) as refused:
        build(arch)
    assert "\n" not in str(refused.value)


def test_ours_come_first_and_torchvisions_by_their_own_names():
    assert list(build("resnet18").state_dict()) == list(nets.build("resnet18", 3, 32, 10).state_dict())
    assert build("shufflenet_v2_x0_5")(IMAGES).shape == (5, 10)
    with pytest.raises(MgenbError, match="shufflenet_v2_x0_5 makes no network for 1 x 28 x 28 images"):
        build("shufflenet_v2_x0_5", channels=1, size=28)
    state = torch.get_rng_state()
    build("shufflenet_v2_x0_5")
    assert torch.get_rng_state().equal(state)


@pytest.mark.parametrize(("arch", "channels", "size"), [("vit_tiny_patch16_224", 3, 32), ("convnext_atto", 1, 32)])
def test_timms_networks_are_made_for_these_images(arch, channels, size):
    pytest.importorskip("timm")
    assert build(arch, channels=channels, size=size)(IMAGES[:, :channels, :size, :size]).shape == (5, 10)


def given(*options):
    found = factory.scaling(IMAGES, *options)
    assert found
    return found


def test_scales():
    assert factory.scaling(IMAGES, "", "", "") is None
    mean, std = given("0-255", "", "")
    assert torch.allclose((IMAGES.float() / 255 - mean[:, None, None]) / std[:, None, None], IMAGES.float(), atol=1e-3)
    mean, std = given("normalised", "", "")
    pixels = (IMAGES.float() / 255 - mean[:, None, None]) / std[:, None, None]
    assert pixels.mean((0, 2, 3)).abs().max() < 1e-5
    assert (pixels.std((0, 2, 3)) - 1).abs().max() < 1e-5
    mean, std = given("", "0.1", "0.2,0.3,0.4")
    assert (mean.tolist(), std.tolist()) == (pytest.approx([0.1] * 3), pytest.approx([0.2, 0.3, 0.4]))
    wrong = [
        ("0-1", "0.1", "0.2"),
        ("", "0.1,0.2", "0.2"),
        ("", "0.1", "0"),
        ("", "", "1"),
        ("", "99", "1"),
        ("", "a", "1"),
    ]
    for options in [*wrong, ("", "nan", "1"), ("normalised", "", "1"), ("", "0.1", "")]:
        with pytest.raises(MgenbError, match=r"right is --scale alone, or --mean and --std of pixels in \[0, 1\]"):
            factory.scaling(IMAGES, *options)
