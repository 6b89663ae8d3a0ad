"""Reproducing: run a cited configuration again and say whether its metrics came out identical."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import yaml

from earlydrop.training.config import ConfigError
from earlydrop.training.files import read_json, read_metrics


def first_difference(ours: list[dict[str, float]], theirs: list[dict[str, float]]) -> str | None:
    """Where two records of metrics part.

    Args:
        ours: Lines of one ``metrics.jsonl``.
        theirs: Lines of another.

    Returns:
        The step, the metric and both values; None if the two are identical.
    """
    for a, b in zip(ours, theirs, strict=False):
        if a != b:
            name = next(key for key in [*a, *b] if a.get(key) != b.get(key))
            return f"step {a['step']:g}, {name}: {a.get(name)} there, {b.get(name)} here"
    if len(ours) != len(theirs):
        return f"{len(ours)} lines there, {len(theirs)} here"
    return None


def reproduce(run: Path, out: Path) -> str | None:
    """Run a run's configuration again, elsewhere, without tracking.

    Args:
        run: The run's folder.
        out: Where the new run goes.

    Returns:
        Where the metrics part; None if they are identical.

    Raises:
        ConfigError: The folder is not a finished run, or the configuration no longer has its fingerprint.
    """
    from earlydrop.training.plan import make_plan
    from earlydrop.training.run import config_from_dict
    from earlydrop.training.run import run as train

    if read_json(run / "status.json").get("state") != "finished":
        raise ConfigError(f"{run} is not a finished run: there is nothing to compare with")
    provenance = read_json(run / "provenance.json")
    config = config_from_dict(yaml.safe_load((run / "config.yaml").read_text()))
    config.out, config.tracking, config.mode, config.resume = str(out), "off", "train", "auto"
    config.threads = provenance["environment"]["threads"]
    fingerprint = make_plan(config).fingerprint
    if fingerprint != provenance["fingerprint"]:
        raise ConfigError(
            f"the configuration's fingerprint is {fingerprint} here, {provenance['fingerprint']} there: the data or the numerics of "
            f"earlydrop changed; install version {provenance['earlydrop']}"
            + (f", commit {provenance['commit']}" if provenance["commit"] else "")
        )
    result = train(config)
    return first_difference(*(read_metrics(Path(folder) / "metrics.jsonl") for folder in (run, result["folder"])))


def main() -> None:
    """Run a cited configuration again and compare."""
    parser = argparse.ArgumentParser(
        prog="earlydrop-reproduce", description="Run a run's configuration again; are the metrics identical?"
    )
    parser.add_argument("folder", type=Path, help="the folder of a finished run")
    parser.add_argument("--out", type=Path, help="where the new run goes (default: a temporary folder)")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        try:
            difference = reproduce(arguments.folder, arguments.out or Path(temporary))
        except (ConfigError, FileNotFoundError) as error:
            raise SystemExit(f"error: {error}") from None
    print(f"different: {difference}" if difference else "identical: every metric of every step")
    raise SystemExit(difference is not None)


if __name__ == "__main__":
    main()
