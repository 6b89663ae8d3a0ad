"""``earlydrop-reproduce FOLDER``: train a run again, and compare its metrics."""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from earlydrop.analysis.runs import find_runs
from earlydrop.commands import command
from earlydrop.training.fields import ConfigError
from earlydrop.training.record.folder import (
    STATUS,
    changed_files,
    read_config,
    read_metrics,
    read_provenance,
    read_status,
)

METRICS = "metrics.jsonl"


def first_difference(
    before: list[dict[str, float]],
    after: list[dict[str, float]],
) -> str | None:
    """The first difference of two ``metrics.jsonl``: step, metric and both values.

    Args:
        before: The lines of the run.
        after: The lines of its repetition.

    Returns:
        The difference in words; None if all lines are identical.
    """
    for old, new in zip(before, after, strict=False):
        if old != new:
            name = next(key for key in [*old, *new] if old.get(key) != new.get(key))
            values = f"{old.get(name)} in the run, {new.get(name)} in its repetition"
            return f"step {old['step']:.0f}, {name}: {values}"
    if len(before) != len(after):
        return f"{len(before)} lines in the run, {len(after)} in its repetition"
    return None


def reproduce(run: Path, out: Path, trust: bool = False) -> str | None:
    """Train a run again in another folder, without tracking.

    Args:
        run: The run's folder.
        out: Where the repetition goes.
        trust: Import the code from outside earlydrop that the configuration names.

    Returns:
        The first difference of the metrics; None if they are identical.

    Raises:
        ConfigError: The folder is not a finished run, the repetition would go into the same folder,
            the fingerprint of the configuration has changed, or the configuration names code from
            outside earlydrop that is not trusted or was given as an object.
        TrainingFailed: The repetition failed.
    """
    from earlydrop.training.compose import config_from_dict
    from earlydrop.training.outside import check_trusted
    from earlydrop.training.plan import make_plan
    from earlydrop.training.run import run as train

    _check_finished(run)
    provenance = read_provenance(run)
    config = config_from_dict(read_config(run))
    check_trusted(
        file=run / "config.yaml",
        config=config,
        trust=trust,
        purpose="running it again",
        how="--trust",
    )
    config.out = str(out)
    config.mode = "train"
    config.resume = "never"
    config.tracking.mode = "off"
    config.threads = provenance["environment"].get("threads")
    plan = make_plan(config)
    if plan.folder.resolve() == run.resolve():
        instead = "give another folder, so that there is something to compare"
        raise ConfigError(f"--out {out} is where the run itself is: {instead}")
    if plan.fingerprint != provenance["fingerprint"]:
        commit = f", commit {provenance['commit']}" if provenance["commit"] else ""
        raise ConfigError(
            f"the configuration's fingerprint is {plan.fingerprint}, but "
            f"{provenance['fingerprint']} in the run: the data, the code named in the "
            "configuration or the numerics of earlydrop changed; install earlydrop "
            f"{provenance['earlydrop']}{commit}"
        )
    repetition = Path(train(config)["folder"])
    return first_difference(*(read_metrics(folder / METRICS) for folder in (run, repetition)))


def _check_finished(run: Path) -> None:
    """Refuse a folder that is not a finished run; warn of files that were changed since."""
    if not run.is_dir():
        raise ConfigError(f"there is no folder {run}: give the folder of a finished run")
    runs = [] if (run / STATUS).exists() else [path for path in find_runs(run) if path != run]
    if runs:
        instead = f"give one of them, such as {runs[0]}"
        raise ConfigError(f"{run} is a folder of {len(runs)} runs: {instead}")
    if read_status(run).get("state") != "finished":
        state = f"is not a finished run according to its {STATUS}"
        raise ConfigError(f"{run} {state}: there is nothing to compare with")
    for name in changed_files(run):
        changed = "was changed after the run: it does not match its digest in"
        print(f"warning: {run / name} {changed} {STATUS}", file=sys.stderr)


@command
def main() -> None:
    """Train a run again and compare."""
    parser = argparse.ArgumentParser(
        prog="earlydrop-reproduce",
        allow_abbrev=False,
        description="Train a run again, and say whether its metrics are identical.",
    )
    parser.add_argument("folder", type=Path, help="the folder of a finished run")
    parser.add_argument(
        "--out",
        type=Path,
        help="where the new run goes (default: a temporary folder)",
    )
    parser.add_argument(
        "--trust",
        action="store_true",
        help="import the code from outside earlydrop that the configuration names",
    )
    arguments = parser.parse_args()
    from earlydrop.training.endings import TrainingFailed

    with tempfile.TemporaryDirectory() as temporary:
        try:
            out = arguments.out or Path(temporary)
            difference = reproduce(arguments.folder, out, arguments.trust)
        except (ConfigError, TrainingFailed, OSError) as error:
            raise SystemExit(f"error: {error}") from None
    print(f"different: {difference}" if difference else "identical: every metric of every step")
    raise SystemExit(1 if difference else 0)


if __name__ == "__main__":
    main()
