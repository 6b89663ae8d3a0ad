"""``earlydrop-cite FOLDER``: BibTeX for paper, software and run, and the command to repeat it."""

from __future__ import annotations

import argparse
import re
import shlex
from pathlib import Path
from typing import Any

from earlydrop.analysis.arms import flat
from earlydrop.analysis.runs import find_runs
from earlydrop.commands import command
from earlydrop.training.compose import compose, literal
from earlydrop.training.keys import key_of
from earlydrop.training.plugins import OBJECT
from earlydrop.training.record.folder import (
    STATUS,
    DamagedFileError,
    changed_files,
    read_config,
    read_provenance,
)

PAPER = """@inproceedings{liu2023dropout,
  title     = {Dropout Reduces Underfitting},
  author    = {Liu, Zhuang and Xu, Zhiqiu and Jin, Joseph and Shen, Zhiqiang and Darrell, Trevor},
  booktitle = {International Conference on Machine Learning},
  year      = {2023},
  note      = {arXiv:2303.01500},
}"""


def command_line(config: dict[str, Any]) -> str:
    """The command line that repeats a run.

    It sets every cited key (`Key.cited`) that is not at its default.
    """
    default = flat(compose())
    overrides = []
    for key, value in flat(config).items():
        known = key_of(key)
        changed = key not in default or value != default[key]
        if changed and (known is None or known.cited):
            own = known is not None and key != known.name  # a key of the user's own code
            added = "+" if own else ""
            overrides.append(f"{added}{key}={_plain(value)}")
    return shlex.join(["earlydrop", *overrides])


_PLAIN = re.compile(
    r"(?!(?:null|true|false|inf|nan)$)[A-Za-z][\w./-]*(?::[A-Za-z]\w*)?|\d+(?:\.\d+)?(?:%|ep)",
    re.IGNORECASE | re.ASCII,
)
"""Strings that need no quotes in Hydra's grammar, and that are read as nothing but strings."""


def _plain(value: Any) -> str:
    """A value in Hydra's override grammar."""
    from hydra.core.override_parser.types import Quote, QuotedString

    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return "[" + ",".join(_plain(item) for item in value) + "]"
    if isinstance(value, dict):
        return "{" + ",".join(f"{key}:{_plain(entry)}" for key, entry in value.items()) + "}"
    if isinstance(value, str) and not _PLAIN.fullmatch(value):
        return str(QuotedString(literal(value), Quote.single).with_quotes())
    return str(value)


MADE_FROM = ("config.yaml", "provenance.json")
"""The files that a citation is made from."""


def citation(run: Path) -> str:
    """BibTeX for the paper, the software and a run, and the command that reproduces the run.

    Args:
        run: The run's folder.

    Returns:
        The parts as text, with an empty line between them.

    Raises:
        DamagedFileError: One of `MADE_FROM` is missing, damaged, or was changed after the run.
    """
    for name in changed_files(run):
        if name in MADE_FROM:
            digest = f"its digest in {STATUS}: one of the two was changed after the run"
            raise DamagedFileError(f"{run / name} does not match {digest}")
    provenance = read_provenance(run)
    config = read_config(run)
    version, commit = provenance["earlydrop"], provenance["commit"]
    fingerprint = provenance["fingerprint"]
    where = f"version {version}" + (f", commit {commit}" if commit else "")
    if provenance.get("diff"):
        where += " with uncommitted changes (see provenance.json)"
    software = f"""@software{{earlydrop,
  title   = {{earlydrop: dropout schedules and gradient measures for PyTorch}},
  author  = {{{{The earlydrop developers}}}},
  version = {{{version}}},
  year    = {{2026}},
}}"""
    code = _own_code(provenance)
    own = f", with {', '.join(code)}" if code else ""
    model, data, arm = config["model"]["name"], config["data"]["name"], provenance["arm"]
    entry = f"""@misc{{earlydrop-{fingerprint},
  title  = {{{_escaped(f"{model} on {data}, {arm}, seed {config['seed']}")}}},
  author = {{{{The earlydrop developers}}}},
  note   = {{{_escaped(f"earlydrop run {fingerprint}, {where}{own}")}}},
  year   = {{2026}},
}}"""
    return "\n\n".join([PAPER, software, entry, _repetition(config, bool(code))])


def _escaped(text: str) -> str:
    """Text with a backslash before the characters that LaTeX would read as commands."""
    return re.sub(r"([_%&#$])", r"\\\1", text)


def _repetition(config: dict[str, Any], own_code: bool) -> str:
    """How to run a configuration again."""
    given = [key for key in ("model", "data") if str(config[key]["name"]).startswith(OBJECT)]
    if given:
        were = "was" if len(given) == 1 else "were"
        objects = f"its {' and '.join(given)} {were} given as an object in Python"
        return f"No command reproduces it: {objects}. Publish the script with it."
    whose = "the user code named above, which is not part of earlydrop"
    needed = f" (it needs {whose})" if own_code else ""
    return f"Reproduce it{needed}:\n\n  {command_line(config)}"


def _own_code(provenance: dict[str, Any]) -> list[str]:
    """The user's own code that a run was made with, as its provenance names it. Imports nothing."""
    recorded = provenance.get("code", {})
    if not isinstance(recorded, dict):
        return []
    by_digest: dict[str, list[str]] = {}
    for code in recorded.values():
        if isinstance(code, dict) and {"name", "digest"} <= code.keys():
            by_digest.setdefault(str(code["digest"])[:12], []).append(str(code["name"]))
    return [f"{' and '.join(names)} (SHA-256 {digest})" for digest, names in by_digest.items()]


@command
def main() -> None:
    """Print how to cite and reproduce the runs in a folder."""
    parser = argparse.ArgumentParser(
        prog="earlydrop-cite",
        allow_abbrev=False,
        description="BibTeX for the paper, this software and a run.",
    )
    parser.add_argument("folder", type=Path, help="a run's folder, or a folder of runs")
    arguments = parser.parse_args()
    runs = list(find_runs(arguments.folder))
    if not runs:
        expected = "a run's folder has a config.yaml and a provenance.json"
        raise SystemExit(f"error: {arguments.folder} holds no runs: {expected}")
    texts, errors = [], []
    for run in runs:
        try:
            texts.append(citation(run))
        except DamagedFileError as error:
            errors.append(f"error: {error}")
    for i, text in enumerate(texts):
        print(text if i == 0 else "\n" + text.split("\n\n", 2)[2])
    if errors:
        raise SystemExit("\n".join(errors))


if __name__ == "__main__":
    main()
