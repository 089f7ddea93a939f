"""At which scale something was run, and whether that is the paper's own."""

from dataclasses import dataclass

from mgenb.claims.registry import NUMBER_KINDS, Claim
from mgenb.errors import choose

PROFILES = ("paper", "cpu", "quick")  # best evidence first
WHOLE = ("official", "jpeg")  # variants with all the images of the official set


@dataclass(frozen=True)
class Scale:
    """What was run: profile ("quick", "cpu", "paper"), data variant ("official", "jpeg", "sample", ...).

    `changed` names the parameters that were set by hand, as "t=0.99": a claim judged so is set apart.
    """

    profile: str
    variant: str
    dataset: str
    arch: str
    changed: str = ""

    def __post_init__(self) -> None:
        choose("profile", self.profile, PROFILES)

    def __str__(self) -> str:
        variant = "" if self.variant == "official" else self.variant
        return ", ".join(part for part in (self.profile, variant, self.changed) if part)


def obstacle(claim: Claim, scale: Scale) -> str:
    """Say why the claim cannot be judged at this scale; "" when it can."""
    if claim.kind == "setting":
        return "a setting of the paper's experiments is not judged"
    number = claim.kind in NUMBER_KINDS or claim.dash
    if number and not at_paper_scale(claim, scale):
        return f"a printed number needs the paper's own scale: {about(claim)}, profile paper"
    return ""


def at_paper_scale(claim: Claim, scale: Scale) -> bool:
    """Whether profile, data, network and parameters are the paper's; what is not known never matches."""
    wanted = [(claim.scale.get("dataset"), scale.dataset), (claim.scale.get("arch"), scale.arch)]
    whole = scale.profile == "paper" and scale.variant in WHOLE and not scale.changed
    return claim.counted or (whole and all(paper in ("any", ours) for paper, ours in wanted))


def about(claim: Claim) -> str:
    """Return on which data and network a claim is the paper's, as "dataset mnist, network lenet"."""
    dataset, arch = (claim.scale.get(key, "not said") for key in ("dataset", "arch"))
    return f"dataset {dataset}, network {arch}"
