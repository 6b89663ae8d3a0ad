"""``earlydrop list``: the studies there are, how long each takes, and what has been run of them here."""

from __future__ import annotations

import re
import shutil
import textwrap
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import yaml

from earlydrop.training.compose import conf_folder
from earlydrop.training.names import study_folder
from earlydrop.training.record.folder import STATUS, read_status

_FIELD = re.compile(r"^# (Time|Cost)\s+(.+)$", re.MULTILINE)


def list_studies(out: str = "runs", folders: Iterable[Path] = ()) -> list[tuple[str, str, str, str]]:
    """Name, time or cost, what has been run below ``out``, and the first sentence of every experiment's header.

    ``folders`` are further folders of configurations.
    """
    rows = []
    roots = [folder / "experiment" for folder in (conf_folder(), *folders)]
    files = [(root, path) for root in roots for path in sorted(root.rglob("*.yaml"))]
    for root, path in files:
        text = path.read_text(encoding="utf-8")
        words = " ".join(line[1:].strip() for line in _header(text))
        found = _FIELD.search(text)
        study = (yaml.safe_load(text) or {}).get("study")
        states = (
            Counter(
                read_status(status.parent).get("state", "unknown")
                for status in sorted(study_folder(out, study).glob(f"*/{STATUS}"))
            )
            if study
            else Counter()
        )
        done = ", ".join(f"{count} {state}" for state, count in sorted(states.items()))
        name, took = (
            path.relative_to(root).with_suffix("").as_posix(),
            re.split(r" on two cores|: 3 x", found[2])[0] if found else "",
        )
        rows.append((name, took, done, re.split(r"(?<=[a-z0-9)])\. ", words)[0]))
    return rows


def _header(text: str) -> list[str]:
    """The comment lines behind ``# @package`` up to the first empty one."""
    lines = []
    for line in text.splitlines()[1:]:
        if not line.startswith("#") or line.strip() == "#":
            break
        lines.append(line)
    return lines


def main(out: str = "runs", folders: Iterable[Path] = ()) -> None:
    """Print the list: for each study a line with its time and what has been run of it, then what it is."""
    columns = min(shutil.get_terminal_size().columns, 120)
    rows = list_studies(out, folders)
    names = max(len(name) for name, *_ in rows)
    print(f"earlydrop experiment=NAME trains one of these. Runs below {Path(out)}/ are counted.\n")
    for name, took, done, what in rows:
        print("  ".join(filter(None, [name.ljust(names), took, f"[{done}]" if done else ""])).rstrip())
        print(textwrap.fill(what, columns, initial_indent="    ", subsequent_indent="    "))
