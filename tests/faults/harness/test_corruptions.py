"""Whatever is read back is right, or it is refused in one sentence that says what to delete."""

import random
import shutil

import pytest

from tests.faults.harness import kept, trials
from tests.faults.harness.trials import WHOLE, Outcome

COUNTS = {"flipped": 10, "cut": 8, "zeroed": 8} if WHOLE else {"flipped": 3, "cut": 1, "zeroed": 1}
ONCE = ("emptied", "swapped")
TRIALS = [
    (kind, damage)
    for kind, file in kept.FILES.items()
    for damage in (*COUNTS, *ONCE, *file.edits)
    if not (file.owned and damage in ("flipped", "swapped"))
]


def damaged(content, other, damage, edits, chance):
    """Return what is left of a file's content."""
    at = chance.randrange(len(content))
    if damage == "flipped":
        return content[:at] + bytes([content[at] ^ 1 << chance.randrange(8)]) + content[at + 1 :]
    if damage == "cut":
        return content[:at]
    if damage == "zeroed":
        end = min(len(content), at + chance.choice((1, 16, 512)))
        return content[:at] + bytes(end - at) + content[end:]
    return {"emptied": b"", "swapped": other}[damage] if damage in ONCE else kept.edited(content, edits[damage])


@pytest.fixture(scope="module")
def ready(tmp_path_factory):
    """What gives a kind of file: its folder, its place there, what is read of it, and another file's content."""
    known = {}

    def prepared(kind):
        if kind not in known:
            here, there, away = (tmp_path_factory.mktemp("kept") for _ in range(3))
            for seed, folder in enumerate((here, there)):
                made = trials.begin(kept.make, kind, folder, seed, folder=folder)
                assert made.how == "done", made
                place = made.value
                other = (folder / place).read_bytes()
                place = place if seed else (first := place)
            content = (here / first).read_bytes()
            whole = trials.begin(kept.readings, kind, here, first, [content], away, folder=away)
            assert whole.how == "done", whole
            assert whole.value[0][0] == "done", whole
            known[kind] = here, first, whole.value[0][1], content, other
        return known[kind]

    return prepared


def amiss(how, told, whole, owned):
    """Return what is wrong with what was read; "" for nothing."""
    if how == "done":
        return "" if owned or told == whole else "silently wrong"
    return Outcome(how, told).unclear


@pytest.mark.parametrize(("kind", "damage"), TRIALS)
def test_nothing_that_is_damaged_is_used(kind, damage, ready, tmp_path, record_property):
    before, place, whole, content, other = ready(kind)
    chance, file = random.Random(f"{kind} {damage}"), kept.FILES[kind]
    contents = [damaged(content, other, damage, file.edits, chance) for _ in range(COUNTS.get(damage, 1))]
    read = trials.begin(kept.readings, kind, before, place, contents, tmp_path, folder=tmp_path)
    record_property("corruptions", len(contents))
    assert read.how == "done", read
    wrong = [fault for how, told in read.value if (fault := amiss(how, told, whole, file.owned))]
    assert not wrong, "\n".join(wrong)
    shutil.rmtree(tmp_path)
