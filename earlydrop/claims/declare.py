"""Claims as data. Each stands in ``conf/claims/`` before its runs: arms, metric, window, direction, seeds.

Every claim says what the smallest effect is that matters; smaller ones count as none. A file holds claims, the families over which their
tests are adjusted together, and the studies that they are tested on. An arm is a configuration: the keys that the claim names, then those
of its study's ``config``, then the schema's defaults.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from earlydrop.analysis.arms import Arm
from earlydrop.analysis.sequential import OBRIEN_FLEMING, SHAPES
from earlydrop.metrics import METRICS

SETS = ("findings", "classic", "quickstart")
EQUIVALENT, NOT_LOWER = "equivalent", "not lower"
DIRECTIONS = ("lower", "higher", EQUIVALENT, NOT_LOWER)
FIRST = "first"
"""The round of seeds that a file's looks are about."""
LABEL = "label"
"""The round of seeds that labels a study's regime and enters no verdict."""
_NEEDED = {"claim", "source", "arm", "against", "metric", "window", "direction", "smallest"}
_FILE = {"claims", "regime", "standard", "studies"}

Settings = Mapping[str, Any]
"""Values by configuration key, such as ``{"schedule.name": "constant", "schedule.rate": 0.5}``."""


class LossWindow(NamedTuple):
    """A range of the training loss (``train_eval/loss``): a run is measured from where it first falls to ``high`` to where it first falls
    to ``low``, every loss between the two counting the same. So runs are compared at equal progress, not at equal steps.
    """

    high: float
    low: float


Window = tuple[float, float] | LossWindow | None


class Comparison(NamedTuple):
    """How the runs of a claim are compared, where not by the paired t test of their mean difference.

    Attributes:
        kind: ``median`` (Wilcoxon's signed-rank test), ``share above`` (the share of runs whose value is above ``bound``, McNemar's
            exact test) or ``steps to`` (the first measured step at which the metric is ``bound`` or less, the log-rank test).
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
        against: Those of the arm that it is held against.
        metric: A metric of ``metrics.jsonl``.
        window: Where the metric is averaged: a share of the run, both ends included; a `LossWindow`; None for the last value.
        direction: ``lower``, ``higher``, ``equivalent`` or ``not lower``.
        smallest: The smallest difference that matters, in the metric's units, or relative to the mean of ``against``. Two arms that differ
            by less are equivalent.
        relative: Whether ``smallest`` is relative.
        family: Over which claims its tests are adjusted (Holm): those of its file with the same family.
        against_metric: What the metric is held against, where that is another metric of the same runs; None for the same metric.
        test: How the arms are compared; None for the paired t test.
        sensitivity: The setting to which the metric's sensitivity is compared; None to compare the metric itself.
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
        """The comparisons whose runs give its values: itself, or one for each value of the setting of its sensitivity."""
        if self.sensitivity is None:
            return [self]
        key = self.sensitivity.key
        return [
            replace(
                self,
                arm={**self.arm, key: value},
                against={**self.against, key: value},
                sensitivity=None,
            )
            for value in self.sensitivity.values
        ]

    @property
    def finding(self) -> str:
        """The finding that it is a part of: ``F3`` for ``F3a``, ``F5`` for ``F5-loss``."""
        found = re.match(r"F\d+", self.id)
        return found[0] if found else self.id


@dataclass(frozen=True)
class Study:
    """Where claims are tested.

    Attributes:
        name: The study of the runs.
        config: The settings that its runs share, where they are not the schema's defaults.
        cadence: What its runs measure and when, likewise; no part of an arm, but what is needed to run it again.
        rounds: Seeds by round. Each round is judged by itself; the round ``label`` enters no verdict.
        note: What a reader of its verdicts has to know, such as seeds or sizes that were added when some had been seen.
    """

    name: str
    config: Settings = field(hash=False)
    rounds: Mapping[str, tuple[int, ...]] = field(hash=False)
    cadence: Settings = field(hash=False, default_factory=dict)
    note: str = ""

    def arm(self, settings: Settings) -> Arm:
        """The arm that these settings name in this study."""
        return Arm.of({**self.config, **settings})


class Looks(NamedTuple):
    """A group-sequential design: the claims are judged when so many seeds have run, and may stop there.

    Attributes:
        seeds: How many seeds each look has, rising; the last look has the whole round.
        boundary: ``obrien-fleming`` (early looks need strong evidence) or ``pocock`` (equal p-values).
    """

    seeds: tuple[int, ...]
    boundary: str


@dataclass(frozen=True)
class Declaration:
    """The claims of one file, and where they are tested.

    Attributes:
        name: The file's name.
        regime: ``underfit`` or ``overfit``: what the paper claims them for.
        standard: The settings of standard dropout, for the label of a study's regime.
        studies: The studies by name.
        claims: The claims.
        looks: When the round ``first`` of the main study is judged; None for once, when it is whole.
        replaces: The name of an earlier file that the answer leaves out for this one; empty for none.
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
        """The study that the claims are about; the others show how far they carry."""
        return next(iter(self.studies))


def load_declarations(folder: Path) -> list[Declaration]:
    """Read every file of a set of claims, a folder below ``conf/claims``, by file name.

    Raises:
        ValueError: A file with an unknown or missing key, an arm, window or direction that is none, a claim in two families, or seeds
            in two rounds.
    """
    return [_declaration(path) for path in sorted(folder.glob("*.yaml"))]


def _declaration(path: Path) -> Declaration:
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    if not isinstance(content, Mapping):
        raise ValueError(f"{path.name}: expected a mapping with {', '.join(sorted(_FILE))}")
    wrong = _FILE ^ (set(content) - {"families", "looks", "replaces"})
    if wrong:
        raise ValueError(f"{path.name}: {', '.join(sorted(wrong))} missing or unknown: expected {', '.join(sorted(_FILE))}")
    if content["regime"] not in ("underfit", "overfit"):
        raise ValueError(f"{path.name}: regime is {content['regime']!r}: expected underfit or overfit")
    for key in ("claims", "studies"):
        if not isinstance(content[key], Mapping) or not content[key]:
            raise ValueError(f"{path.name}: {key} is {content[key]!r}: expected a mapping by name, not empty")
    studies = {name: _study(path.name, name, values) for name, values in content["studies"].items()}
    families = _families(path.name, content.get("families") or {}, content["claims"])
    claims = tuple(_claim(path.name, name, values, families.get(name, name)) for name, values in content["claims"].items())
    standard = _settings(f"{path.name}: standard", content["standard"])
    for study, claim in itertools.product(studies.values(), claims):
        for part in claim.parts:
            for side, settings in (("arm", part.arm), ("against", part.against)):
                try:
                    study.arm(settings)
                except ValueError as error:
                    raise ValueError(f"{path.name}: claim {claim.id}, {side}: {error}") from error
    looks = _looks(path.name, content.get("looks"), next(iter(studies.values())))
    replaces = content.get("replaces", "")
    if replaces != "" and not (path.parent / f"{replaces}.yaml").is_file():
        raise ValueError(f"{path.name}: replaces is {replaces!r}: expected the name of a file beside it, such as dynamics")
    return Declaration(
        name=path.stem,
        regime=content["regime"],
        standard=standard,
        studies=studies,
        claims=claims,
        looks=looks,
        replaces=replaces,
    )


def _looks(file: str, value: Any, study: Study) -> Looks | None:
    """The looks of a file: ``[20, 40, 60]``, or ``{seeds: [20, 40, 60], boundary: pocock}``."""
    if value is None:
        return None
    seeds, boundary = value, OBRIEN_FLEMING
    if isinstance(value, Mapping) and set(value) == {"seeds", "boundary"}:
        seeds, boundary = value["seeds"], value["boundary"]
    whole = isinstance(seeds, list) and all(isinstance(n, int) and not isinstance(n, bool) for n in seeds)
    if not whole or len(seeds) < 2 or seeds[0] < 2 or sorted(set(seeds)) != seeds:
        raise ValueError(f"{file}: looks is {value!r}: expected rising numbers of seeds such as [20, 40, 60]")
    if boundary not in SHAPES:
        raise ValueError(f"{file}: looks has the boundary {boundary!r}: expected one of {', '.join(SHAPES)}")
    declared = len(study.rounds.get(FIRST, ()))
    if seeds[-1] != declared:
        raise ValueError(
            f"{file}: the last look has {seeds[-1]} seeds and the round {FIRST} of study {study.name} has {declared}: "
            "expected the same number"
        )
    return Looks(tuple(seeds), boundary)


def _study(file: str, name: str, values: Any) -> Study:
    where = f"{file}: study {name}"
    if not isinstance(values, Mapping):
        raise ValueError(f"{where} is {values!r}: expected rounds of seeds by name, such as {{first: [100, 101]}}")
    rounds: dict[str, tuple[int, ...]] = {}
    for key, seeds in values.items():
        if key in ("config", "cadence", "note"):
            continue
        if not isinstance(seeds, list) or not all(isinstance(s, int) and not isinstance(s, bool) and s >= 0 for s in seeds):
            raise ValueError(f"{where}, round {key}: seeds are {seeds!r}: expected a list of whole numbers, such as [100, 101]")
        if len(set(seeds)) < len(seeds):
            raise ValueError(f"{where}, round {key}: a seed stands twice in {seeds}")
        rounds[key] = tuple(seeds)
    for (one, ours), (other, theirs) in itertools.combinations(rounds.items(), 2):
        both = set(ours) & set(theirs)
        if both:
            raise ValueError(f"{file}: seed {min(both)} of study {name} is in round {one} and in round {other}: use other seeds")
    config, cadence = (_settings(f"{where}, {key}", values.get(key, {})) for key in ("config", "cadence"))
    note = values.get("note", "")
    if not isinstance(note, str):
        raise ValueError(f"{where}, note is {note!r}: expected a sentence")
    return Study(name, config, rounds, cadence, note)


def _settings(where: str, value: Any) -> Settings:
    if not isinstance(value, Mapping):
        raise ValueError(
            f"{where} is {value!r}: expected configuration keys and values, such as {{schedule.name: constant, schedule.rate: 0.1}}; "
            "a label does not say what was run"
        )
    return dict(value)


def _families(file: str, families: Any, claims: Mapping[str, Any]) -> dict[str, str]:
    """The family of each claim that a file puts in one; any other claim is tested by itself."""
    if not isinstance(families, Mapping) or not all(isinstance(members, list) for members in families.values()):
        raise ValueError(f"{file}: families is {families!r}: expected lists of claims by name, such as {{gradients: [F1, F2]}}")
    found: dict[str, str] = {}
    for family, members in families.items():
        for claim in members:
            if claim not in claims:
                raise ValueError(f"{file}: family {family} names the claim {claim!r}, which the file does not have")
            if claim in found:
                raise ValueError(f"{file}: claim {claim} is in the families {found[claim]} and {family}: expected one")
            found[claim] = family
    return found


def _claim(file: str, name: str, values: Any, family: str) -> Claim:
    where = f"{file}: claim {name}"
    if not isinstance(values, Mapping):
        raise ValueError(f"{where} is {values!r}: expected {', '.join(sorted(_NEEDED))}")
    wrong = _NEEDED ^ (set(values) - {"against_metric", "test", "sensitivity"})
    if wrong == {"smallest"}:
        raise ValueError(f"{where}: smallest is missing: expected the smallest effect that matters, such as 1% or 0.004")
    if wrong:
        raise ValueError(f"{where}: {', '.join(sorted(wrong))} missing or unknown: expected {', '.join(sorted(_NEEDED))}")
    if values["direction"] not in DIRECTIONS:
        raise ValueError(f"{where}: direction is {values['direction']!r}: expected {', '.join(DIRECTIONS)}")
    for key in ("metric", "against_metric"):
        if values.get(key) is not None and values[key] not in METRICS:
            raise ValueError(f"{where}: {key} is {values[key]!r}: no run measures it; expected one of {', '.join(METRICS)}")
    smallest, relative = _smallest(where, values["smallest"], values["metric"])
    sides = {side: _settings(f"{where}: {side}", values[side]) for side in ("arm", "against")}
    size = {"smallest": smallest, "relative": relative, "family": family}
    window = _window(where, values["window"])
    test = _test(where, values.get("test"), values["direction"], window)
    sensitivity = _sensitivity(where, values.get("sensitivity"), test)
    read = {"window": window, "test": test, "sensitivity": sensitivity}
    return Claim(name, **{**values, **sides, **size, **read})


def _sensitivity(where: str, value: Any, test: Comparison | None) -> Sensitivity | None:
    """The sensitivity that a claim compares: ``{key: optim.lr, values: [0.001, 0.002], at most: 5.5}``."""
    if value is None:
        return None
    example = "{key: optim.lr, values: [0.001, 0.002], at most: 5.5}"
    if not isinstance(value, Mapping) or set(value) != {"key", "values", "at most"}:
        raise ValueError(f"{where}: sensitivity is {value!r}: expected {example}")
    settings = value["values"]
    if not isinstance(settings, list) or len(settings) < 2 or not all(map(_is_number, settings)):
        raise ValueError(f"{where}: sensitivity has the values {settings!r}: expected two or more numbers")
    if len(set(settings)) < len(settings):
        raise ValueError(f"{where}: sensitivity has a value twice in {settings}: expected each once")
    if not _is_number(value["at most"]):
        raise ValueError(f"{where}: sensitivity counts at most {value['at most']!r}: expected a number")
    if test is not None:
        raise ValueError(f"{where}: test is {test.kind}: a sensitivity is compared by the paired t test, expected none")
    return Sensitivity(str(value["key"]), tuple(map(float, settings)), float(value["at most"]))


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _test(where: str, value: Any, direction: str, window: Window) -> Comparison | None:
    """The test of a claim: ``median``, ``{share above: 2.1}`` or ``{steps to: 2.1}``; none is the paired t test."""
    if value is None:
        return None
    if value == "median":
        test = Comparison("median")
    else:
        kind, bound = next(iter(value.items())) if isinstance(value, Mapping) and len(value) == 1 else ("", None)
        if kind not in BOUNDED_TESTS or bound is None or not _is_number(bound):
            raise ValueError(f"{where}: test is {value!r}: expected median, {{share above: 2.1}} or {{steps to: 2.1}}")
        test = Comparison(kind, float(bound))
    if direction not in ("lower", "higher"):
        raise ValueError(f"{where}: direction is {direction!r}: expected lower or higher for the test {test.kind}")
    if test.kind == "steps to" and window is not None:
        raise ValueError(f"{where}: window is {window!r}: expected final, since the test {test.kind} reads the whole run")
    return test


def _smallest(where: str, value: Any, metric: str) -> tuple[float, bool]:
    """A smallest effect, and whether it is relative: ``1%`` or a number."""
    relative = isinstance(value, str) and value.endswith("%")
    try:
        number = float(value[:-1]) / 100 if relative else float(value) if not isinstance(value, (str, bool)) else math.nan
    except (TypeError, ValueError):
        number = math.nan
    if not 0 < number < math.inf:
        raise ValueError(f"{where}: smallest is {value!r}: expected more than 0, in units of {metric}, or a percentage such as 1%")
    return number, relative


def _window(where: str, value: Any) -> Window:
    if value == "final":
        return None
    if isinstance(value, Mapping):
        losses: Any = value.get("loss") if set(value) == {"loss"} else None
        numbers = isinstance(losses, list) and len(losses) == 2 and all(isinstance(v, (int, float)) for v in losses)
        if not numbers or not losses[0] > losses[1]:
            raise ValueError(f"{where}: window is {value!r}: expected two falling losses such as {{loss: [6.5, 5.5]}}")
        return LossWindow(float(losses[0]), float(losses[1]))
    try:
        low, high = (float(str(end).removesuffix("%")) / 100 for end in value)
        if all(str(end).endswith("%") for end in value) and 0 <= low < high <= 1:
            return low, high
    except (TypeError, ValueError):
        pass
    raise ValueError(
        f"{where}: window is {value!r}: expected 'final', two rising percentages such as [5%, 50%], or losses {{loss: [6.5, 5.5]}}"
    )


def label_seeds(declarations: Iterable[Declaration], study: str) -> set[int]:
    """The seeds that label a study's regime and enter no verdict."""
    studies = [declaration.studies[study] for declaration in declarations if study in declaration.studies]
    return {seed for each in studies for seed in each.rounds.get(LABEL, ())}
