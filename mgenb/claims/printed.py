"""The papers' tables of numbers, from the registry, in the papers' own layout."""

import numpy as np
import pandas as pd

from mgenb.claims.registry import cells


def grid(table: str, *across: str) -> pd.DataFrame:
    """Return a paper's table of numbers in its own layout: the axes `across` are columns; dashes are missing."""
    claims = [claim for claim in cells(table) if claim.paper_value is not None]
    values = pd.DataFrame([{**claim.place, "": np.nan if claim.dash else claim.paper_value} for claim in claims])
    return values.set_index(list(claims[0].place))[""].unstack(list(across), sort=False)
