"""Citing: BibTeX for the paper, this software and one run, and the command that reproduces the run."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path
from typing import Any

import yaml

from earlydrop.analysis.runs import find_runs
from earlydrop.training.files import read_json

PAPER = """@inproceedings{liu2023dropout,
  title     = {Dropout Reduces Underfitting},
  author    = {Liu, Zhuang and Xu, Zhiqiu and Jin, Joseph and Shen, Zhiqiang and Darrell, Trevor},
  booktitle = {International Conference on Machine Learning},
  year      = {2023},
  note      = {arXiv:2303.01500},
}"""
_NOT_NUMBERS = ("out", "device", "threads", "resume", "tracking", "project", "tags", "mode", "study", "label")


def command(config: dict[str, Any]) -> str:
    """The command line that makes a run with this configuration's numbers.

    Args:
        config: A run's whole configuration.

    Returns:
        ``earlydrop`` and an override for every value that is not the default.
    """
    from hydra import compose, initialize_config_dir
    from hydra.core.config_store import ConfigStore
    from omegaconf import OmegaConf

    from earlydrop.cli import conf_folder
    from earlydrop.training.config import Config

    ConfigStore.instance().store(name="schema", node=Config)
    with initialize_config_dir(str(conf_folder()), version_base="1.3"):
        default = OmegaConf.to_container(compose("config"))
    overrides = [
        f"{key}={_plain(value)}" for key, value in _differences(config, default) if key.partition(".")[0] not in _NOT_NUMBERS
    ]
    return shlex.join(["earlydrop", *overrides])


def _differences(config: dict[str, Any], default: Any, prefix: str = "") -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for key, value in config.items():
        other = default.get(key) if isinstance(default, dict) else None
        if isinstance(value, dict):
            found += _differences(value, other, f"{prefix}{key}.")
        elif value != other:
            found.append((prefix + key, value))
    return found


def _plain(value: Any) -> str:
    """A value in Hydra's override grammar."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return "[" + ",".join(_plain(item) for item in value) + "]"
    text = str(value)
    return "'" + text.replace("'", "\\'") + "'" if isinstance(value, str) and any(c in text for c in ',:={}[]() @"') else text


def citation(run: Path) -> str:
    """Everything that cites one run.

    Args:
        run: The run's folder.

    Returns:
        BibTeX for the paper, the software and the run, and the command that reproduces it.
    """
    provenance = read_json(run / "provenance.json")
    config = yaml.safe_load((run / "config.yaml").read_text())
    version, commit, fingerprint = provenance["earlydrop"], provenance["commit"], provenance["fingerprint"]
    where = f"version {version}" + (f", commit {commit}" if commit else "")
    if provenance.get("diff"):
        where += " with uncommitted changes (see provenance.json)"
    software = f"""@software{{earlydrop,
  title   = {{earlydrop: dropout schedules and gradient measures for PyTorch}},
  author  = {{{{The earlydrop developers}}}},
  version = {{{version}}},
  year    = {{2026}},
}}"""
    entry = f"""@misc{{earlydrop-{fingerprint},
  title  = {{{config["model"]["name"]} on {config["data"]["name"]}, {provenance["arm"]}, seed {config["seed"]}}},
  author = {{{{The earlydrop developers}}}},
  note   = {{earlydrop run {fingerprint}, {where}}},
  year   = {{2026}},
}}"""
    return "\n\n".join([PAPER, software, entry, f"Reproduce it:\n\n  {command(config)}"])


def main() -> None:
    """Print how to cite and reproduce the runs in a folder."""
    parser = argparse.ArgumentParser(prog="earlydrop-cite", description="BibTeX for the paper, this software and a run.")
    parser.add_argument("folder", type=Path, help="a run's folder, or a folder of runs")
    arguments = parser.parse_args()
    runs = list(find_runs(arguments.folder))
    if not runs:
        raise SystemExit(f"error: {arguments.folder} holds no runs: a run's folder has a config.yaml and a provenance.json")
    for i, run in enumerate(runs):
        text = citation(run)
        print(text if i == 0 else "\n" + text.split("\n\n", 2)[2])


if __name__ == "__main__":
    main()
