"""What notebooks import: `lab.start(...)` and the figure, table and explorer helpers.

The names are imported when first used, so that the command line does not wait for torch.
"""

from importlib import import_module
from typing import Any

_HOME = {
    "start": "run",
    "Run": "run",
    "points_lost": "evidence",
    "load": "experiment",
    "trained": "experiment",
    "final_test": "experiment",
    "caption": "experiment",
    "figures": "figures",
    "explore": "explore",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"mgenb.lab has no {name!r}")
    module = import_module(f"mgenb.lab.{_HOME[name]}")
    return module if _HOME[name] == name else getattr(module, name)
