"""Claims as data: what is claimed of two arms, and the studies on which it is tested.

A claim is written into a file of ``conf/claims/`` before its runs: its arms, metric, window,
direction and smallest effect that matters. A file holds claims, their families (claims whose
p-values are adjusted together), and their studies with the seeds. An arm is a configuration. Each
key has the value that the claim gives it, else that of its study's ``config``, else the schema's
default.
`earlydrop.claims.read` reads the files.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from earlydrop.analysis.arms import Arm

SETS = ("findings", "classic", "quickstart")
EQUIVALENT, NOT_LOWER = "equivalent", "not lower"
DIRECTIONS = ("lower", "higher", EQUIVALENT, NOT_LOWER)
FIRST = "first"
"""The round of seeds to which the looks of a file apply."""
LABEL = "label"
"""The round of seeds that labels the regime of a study; no verdict uses it."""
SMOKE = "smoke"
"""The study that runs every arm for a few steps; no figure and no comparison uses it."""

Settings = Mapping[str, Any]
"""Values by configuration key, such as ``{"schedule.name": "constant", "schedule.rate": 0.5}``."""


class LossWindow(NamedTuple):
    """A range of the training loss (``train_eval/loss``), to compare runs at equal progress.

    A run is measured from its first step at a loss of ``high`` to its first step at ``low``. All
    losses between the two have equal weight.
    """

    high: float
    low: float


Window = tuple[float, float] | LossWindow | None


class Comparison(NamedTuple):
    """The test of a claim that is not tested by the paired t test.

    Attributes:
        kind: ``median`` (Wilcoxon's signed-rank test), ``share above`` (the share of runs with a
            value above ``bound``, McNemar's exact test) or ``steps to`` (the first measured step
            at which the metric is ``bound`` or less, the log-rank test).
        bound: The bound, in the metric's units; None for ``median``.
    """

    kind: str
    bound: float | None = None


BOUNDED_TESTS = ("share above", "steps to")


class Sensitivity(NamedTuple):
    """The sensitivity of a metric to a setting, such as the final loss to the learning rate.

    The value of a seed is the mean of ``min(value, at_most)`` over the values of the setting, minus
    the smallest of them: Wortsman et al. 2023 (arXiv:2309.14322, section 2.2).

    Attributes:
        key: The configuration key of the setting.
        values: The values of the setting that are compared.
        at_most: Larger values of the metric count as this one, in the metric's units.
    """

    key: str
    values: tuple[float, ...]
    at_most: float


@dataclass(frozen=True)
class Claim:
    """One claim.

    Attributes:
        id: Its short name, such as ``F3a``.
        claim: The claim in words.
        source: Where the paper makes it.
        arm: The settings of the arm that the claim is about.
        against: The settings of the arm that it is compared with.
        metric: A metric of ``metrics.jsonl``.
        window: The part of the run over which the metric is averaged: two shares of the run, both
            ends included; a `LossWindow`; None for the last value.
        direction: ``lower``, ``higher``, ``equivalent`` or ``not lower``.
        smallest: The smallest difference that matters, in the metric's units, or relative to the
            mean of ``against``. Two arms that differ by less are equivalent.
        relative: Whether ``smallest`` is relative.
        family: The name of its family. The p-values of the claims of one family in a file are
            adjusted together (Holm).
        against_metric: The metric of ``against``; None for the same metric.
        test: The test of the difference; None for the paired t test.
        sensitivity: The sensitivity of the metric to a setting, which is then compared; None to
            compare the metric itself.
    """

    id: str
    claim: str
    source: str
    arm: Settings = field(hash=False)
    against: Settings = field(hash=False)
    metric: str
    window: Window
    direction: str
    smallest: float
    relative: bool = False
    family: str = ""
    against_metric: str | None = None
    test: Comparison | None = None
    sensitivity: Sensitivity | None = None

    @property
    def parts(self) -> list[Claim]:
        """The claims that are measured: this one, or one per value of the setting (sensitivity)."""
        if self.sensitivity is None:
            return [self]
        key = self.sensitivity.key
        parts = []
        for value in self.sensitivity.values:
            arm, against = {**self.arm, key: value}, {**self.against, key: value}
            parts.append(replace(self, arm=arm, against=against, sensitivity=None))
        return parts

    @property
    def finding(self) -> str:
        """Its finding: ``F3`` for ``F3a``, ``F5`` for ``F5-loss``."""
        prefix = re.match(r"F\d+", self.id)
        return prefix[0] if prefix else self.id


@dataclass(frozen=True)
class Study:
    """A study on which claims are tested.

    Attributes:
        name: The value of ``study`` in its runs.
        config: The settings that its runs share and that are not the schema's defaults.
        cadence: The settings that decide what its runs measure, and when. They are not part of an
            arm, but a repetition of the study needs them.
        rounds: Seeds by round. Each round is judged by itself; no verdict uses the round ``label``.
        note: A remark for readers of its verdicts, such as seeds that were added after others had
            been seen.
    """

    name: str
    config: Settings = field(hash=False)
    rounds: Mapping[str, tuple[int, ...]] = field(hash=False)
    cadence: Settings = field(hash=False, default_factory=dict)
    note: str = ""

    def arm(self, settings: Settings) -> Arm:
        """The arm with these settings in this study."""
        return Arm.of({**self.config, **settings})


class Looks(NamedTuple):
    """A group-sequential design: the claims are judged at each look and may stop there.

    Attributes:
        seeds: The number of seeds of each look, rising; the last look has the whole round.
        boundary: ``obrien-fleming`` (early looks need strong evidence) or ``pocock`` (equal
            p-values).
    """

    seeds: tuple[int, ...]
    boundary: str


@dataclass(frozen=True)
class Declaration:
    """The claims of one file, with the studies on which they are tested.

    Attributes:
        name: The file's name.
        regime: The regime in which the paper makes the claims: ``underfit`` or ``overfit``.
        standard: The settings of standard dropout, to label the regime of a study.
        studies: The studies by name.
        claims: The claims.
        looks: The looks at the round ``first`` of the main study; None to judge it once, when all
            its seeds have finished.
        replaces: The name of an earlier file that this one replaces in the answer; empty for none.
    """

    name: str
    regime: str
    standard: Settings = field(hash=False)
    studies: Mapping[str, Study] = field(hash=False)
    claims: tuple[Claim, ...]
    looks: Looks | None = None
    replaces: str = ""

    @property
    def main_study(self) -> str:
        """The study that the claims are about; the other studies show how far they generalise."""
        return next(iter(self.studies))


def label_seeds(declarations: Iterable[Declaration], study_name: str) -> set[int]:
    """The seeds that label the regime of a study; no verdict uses them."""
    seeds: set[int] = set()
    for declaration in declarations:
        if study_name in declaration.studies:
            seeds.update(declaration.studies[study_name].rounds.get(LABEL, ()))
    return seeds
