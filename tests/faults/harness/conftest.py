"""The harness of faults: Linux alone, and at the end how many trials of each kind there were."""

import sys
from collections import Counter
from pathlib import Path

import pytest

KINDS = ("kills", "corruptions", "bad inputs", "places", "crafted files")


def pytest_collection_modifyitems(items):
    """Skip what needs Linux elsewhere."""
    for item in items:
        if Path(__file__).parent in item.path.parents and sys.platform != "linux":
            item.add_marker(pytest.mark.skip(reason="limits, signals and folders of Linux"))


def pytest_terminal_summary(terminalreporter):
    """Print how many trials of each kind were made."""
    counts: Counter[str] = Counter()
    for reports in terminalreporter.stats.values():
        for report in reports:
            for name, value in getattr(report, "user_properties", ()) if getattr(report, "when", "") == "call" else ():
                counts[name] += value if name in KINDS else 0
    if counts:
        terminalreporter.write_line("faults: " + ", ".join(f"{counts[kind]} {kind}" for kind in KINDS if counts[kind]))
