"""What notebooks import: `lab.start(...)` and the figure, table and explorer helpers.

The names are imported when first used, so that the command line does not wait for torch.
"""

from importlib import import_module
from typing import Any

_MODULES = ("figures", "explore")
_HOME = {"start": "run"}
_HOME |= dict.fromkeys(("load", "dealt", "trained", "final_test", "caption"), "experiment")


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return import_module(f"mgenb.lab.{name}")
    if name not in _HOME:
        raise AttributeError(f"mgenb.lab has no {name!r}")
    return getattr(import_module(f"mgenb.lab.{_HOME[name]}"), name)
