"""What the two papers claim, and the rule that turns evidence into verdicts."""

from mgenb.claims.registry import AS_STATED, Claim, Reading, get, load, points, registry_hash, unjudged
from mgenb.claims.verdicts import (
    CONTRADICTED,
    DEPENDS,
    FAILS,
    INCONCLUSIVE,
    JUDGED,
    NOT_TESTED,
    PASSES,
    REPRODUCED,
    UNFINISHED,
    VACUOUS,
    ReadingVerdict,
    Scale,
    Verdict,
    best,
    decide,
    judge,
    p_value,
    supported,
)
