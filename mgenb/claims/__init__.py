"""What the two papers claim, and the rule that turns evidence into verdicts."""

from mgenb.claims.registry import (
    AS_STATED,
    Claim,
    Reading,
    cells,
    get,
    load,
    names,
    points,
    registry_hash,
    unjudged,
)
from mgenb.claims.scale import Scale
from mgenb.claims.verdicts import (
    CONTRADICTED,
    DEPENDS,
    FAILS,
    INCONCLUSIVE,
    JUDGED,
    NOT_TESTED,
    NOVELTY_FLOOR,
    PASSES,
    REPRODUCED,
    UNFINISHED,
    VACUOUS,
    ReadingVerdict,
    Verdict,
    decide,
    judge,
    p_value,
    rank,
    supported,
)
