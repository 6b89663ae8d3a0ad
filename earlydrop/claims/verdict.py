"""The verdict of some runs on a claim: a word, and the numbers that it rests on."""

from __future__ import annotations

from dataclasses import dataclass

from earlydrop.analysis.stats import Paired
from earlydrop.claims.declare import Claim
from earlydrop.claims.power import Price

DECIDED = ("reproduced", "opposite", "absent")
"""The verdicts that decide a claim."""

OPEN = "not resolved"
"""The verdict on a claim whose seeds have all finished and decide nothing."""

UNJUDGED = ("incomplete", "not run")
"""The verdicts on a claim that is not judged, because a seed has no value in one of its arms."""


@dataclass(frozen=True)
class Verdict:
    """The verdict on a claim from one round of seeds.

    Attributes:
        study: The study.
        round: The name of the round.
        claim: The claim.
        arms: The names of its two arms; their schedules where there are no runs, where a run has no
            value in a window of losses, and for a sensitivity.
        expected: The number of seeds that it is judged from: those of the round, or of the look.
        paired: The paired difference; None without two seeds.
        smallest: The smallest effect that matters, in the metric's units; None without two seeds.
        p: p-value of the test that decided, after Holm. If none did, that of the test that would
            confirm the claim.
        price: The number of seeds that would resolve the claim, and their time. None if the verdict
            is not ``not resolved``, the claim has a test of its own, or the differences do not
            scatter.
        verdict: ``reproduced``, ``opposite``, ``absent``, ``not resolved``, ``incomplete`` or
            ``not run``.
        bootstrap: 95% interval by bootstrap (BCa), from 20 seeds on.
        fingerprints: The fingerprints of its runs.
        remark: The settings in which the runs differ from the declaration, or the reason why a run
            has no value; empty for none.
        seconds: The time of one run of each arm, in seconds.
        look: The look at which it was judged, from 1; 0 where it is not judged at looks.
        looks: The number of looks of its round; 0 for a round without looks.
        lower: The number of seeds whose value is lower in the first arm; None without a paired
            difference.
        higher: The number of seeds whose value is higher there. Equal seeds count in neither.
        value_missing: Whether the loss of a finished run does not fall through the claim's window
            of losses, so that no further seed can decide it.
    """

    study: str
    round: str
    claim: Claim
    arms: tuple[str, str]
    expected: int
    paired: Paired | None
    smallest: float | None
    p: float | None
    price: Price | None
    verdict: str
    bootstrap: tuple[float, float] | None
    fingerprints: tuple[str, ...]
    remark: str = ""
    seconds: tuple[float, float] = (0.0, 0.0)
    look: int = 0
    looks: int = 0
    lower: int | None = None
    higher: int | None = None
    value_missing: bool = False
