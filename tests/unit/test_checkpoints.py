"""Checkpoints as people have them: each is read, or refused in one sentence, and what is written back loads there."""

import argparse
import copy
import json
import pickle
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from mgenb import nets
from mgenb.errors import MgenbError
from mgenb.nets import checkpoints
from mgenb.nets.mge import chain


class Block(nn.Module):
    """A network as a user writes it, with BatchNorm and a part that has a name of its own."""

    def __init__(self, width=4):
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU())
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(width, 10)

    def forward(self, x):
        return self.fc(self.pool(self.features(x)).flatten(1))


class Wrapped(nn.Module):
    """What holds the network under another name: a Lightning module, a training harness."""

    def __init__(self, net, name):
        super().__init__()
        setattr(self, name, net)


def drawn(net):
    """Return the network with weights and statistics that are far from where they begin."""
    generator = torch.Generator().manual_seed(1)
    for name, tensor in net.state_dict().items():
        if tensor.is_floating_point():
            tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.1 * (name.endswith("var")))
        else:
            tensor.fill_(7)
    return net.eval()


def user_net():
    return drawn(Block())


def residual():
    return drawn(nets.build("resnet8", 3, 32, 10).net)


USERS = {"user": user_net, "residual": residual}
IMAGES = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def ours(net):
    """Return a network as the factory builds it around that of the user, with other weights."""
    fresh = copy.deepcopy(net)
    for tensor in fresh.state_dict().values():
        tensor.zero_()
    return chain(normalise=nets.Normalise(torch.zeros(3), torch.ones(3)), net=fresh)


def same_logits(net, state, expected, tolerance=1e-6):
    twin = copy.deepcopy(net)
    twin.load_state_dict(state)
    with torch.no_grad():
        logits = twin.eval()(IMAGES)
    assert torch.allclose(logits, expected, atol=tolerance * expected.abs().max(), rtol=0)


def torch_file(make, suffix=".pt", **options):
    def write(net, folder):
        torch.save(make(net), file := folder / f"a{suffix}", **options)
        return file

    return write


def safe(make, suffix=".safetensors", **options):
    def write(net, folder):
        save_file({k: t.contiguous() for k, t in make(net).items()}, file := folder / f"a{suffix}", **options)
        return file

    return write


def bare(net):
    return net.state_dict()


def prefixed(prefix, make=bare):
    return lambda net: {prefix + key: tensor for key, tensor in make(net).items()}


def under(*wrappers, make=bare, **beside):
    def content(net):
        inner = make(net)
        for wrapper in reversed(wrappers):
            inner = {wrapper: inner, **beside}
        return inner

    return content


def without_counters(net):
    return {key: tensor for key, tensor in net.state_dict().items() if "num_batches" not in key}


def in_type(kind):
    return lambda net: {k: t.to(kind) if t.is_floating_point() else t for k, t in net.state_dict().items()}


def lightning(net):
    return {
        "epoch": 3,
        "global_step": 12,
        "pytorch-lightning_version": "2.5.0",
        "state_dict": {**Wrapped(net, "model").state_dict(), "loss.weight": torch.ones(10)},
        "optimizer_states": [{"state": {0: {"exp_avg": torch.zeros(3)}}, "param_groups": [{"lr": 0.1}]}],
        "hyper_parameters": {"lr": 0.1},
        "callbacks": {},
    }


def training_loop(net):
    optimiser = torch.optim.Adam(net.parameters())
    net(IMAGES).sum().backward()
    optimiser.step()
    best = {"epoch": 3, "args": argparse.Namespace(lr=0.1), "best_acc": np.float64(0.5), "seen": np.int64(4)}
    return {**best, "model_state_dict": net.state_dict(), "optimizer_state_dict": optimiser.state_dict()}


def views(net):
    """Return tensors that are parts of one buffer, every other number of it."""
    state = net.state_dict()
    buffer = torch.zeros(2 * sum(tensor.numel() for tensor in state.values()))
    start, parts = 0, {}
    for key, tensor in state.items():
        part = buffer[start : start + 2 * tensor.numel() : 2]
        part.copy_(tensor.flatten())
        parts[key] = part.view(tensor.shape)
        start += 2 * tensor.numel()
    return parts


def channels_last(net):
    return copy.deepcopy(net).to(memory_format=torch.channels_last).state_dict()


def inner_parallel(net):
    """Return keys as where only the features are in DataParallel: `features.module.0.weight`."""
    return {k.replace("features.", "features.module.").replace("stage2.", "stage2._orig_mod."): t for k, t in
            net.state_dict().items()}  # fmt: skip


def averaged(net):
    return torch.optim.swa_utils.AveragedModel(net).state_dict()


def timm_like(net):
    average = {key: torch.zeros_like(tensor) for key, tensor in net.state_dict().items()}
    return {"epoch": 1, "arch": "mine", "state_dict_ema": average, "state_dict": net.state_dict(), "version": 2}


def two_in_one(net):
    average = {key: torch.zeros_like(tensor) for key, tensor in net.state_dict().items()}
    return {"state_dict": prefixed("ema_model.", lambda _: average)(net) | prefixed("model.")(net)}


def normalised(net):
    return chain(normalise=nets.Normalise(torch.full((3,), 0.4), torch.full((3,), 0.3)), net=net).state_dict()


def sharded(suffix, save):
    def write(net, folder):
        state, shards = net.state_dict(), {}
        for number, key in enumerate(state):
            shards.setdefault(f"model-0000{number % 3}{suffix}", {})[key] = state[key].clone()
        for name, tensors in shards.items():
            save(tensors, folder / name)
        places = {key: name for name, tensors in shards.items() for key in tensors}
        file = folder / f"model{suffix}.index.json"
        file.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": places}))
        return file

    return write


FORMATS = {  # how a checkpoint is written, and what is said of it
    "torch": (torch_file(bare), ""),
    "legacy torch": (torch_file(bare, ".pth", _use_new_zipfile_serialization=False), ""),
    "plain dict": (torch_file(lambda net: dict(bare(net)), ".bin"), ""),
    "parameters": (torch_file(lambda net: OrderedDict(net.named_parameters()) | dict(net.named_buffers())), ""),
    "safetensors": (safe(bare), ""),
    "safetensors by another name": (safe(bare, ".bin", metadata={"format": "pt", "by": "me"}), ""),
    "sharded safetensors": (sharded(".safetensors", save_file), ""),
    "sharded torch": (sharded(".bin", torch.save), ""),
    "state_dict": (torch_file(under("state_dict", epoch=1)), "taken from 'state_dict'"),
    "model": (torch_file(under("model", optimizer={"state": {}})), "taken from 'model'"),
    "net": (torch_file(under("net", acc=91.5)), "taken from 'net'"),
    "any name": (torch_file(under("weights_of_mine")), "taken from 'weights_of_mine'"),
    "nested": (torch_file(under("state", "model")), "taken from 'state.model'"),
    "training loop": (torch_file(training_loop, ".tar"), "taken from 'model_state_dict'"),
    "lightning": (torch_file(lightning, ".ckpt"), "'model.' was taken off its keys"),
    "DataParallel": (torch_file(lambda net: nn.DataParallel(net).state_dict()), "'module.' was taken off its keys"),
    "compiled": (torch_file(prefixed("_orig_mod.")), "'_orig_mod.' was taken off its keys"),
    "net.": (torch_file(prefixed("net.")), ""),  # as ours, without how images are scaled
    "stacked": (torch_file(under("model", make=prefixed("module._orig_mod.model."))), "'module._orig_mod.model.' was"),
    "inner DataParallel": (torch_file(inner_parallel), "module and _orig_mod were taken out of its keys"),
    "SWA": (torch_file(averaged), "'n_averaged' left out, no part of the network"),
    "timm with EMA": (torch_file(timm_like), "taken from 'state_dict'"),
    "EMA in one dict": (torch_file(two_in_one), "'model.' was taken off its keys"),
    "no counters": (torch_file(without_counters), "it has no num_batches_tracked"),
    "half": (torch_file(in_type(torch.float16)), "'torch.float16' became 'torch.float32' to compute with"),
    "bfloat16": (safe(in_type(torch.bfloat16)), "'torch.bfloat16' became 'torch.float32' to compute with"),
    "double": (torch_file(in_type(torch.float64)), "'torch.float64' became 'torch.float32' to compute with"),
    "all half": (torch_file(lambda net: {k: t.half() for k, t in bare(net).items()}), "'torch.float16' became"),
    "views of one buffer": (torch_file(views), ""),
    "channels last": (torch_file(channels_last), ""),
    "normalised": (safe(normalised), ""),
    "normalised and compiled": (torch_file(prefixed("_orig_mod.", normalised)), "'_orig_mod.' was taken off its keys"),
}
COARSE = {"half": 2e-3, "all half": 2e-3, "bfloat16": 2e-2}


@pytest.mark.parametrize("user", USERS)
@pytest.mark.parametrize("name", FORMATS)
def test_a_checkpoint_is_read_and_written_back(name, user, tmp_path):
    net, (write, said) = USERS[user](), FORMATS[name]
    file = write(net, tmp_path)
    whole = ours(net)
    checkpoint = checkpoints.read_all([file], whole)[0]
    with torch.no_grad():
        own = checkpoint.state
        expected = net.eval()((IMAGES - own["normalise.mean"][:, None, None]) / own["normalise.std"][:, None, None])
    assert checkpoint.scales == name.startswith("normalised")
    assert own["normalise.mean"][0] == pytest.approx(0.4 if checkpoint.scales else 0)
    assert list(own) == list(whole.state_dict())
    assert all(tensor.is_contiguous() for tensor in own.values())
    assert len({tensor.untyped_storage().data_ptr() for tensor in own.values()}) == len(own)
    same_logits(whole, own, expected, COARSE.get(name, 1e-6))
    assert any(said in sentence for sentence in checkpoint.said) if said else not checkpoint.said
    assert all(sentence.startswith(f"{file}: ") for sentence in checkpoint.said)

    suffix = {".json": ".safetensors" if "safetensors" in name else ".pt"}.get(file.suffix, file.suffix)
    suffix = ".safetensors" if name.startswith("safetensors") else suffix
    assert checkpoint.suffix == suffix
    doubled = {key: 2 * tensor if key.endswith("fc.weight") else tensor for key, tensor in own.items()}
    checkpoints.write_back(doubled, checkpoint, back := tmp_path / f"merged{suffix}", {"by": "test"})
    assert json.loads(back.with_suffix(".json").read_text())["by"] == "test"
    old, new = tensors_in(file), tensors_in(back)
    assert set(new) <= set(old)
    inside = [key for key in new if not key.endswith(("n_averaged", "loss.weight")) and "ema" not in key]
    assert len(inside) >= len(own) - 2 - 3 * 20 * (name == "no counters")
    for key, tensor in new.items():
        factor = 2 if key.endswith("fc.weight") and "ema" not in key else 1
        assert tensor.dtype == old[key].dtype
        assert torch.allclose(tensor.float(), factor * old[key].float(), rtol=1e-6), key
    again = checkpoints.read_all([back], ours(net))[0]
    same_logits(whole, again.state, logits_of(whole, doubled))


def logits_of(net, state):
    twin = copy.deepcopy(net)
    twin.load_state_dict(state)
    with torch.no_grad():
        return twin.eval()(IMAGES)


def tensors_in(file):
    """Return all tensors of a file by the path to them, read without the package."""
    if file.suffix == ".json":
        shards = set(json.loads(file.read_text())["weight_map"].values())
        return {key: t for shard in shards for key, t in tensors_in(file.with_name(shard)).items()}
    if file.read_bytes()[8:9] == b"{":
        return load_file(file)
    found = {}

    def walk(content, path):
        for key, value in content.items():
            if isinstance(value, dict):
                walk(value, f"{path}{key}/")
            elif isinstance(value, torch.Tensor):
                found[path + key] = value

    walk(torch.load(file, weights_only=False), "")
    return found


def test_a_file_that_is_not_that_of_the_json_beside_it_is_refused(tmp_path):
    net = user_net()
    checkpoint = checkpoints.read(torch_file(bare)(net, tmp_path), ours(net))
    checkpoints.write_back(checkpoint.state, checkpoint, merged := tmp_path / "b.pt", {})
    checkpoints.read(merged, ours(net))
    torch.save({key: 2 * tensor for key, tensor in net.state_dict().items()}, merged)
    with pytest.raises(MgenbError, match=r"b.pt is damaged or not the file of .*b.json"):
        checkpoints.read(merged, ours(net))


def test_what_lightning_needs_to_load_is_kept(tmp_path):
    net = user_net()
    checkpoint = checkpoints.read(torch_file(lightning, ".ckpt")(net, tmp_path), ours(net))
    checkpoints.write_back(checkpoint.state, checkpoint, tmp_path / "b.ckpt", {})
    saved = torch.load(tmp_path / "b.ckpt", weights_only=True)
    assert set(saved) == {"state_dict", "hyper_parameters", "pytorch-lightning_version"}
    module = Wrapped(user_net(), "model")
    module.loss = nn.CrossEntropyLoss(torch.zeros(10))
    module.load_state_dict(saved["state_dict"])
    assert module.loss.weight.equal(torch.ones(10))


def test_metadata_of_safetensors_stays(tmp_path):
    from safetensors import safe_open

    net = user_net()
    file = safe(bare, metadata={"format": "pt", "by": "me"})(net, tmp_path)
    checkpoint = checkpoints.read(file, ours(net))
    checkpoints.write_back(checkpoint.state, checkpoint, tmp_path / "b.safetensors", {})
    with safe_open(tmp_path / "b.safetensors", "pt") as opened:
        assert opened.metadata() == {"format": "pt", "by": "me"}


class Evil:
    """What runs code when it is unpickled."""

    def __reduce__(self):
        return (Path.touch, (Path("run.txt"),))


def scripted(net, folder):
    torch.jit.script(net).save(str(file := folder / "a.pt"))
    return file


def pickled(net, folder):
    (file := folder / "a.pkl").write_bytes(pickle.dumps(net.state_dict()))
    return file


def written(text, suffix=".pt"):
    def write(net, folder):
        (file := folder / f"a{suffix}").write_bytes(text)
        return file

    return write


def damaged(write):
    def cut(net, folder):
        file = write(net, folder)
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
        return file

    return cut


def index(places):
    return written(json.dumps({"weight_map": places}).encode(), ".index.json")


def changed(**tensors):
    return torch_file(lambda net: {**net.state_dict(), **{k.replace("__", "."): t for k, t in tensors.items()}})


def quantized(weight):
    return torch.quantize_per_tensor(weight.detach(), 0.1, 0, torch.qint8)


REFUSED = {
    "TorchScript": (scripted, "holds a TorchScript program, which could run code here; where you trust it, save its"),
    "a module": (torch_file(lambda net: net), r"holds Python objects \(.*test_checkpoints.Block\), which could run"),
    "a legacy module": (torch_file(lambda net: net, _use_new_zipfile_serialization=False), "holds Python objects"),
    "a module beside": (torch_file(lambda net: {"model": net, "epoch": 1}), "holds Python objects"),
    "code": (torch_file(lambda net: {**net.state_dict(), "x": Evil()}), "holds Python objects"),
    "a plain pickle": (pickled, "is no file that holds a state_dict"),
    "a list": (torch_file(lambda net: list(net.state_dict().values())), "holds list, no state_dict"),
    "a tensor": (torch_file(lambda net: net.fc.weight), "holds .*, no state_dict"),
    "no tensors": (torch_file(lambda net: {"epoch": 1, "lr": 0.1}), "holds no tensors by name; it has 'epoch', 'lr'"),
    "nothing": (torch_file(lambda net: {}), "holds no tensors by name: right is"),
    "absent": (lambda net, folder: folder / "absent.pt", "absent.pt is no file that holds a state_dict"),
    "a folder": (lambda net, folder: folder, "is no file that holds a state_dict"),
    "empty": (written(b""), "is no file that holds a state_dict"),
    "text": (written(b"hello, here are no weights"), "is no file that holds a state_dict"),
    "half a torch file": (damaged(torch_file(bare)), "is no file that holds a state_dict"),
    "half of safetensors": (damaged(safe(bare)), "is no file that holds a state_dict"),
    "JSON": (written(b'{"a": 1}', ".json"), "is no file that holds a state_dict"),
    "an index without shards": (index({"fc.weight": "b.safetensors"}), r"b.safetensors is no file that holds"),
    "an index elsewhere": (index({"fc.weight": "../b.safetensors"}), "names shards elsewhere; right are files in"),
    "an index of itself": (index({"fc.weight": "a.index.json"}), "names shards elsewhere"),
    "other keys": (torch_file(lambda net: {"a": torch.ones(1), "b": torch.ones(1)}), "of its keys 'a', 'b' fit nothing"
                   r" and it lacks 'net.features.0.weight', .* and 5 more of the network"),
    "a key too many": (changed(extra=torch.ones(1)), r"does not fit the network: of its keys 'extra' fit nothing$"),
    "a key too few": (torch_file(lambda net: {k: t for k, t in bare(net).items() if k != "fc.bias"}),
                      r"does not fit the network: it lacks 'net.fc.bias' of the network$"),
    "another head": (changed(fc__weight=torch.ones(7, 4)), r"'fc.weight' of .* has shape \(7, 4\); right is \(10, 4\)"),
    "NaN": (changed(fc__bias=torch.full((10,), torch.nan)), "'fc.bias' of .* holds NaN or infinite numbers"),
    "complex": (changed(fc__bias=torch.ones(10, dtype=torch.complex64)), "'fc.bias' of .* has torch.complex64"),
    "quantized": (torch_file(lambda net: {**bare(net), "fc.weight": quantized(net.fc.weight)}), "quantized"),
    "whole numbers": (changed(fc__weight=torch.ones(10, 4, dtype=torch.int8)), "'fc.weight' of .* has torch.int8"),
    "sparse": (changed(fc__weight=torch.ones(10, 4).to_sparse()), "is sparse"),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_is_told_in_one_sentence(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write, why = REFUSED[name]
    net = user_net()
    with pytest.raises(MgenbError, match=why) as refused:
        checkpoints.read(write(net, tmp_path), ours(net))
    sentence = str(refused.value)
    assert str(tmp_path) in sentence
    assert not Path("run.txt").exists()
    if "save its weights alone" in sentence:
        check_the_lines(sentence, name, net)
    else:
        assert "\n" not in sentence


def check_the_lines(sentence, name, net):
    """Run the three lines as a user would, where they are about a network alone: what they save is read."""
    lines = [line.strip() for line in sentence.split("\n")[1:]]
    assert len(lines) == 3
    if name in ("TorchScript", "a module", "a legacy module"):
        exec("\n".join(lines), {})
        checkpoint = checkpoints.read(Path("weights.pt"), ours(net))
        assert all(checkpoint.state[f"net.{key}"].equal(tensor) for key, tensor in net.state_dict().items())


def test_the_scaling_of_one_file_is_that_of_others_that_do_not_say(tmp_path):
    net = user_net()
    file = torch_file(bare)(net, tmp_path)
    scaled = safe(normalised)(net, tmp_path)
    for pair in ([file, scaled], [scaled, file]):
        for checkpoint in checkpoints.read_all(pair, ours(net)):
            assert checkpoint.state["normalise.std"].equal(torch.full((3,), 0.3))
    assert [checkpoints.read(one, ours(net)).scales for one in (file, scaled)] == [False, True]


def test_a_network_of_any_shape_without_scaling_is_read_too(tmp_path):
    net = user_net()
    checkpoint = checkpoints.read(torch_file(under("model", make=prefixed("module.")))(net, tmp_path), user_net())
    assert list(checkpoint.state) == list(net.state_dict())
