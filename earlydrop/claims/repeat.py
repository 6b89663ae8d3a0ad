"""Repeating a finding on seeds that nothing has used: the arms of its claims, trained again, and the verdict beside the published one."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from earlydrop.analysis.arms import config_of
from earlydrop.analysis.runs import find_runs
from earlydrop.claims.declare import Claim, Declaration, Study
from earlydrop.claims.judge import Verdict, judge
from earlydrop.claims.summaries import collect
from earlydrop.training.config import Config
from earlydrop.training.record.folder import read_config

FIRST_SEED = 10_000
"""Fresh seeds are counted from here."""


def fresh_seeds(declarations: Iterable[Declaration], folder: Path, count: int) -> list[int]:
    """The first seeds from `FIRST_SEED` on that no round declares and no run below a folder has used."""
    used = {seed for each in declarations for study in each.studies.values() for seeds in study.rounds.values() for seed in seeds}
    if folder.is_dir():
        used |= {int(read_config(path)["seed"]) for path in find_runs(folder)}
    seeds = (seed for seed in range(FIRST_SEED, FIRST_SEED + len(used) + count) if seed not in used)
    return [seed for _, seed in zip(range(count), seeds, strict=False)]


def claims_of(declarations: Iterable[Declaration], finding: str, study: str | None) -> list[tuple[Declaration, Study]]:
    """Where a finding is tested: by file its claims of this finding, and one study; the file's main one if none is named.

    Raises:
        ValueError: No claim has this finding, or no file that has it has this study.
    """
    declarations = list(declarations)
    found = []
    for each in declarations:
        claims = tuple(claim for claim in each.claims if finding in (claim.finding, claim.id))
        name = study or each.main_study
        if claims and name in each.studies:
            found.append((replace(each, claims=claims), each.studies[name]))
    if not found:
        known = sorted({claim.finding for each in declarations for claim in each.claims}, key=lambda name: (len(name), name))
        where = f" in the study {study!r}" if study else ""
        raise ValueError(f"finding {finding!r}{where} is not claimed: expected one of {', '.join(known)}")
    return found


def configurations(study: Study, claims: Iterable[Claim], seeds: Iterable[int], out: Path) -> list[Config]:
    """The runs of a study's arms that some claims compare, each once."""
    arms = {study.arm(settings): settings for claim in claims for settings in (claim.arm, claim.against)}
    configs = []
    for seed in seeds:
        for settings in arms.values():
            config = config_of({**study.config, **study.cadence, **settings})
            config.study, config.seed, config.out = study.name, seed, str(out)
            config.tracking, config.threads = "off", 1
            configs.append(config)
    return configs


def _train(config: Config) -> dict[str, Any]:
    from earlydrop.training.run import run

    return run(config, in_sweep=True)


def repeat(declaration: Declaration, study: Study, seeds: list[int], out: Path) -> list[Verdict]:
    """Train a study's arms on some seeds, a run a core, and judge the claims on them."""
    from joblib import Parallel, delayed

    configs = configurations(study, declaration.claims, seeds, out)
    Parallel(n_jobs=os.cpu_count(), batch_size=1)(delayed(_train)(config) for config in configs)
    fresh = replace(study, rounds={"repeat": tuple(seeds)})
    return judge(replace(declaration, studies={study.name: fresh}), study.name, "repeat", collect(out, {study.name}).of(study.name))
