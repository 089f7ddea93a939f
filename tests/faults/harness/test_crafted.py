"""Files that were made to do harm: nothing in them is run, and they cost neither memory nor time."""

import pytest

from tests.faults.harness import crafted, trials
from tests.faults.harness.trials import WHOLE, How

LIMITS = How(room=4.0, cpu=30, late=300)  # address space is no memory: maps and stacks count too
PART = [case for number, case in enumerate(crafted.CASES) if WHOLE or number % 4 == 0]


@pytest.mark.parametrize("case", PART)
def test_a_crafted_file_is_refused_and_runs_nothing(case, tmp_path, record_property):
    made = trials.begin(crafted.make, case, tmp_path, folder=tmp_path)  # what costs much to make is made apart
    assert made.how == "done", made
    before = {path.name for path in tmp_path.rglob("*")}
    read = trials.begin(crafted.read, case, tmp_path, folder=tmp_path, how=LIMITS)
    record_property("crafted files", 1)
    assert not read.unclear
    assert not read.started
    assert "ran" not in {path.name for path in tmp_path.parent.rglob("*")} - before
    assert read.grown < 1.0
