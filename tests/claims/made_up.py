"""Runs that never were, for tests of verdicts."""

import itertools

import numpy as np
import pandas as pd

from earlydrop.analysis.arms import Arm
from earlydrop.claims.declare import Claim, Declaration, Study
from earlydrop.claims.judge import judge
from earlydrop.claims.summaries import Summaries

ARMS = {
    "none": {"schedule.name": "none"},
    "early": {"schedule.name": "early", "schedule.rate": 0.1, "schedule.cutoff": "20%"},
    "late": {"schedule.name": "late"},
    "constant-0.1": {"schedule.name": "constant", "schedule.rate": 0.1},
}
LOSS = Claim(
    "L",
    "lower loss",
    "here",
    ARMS["early"],
    ARMS["none"],
    "train_eval/loss",
    None,
    "lower",
    0.05,
    family="f",
)
SAME = Claim(
    "S",
    "same loss",
    "here",
    ARMS["early"],
    ARMS["none"],
    "train_eval/loss",
    None,
    "equivalent",
    0.05,
    family="f",
)


def made_up(
    study="toy",
    effect=-0.1,
    noise=0.01,
    seeds=range(10, 16),
    arms=("none", "early"),
    config=None,
    **facts,
):
    random = np.random.default_rng(0)
    runs, history = [], []
    for arm, seed in itertools.product(arms, seeds):
        loss = 1.0 + 0.3 * seed + (effect + noise * random.standard_normal()) * (arm != "none")
        settings = ARMS[arm] | (config or {})
        common = {
            "study": study,
            "arm": arm,
            "seed": seed,
            "fingerprint": "-".join(map(str, (study, arm, seed, *(config or {}).values()))),
        }
        fact = {
            "state": "finished",
            "step": 100,
            "total_steps": 100,
            "config/model.name": "vit_micro",
            "config/data.name": "d",
        }
        fact |= {f"config/{key}": value for key, value in settings.items()}
        runs.append(common | {"settings": Arm.of({"data.name": "d"} | settings)} | fact | facts)
        for step, value in ((5, 9.0), (10, 2.0), (50, 4.0), (100, loss)):
            history.append(
                common | {"step": step, "train_eval/loss": value, "test/accuracy": -value}
            )
    return Summaries(pd.DataFrame(runs), pd.DataFrame(history))


def study(name="toy", config=None, **rounds):
    return Study(
        name,
        {"data.name": "d"} | (config or {}),
        {name: tuple(seeds) for name, seeds in rounds.items()},
    )


def declaration(*claims, studies=None, seeds=range(10, 16)):
    studies = studies or [study(first=seeds)]
    return Declaration(
        "f", "underfit", ARMS["early"], {each.name: each for each in studies}, claims
    )


def verdict(claim, summaries, **more):
    (found,) = judge(declaration(claim, **more), "toy", "first", summaries.of("toy"))
    return found
