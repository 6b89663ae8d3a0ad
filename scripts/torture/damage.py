"""Damage to the files of a finished study.

A command that reads the study must print what it printed before, or name the damaged file. It must
never print a traceback, or other numbers without saying so.
"""

from __future__ import annotations

import dataclasses
import json
import random
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from torture.commands import Outcome, fork
from torture.tally import Tally

COUNT = 200
TRAIN = [
    "-m", "experiment=findings/smoke", "hydra/launcher=basic",
    "schedule={name:none},{name:constant}", "seed=0,1", "threads=1", "out=runs",
]  # fmt: skip
STUDY = Path("runs/smoke")
NEEDED = ("metrics.jsonl", "config.yaml", "provenance.json")  # without one of them, a run is lost
UNREAD = ("log.txt", ".lock")


def flip(content: bytes, rng: random.Random) -> bytes:
    """The content with one bit flipped."""
    if not content:
        return b"\1"
    at = rng.randrange(len(content))
    return content[:at] + bytes([content[at] ^ 1 << rng.randrange(8)]) + content[at + 1 :]


def digit(content: bytes, rng: random.Random) -> bytes:
    """The content with one digit replaced by another; with one bit flipped if it has no digit."""
    places = [i for i, byte in enumerate(content) if chr(byte).isdigit()]
    if not places:
        return flip(content, rng)
    at = rng.choice(places)
    other = rng.choice([c for c in b"0123456789" if c != content[at]])
    return content[:at] + bytes([other]) + content[at + 1 :]


def _insert(line: bytes) -> Callable[[bytes, random.Random], bytes]:
    """A mutation that inserts a line at a random place."""

    def mutate(content: bytes, rng: random.Random) -> bytes:
        lines = content.splitlines(keepends=True)
        at = rng.randint(0, len(lines))
        return b"".join([*lines[:at], line, *lines[at:]])

    return mutate


MUTATIONS: dict[str, Callable[[bytes, random.Random], bytes | None]] = {
    "flip": flip,
    "digit": digit,
    "truncate": lambda content, rng: content[: rng.randrange(max(len(content), 1))],
    "empty": lambda content, rng: b"",
    "garbage": _insert(b"%%% garbage {\n"),
    "blank": _insert(b"\n"),
    "binary": lambda content, rng: rng.randbytes(200),
    "list": lambda content, rng: b"[]",
    "null": lambda content, rng: b"null",
    "delete": lambda content, rng: None,
}


def mutations(files: list[str], seed: int, count: int) -> list[tuple[str, str, int]]:
    """Files, mutations and seeds: every sort of file in every way, then at random."""
    rng = random.Random(seed)
    sorts: dict[str, list[str]] = {}
    for file in files:
        name = Path(file).name
        sorts.setdefault(Path(name).suffix if name.startswith("step-") else name, []).append(file)
    chosen = [(rng.choice(group), how) for group in sorts.values() for how in MUTATIONS]
    read = [file for file in files if Path(file).name not in UNREAD]
    while len(chosen) < count:
        chosen.append(
            (
                rng.choice(read),
                rng.choice(("flip", "digit", "truncate", "garbage", "blank", "binary")),
            )
        )
    return [(file, how, rng.randrange(2**32)) for file, how in chosen[:count]]


def named(file: str, text: str) -> bool:
    """Whether an output names a file; line breaks that a terminal's width puts in do not matter."""
    return Path(file).name in text.replace("\n", "")


def meaning(path: Path) -> Any:
    """The parsed content of a needed file; of ``provenance.json``, the fingerprint alone."""
    try:
        if path.name == "config.yaml":
            return yaml.safe_load(path.read_text())
        if path.name == "metrics.jsonl":
            return [json.loads(line) for line in path.read_text().splitlines() if line]
        return json.loads(path.read_text())["fingerprint"]
    except (ValueError, yaml.YAMLError, TypeError, KeyError):
        return f"cannot be read: {path.read_bytes()!r}"


@dataclass
class _Trial:
    """One mutated file, in a study that is put back for every command."""

    tally: Tally
    case: str
    file: str
    said: str
    root: Path
    mutated: bytes | None

    def outcome(self, command: str, arguments: list[str]) -> Outcome:
        cwd = self.root / "work"
        shutil.rmtree(cwd, ignore_errors=True)
        shutil.copytree(self.root / "whole", cwd)
        if self.mutated is None:
            (cwd / self.file).unlink()
        else:
            (cwd / self.file).write_bytes(self.mutated)
        done = fork(command, arguments, cwd)
        return dataclasses.replace(done, shown=f"{done.shown}   (after: {self.said})")

    def reads(self, command: str, arguments: list[str], expected: str, made: str | None) -> None:
        """A reading command must print, and write, what it did before, or name the file."""
        done = self.outcome(command, arguments)
        if self.tally.crash(self.case, done) or named(self.file, done.text):
            return
        table = (
            (self.root / "work" / made).read_text()
            if made and (self.root / "work" / made).is_file()
            else ""
        )
        if done.out + table == expected and done.code == 0:
            return
        kind = "silent" if done.code == 0 else "other"
        seen = (
            _first_difference(expected, done.out + table)
            if done.code == 0
            else f"not named: {done.last_line}"
        )
        self.tally.fail(kind, self.case, done.shown, seen)

    def reproduces(self, run: str) -> None:
        """Train a run's configuration again: identical, or the file or a metric of it is named."""
        done = self.outcome("reproduce", [run])
        if (
            self.tally.crash(self.case, done)
            or named(self.file, done.text)
            or (done.code == 0 and "identical" in done.out)
        ):
            return
        if not (
            done.code == 1
            and done.out.startswith("different: ")
            and self.file.endswith("metrics.jsonl")
        ):
            self.tally.fail(
                "silent" if done.code == 0 else "other",
                self.case,
                done.shown,
                f"not named: {done.last_line}",
            )

    def trains(self) -> None:
        """The same command must leave whole runs, or name what is damaged."""
        done = self.outcome("run", TRAIN)
        if self.tally.crash(self.case, done) or named(self.file, done.text):
            return
        if done.code != 0:
            self.tally.fail(
                "other",
                self.case,
                done.shown,
                f"exit code {done.code}, not named: {done.last_line}",
            )
            return
        for path in (self.root / "whole" / STUDY).glob("*/metrics.jsonl"):
            for name in NEEDED:
                self._compare(done, path.parent / name)

    def _compare(self, done: Outcome, before: Path) -> None:
        after = self.root / "work" / before.relative_to(self.root / "whole")
        if not after.is_file():
            self.tally.fail(
                "lost",
                self.case,
                done.shown,
                f"{after.name} is missing, and the command says that all is done",
            )
        elif meaning(after) != meaning(before):
            self.tally.fail(
                "silent",
                self.case,
                done.shown,
                f"{after.name} is not what it was, and the command says that all is done",
            )


def _first_difference(expected: str, seen: str) -> str:
    for a, b in zip(expected.splitlines(), seen.splitlines(), strict=False):
        if a != b:
            return f"exit code 0, not named, and {a.strip()[:120]!r} became {b.strip()[:120]!r}"
    return "exit code 0, not named, and lines are missing or new"


class _Whole:
    """The undamaged study, and what the reading commands say of it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        (root / "whole").mkdir()
        done = fork("run", TRAIN, root / "whole", limit=300)
        if done.code != 0:
            raise SystemExit(f"error: the study failed: {done.shown}\n{done.err}")
        study = root / "whole" / STUDY
        runs = [path.parent for path in study.glob("*/config.yaml")]
        self.files = sorted(
            str(path.relative_to(root / "whole"))
            for run in runs
            for path in run.rglob("*")
            if path.is_file()
        )
        shutil.copytree(root / "whole", root / "work")
        self.said: dict[tuple[str, str], str] = {}

    def expected(self, command: str, folder: str, made: str | None) -> str:
        key = (command, folder)
        if key not in self.said:
            done = fork(command, [folder], self.root / "work")
            if done.code != 0:
                raise SystemExit(f"error: {done.shown} failed on whole runs:\n{done.err}")
            self.said[key] = done.out + ((self.root / "work" / made).read_text() if made else "")
        return self.said[key]


def damage(tally: Tally) -> None:
    """Mutate each file of a finished study, then report, cite, reproduce, judge and train again."""
    root = Path(tempfile.mkdtemp(prefix="torture-")).resolve()
    try:
        whole = _Whole(root)
        made = list(enumerate(mutations(whole.files, tally.seed, COUNT)))
        for i, (file, how, seed) in tally.chosen(made, 2):
            if not tally.wants(str(i)):
                continue
            content = MUTATIONS[how]((root / "whole" / file).read_bytes(), random.Random(seed))
            _examine(
                _Trial(tally, str(i), file, f"{how} {file}", root, content),
                whole,
                judged=i % 4 == 0 and not (tally.short and tally.only is None),
            )
    finally:
        shutil.rmtree(root, ignore_errors=True)


def _examine(trial: _Trial, whole: _Whole, judged: bool) -> None:
    run = str(STUDY / Path(trial.file).relative_to(STUDY).parts[0])
    table = str(STUDY / "table.csv")
    shutil.rmtree(trial.root / "work")
    shutil.copytree(trial.root / "whole", trial.root / "work")
    expected = {
        command: whole.expected(command, folder, made)
        for command, folder, made in _reading(run, table, judged)
    }
    for command, folder, made in _reading(run, table, judged):
        trial.reads(command, [folder], expected[command], made)
    trial.reproduces(run)
    trial.trains()


def _reading(run: str, table: str, judged: bool) -> list[tuple[str, str, str | None]]:
    """Commands that read, with their folder and the table that they write.

    Judging draws many figures, so it is not run every time.
    """
    reading: list[tuple[str, str, str | None]] = [
        ("report", str(STUDY), table),
        ("cite", run, None),
    ]
    return [*reading, ("findings", str(STUDY), None)] if judged else reading
