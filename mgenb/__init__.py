"""mgenb: MGE (arXiv 2402.17486) and MeGA (arXiv 2406.04607), re-examined claim by claim."""

__version__ = "0.1.0"
