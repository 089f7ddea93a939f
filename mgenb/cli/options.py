"""Options that several commands have."""

from typing import Annotated

import typer

Jobs = Annotated[
    str | None, typer.Option(metavar="N", help="Processes that compute side by side. [default: MGENB_JOBS, or none]")
]
Scheduler = Annotated[
    str | None, typer.Option(metavar="tcp://...", help="A Dask cluster that computes. [default: MGENB_SCHEDULER]")
]
