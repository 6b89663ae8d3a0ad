"""Repeating a finding: its arms are trained again on fresh seeds, and its claims are judged."""

from __future__ import annotations

import itertools
import json
import logging
import os
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from earlydrop.analysis.arms import config_of
from earlydrop.analysis.runs import find_runs
from earlydrop.claims.declare import SMOKE, Claim, Declaration, Study
from earlydrop.claims.judge import judge
from earlydrop.claims.summaries import collect
from earlydrop.claims.verdict import Verdict
from earlydrop.training.checks import needed_for
from earlydrop.training.config import Config
from earlydrop.training.fields import ConfigError
from earlydrop.training.names import first_line
from earlydrop.training.record.files import write_atomically
from earlydrop.training.record.folder import DamagedFileError, read_config

log = logging.getLogger(__name__)

FIRST_SEED = 10_000
"""The smallest fresh seed."""

FRESH = "fresh"
"""The name of the round of a repetition."""


def fresh_seeds(declarations: Iterable[Declaration], folder: Path, count: int) -> list[int]:
    """The first seeds from `FIRST_SEED` on that no round declares and no run has used.

    Args:
        declarations: The declared claims.
        folder: The folder of the runs; it need not exist.
        count: The number of seeds.
    """
    used: set[int] = set()
    for declaration in declarations:
        for study in declaration.studies.values():
            used.update(*study.rounds.values())
    if folder.is_dir():
        used |= set(_seeds_in(folder))
    unused = (seed for seed in itertools.count(FIRST_SEED) if seed not in used)
    return list(itertools.islice(unused, count))


def _seeds_in(folder: Path) -> Iterator[int]:
    """The seeds of the runs in a folder, without those whose configuration is damaged."""
    for path in find_runs(folder):
        try:
            yield int(read_config(path)["seed"])
        except (DamagedFileError, KeyError, TypeError, ValueError) as error:
            log.warning("%s has no seed that can be read (%s)", path, first_line(error))


def begin(notes: Path, seeds: list[int]) -> None:
    """Write down the seeds of a repetition before they run.

    If the repetition is stopped, the next one with this file goes on with the same seeds.
    """
    notes.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(notes, json.dumps(seeds).encode())


def begun_seeds(notes: Path, count: int) -> list[int] | None:
    """The seeds of a repetition that was begun and not judged; None if there is none.

    Args:
        notes: The file that `begin` wrote.
        count: The number of seeds that it must have.

    Raises:
        ValueError: It has another number of seeds, or its file is damaged.
    """
    if not notes.is_file():
        return None
    try:
        seeds = [int(seed) for seed in json.loads(notes.read_text(encoding="utf-8"))]
        first, last = seeds[0], seeds[-1]
    except (ValueError, TypeError, IndexError) as error:
        remedy = "delete it to begin another"
        raise ValueError(f"{notes} holds no seeds of a repetition ({error}): {remedy}") from error
    if len(seeds) != count:
        begun = f"a repetition with the seeds {first} to {last} was begun and not finished"
        remedy = f"go on with --seeds {len(seeds)}, or delete {notes} to begin another"
        raise ValueError(f"{begun}: {remedy}")
    return seeds


class TestedStudy(NamedTuple):
    """A study on which a finding is tested.

    Attributes:
        declaration: The file of claims.
        study: One of its studies.
        claims: The file's claims of the finding.
    """

    declaration: Declaration
    study: Study
    claims: tuple[Claim, ...]


def studies_of(
    declarations: Iterable[Declaration],
    finding: str,
    study: str | None,
) -> list[TestedStudy]:
    """The studies on which a finding is tested, one per file of claims.

    Args:
        declarations: The declared claims.
        finding: A finding such as ``F5``, or a claim such as ``F5-loss``.
        study: The name of a study; None for the main study of each file.

    Raises:
        ValueError: No claim belongs to this finding, or no file with such a claim has this study.
    """
    declarations = list(declarations)
    tested = []
    for declaration in declarations:
        name = study or declaration.main_study
        claims = [claim for claim in declaration.claims if finding in (claim.finding, claim.id)]
        if claims and name in declaration.studies:
            tested.append(TestedStudy(declaration, declaration.studies[name], tuple(claims)))
    if not tested:
        raise ValueError(_not_claimed(declarations, finding, study))
    return tested


def _not_claimed(declarations: list[Declaration], finding: str, study: str | None) -> str:
    """The error for a finding, or for a study on which it is not tested."""
    findings: set[str] = set()
    studies: set[str] = set()
    for declaration in declarations:
        for claim in declaration.claims:
            findings.add(claim.finding)
            if finding in (claim.finding, claim.id):
                studies.update(set(declaration.studies) - {SMOKE})
    if studies:
        expected = f"expected one of {', '.join(sorted(studies))}"
        return f"finding {finding!r} in the study {study!r} is not claimed: {expected}"
    by_number = sorted(findings, key=lambda name: (len(name), name))
    return f"finding {finding!r} is not claimed: expected one of {', '.join(by_number)}"


def configurations(
    study: Study,
    claims: Iterable[Claim],
    seeds: Iterable[int],
    out: Path,
) -> list[Config]:
    """The configurations of the runs that some claims compare, each once.

    Args:
        study: The study.
        claims: The claims.
        seeds: The seeds of the runs.
        out: The folder for the runs.

    Raises:
        ValueError: The study does not declare a setting that a claim's metric needs.
    """
    claims = list(claims)
    for claim in claims:
        _check_cadence(study, claim)
    arms = {}
    for part in itertools.chain.from_iterable(claim.parts for claim in claims):
        arms[study.arm(part.arm)] = part.arm
        arms[study.arm(part.against)] = part.against
    configs = []
    for seed in seeds:
        for settings in arms.values():
            config = config_of({**study.config, **study.cadence, **settings})
            config.study, config.seed, config.out = study.name, seed, str(out)
            config.tracking.mode, config.threads = "off", 1
            configs.append(config)
    return configs


def _check_cadence(study: Study, claim: Claim) -> None:
    """Raise where the runs of a study would not measure a claim's metric."""
    config = config_of({**study.config, **study.cadence})
    for metric in (claim.metric, claim.against_metric):
        needed = None if metric is None else needed_for(metric, config)
        if needed is not None:
            state, remedy = needed
            need = f"{state}, so {metric} of claim {claim.id} is not measured"
            where = "in the study's config or cadence"
            raise ValueError(f"study {study.name}: {need}; give {remedy} {where}")


def _train(config: Config) -> None:
    """Train one run. If it fails, print its error, so that the other runs go on."""
    from earlydrop.training.endings import TrainingFailed
    from earlydrop.training.run import run

    try:
        run(config, in_sweep=True)
    except (ConfigError, TrainingFailed) as error:
        print(f"failed: {error}", flush=True)


def repeat(
    declaration: Declaration,
    study: Study,
    claims: Iterable[Claim],
    seeds: list[int],
    out: Path,
) -> list[Verdict]:
    """Train the arms of some claims on some seeds, one run per core, and judge the claims.

    p-values are adjusted over the families of the file, as in other rounds.

    Args:
        declaration: The file of claims.
        study: One of its studies.
        claims: Some of its claims.
        seeds: The seeds.
        out: The folder for the runs.

    Raises:
        ValueError: The study does not declare a setting that a claim's metric needs.
        FileNotFoundError: No run left a folder.
    """
    from joblib import Parallel, delayed

    claims = list(claims)
    configs = configurations(study, claims, seeds, out)
    Parallel(n_jobs=os.cpu_count(), batch_size=1)(delayed(_train)(config) for config in configs)
    fresh = replace(study, rounds={FRESH: tuple(seeds)})
    runs = collect(out, {study.name}).of(study.name)
    verdicts = judge(replace(declaration, studies={study.name: fresh}), study.name, FRESH, runs)
    return [verdict for verdict in verdicts if any(verdict.claim is claim for claim in claims)]
