"""A killed training leaves a checkpoint from which the next process ends with the same weights."""

import signal
import subprocess
import sys
import time

from mgenb import training

EPOCHS = 40
TRAIN = f"""
from mgenb import data, training
digits = data.load("mnist", source="samples", train_limit=300, val_limit=100, test_limit=100)
training.trained("lenet", digits, epochs={EPOCHS}, seed=5)
"""


def test_a_killed_training_resumes_to_the_same_weights(small, tmp_path, monkeypatch):
    cache = tmp_path / "cache"
    monkeypatch.setenv("MGENB_CACHE", str(cache))
    process = subprocess.Popen([sys.executable, "-c", TRAIN])
    try:
        deadline = time.monotonic() + 120
        while not list(cache.rglob("*.checkpoint")):
            assert process.poll() is None, "ended before it wrote a checkpoint"
            assert time.monotonic() < deadline
            time.sleep(0.005)
    finally:
        process.kill()
    assert process.wait() == -signal.SIGKILL
    assert list((cache / "models").rglob("*.safetensors")) == []

    epochs_run = []
    fit_epoch = training.fit_epoch
    monkeypatch.setattr(training, "fit_epoch", lambda *a: epochs_run.append(1) or fit_epoch(*a))
    resumed = training.trained("lenet", small, epochs=EPOCHS, seed=5).state_dict()
    done = EPOCHS - len(epochs_run)
    assert 0 < done < EPOCHS
    monkeypatch.setenv("MGENB_CACHE", str(tmp_path / "another"))
    whole = training.trained("lenet", small, epochs=EPOCHS, seed=5).state_dict()
    assert len(epochs_run) == 2 * EPOCHS - done
    assert all(whole[name].equal(tensor) for name, tensor in resumed.items())
