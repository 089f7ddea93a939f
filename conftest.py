"""What nbval leaves out when it compares notebooks with their committed outputs; images it never compares."""

from typing import Any


def pytest_collectstart(collector: Any) -> None:
    """Leave out stderr (progress, warnings), and the HTML of tables, which are compared as text."""
    if getattr(collector, "path", None) is not None and collector.path.suffix == ".ipynb":
        collector.skip_compare += ("stderr", "text/html")
