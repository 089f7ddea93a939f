"""mgenb: MGE (arXiv 2402.17486) and MeGA (arXiv 2406.04607), re-examined claim by claim."""

import os

__version__ = "0.1.0"

# OpenMP threads that spin while they wait cost up to fourteen times the run time where cores are shared
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
