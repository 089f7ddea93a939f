"""Full, forbidden and odd places: one sentence with the remedy that is right there, or it works all the same."""

import shutil

import pytest

from tests.faults.harness import places, trials
from tests.faults.harness.trials import WHOLE, How

PAIRS = [(door, place) for door in places.DOORS for place in places.PLACES]
# of each door two places, of each place some door: the fixed part
PART = [pair for number, pair in enumerate(PAIRS) if WHOLE or number % 11 in (0, 5)]


@pytest.fixture(scope="module")
def ready(tmp_path_factory):
    """A folder with what the doors need."""
    folder = tmp_path_factory.mktemp("places")
    made = trials.begin(places.prepare, folder, folder=folder)
    assert made.how == "done", made
    return folder


def entered(function, *given, folder, place=""):
    how = How(powerless=True, full=300 if place == "small" else -1)
    return trials.begin(function, *given, folder=folder, how=how)


@pytest.mark.parametrize(("door", "place"), PART)
def test_a_place_where_nothing_can_be_written_is_one_sentence(door, place, ready, tmp_path, record_property):
    folder = tmp_path / "folder"
    shutil.copytree(ready, folder)
    ended = entered(places.enter, door, place, folder, folder=folder, place=place)
    record_property("places", 1)
    assert not ended.unclear
    if ended.how == "refused":
        there = places.named(place, folder)[:99] in ended.value  # on a full disk it is the cache that is written first
        assert ("MGENB_CACHE" in ended.value) == (door.startswith("cache") or not there), ended.value
    places.freed(folder)


@pytest.mark.parametrize("other", places.OTHERS)
def test_other_odd_places_are_one_sentence(other, ready, tmp_path, record_property):
    folder = tmp_path / "folder"
    shutil.copytree(ready, folder)
    ended = entered(places.OTHERS[other], folder, folder=folder)
    record_property("places", 1)
    assert (ended.how, ended.unclear) == ("refused", "")
    places.freed(folder)


def test_a_complete_read_only_cache_works(tmp_path, record_property):
    made = trials.begin(places.make_complete, tmp_path, folder=tmp_path)
    assert made.how == "done", made
    ended = entered(places.complete_cache, tmp_path, folder=tmp_path)
    record_property("places", 1)
    assert ended.how == "done", ended
    places.freed(tmp_path / "cache")
