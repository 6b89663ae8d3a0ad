"""Repeating a finding on seeds that nothing has used: the arms of its claims, trained again, and the verdict beside the published one."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from earlydrop.analysis.arms import config_of
from earlydrop.analysis.runs import find_runs
from earlydrop.claims.declare import Claim, Declaration, Study
from earlydrop.claims.judge import Verdict, judge
from earlydrop.claims.summaries import collect
from earlydrop.training.config import Config
from earlydrop.training.record.files import write_atomically
from earlydrop.training.record.folder import read_config

FIRST_SEED = 10_000
"""Fresh seeds are counted from here."""

FRESH = "fresh"
"""The round of a repetition."""


def fresh_seeds(declarations: Iterable[Declaration], folder: Path, count: int) -> list[int]:
    """The first seeds from `FIRST_SEED` on that no round declares and no run below a folder has used."""
    used = {seed for each in declarations for study in each.studies.values() for seeds in study.rounds.values() for seed in seeds}
    if folder.is_dir():
        used |= {int(read_config(path)["seed"]) for path in find_runs(folder)}
    seeds = (seed for seed in range(FIRST_SEED, FIRST_SEED + len(used) + count) if seed not in used)
    return [seed for _, seed in zip(range(count), seeds, strict=False)]


def begin(notes: Path, seeds: list[int]) -> None:
    """Note the seeds of a repetition before any of them runs, so that one that is stopped goes on with the same."""
    notes.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(notes, json.dumps(seeds).encode())


def begun_seeds(notes: Path, count: int) -> list[int] | None:
    """The seeds of a repetition that was begun and not judged; None if there is none.

    Raises:
        ValueError: It has another number of seeds, or its file is damaged.
    """
    if not notes.is_file():
        return None
    try:
        seeds = [int(seed) for seed in json.loads(notes.read_text(encoding="utf-8"))]
        first, last = seeds[0], seeds[-1]
    except (ValueError, TypeError, IndexError) as error:
        raise ValueError(f"{notes} holds no seeds of a repetition ({error}): delete it to begin another") from error
    if len(seeds) != count:
        raise ValueError(
            f"a repetition with the seeds {first} to {last} was begun and not finished: go on with --seeds {len(seeds)}, or delete "
            f"{notes} to begin another"
        )
    return seeds


def claims_of(
    declarations: Iterable[Declaration], finding: str, study: str | None
) -> list[tuple[Declaration, Study, tuple[Claim, ...]]]:
    """Where a finding is tested: each file, one of its studies (the main one if none is named), and its claims of this finding.

    Raises:
        ValueError: No claim has this finding, or no file that has it has this study.
    """
    declarations = list(declarations)
    found = []
    for each in declarations:
        claims = tuple(claim for claim in each.claims if finding in (claim.finding, claim.id))
        name = study or each.main_study
        if claims and name in each.studies:
            found.append((each, each.studies[name], claims))
    if not found:
        known = sorted({claim.finding for each in declarations for claim in each.claims}, key=lambda name: (len(name), name))
        where = f" in the study {study!r}" if study else ""
        raise ValueError(f"finding {finding!r}{where} is not claimed: expected one of {', '.join(known)}")
    return found


def configurations(study: Study, claims: Iterable[Claim], seeds: Iterable[int], out: Path) -> list[Config]:
    """The runs of a study's arms that some claims compare, each once.

    Raises:
        ValueError: The study does not declare what the claims' metrics take.
    """
    claims = list(claims)
    for claim in claims:
        needed = "probe.at" if claim.metric.startswith("probe") else "trainer.mc_passes" if "mc" in claim.metric else None
        if needed is not None and not {**study.config, **study.cadence}.get(needed):
            raise ValueError(
                f"study {study.name}: claim {claim.id} needs {needed} in the study's cadence, to measure {claim.metric}"
            )
    parts = [part for claim in claims for part in claim.parts]
    arms = {study.arm(settings): settings for part in parts for settings in (part.arm, part.against)}
    configs = []
    for seed in seeds:
        for settings in arms.values():
            config = config_of({**study.config, **study.cadence, **settings})
            config.study, config.seed, config.out = study.name, seed, str(out)
            config.tracking.mode, config.threads = "off", 1
            configs.append(config)
    return configs


def _train(config: Config) -> None:
    """One run; one that fails is named, and the others go on."""
    from earlydrop.training.endings import TrainingFailed
    from earlydrop.training.run import run

    try:
        run(config, in_sweep=True)
    except TrainingFailed as error:
        print(f"failed: {error}", flush=True)


def repeat(declaration: Declaration, study: Study, claims: Iterable[Claim], seeds: list[int], out: Path) -> list[Verdict]:
    """Train the arms of some claims of a study on some seeds, a run a core, and judge those claims, in their families, on them."""
    from joblib import Parallel, delayed

    claims = list(claims)
    configs = configurations(study, claims, seeds, out)
    Parallel(n_jobs=os.cpu_count(), batch_size=1)(delayed(_train)(config) for config in configs)
    fresh = replace(study, rounds={FRESH: tuple(seeds)})
    runs = collect(out, {study.name}).of(study.name)
    verdicts = judge(replace(declaration, studies={study.name: fresh}), study.name, FRESH, runs)
    return [verdict for verdict in verdicts if any(verdict.claim is claim for claim in claims)]
