"""MeGA (arXiv 2406.04607): trained networks of one architecture merged by a genetic algorithm, and its rivals."""

from mgenb.mega.genetic import VARIANTS, VERSION, Merged, Settings, merge
from mgenb.mega.segment import NORMALISE, Provenance, between, check_match, layers, provenance
