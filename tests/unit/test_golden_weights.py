"""Golden weights: twenty steps of training give the weights that they gave, or a version was raised.

`python tests/unit/test_golden_weights.py` brings golden_weights.json to the versions of today, and adds this machine.
"""

import json
import os
import tempfile
from pathlib import Path

import pytest
import torch

from mgenb import data, devices, nets, store, training

FILE = Path(__file__).with_name("golden_weights.json")
CASES = {  # what `trained` is asked for: 20 steps each
    "lenet, mge-adam": ("lenet", "mnist", "mge-adam", 640, 2),
    "lenet, one-cycle": ("lenet", "mnist", "one-cycle", 1280, 2),
    "resnet8, mge-sgd-momentum": ("resnet8", "cifar10", "mge-sgd-momentum", 320, 4),
    "resnet8, mega-adam": ("resnet8", "cifar10", "mega-adam", 64, 20),
}
# A convolution's bias before BatchNorm has no gradient, but Adam makes steps of 0.01 out of its rounding noise:
# on another processor norms differ by up to a half, so that nothing but bits can be compared.
ONLY_BITS = ("resnet8, mega-adam",)
REMAKE = f"run python tests/unit/{Path(__file__).name}"
CHANGED = (
    f"training gives other weights than {FILE.name} has. By accident: find out why. On purpose: raise the version of"
    f" the architecture (nets.VERSIONS) or of the recipes (training.RECIPES) and {REMAKE}."
)


def versions(case):
    arch, _, recipe, *_ = CASES[case]
    return {"architecture": nets.VERSIONS[arch], "recipe": training.RECIPES[recipe].version}


def trained(case):
    """Return the weights after 20 steps, and all on which their bits depend."""
    arch, name, recipe, images, epochs = CASES[case]
    dataset = data.load(name, source="samples", train_limit=images)
    state = training.trained(arch, dataset, recipe=recipe, epochs=epochs, seed=0).state_dict()
    # the digest: another JPEG library may decode a pixel otherwise
    return state, {"torch": torch.__version__, "cpu": devices.processor(), "data": dataset.digest}


def norms(state):
    return {name: float(f"{tensor.double().norm():.6g}") for name, tensor in state.items()}


@pytest.mark.parametrize("case", CASES)
def test_twenty_steps_give_the_weights_that_they_gave(case, tmp_path, monkeypatch):
    monkeypatch.setenv("MGENB_CACHE", str(tmp_path))
    golden = json.loads(FILE.read_text())[case]
    assert golden["versions"] == versions(case), f"{FILE.name} is of other versions: {REMAKE}"
    state, where = trained(case)
    known = [one["sha256"] for one in golden["bits"] if {**one, **where} == one]
    if case not in ONLY_BITS:
        # absolute for what starts from zero: in 20 steps rounding noise grows to 0.0008 in ResNet-8, 0.00001 in LeNet
        assert norms(state) == pytest.approx(golden["norms"], rel=1e-3, abs=2e-3), CHANGED
    elif not known:
        pytest.skip(f"only bits can be compared, and those of {where} are not known: {REMAKE}")
    if known:
        assert store.tensor_hash(state, state) in known, f"{CHANGED} Or this processor is a new one: {REMAKE}."


def remake():
    """Write norms anew where a version was raised, and add the bits of this machine."""
    golden = json.loads(FILE.read_text()) if FILE.exists() else {}
    for case in CASES:
        state, where = trained(case)
        if golden.get(case, {}).get("versions") != versions(case):
            told = {} if case in ONLY_BITS else norms(state)
            golden[case] = {"versions": versions(case), "norms": told, "bits": []}
        bits = {**where, "sha256": store.tensor_hash(state, state)}
        golden[case]["bits"] += [bits] if bits not in golden[case]["bits"] else []
    FILE.write_text(json.dumps(golden, indent=1) + "\n")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder, devices.one_thread():
        os.environ["MGENB_CACHE"] = folder
        remake()
