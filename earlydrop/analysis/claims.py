"""Claims as data, and verdicts on them. Each claim stands in ``conf/claims/`` before its runs: arms, metric, window, direction, seeds.

Verdicts, on the paired difference (arm minus the arm that it is held against, seed by seed, over seeds that nothing else used):

- *reproduced*: the difference is not 0 in the predicted direction at the 5% level, after Holm over all declared claims of a study;
- *opposite*: likewise, in the other direction;
- *not resolved*: neither, with the smallest effect that this many seeds could have resolved;
- *incomplete*: not all declared seeds have finished, so nothing is said yet.

Equivalence is two one-sided tests against a margin: *reproduced* if both reject, *opposite* if the difference lies beyond the margin.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import scipy.optimize
import scipy.stats
import yaml

DIRECTIONS = ("lower", "higher", "equivalent")
LEVEL = 0.05
POWER = 0.8
BOOTSTRAP_FROM = 20
_KEYS = {"claim", "source", "arm", "against", "metric", "window", "direction"}


@dataclass(frozen=True)
class Claim:
    """One claim.

    Attributes:
        id: Its short name, such as ``F3a``.
        claim: The claim in words.
        source: Where the paper makes it.
        arm: The arm that the claim is about.
        against: The arm that it is held against.
        metric: A metric of ``metrics.jsonl``.
        window: Share of the run over whose measurements the metric is averaged, both ends included; None for the last value.
        direction: ``lower``, ``higher`` or ``equivalent``.
        margin: The largest difference that still counts as equivalent, in the metric's units.
        against_metric: What the metric is held against, where that is another metric of the same runs; None for the same metric.
    """

    id: str
    claim: str
    source: str
    arm: str
    against: str
    metric: str
    window: tuple[float, float] | None
    direction: str
    margin: float | None = None
    against_metric: str | None = None


@dataclass(frozen=True)
class Family:
    """The claims of one file, and the studies and seeds that they are tested on.

    Attributes:
        name: The file's name.
        regime: ``underfit`` or ``overfit``: what the paper claims them for.
        standard: The arm of standard dropout, for the label of a study's regime.
        studies: For each study its rounds of seeds; the round ``label`` labels the regime and enters no verdict.
        claims: The claims.
    """

    name: str
    regime: str
    standard: str
    studies: dict[str, dict[str, tuple[int, ...]]]
    claims: tuple[Claim, ...]


@dataclass(frozen=True)
class Paired:
    """A paired difference over seeds.

    Attributes:
        seeds: The seeds that both arms have finished.
        effect: Mean difference.
        low: Lower end of its 95% interval (Student's t).
        high: Upper end.
        p: Two-sided p-value against 0.
        spread: Standard deviation of the differences.
    """

    seeds: tuple[int, ...]
    effect: float
    low: float
    high: float
    p: float
    spread: float


@dataclass(frozen=True)
class Finding:
    """What the runs say of a claim.

    Attributes:
        study: The study.
        round: Which of its rounds of seeds.
        claim: The claim.
        expected: How many seeds were declared.
        paired: The paired difference; None without two seeds.
        p: p-value of the claim's test, after Holm.
        resolvable: The smallest effect that would be resolved with a power of 80% at the level that Holm's procedure gave this claim; for
            equivalence the smallest margin that these runs would have shown.
        verdict: ``reproduced``, ``opposite``, ``not resolved``, ``incomplete`` or ``not run``.
        bootstrap: 95% interval by bootstrap (BCa), from 20 seeds on.
        fingerprints: The runs behind it.
    """

    study: str
    round: str
    claim: Claim
    expected: int
    paired: Paired | None
    p: float | None
    resolvable: float | None
    verdict: str
    bootstrap: tuple[float, float] | None
    fingerprints: tuple[str, ...]


def load_claims(folder: Path) -> list[Family]:
    """Read every file of claims.

    Args:
        folder: A set of claims: a folder below ``conf/claims``.

    Returns:
        The families, by file name.

    Raises:
        ValueError: A file with an unknown or missing key, a window or direction that is none, or seeds that label a regime and enter a
            verdict.
    """
    return [_family(path) for path in sorted(folder.glob("*.yaml"))]


def _family(path: Path) -> Family:
    content = yaml.safe_load(path.read_text())
    missing = {"claims", "regime", "standard", "studies"} ^ set(content)
    if missing:
        raise ValueError(
            f"{path.name}: {', '.join(sorted(missing))} missing or unknown: expected claims, regime, standard, studies"
        )
    if content["regime"] not in ("underfit", "overfit"):
        raise ValueError(f"{path.name}: regime is {content['regime']!r}: expected underfit or overfit")
    studies = {}
    for study, rounds in content["studies"].items():
        for (one, seeds), (other, others) in itertools.combinations(rounds.items(), 2):
            both = set(seeds) & set(others)
            if both:
                raise ValueError(
                    f"{path.name}: seed {min(both)} of study {study} is in round {one} and in round {other}: use other seeds"
                )
        studies[study] = {name: tuple(seeds) for name, seeds in rounds.items()}
    claims = tuple(_claim(path.name, name, values) for name, values in content["claims"].items())
    return Family(path.stem, content["regime"], content["standard"], studies, claims)


def _claim(file: str, name: str, values: Mapping[str, Any]) -> Claim:
    where = f"{file}: claim {name}"
    optional = {"margin"} if values.get("direction") == "equivalent" else set()
    wrong = (_KEYS | optional) ^ (set(values) - {"against_metric"})
    if wrong:
        raise ValueError(f"{where}: {', '.join(sorted(wrong))} missing or unknown: expected {', '.join(sorted(_KEYS | optional))}")
    if values["direction"] not in DIRECTIONS:
        raise ValueError(f"{where}: direction is {values['direction']!r}: expected {', '.join(DIRECTIONS)}")
    if optional and not float(values["margin"]) > 0:
        raise ValueError(f"{where}: margin is {values['margin']!r}: expected more than 0, in units of {values['metric']}")
    return Claim(name, **{**values, "window": _window(where, values["window"])})


def _window(where: str, value: Any) -> tuple[float, float] | None:
    if value == "final":
        return None
    try:
        low, high = (float(str(end).removesuffix("%")) / 100 for end in value)
        if all(str(end).endswith("%") for end in value) and 0 <= low < high <= 1:
            return low, high
    except (TypeError, ValueError):
        pass
    raise ValueError(f"{where}: window is {value!r}: expected 'final' or two rising percentages such as [5%, 50%]")


def label_seeds(families: Iterable[Family], study: str) -> set[int]:
    """The seeds that label a study's regime and enter no verdict.

    Args:
        families: The claims.
        study: The study.

    Returns:
        The seeds.
    """
    return {seed for family in families for seed in family.studies.get(study, {}).get("label", ())}


def measure(history: pd.DataFrame, metric: str, window: tuple[float, float] | None, total_steps: int) -> float:
    """A run's value of a metric: its mean over the measurements in a window, or its last value.

    Args:
        history: One row a measured step.
        metric: A column; a metric that was never measured gives NaN.
        window: Shares of the run, both ends included; None for the last value.
        total_steps: The run's length.

    Returns:
        The value; NaN if nothing was measured in the window.
    """
    if metric not in history:
        return math.nan
    rows = history.dropna(subset=[metric])
    if window is None:
        return float(rows[metric].iloc[-1]) if len(rows) else math.nan
    low, high = (end * total_steps for end in window)
    return float(rows[metric][(rows["step"] >= low - 1e-9) & (rows["step"] <= high + 1e-9)].mean())


def paired(values: Mapping[int, float]) -> Paired | None:
    """Paired t over seeds.

    Args:
        values: Arm minus against, by seed.

    Returns:
        The summary; None with fewer than two seeds.

    >>> paired({0: 1.0, 1: 2.0, 2: 3.0}).effect
    2.0
    """
    array = np.array(list(values.values()), float)
    n = len(array)
    if n < 2:
        return None
    mean, spread = float(array.mean()), float(array.std(ddof=1))
    half = float(scipy.stats.t.ppf(1 - LEVEL / 2, n - 1)) * spread / n**0.5
    return Paired(tuple(values), mean, mean - half, mean + half, _two_sided(mean, spread, n), spread)


def _two_sided(mean: float, spread: float, n: int) -> float:
    if spread == 0:
        return 1.0 if mean == 0 else 0.0
    return float(2 * scipy.stats.t.sf(abs(mean) / spread * n**0.5, n - 1))


def _p_equivalent(found: Paired, margin: float) -> tuple[float, float]:
    """p-values of equivalence (two one-sided tests) and of a difference beyond the margin."""
    n = len(found.seeds)
    error = found.spread / n**0.5
    if error == 0:
        inside = abs(found.effect) < margin
        return float(not inside), float(inside)
    within = max(scipy.stats.t.cdf((sign * found.effect - margin) / error, n - 1) for sign in (1, -1))
    beyond = scipy.stats.t.sf((abs(found.effect) - margin) / error, n - 1)
    return float(within), float(min(1.0, 2 * beyond))


def holm(p_values: Iterable[float]) -> tuple[list[float], list[float]]:
    """Holm's step-down procedure.

    Args:
        p_values: One for each claim.

    Returns:
        The adjusted p-values, and the level that each claim was tested at.

    >>> [round(p, 3) for p in holm([0.01, 0.04, 0.03])[0]]
    [0.03, 0.06, 0.06]
    """
    values = list(p_values)
    adjusted, levels = [1.0] * len(values), [LEVEL] * len(values)
    largest, stopped_at = 0.0, 0.0
    for rank, index in enumerate(sorted(range(len(values)), key=values.__getitem__)):
        remaining = len(values) - rank
        largest = max(largest, min(1.0, remaining * values[index]))
        if largest >= LEVEL and not stopped_at:
            stopped_at = LEVEL / remaining  # nothing behind the first claim that is not rejected gets a higher level
        adjusted[index], levels[index] = largest, stopped_at or LEVEL / remaining
    return adjusted, levels


def differences(runs: pd.DataFrame, claim: Claim, seeds: Iterable[int]) -> tuple[dict[int, float], list[str]]:
    """Arm minus against, seed by seed.

    Args:
        runs: One study's runs, with their histories.
        claim: Arms, metric and window.
        seeds: Which seeds.

    Returns:
        The differences of the seeds that both arms have finished, and the fingerprints behind them.

    Raises:
        ValueError: Two finished runs of one arm and seed.
    """
    values: dict[int, float] = {}
    fingerprints: list[str] = []
    done = runs[runs["state"] == "finished"]
    for seed in seeds:
        sides = []
        for arm, metric in ((claim.arm, claim.metric), (claim.against, claim.against_metric or claim.metric)):
            rows = done[(done["arm"] == arm) & (done["seed"] == seed)]
            if len(rows) > 1:
                raise ValueError(
                    f"study {rows['study'].iloc[0]} has {len(rows)} finished runs of {arm} with seed {seed} "
                    f"({', '.join(rows['fingerprint'])}): keep one configuration a study"
                )
            for r in rows.itertuples():  # a run that stopped early has no comparable window, only a last value
                whole = claim.window is None or r.step == r.total_steps
                value = measure(r.history, metric, claim.window, int(r.total_steps)) if whole else math.nan
                sides.append((value, str(r.fingerprint)))
        if len(sides) == 2 and all(math.isfinite(value) for value, _ in sides):
            values[seed] = sides[0][0] - sides[1][0]
            fingerprints += [fingerprint for _, fingerprint in sides]
    return values, fingerprints


def judge(family: Family, study: str, round_name: str, runs: pd.DataFrame) -> list[Finding]:
    """Verdicts on a family's claims from one study's runs and one round of seeds.

    Args:
        family: The claims.
        study: The study.
        round_name: One of its rounds.
        runs: The study's runs, from `earlydrop.analysis.summaries.Summaries.of`.

    Returns:
        One finding for each claim whose arms were run with these seeds, or whose seeds are incomplete.

    Raises:
        ValueError: Two finished runs of one arm and seed.
    """
    seeds = family.studies[study][round_name]
    gathered = [(claim, *differences(runs, claim, seeds)) for claim in family.claims]
    tested = [(claim, values, prints, paired(values)) for claim, values, prints in gathered]
    whole = [t for t in tested if t[3] is not None and len(t[1]) == len(seeds)]
    raw = [_p_equivalent(f, c.margin)[0] if c.margin is not None else f.p for c, _, _, f in whole if f is not None]
    beyond = [_p_equivalent(f, c.margin)[1] if c.margin is not None else f.p for c, _, _, f in whole if f is not None]
    untested = [1.0] * (len(tested) - len(whole))  # every declared claim counts, run or not
    holms, opposite = holm(raw + untested), holm(beyond + untested)[0]
    findings = []
    for claim, values, prints, found in tested:
        index = next((i for i, t in enumerate(whole) if t[0] is claim), None)
        finding = Finding(
            study, round_name, claim, len(seeds), found, None, None, "incomplete" if values else "not run", None, tuple(prints)
        )
        if found is not None and index is not None:
            resolvable = _resolvable(claim, found, holms[1][index])
            finding = replace(
                finding,
                p=holms[0][index],
                resolvable=resolvable,
                verdict=_verdict(claim, found, holms[0][index], opposite[index]),
                bootstrap=_bootstrap(np.array(list(values.values()))) if len(seeds) >= BOOTSTRAP_FROM else None,
            )
        findings.append(finding)
    return findings


def _resolvable(claim: Claim, found: Paired, level: float) -> float:
    """The smallest true effect seen with a power of 80%; for equivalence the smallest margin that these runs would have shown."""
    n, error = len(found.seeds), found.spread / math.sqrt(len(found.seeds))
    if claim.margin is not None:
        quantile: float = scipy.stats.t.ppf(1 - level, n - 1)
        return abs(found.effect) + float(quantile) * error
    critical = float(scipy.stats.t.ppf(1 - level / 2, n - 1))
    noncentral: float = scipy.optimize.brentq(lambda d: scipy.stats.nct.sf(critical, n - 1, d) - POWER, 0, 10 * critical)
    return float(noncentral) * error


def _verdict(claim: Claim, found: Paired, p: float, p_opposite: float) -> str:
    if claim.margin is not None:
        return (
            "reproduced" if p < LEVEL else "opposite" if p_opposite < LEVEL and abs(found.effect) > claim.margin else "not resolved"
        )
    if p >= LEVEL:
        return "not resolved"
    return "reproduced" if (found.effect < 0) == (claim.direction == "lower") else "opposite"


def _bootstrap(values: np.ndarray) -> tuple[float, float]:
    result = scipy.stats.bootstrap((values,), np.mean, confidence_level=1 - LEVEL, rng=np.random.default_rng(0))
    return float(result.confidence_interval.low), float(result.confidence_interval.high)


def regime(runs: pd.DataFrame, standard: str, seeds: Iterable[int]) -> tuple[str, Paired | None]:
    """The regime of a study by the paper's definition: underfitting if the model generalises better without standard dropout.

    Args:
        runs: The study's runs, with their histories.
        standard: The arm of standard dropout.
        seeds: Seeds that enter no verdict.

    Returns:
        ``underfit``, ``overfit`` or ``unclear``, and the paired difference in test accuracy, standard minus none.
    """
    claim = Claim("regime", "", "", standard, "none", "test/accuracy", None, "lower")
    found = paired(differences(runs, claim, seeds)[0])
    if found is None or found.low <= 0 <= found.high:
        return "unclear", found
    return ("underfit" if found.high < 0 else "overfit"), found
