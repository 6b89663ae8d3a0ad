"""Folders of runs that never were."""

import hashlib
import json
from pathlib import Path

import yaml

from earlydrop.training.record.folder import RECORDS

SCHEDULES = {
    "none": {"name": "none"},
    "early-0.1-20%": {"name": "early", "rate": 0.1, "cutoff": "20%"},
}


def make_run(
    study: Path, arm: str, seed: int, loss: float, state: str = "finished", **config
) -> None:
    """Write a run's folder.

    Its configuration holds the defaults, but for the schedule and nested values such as
    ``optim={"lr": 0.1}``.
    """
    name = "-".join(
        [
            arm,
            f"seed{seed}",
            *(
                f"{v}"
                for group in config.values()
                for v in (group.values() if isinstance(group, dict) else [group])
            ),
        ]
    )
    folder = study / name.replace("/", "-")[:60]
    folder.mkdir(parents=True)
    config = {
        "study": study.name,
        "seed": seed,
        "tracking": "off",
        "project": "p",
        "model": {"name": "mlp"},
        "data": {"name": "toy"},
        "schedule": SCHEDULES[arm],
    } | config
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    (folder / "provenance.json").write_text(json.dumps({"arm": arm, "fingerprint": f"abc{name}"}))
    reason = {"reason": "the training loss is nan at step 7"} if state == "failed" else {}
    (folder / "status.json").write_text(
        json.dumps({"state": state, "step": 100, "total_steps": 100} | reason)
    )
    (folder / "timing.jsonl").write_text(
        '{"step": 50, "images_per_second": 10, "seconds": 1}\n'
        '{"step": 100, "images_per_second": 30, "seconds": 2}\n'
    )
    lines = [
        {"step": 0, "probe/gdv": 9.0},
        {
            "step": 10,
            "train/loss": 2.0,
            "probe/gdv": 0.1,
            "dropout/unit_rate": 0.1,
            "dropout/path_rate": 0.0,
        },
        {
            "step": 20,
            "train/loss": 1.5,
            "probe/gdv": 0.3,
            "dropout/unit_rate": 0.1,
            "dropout/path_rate": 0.0,
        },
        {
            "step": 100,
            "train/loss": 1.0,
            "train_eval/loss": loss,
            "test/accuracy": 0.5,
            "probe/gdv": 0.7,
        },
    ]
    (folder / "metrics.jsonl").write_text(
        "".join(json.dumps(line) + "\n" for line in lines) + '{"step": 1'
    )


def seal(run: Path) -> None:
    """Give a run's status the digests of its files, as a finished run's has."""
    status = json.loads((run / "status.json").read_text())
    digests = {name: hashlib.sha256((run / name).read_bytes()).hexdigest() for name in RECORDS}
    (run / "status.json").write_text(json.dumps(status | {"files": digests}))
