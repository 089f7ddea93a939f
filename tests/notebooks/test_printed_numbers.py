"""What notebook 07 says of the paper's printed numbers alone, as computed by hand from its pages."""

import nbformat
import pytest

from mgenb.lab import catalog, execute

SAYS = (
    "Of 12 cells of Table IV 7 print 4.45 to 24.78 %",
    "seconds for 100 and 1000 models are LeNet's",
    "213,824.79 s is printed",
    "a base of 92 s where training one takes 74 s",
    "not below 1 % is resnet18 for 100.",
)


@pytest.fixture(scope="module")
def told():
    nb = nbformat.read(execute.path_of(catalog.find("07")), as_version=4)
    outputs = [output for cell in nb.cells for output in cell.get("outputs", [])]
    return " ".join(output.get("data", {}).get("text/markdown", "") for output in outputs)


@pytest.mark.parametrize("sentence", SAYS)
def test_it_follows_from_the_printed_numbers(told, sentence):
    assert sentence in told
