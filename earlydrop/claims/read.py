"""Reading claims: from the files of ``conf/claims/`` to `earlydrop.claims.declare.Declaration`."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from earlydrop.analysis.sequential import OBRIEN_FLEMING, SHAPES
from earlydrop.claims.declare import (
    BOUNDED_TESTS,
    DIRECTIONS,
    FIRST,
    Claim,
    Comparison,
    Declaration,
    Looks,
    LossWindow,
    Sensitivity,
    Settings,
    Study,
    Window,
)
from earlydrop.metrics import METRICS
from earlydrop.training.compose import conf_folder
from earlydrop.training.keys import key_of

_FILE_KEYS = {"claims", "regime", "standard", "studies"}
_OPTIONAL_FILE_KEYS = {"families", "looks", "replaces"}
_CLAIM_KEYS = {"claim", "source", "arm", "against", "metric", "window", "direction", "smallest"}
_OPTIONAL_CLAIM_KEYS = {"against_metric", "test", "sensitivity"}
_STUDY_KEYS = {"config", "cadence", "note"}
"""The keys of a study that are no rounds of seeds."""


def claims_folder(name: str = "findings") -> Path:
    """The folder of a set of claims, in the repository or the package."""
    return conf_folder() / "claims" / name


def load_declarations(folder: Path) -> list[Declaration]:
    """Read every file of a set of claims, in the order of the file names.

    Args:
        folder: A folder below ``conf/claims``.

    Raises:
        ValueError: A key is missing or unknown, a value is not valid, a claim is in two families,
            or a seed is in two rounds.
    """
    return [_declaration(path) for path in sorted(folder.glob("*.yaml"))]


def _not_expected(name: str, value: Any, expected: str) -> ValueError:
    """The error for a value that is not valid."""
    return ValueError(f"{name} is {value!r}: expected {expected}")


def _check_keys(where: str, keys: Iterable[object], needed: set[str], optional: set[str]) -> None:
    """Raise where a key is missing or unknown."""
    given = set(keys)
    problems = []
    if needed - given:
        problems.append(f"{_listed(needed - given)} missing")
    if given - needed - optional:
        problems.append(f"{_listed(given - needed - optional)} unknown")
    if problems:
        expected = f"expected {_listed(needed)}, and optionally {_listed(optional)}"
        raise ValueError(f"{where}: {' and '.join(problems)}: {expected}")


def _listed(names: Iterable[object]) -> str:
    return ", ".join(sorted(map(str, names)))


def _declaration(path: Path) -> Declaration:
    file = path.name
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{file} is no valid YAML: {error}") from error
    if not isinstance(content, Mapping):
        raise ValueError(f"{file}: expected a mapping with {_listed(_FILE_KEYS)}")
    _check_keys(file, content, _FILE_KEYS, _OPTIONAL_FILE_KEYS)
    if content["regime"] not in ("underfit", "overfit"):
        raise _not_expected(f"{file}: regime", content["regime"], "underfit or overfit")
    for key in ("claims", "studies"):
        if not isinstance(content[key], Mapping) or not content[key]:
            raise _not_expected(f"{file}: {key}", content[key], "a mapping by name, not empty")
    studies = {name: _study(file, name, values) for name, values in content["studies"].items()}
    families = _families(file, content.get("families") or {}, content["claims"])
    claims = []
    for name, values in content["claims"].items():
        claims.append(_claim(file, name, values, families.get(name, name)))
    standard = _known_settings(f"{file}: standard", content["standard"])
    for study, claim in itertools.product(studies.values(), claims):
        _check_arms(file, study, claim)
    looks = _looks(file, content.get("looks"), next(iter(studies.values())))
    replaces = content.get("replaces", "")
    if replaces != "" and not (path.parent / f"{replaces}.yaml").is_file():
        expected = "the name of a file beside it, such as dynamics"
        raise _not_expected(f"{file}: replaces", replaces, expected)
    return Declaration(
        name=path.stem,
        regime=content["regime"],
        standard=standard,
        studies=studies,
        claims=tuple(claims),
        looks=looks,
        replaces=replaces,
    )


def _check_arms(file: str, study: Study, claim: Claim) -> None:
    """Raise where a claim has a key that does not exist, or an impossible schedule."""
    for part in claim.parts:
        for side, settings in (("arm", part.arm), ("against", part.against)):
            try:
                study.arm(settings)
            except ValueError as error:
                raise ValueError(f"{file}: claim {claim.id}, {side}: {error}") from error


def _looks(file: str, value: Any, study: Study) -> Looks | None:
    """The looks of a file: ``[20, 40, 60]``, or ``{seeds: [20, 40, 60], boundary: pocock}``."""
    if value is None:
        return None
    counts, boundary = value, OBRIEN_FLEMING
    if isinstance(value, Mapping) and set(value) == {"seeds", "boundary"}:
        counts, boundary = value["seeds"], value["boundary"]
    whole = isinstance(counts, list) and all(map(_is_whole, counts))
    if not whole or len(counts) < 2 or counts[0] < 2 or sorted(set(counts)) != counts:
        counts_in_words = "two or more rising numbers of seeds, from 2 on"
        example = "[20, 40, 60] or {seeds: [20, 40, 60], boundary: pocock}"
        expected = f"{counts_in_words}, such as {example}"
        raise _not_expected(f"{file}: looks", value, expected)
    if boundary not in SHAPES:
        expected = f"expected one of {', '.join(SHAPES)}"
        raise ValueError(f"{file}: looks has the boundary {boundary!r}: {expected}")
    declared = len(study.rounds.get(FIRST, ()))
    if counts[-1] != declared:
        first_round = f"the round {FIRST} of study {study.name} has {declared}"
        last_look = f"the last look has {counts[-1]} seeds"
        raise ValueError(f"{file}: {last_look} and {first_round}: expected the same number")
    return Looks(tuple(counts), boundary)


def _study(file: str, name: str, values: Any) -> Study:
    where = f"{file}: study {name}"
    if not isinstance(values, Mapping):
        raise _not_expected(where, values, "rounds of seeds by name, such as {first: [100, 101]}")
    rounds = {}
    for key, seeds in values.items():
        if key not in _STUDY_KEYS:
            rounds[key] = _seeds(f"{where}, round {key}", seeds)
    _check_rounds(file, name, rounds)
    note = values.get("note", "")
    if not isinstance(note, str):
        raise _not_expected(f"{where}, note", note, "a sentence")
    return Study(
        name=name,
        config=_known_settings(f"{where}, config", values.get("config", {})),
        rounds=rounds,
        cadence=_known_settings(f"{where}, cadence", values.get("cadence", {})),
        note=note,
    )


def _seeds(where: str, value: Any) -> tuple[int, ...]:
    """The seeds of a round."""
    if not isinstance(value, list) or not all(_is_whole(seed) and seed >= 0 for seed in value):
        expected = "expected a list of whole numbers from 0 on, such as [100, 101]"
        raise ValueError(f"{where}: seeds are {value!r}: {expected}")
    if len(set(value)) < len(value):
        raise ValueError(f"{where}: a seed stands twice in {value}: expected each once")
    return tuple(value)


def _check_rounds(file: str, study_name: str, rounds: Mapping[str, tuple[int, ...]]) -> None:
    """Raise where two rounds of a study have a seed in common."""
    for name, other_name in itertools.combinations(rounds, 2):
        shared = set(rounds[name]) & set(rounds[other_name])
        if shared:
            seed = f"seed {min(shared)} of study {study_name}"
            places = f"in round {name} and in round {other_name}"
            raise ValueError(f"{file}: {seed} is {places}: use other seeds")


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return _is_whole(value) or (isinstance(value, float) and math.isfinite(value))


def _number(value: Any) -> Any:
    """A number in a text such as ``1e-3``, which YAML reads as text; another value as it is."""
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


def _settings(where: str, value: Any) -> Settings:
    if not isinstance(value, Mapping):
        example = "{schedule.name: constant, schedule.rate: 0.1}"
        expected = f"configuration keys and values, such as {example}"
        raise _not_expected(where, value, f"{expected}; the name of an arm is not enough")
    return dict(value)


def _known_settings(where: str, value: Any) -> Settings:
    """Settings whose keys are those of the configuration."""
    given = _settings(where, value)
    unknown = [str(key) for key in given if key_of(str(key)) is None]
    if unknown:
        reason = "is not a key of the configuration; see earlydrop --cfg job"
        raise ValueError(f"{where}: {unknown[0]!r} {reason}")
    return given


def _families(file: str, families: Any, claims: Mapping[str, Any]) -> dict[str, str]:
    """The family of each claim that is in one.

    A claim without a family is tested by itself, in a family of its own name.
    """
    is_mapping = isinstance(families, Mapping)
    if not is_mapping or not all(isinstance(members, list) for members in families.values()):
        expected = "lists of claims by name, such as {gradients: [F1, F2]}"
        raise _not_expected(f"{file}: families", families, expected)
    family_of: dict[str, str] = {}
    for family, members in families.items():
        if family in claims and family not in members:
            reason = "it is the name of a claim that is not in it"
            raise ValueError(f"{file}: family {family}: {reason}; give another name")
        for claim in members:
            if claim not in claims:
                missing = f"the claim {claim!r}, which the file does not have"
                raise ValueError(f"{file}: family {family} names {missing}")
            if family_of.get(claim) == family:
                twice = f"the claim {claim} twice: expected once"
                raise ValueError(f"{file}: family {family} names {twice}")
            if claim in family_of:
                both = f"{family_of[claim]} and {family}"
                raise ValueError(f"{file}: claim {claim} is in the families {both}: expected one")
            family_of[claim] = family
    return family_of


def _claim(file: str, name: str, values: Any, family: str) -> Claim:
    where = f"{file}: claim {name}"
    if not isinstance(values, Mapping):
        raise _not_expected(where, values, _listed(_CLAIM_KEYS))
    if set(values) == _CLAIM_KEYS - {"smallest"}:
        expected = "expected the smallest effect that matters, such as 1% or 0.004"
        raise ValueError(f"{where}: smallest is missing: {expected}")
    _check_keys(where, values, _CLAIM_KEYS, _OPTIONAL_CLAIM_KEYS)
    for key in ("claim", "source"):
        if not isinstance(values[key], str) or not values[key]:
            raise _not_expected(f"{where}: {key}", values[key], "a text")
    if values["direction"] not in DIRECTIONS:
        raise _not_expected(f"{where}: direction", values["direction"], ", ".join(DIRECTIONS))
    for key in ("metric", "against_metric"):
        metric = values.get(key, values["metric"])
        if metric not in METRICS:
            expected = f"claims cannot use it; expected one of {', '.join(METRICS)}"
            raise ValueError(f"{where}: {key} is {metric!r}: {expected}")
    smallest, relative = _smallest(where, values["smallest"], values["metric"])
    window = _window(where, values["window"])
    test = _test(where, values)
    return Claim(
        id=name,
        claim=values["claim"],
        source=values["source"],
        arm=_settings(f"{where}: arm", values["arm"]),
        against=_settings(f"{where}: against", values["against"]),
        metric=values["metric"],
        window=window,
        direction=values["direction"],
        smallest=smallest,
        relative=relative,
        family=family,
        against_metric=values.get("against_metric"),
        test=test,
        sensitivity=_sensitivity(where, values.get("sensitivity"), test),
    )


def _sensitivity(where: str, value: Any, test: Comparison | None) -> Sensitivity | None:
    """A claim's sensitivity: ``{key: optim.lr, values: [0.001, 0.002], at most: 5.5}``."""
    if value is None:
        return None
    if not isinstance(value, Mapping) or set(value) != {"key", "values", "at most"}:
        example = "{key: optim.lr, values: [0.001, 0.002], at most: 5.5}"
        raise _not_expected(f"{where}: sensitivity", value, example)
    settings = value["values"]
    if isinstance(settings, list):
        settings = [_number(setting) for setting in settings]
    if not isinstance(settings, list) or len(settings) < 2 or not all(map(_is_number, settings)):
        expected = "expected two or more numbers"
        raise ValueError(f"{where}: sensitivity has the values {settings!r}: {expected}")
    if len(set(settings)) < len(settings):
        expected = "expected each once"
        raise ValueError(f"{where}: sensitivity has a value twice in {settings}: {expected}")
    at_most = _number(value["at most"])
    if not _is_number(at_most):
        raise ValueError(f"{where}: sensitivity, at most is {at_most!r}: expected a number")
    if test is not None:
        reason = "a sensitivity is compared by the paired t test: leave test out"
        raise ValueError(f"{where}: test is {test.kind}: {reason}")
    return Sensitivity(str(value["key"]), tuple(settings), float(at_most))


def _test(where: str, values: Mapping[str, Any]) -> Comparison | None:
    """A claim's test: ``median``, ``{share above: 2.1}`` or ``{steps to: 2.1}``; None: t test."""
    value, direction, window = values.get("test"), values["direction"], values["window"]
    if value is None:
        return None
    kind, bound = value, None
    if isinstance(value, Mapping) and len(value) == 1:
        kind, bound = next(iter(value.items()))
    has_bound = kind in BOUNDED_TESTS and _is_number(bound)
    if value != "median" and not has_bound:
        expected = "median, {share above: 2.1} or {steps to: 2.1}"
        raise _not_expected(f"{where}: test", value, expected)
    if direction not in ("lower", "higher"):
        expected = f"lower or higher for the test {kind}"
        raise _not_expected(f"{where}: direction", direction, expected)
    if kind == "steps to" and window != "final":
        expected = f"final, since the test {kind} reads the whole run"
        raise _not_expected(f"{where}: window", window, expected)
    return Comparison(kind, None if bound is None else float(bound))


def _smallest(where: str, value: Any, metric: str) -> tuple[float, bool]:
    """A smallest effect, ``1%`` or a number, and whether it is relative."""
    relative = isinstance(value, str) and value.endswith("%")
    number = math.nan
    try:
        if relative:
            number = float(value[:-1]) / 100
        elif not isinstance(value, bool):
            number = float(value)  # YAML reads 1e-3 as text
    except (TypeError, ValueError):
        pass
    if not 0 < number < math.inf:
        expected = f"more than 0, in units of {metric}, or a percentage such as 1%"
        raise _not_expected(f"{where}: smallest", value, expected)
    return number, relative


def _window(where: str, value: Any) -> Window:
    if value == "final":
        return None
    if isinstance(value, Mapping):
        return _loss_window(where, value)
    try:
        low, high = (float(str(end).removesuffix("%")) / 100 for end in value)
        if all(str(end).endswith("%") for end in value) and 0 <= low < high <= 1:
            return low, high
    except (TypeError, ValueError):
        pass
    percentages = "two rising percentages such as [5%, 50%]"
    expected = f"'final', {percentages}, or losses {{loss: [6.5, 5.5]}}"
    raise _not_expected(f"{where}: window", value, expected)


def _loss_window(where: str, value: Mapping[str, Any]) -> LossWindow:
    """A window of losses: ``{loss: [6.5, 5.5]}``."""
    losses: Any = value.get("loss") if set(value) == {"loss"} else None
    if isinstance(losses, list):
        losses = [_number(loss) for loss in losses]
    is_pair = isinstance(losses, list) and len(losses) == 2 and all(map(_is_number, losses))
    if not is_pair or not losses[0] > losses[1]:
        expected = "two falling losses such as {loss: [6.5, 5.5]}"
        raise _not_expected(f"{where}: window", value, expected)
    return LossWindow(float(losses[0]), float(losses[1]))
