"""What the two papers claim, and the rule that turns evidence into verdicts."""

from mgenb.claims.registry import Claim, get, load, registry_hash
from mgenb.claims.verdicts import JUDGED, NOT_TESTED, UNFINISHED, Scale, Verdict, decide, judge, p_value, rank
