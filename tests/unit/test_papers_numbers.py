"""The registry against `papers_numbers.csv`: the papers' printed numbers, typed in from the papers by another hand."""

import csv
import re
from pathlib import Path

import pytest

from mgenb import claims

with Path(__file__).with_name("papers_numbers.csv").open(newline="") as lines:
    ROWS = list(csv.DictReader(lines))
ARCHS = {"ResNet 152": "resnet152_author", "ResNet-18": "resnet18"}
DATA = {"MNIST": "mnist", "FashionMNIST": "fashion_mnist", "CIFAR-10": "cifar10", "GTSRB": "gtsrb"}
ACTIONS = {"T": "train", "G": "generate"}
WORDS = {
    "Original Model": "original",
    "Evolution Model": "evolved",
    "Weight Average": "average",
    "MeGA (Ours)": "merged",
}
ENDS = {"first generation": "first", "twentieth generation": "last", "start": "first", "end": "last"}
TEXT = {"before": "baseline", "after": "merged", "merged": "merged"}
TEXT |= {"lowest baseline": "lowest", "highest baseline": "highest"}
SETTINGS = {
    ("mge", "abstract", ""): "mge.text.one_percent",
    ("mge", "II.B.2", ""): "mge.setting.important_share",
    ("mge", "Algorithm 1", "t"): "mge.setting.energy_threshold",
    ("mge", "Algorithm 1", "n_D"): "mge.setting.rounds",
    ("mge", "Algorithm 1", "eps"): "mge.setting.tolerance",
    ("mge", "II.C.6", "n"): "mge.setting.evolution.parents",
    ("mge", "II.C.6", "j"): "mge.setting.evolution.mutations",
    ("mge", "II.C.6", "m"): "mge.setting.evolution.fusions",
    ("mge", "II.C.6", ""): "mge.setting.evolution.survivors",
    ("mge", "II.C.6", "N"): "mge.setting.evolution.generations_robust",
    ("mge", "Fig. 10 caption", "N"): "mge.setting.evolution.generations_few_shot",
    ("mge", "II.C.7", ""): "mge.text.vit",
    ("mge", "intro bullet 3", ""): "mge.text.vit",
    ("mge", "II.D", ""): "mge.setting.used_share",
    ("mega", "4.1", "batch size"): "mega.setting.batch",
    ("mega", "4.1", "epochs"): "mega.setting.epochs",
    ("mega", "4.1", "learning rate"): "mega.setting.learning_rate",
    ("mega", "4.1", "population size"): "mega.setting.population",
    ("mega", "4.1", "generations"): "mega.setting.generations",
    ("mega", "4.1", "parents per generation"): "mega.setting.tournaments",
    ("mega", "4.1", "mutation rate"): "mega.setting.mutation_rate",
}
BY_VALUE = {  # where one place of the text has several numbers
    ("intro bullet 1", "98.25"): "mge.text.lenet_mnist",
    ("intro bullet 1", "2"): "mge.text.two_percent_higher",
    ("intro bullet 4", "244"): "mge.text.minutes",
    ("intro bullet 4", "1"): "mge.text.one_percent_vgg11",
    ("II.C.2", "13"): "mge.fig5.share.vgg16",
    ("II.C.2", "25"): "mge.fig5.share.resnet18",
    ("II.C.2", "10"): "mge.setting.fig7_share",
    ("II.C.5", "100"): "mge.setting.fig9.examples",
    ("II.C.5", "52"): "mge.setting.fig9.models",
    ("4.1", "45,000"): "mega.setting.training_images",
    ("4.1", "5,000"): "mega.setting.validation_images",
}
# what a table's columns are about, what follows from another entry, or a depth in a network's name
ELSEWHERE = {"# of classes", "Perturbation"}
PLACES_ELSEWHERE = {
    "Table III caption",
    "Table IV caption",
    "II.C.3",
    "II.B.1",
    "intro, after Fig. 1",
    "Table 2 caption",
}
PLACES_ELSEWHERE |= {"3.1 Mutation", "eq. (1)"}


def arch(name):
    return ARCHS.get(name, re.sub(r"[ -]", "", name).lower())


def place_of(row):
    """Return the id of the claim that should hold a number; "" where it stands in no entry of its own."""
    place, label, column, network = row["place"], row["row"], row["column"], arch(row["network"])
    model = re.match(r"Model (\d)", label)
    if label == "(header)" or column in ELSEWHERE or place in PLACES_ELSEWHERE or row["unit"] == "layers":
        return ""
    if place == "Table I" and column == "Learning rate":
        return f"mge.table1.{re.sub(r'[-]', '', label).replace('/', '_').lower()}"
    if place == "Table II":
        return f"mge.table2.{DATA[row['data']]}.{network}.{ {'G': 'generated', 'T': 'trained'}[column[-1]] }"
    if place in ("Table III", "Table IV"):
        count, kind = column.split()
        return f"mge.table3.{network}.{count}.{ACTIONS[kind]}" if kind in ACTIONS else f"mge.table4.{network}.{count}"
    if place == "Table V":
        return f"mge.table5.{label.partition('=')[2].replace('.', '_')}.{WORDS[column]}"
    if column.startswith("# of Params") or row["unit"] == "parameters":
        return f"mega.table1.params.{network}"
    if place in ("Table 1", "Table 2") and column != "Random Seed":
        of_model = {"Table 1": "parent", "Table 2": "model"}[place] + model[1] if model else WORDS[label]
        return f"mega.{place.lower().replace(' ', '')}.{network}.{of_model}"
    if column in ENDS:
        return f"mega.fig2.fitness.{network}.{ENDS[column]}"
    if column in TEXT:
        return f"mega.text.{'table1' if place == '4.2' else 'table2'}.{network}_{TEXT[column]}"
    if column == "Random Seed" or (place.endswith(("caption", "(on Fig. 2)")) and label == "generations"):
        return ""
    if row["unit"] == "coefficient value" or (place, row["value"]) == ("intro bullet 4", "1000"):
        return ""
    by_value = BY_VALUE.get((place, row["value"]))
    return by_value or SETTINGS[row["paper"], place, label]


def number(text):
    return float(re.sub(r"[,M]| million", "", text))


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row['place']} {row['row']} {row['column']} {row['value']}")
def test_the_registry_has_the_number_at_its_place(row):
    name = place_of(row)
    if not name:
        return
    claim = claims.get(name)
    if row["value"] == "-":
        assert claim.dash
        return
    assert not claim.dash
    assert claim.paper_value == number(row["value"])
    if row["version"] == "v2":
        assert claim.versions == "v2"
    if row["data"] in DATA and "dataset" in claim.scale and claim.scale["dataset"] not in ("any", "none"):
        assert claim.scale["dataset"] == DATA[row["data"]]


TABLES = ("mge.table1.", "mge.table2.", "mge.table3.", "mge.table4.", "mge.table5.", "mega.table1.", "mega.table2.")
IN_TEXT = ("mega.fig2.fitness.", "mega.text.table1.", "mega.text.table2.")


def test_the_registry_has_no_number_that_no_table_prints():
    typed = {place_of(row) for row in ROWS}
    printed = {
        claim.id for claim in claims.load() if claim.id.startswith(TABLES + IN_TEXT) and claim.paper_value is not None
    }
    printed = {name for name in printed if claims.get(name).kind in ("value", "ratio") or claims.get(name).dash}
    assert printed - typed == set()


def test_every_table_is_whole():
    counts = {table: sum(place_of(row).startswith(table) for row in ROWS) for table in TABLES}
    assert counts == dict(zip(TABLES, (3, 32, 24, 12, 6, 24 + 6 + 3 + 1, 30), strict=True))


def test_seeds_of_the_pairs_and_of_the_eight_are_settings():
    seeds = {row["place"]: set() for row in ROWS if row["column"] == "Random Seed"}
    for row in ROWS:
        if row["column"] == "Random Seed":
            seeds[row["place"]].add(int(row["value"]))
    for place, group in (("Table 1", "pairs"), ("Table 2", "eight")):
        ends = [claims.get(f"mega.setting.{end}_seed_of_{group}").paper_value for end in ("first", "last")]
        assert [min(seeds[place]), max(seeds[place])] == ends
        assert len(seeds[place]) == max(seeds[place]) - min(seeds[place]) + 1
