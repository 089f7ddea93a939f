"""A notebook whose method is broken prints other tokens than the committed ones; else it checks nothing."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from mgenb.lab import catalog

NOTEBOOKS = Path(__file__).parents[2] / "notebooks"
BROKEN = {  # stem: what is run before the notebook
    "00_start_here": """
from mgenb import mge
from mgenb.mge import generator
mge.layer_generator = generator.layer_generator = lambda weight, settings: lambda seed: weight
""",
    "01_frequency_sensitivity": """
from mgenb.mge import frequency
change_band = frequency.change_band
def other_band(weight, band, count, *, inside=None, **options):
    return change_band(weight, "high" if band == "low" else "mid", count, **options)
frequency.change_band = other_band
""",
    "02_zero_filling": """
from mgenb.mge import frequency
order = frequency.order
def shuffled(weight, selection, *, domain="coefficients", seed=0, **options):
    return order(weight, "random", domain=domain, seed=seed)
frequency.order = shuffled
""",
    "03_importance_mask": """
import torch
from mgenb.mge import frequency
def anything(weight, *args):
    return torch.rand(weight.shape, generator=torch.Generator().manual_seed(0))
frequency.fig7_change = anything
""",
    "04_weight_distribution": """
from mgenb import mge
from mgenb.mge import generator
mge.layer_generator = generator.layer_generator = lambda weight, settings: lambda seed: weight
""",
    "05_generated_vs_trained": """
from dataclasses import replace
from mgenb.lab import rows as stored
read = stored.read
def copies(path):
    measured = read(path)
    return replace(measured, frame=measured.frame.assign(distance=0.0))
stored.read = copies
""",
    "06_accuracy_table": """
from mgenb.measure import population
population.Count.passes = lambda self, fewest: True
""",
    "07_time_ratio": """
from mgenb import mge
from mgenb.mge import generator
mge.layer_generator = generator.layer_generator = lambda weight, settings: lambda seed: weight
""",
    "08_adversarial_transfer": """
from mgenb.measure import attacks
attacks.craft = lambda net, images, labels, attack, **options: images.float() / 255
""",
    "09_robust_evolution": """
from mgenb.mge import evolve
children = evolve._Breeding.children
evolve._Breeding.children = lambda self, generation, parents: children(self, 0, [])
""",
    "10_few_shot_evolution": """
from mgenb.mge import evolve
def first_parent(self, first, second, rng):
    return evolve.Individual(first.recipe, "fusion", make=first.make)
evolve._Breeding.fusion = first_parent
""",
    "11_mega_fitness": """
from mgenb.mega import genetic
genetic._Breeding.mutate = lambda self, generation, made: None
""",
    "12_mega_pairs": """
from mgenb.mega.genetic import _Breeding
shares = _Breeding.shares
def all_from_the_mother(self, count, *stream):
    return (lambda name: 1.0) if stream[0] == "beta" else shares(self, count, *stream)
_Breeding.shares = all_from_the_mother
""",
    "13_mega_hierarchy": """
from mgenb.mega import methods
def nothing_merged(task, settings=None):
    return methods.parent(task)
methods.genetic = nothing_merged
""",
    "14_scoreboard": """
from mgenb import claims
claims.rank = lambda verdict: -("paper", "cpu", "quick").index(verdict.scale.profile)
""",
}


def test_every_notebook_has_a_broken_method():
    assert set(BROKEN) == {notebook.stem for notebook in catalog.notebooks()}


# each runs a whole notebook, which `mgenb check` does as well: two stand for all where time counts
OFTEN = ("02_zero_filling", "14_scoreboard")


@pytest.mark.parametrize(
    "stem", [stem if stem in OFTEN else pytest.param(stem, marks=pytest.mark.slow) for stem in BROKEN]
)
def test_a_broken_method_changes_a_token(stem, tmp_path, monkeypatch, printed):
    monkeypatch.setenv("MGENB_OUT", str(tmp_path))
    nb = nbformat.read(NOTEBOOKS / f"{stem}.ipynb", as_version=4)
    # a verdict may also move by chance, on another machine: a fact of the mechanism may not
    committed = [line for line in printed(nb) if line.startswith("mechanism ")]
    assert committed
    nb.cells.insert(0, nbformat.v4.new_code_cell(BROKEN[stem]))
    resources = {"metadata": {"path": str(NOTEBOOKS)}}
    NotebookClient(nb, timeout=None, kernel_name="python3", resources=resources).execute()
    assert [line for line in printed(nb) if line.startswith("mechanism ")] != committed
