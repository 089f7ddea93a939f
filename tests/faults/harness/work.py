"""What is killed, and must end as if nobody had: training, a pool, a merge, an evolution, `refresh` and `run`.

Each takes its folder, does its work there or goes on with it, and returns what must come out the same: the hash of
each file by its name, or of what was returned.
"""

import hashlib
import json
import os
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import nbformat
import papermill  # noqa: F401  # as `run` below: what children share need not be loaded by each
import torch

from mgenb import data, mega, mge, store, training
from mgenb.cli import main as cli
from mgenb.errors import MgenbError
from mgenb.lab import execute, run  # noqa: F401
from mgenb.mge import evolve, pool

STEM = "03_importance_mask"
PLAN = pool.Plan("mnist", "lenet", 5, mge.Settings(t=0.99), epochs=2, train_limit=200, val_limit=60, samples=True)
Results = dict[str, str]


def hashed(files: Iterable[Path], folder: Path) -> Results:
    return {str(file.relative_to(folder)): store.file_hash(file) for file in sorted(files)}


def digest(value: Any) -> str:
    return hashlib.sha256(repr(value).encode()).hexdigest()


def command(*words: str) -> None:
    """Run a command of mgenb; MgenbError for its one sentence."""
    sys.argv = ["mgenb", *words]
    try:
        cli.main()
    except SystemExit as ended:
        # `run` says of each notebook how it went, and goes on
        told = [line for line in sys.stdout.getvalue().splitlines() if line.startswith(f"{STEM}: ")]
        said = told if ended.code == 1 else sys.stderr.getvalue().strip().splitlines()
        if ended.code:
            raise MgenbError(said[-1] if said else f"exit code {ended.code}") from None


def digits(**limits: Any) -> data.Dataset:
    return data.load("mnist", source="samples", **{"train_limit": 200, "val_limit": 60, "test_limit": 60, **limits})


def train(folder: Path) -> Results:
    training.trained("lenet", digits(), epochs=3, seed=5)
    return hashed((folder / "cache" / "models").glob("[!.]*[!k]"), folder)


def make_pool(folder: Path) -> Results:
    pool.create(PLAN, folder / "pool")
    return hashed((folder / "pool").glob("[!.]*[!k]"), folder)


def parents(folder: Path) -> None:
    """Write the two networks that `merge` merges."""
    for seed in (0, 1):
        net = training.trained("lenet", digits(), epochs=2, seed=seed)
        store.save_weights(folder / f"{seed}.safetensors", net.state_dict(), {"seed": seed})


def merge(folder: Path) -> Results:
    how = ["--arch", "lenet", "--dataset", "mnist", "--samples", "--size", "3", "--budget", "12", "--val-limit", "60"]
    out = folder / "merged.safetensors"
    if not (out.exists() and out.with_suffix(".json").exists()):  # killed after its last write, it has nothing to do
        command("merge", "0.safetensors", "1.safetensors", *how, "--out", str(out))
    return hashed(folder.glob("merged.*"), folder)


def made_up(seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {f"layer{i}.weight": torch.randn(16, 16, generator=generator) for i in range(3)}


def small_weights(states: Iterable[Mapping[str, torch.Tensor]]) -> list[float]:
    return [-sum(tensor.abs().mean().item() for tensor in state.values()) for state in states]


def evolve_models(folder: Path, seed: int = 0, generations: int = 6) -> Results:
    settings = evolve.Settings(parents=4, mutations=3, fusions=3, generations=generations, gamma=0)
    file = folder / "evolution"
    made = evolve.evolve(made_up(0), mge.Settings(), settings, seed, small_weights, small_weights, checkpoint=file)
    return {"evolution": digest([made.history.to_csv(), made.best, made.survivors])}


def merge_models(folder: Path, seed: int = 0, generations: int = 4) -> Results:
    settings = mega.Settings(size=4, generations=generations)
    made = mega.merge(made_up(0), made_up(1), settings, seed, small_weights, checkpoint=folder / "merging")
    state = {name: tensor.tolist() for name, tensor in made.state.items()}
    return {"merging": digest([made.history.to_csv(), made.individuals.to_csv(), state])}


REFRESHED = f"""
import json, os, pathlib
out = pathlib.Path(os.environ["MGENB_OUT"])
(out / "{STEM}-a.png").write_text("new")
record = {{"stem": "{STEM}", "profile": "quick", "figures": [], "context": {{"finished": "2026-01-02"}}}}
record["result"] = {{"claims": [], "mechanism": {{"new": True}}}}
(out / "{STEM}.json").write_text(json.dumps(record))
print("mechanism new: True")
"""
RUN = """
import pathlib
from mgenb import lab
how = 'dataset = "mnist", arch = "lenet", recipe = "mge-adam", epochs = 1, images = 200, floor = 0.0'
file = pathlib.Path("tiny.toml")
file.write_text(f"[networks]\\ntiny = {{ {how} }}")
tiny = {"bases": 3, "networks": ["tiny"], "networks_file": str(file)}
run = lab.start("03_importance_mask", profile=profile, seed=0, device="cpu", **tiny)
"""
EXPERIMENT = """
VERSION = 1
def experiment(part):
    data, (net,) = lab.load(part), lab.trained(part)
    sums = [weight.sum().item() for weight in net.parameters()]
    return [{"sum": value} for value in sums], {"sums": sums}
measured = run.measure([run.part(base=base) for base in range(3)], experiment, version=VERSION)
run.mechanism("sum", round(measured.frame["sum"].sum(), 3))
run.finish()
"""


def project(folder: Path, *cells: str) -> None:
    """Make a checkout with one notebook; what is committed of it is old."""
    first = nbformat.v4.new_code_cell('profile: str = "quick"', metadata={"tags": ["parameters"]})
    more = [nbformat.v4.new_code_cell(cell, metadata={"tags": ["experiment"]}) for cell in cells]
    nb = nbformat.v4.new_notebook(cells=[first, *more])
    for number, cell in enumerate(nb.cells):
        cell.id = str(number)
    nb.metadata.kernelspec = {"display_name": "Python 3", "language": "python", "name": "python3"}
    nb.metadata.language_info = {"name": "python"}
    (folder / "notebooks").mkdir(parents=True)
    figures = folder / "figures" / "quick"
    figures.mkdir(parents=True)
    (folder / "pyproject.toml").write_bytes((Path(__file__).parents[3] / "pyproject.toml").read_bytes())
    nbformat.write(nb, folder / "notebooks" / f"{STEM}.ipynb")
    (figures / f"{STEM}-a.png").write_text("old")
    (figures / f"{STEM}-gone.png").write_text("old")
    record = {"stem": STEM, "profile": "quick", "result": {"claims": [], "mechanism": {}}, "figures": []}
    (figures / f"{STEM}.json").write_text(json.dumps({**record, "context": {"finished": "2026-01-01"}}))


def inside(folder: Path, path: Path, parameters: Mapping[str, Any], environment: Mapping[str, str]) -> str:
    """Execute a notebook's cells in this process, as `execute._execute_in` does it in a kernel of its own."""
    os.environ.update({"MGENB_OUT": str(folder), **environment})
    nb, names = nbformat.read(path, as_version=4), dict[str, Any]()
    for count, cell in enumerate(nb.cells, 1):
        exec(cell.source, names)
        cell.execution_count = count
    nbformat.write(nb, folder / path.name)
    return ""


def refresh(folder: Path) -> Results:
    execute._execute_in = inside
    command("refresh", "03")
    return committed(folder)


def committed(folder: Path) -> Results:
    files = [file for name in ("figures", "notebooks") for file in (folder / name).rglob("*") if file.is_file()]
    return hashed(files, folder)


def tidied(folder: Path) -> Results:
    """What is committed once the next command has run."""
    command("list")
    return committed(folder)


def run_notebook(folder: Path) -> Results:
    execute._execute_in = inside
    command("run", "03", "--out", str(folder / "out"))
    record = json.loads((folder / "out" / f"{STEM}.json").read_text())
    rows = [*(folder / "out").glob("*.csv"), *(folder / "out").glob("*.npz"), *(folder / "out").glob("*.ipynb")]
    return {**hashed(rows, folder), "record": digest(record["result"])}


def nothing_at_all(folder: Path) -> None:
    """Make nothing: where a work needs nothing to begin with."""


def project_to_refresh(folder: Path) -> None:
    project(folder, REFRESHED)


def project_to_run(folder: Path) -> None:
    project(folder, RUN, EXPERIMENT)


WORKS: dict[str, tuple[Callable[[Path], object], Callable[[Path], Results]]] = {
    "training": (nothing_at_all, train),
    "pool": (nothing_at_all, make_pool),
    "merge": (parents, merge),
    "evolve": (nothing_at_all, evolve_models),
    "merging": (nothing_at_all, merge_models),
    "refresh": (project_to_refresh, refresh),
    "run": (project_to_run, run_notebook),
}
