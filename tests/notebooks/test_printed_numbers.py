"""What notebooks say of the papers' printed numbers alone, as computed by hand from the papers' pages."""

import nbformat
import pytest

from mgenb.lab import catalog, execute

SAYS = {
    "06": (
        "at least as accurate in 15 of 16 cells, more accurate in 13",
        "the mean gain is 0.25 points, the largest 1.31",
        "nearly 2, it is 0.20",
    ),
    "07": (
        "Of 12 cells of Table IV 7 print 4.45 to 24.78 %",
        "seconds for 100 and 1000 models are LeNet's",
        "213,824.79 s is printed",
        "fit to within 4.1 %, with a base of 92 s where training one takes 74 s",
        "vgg11 and resnet18 are off by up to 56 % and 3 %",
        "not below 1 % is resnet18 for 100.",
    ),
    "11": ("below the better parent for resnet56, and above both for densenet121", "2 of 2 curves end at the test"),
    "12": ("the gains are 0.2 (resnet110) to 3.6 points", "0.010 everywhere"),
    "13": ("+0.0, +0.8, -0.4 points from two", "0.014 to 0.023"),
    "09": ("costs the original 4.48 points", "already 12.07 points behind"),
}


@pytest.mark.parametrize("number", SAYS)
def test_it_follows_from_the_printed_numbers(number):
    nb = nbformat.read(execute.path_of(catalog.find(number)), as_version=4)
    outputs = [output for cell in nb.cells for output in cell.get("outputs", [])]
    told = " ".join(output.get("data", {}).get("text/markdown", "") for output in outputs)
    assert [sentence for sentence in SAYS[number] if sentence not in told] == []
