"""``earlydrop list``: the studies, how long each takes, and how many of its runs exist."""

from __future__ import annotations

import re
import shutil
import textwrap
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import yaml

from earlydrop.training.compose import conf_folder
from earlydrop.training.names import study_folder
from earlydrop.training.record.folder import STATUS, read_status

TIMES = "times.yaml"
"""The file in a folder of configurations that says how long each study takes, by its name."""


class Listed(NamedTuple):
    """A study.

    Attributes:
        name: What ``experiment=`` takes.
        time: How long it takes; empty if the file `TIMES` of its folder does not say.
        runs: How many of its runs are below ``out``, by their state; empty if there are none.
        what: The first sentence of its header.
    """

    name: str
    time: str
    runs: str
    what: str


def list_studies(out: str = "runs", folders: Iterable[Path] = ()) -> list[Listed]:
    """Every study of the package, and of further folders of configurations.

    Args:
        out: The folder whose runs are counted.
        folders: Further folders of configurations.

    Returns:
        The studies, folder by folder; within a folder they are sorted by path.

    Raises:
        ValueError: A file `TIMES` does not map names to texts.
    """
    studies = []
    for folder in (conf_folder(), *folders):
        times = _times(folder)
        root = folder / "experiment"
        for path in sorted(root.rglob("*.yaml")):
            text = path.read_text(encoding="utf-8")
            name = path.relative_to(root).with_suffix("").as_posix()
            runs = _runs_by_state(out, (yaml.safe_load(text) or {}).get("study"))
            studies.append(Listed(name, times.get(name, ""), runs, _first_sentence(text)))
    return studies


def _times(folder: Path) -> dict[str, str]:
    """How long the studies of a folder take, by name.

    Raises:
        ValueError: The file does not map names to texts.
    """
    file = folder / TIMES
    times = yaml.safe_load(file.read_text(encoding="utf-8")) if file.is_file() else {}
    if not isinstance(times, dict) or not all(isinstance(time, str) for time in times.values()):
        example = "mine/study: about 4 minutes"
        raise ValueError(f"{file}: expected a line for each study, such as {example}")
    return times


def _runs_by_state(out: str, study: str | None) -> str:
    """How many runs of a study are below ``out``, by their state."""
    if not study:
        return ""
    folders = [status.parent for status in sorted(study_folder(out, study).glob(f"*/{STATUS}"))]
    states = Counter(read_status(folder).get("state", "unknown") for folder in folders)
    return ", ".join(f"{count} {state}" for state, count in sorted(states.items()))


def _first_sentence(text: str) -> str:
    """The first sentence of the comment below ``# @package``."""
    lines = []
    for line in text.splitlines()[1:]:
        if not line.startswith("#") or line.strip() == "#":
            break
        lines.append(line[1:].strip())
    return re.split(r"(?<=[a-z0-9)][.?]) ", " ".join(lines))[0].removesuffix(".")


def main(out: str = "runs", folders: Iterable[Path] = ()) -> None:
    """Print the list: for each study a line with its time and runs, then what it is."""
    columns = min(shutil.get_terminal_size().columns, 120)
    studies = list_studies(out, folders)
    longest = max(len(study.name) for study in studies)
    print(f"earlydrop experiment=NAME trains one of these. Runs below {Path(out)}/ are counted.\n")
    for study in studies:
        runs = f"[{study.runs}]" if study.runs else ""
        parts = [study.name.ljust(longest), study.time, runs]
        print("  ".join(filter(None, parts)).rstrip())
        print(textwrap.fill(study.what, columns, initial_indent="    ", subsequent_indent="    "))
