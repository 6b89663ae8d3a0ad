"""``earlydrop-reproduce FOLDER``: run a run's configuration again and say whether its metrics came out identical."""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from earlydrop.analysis.runs import find_runs
from earlydrop.commands import command
from earlydrop.training.fields import ConfigError
from earlydrop.training.record.folder import STATUS, changed_files, read_config, read_metrics, read_provenance, read_status


def first_difference(ours: list[dict[str, float]], theirs: list[dict[str, float]]) -> str | None:
    """Where two ``metrics.jsonl`` part: the step, the metric and both values; None if they are identical."""
    for a, b in zip(ours, theirs, strict=False):
        if a != b:
            name = next(key for key in [*a, *b] if a.get(key) != b.get(key))
            return f"step {a['step']:g}, {name}: {a.get(name)} there, {b.get(name)} here"
    if len(ours) != len(theirs):
        return f"{len(ours)} lines there, {len(theirs)} here"
    return None


def reproduce(run: Path, out: Path, trust: bool = False) -> str | None:
    """Run a run's configuration again, elsewhere, without tracking; say where the metrics part, None if they are identical.

    What the configuration names of code from outside earlydrop is imported with ``trust`` alone.

    Raises:
        ConfigError: The folder is not a finished run, the configuration no longer has its fingerprint, or it names such code.
    """
    from earlydrop.training.compose import config_from_dict
    from earlydrop.training.outside import names_of
    from earlydrop.training.plan import make_plan
    from earlydrop.training.plugins import OBJECT
    from earlydrop.training.run import run as train

    runs = [] if (run / STATUS).exists() else list(find_runs(run))
    if runs:
        raise ConfigError(f"{run} is a folder of {len(runs)} runs: give one of them, such as {runs[0]}")
    if read_status(run).get("state") != "finished":
        raise ConfigError(f"{run} is not a finished run, by its {STATUS}: there is nothing to compare with")
    for name in changed_files(run):
        print(f"warning: {run / name} is not what the run wrote, by the digest in its {STATUS}", file=sys.stderr)
    provenance = read_provenance(run)
    config = config_from_dict(read_config(run))
    named = names_of(config)
    objects = [name for name in named if name.partition("=")[2].startswith(OBJECT)]
    if objects:
        raise ConfigError(
            f"{run / 'config.yaml'}: {', '.join(objects)} was given as an object in Python: run the script that gave it"
        )
    if named and not trust:
        raise ConfigError(
            f"{run / 'config.yaml'} names code that is not earlydrop's ({', '.join(named)}), and running it again would import that "
            "code: look at it first, then say --trust"
        )
    config.out, config.tracking.mode, config.mode, config.resume = str(out), "off", "train", "never"
    config.threads = provenance["environment"].get("threads")
    plan = make_plan(config)
    if plan.folder.resolve() == run.resolve():
        raise ConfigError(f"--out {out} is where the run itself is: give another folder, so that there is something to compare")
    fingerprint = plan.fingerprint
    if fingerprint != provenance["fingerprint"]:
        raise ConfigError(
            f"the configuration's fingerprint is {fingerprint} here, {provenance['fingerprint']} there: the data, the code that it names "
            f"or the numerics of earlydrop changed; install version {provenance['earlydrop']}"
            + (f", commit {provenance['commit']}" if provenance["commit"] else "")
        )
    result = train(config)
    return first_difference(*(read_metrics(Path(folder) / "metrics.jsonl") for folder in (run, result["folder"])))


@command
def main() -> None:
    """Run a cited configuration again and compare."""
    parser = argparse.ArgumentParser(
        allow_abbrev=False, prog="earlydrop-reproduce", description="Run a run's configuration again; are the metrics identical?"
    )
    parser.add_argument("folder", type=Path, help="the folder of a finished run")
    parser.add_argument("--out", type=Path, help="where the new run goes (default: a temporary folder)")
    parser.add_argument("--trust", action="store_true", help="import the code from outside earlydrop that the configuration names")
    arguments = parser.parse_args()
    from earlydrop.training.endings import TrainingFailed

    with tempfile.TemporaryDirectory() as temporary:
        try:
            difference = reproduce(arguments.folder, arguments.out or Path(temporary), arguments.trust)
        except (ConfigError, TrainingFailed, OSError) as error:
            raise SystemExit(f"error: {error}") from None
    print(f"different: {difference}" if difference else "identical: every metric of every step")
    raise SystemExit(difference is not None)


if __name__ == "__main__":
    main()
