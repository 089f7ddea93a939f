"""MeGA (arXiv 2406.04607): trained networks of one architecture merged by a genetic algorithm, and its rivals."""

from mgenb.mega.genetic import VARIANTS, VERSION, Merged, Settings, check_match, merge
from mgenb.mega.segment import NORMALISE, Provenance, between, layers, provenance
