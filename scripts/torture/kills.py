"""Kills and a full disk at every file operation; each run must end as an undisturbed one."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from torture.commands import TINY, Outcome, fork
from torture.faults import Faults
from torture.runs import differences
from torture.tally import Tally

RUN = [
    *TINY,
    "trainer.checkpoint_seconds=0",
    "trainer.eval_every=50%",
    "trainer.log_every=1",
    "out=runs",
]
NEVER = [*RUN, "resume=never"]


class _Place:
    """An undisturbed run, its file operations, and one folder per trial."""

    def __init__(self, root: Path) -> None:
        self.root, self.reference, self._trials = root, root / "undisturbed", 0
        self.fresh = self._operations("undisturbed", RUN)
        shutil.copytree(self.reference, root / "again")
        self.never = self._operations("again", NEVER)

    def _operations(self, name: str, arguments: list[str]) -> list[str]:
        cwd, log = self.root / name, self.root / f"{name}.log"
        cwd.mkdir(exist_ok=True)
        done = fork("run", arguments, cwd, Faults(cwd, log=log).install)
        if done.code != 0:
            raise SystemExit(f"error: the undisturbed run failed: {done.shown}\n{done.err}")
        return log.read_text().splitlines()

    def trial(self, finished: bool = False) -> Path:
        """A new folder, with the finished run in it or without."""
        self._trials += 1
        path = self.root / f"trial-{self._trials}"
        if finished:
            shutil.copytree(self.reference, path)
        else:
            path.mkdir()
        return path

    def attack(
        self, arguments: list[str], finished: bool, at: int, what: str
    ) -> tuple[Path, Outcome]:
        """A trial's folder, and how the attacked command ended."""
        cwd = self.trial(finished)
        return cwd, fork("run", arguments, cwd, Faults(cwd, at, what).install)


def _ends_whole(
    tally: Tally, case: str, arguments: list[str], place: _Place, cwd: Path, where: str
) -> None:
    """The command, given again, must end as the undisturbed run did."""
    done = fork("run", arguments, cwd)
    if tally.crash(case, done):
        return
    if done.code != 0:
        tally.fail(
            "lost", case, done.shown, f"after {where}: exit code {done.code}: {done.last_line}"
        )
    for words in differences(cwd, place.reference):
        tally.fail(
            "lost",
            case,
            done.shown,
            f"after {where}: {words}; it said: {done.out.strip().splitlines()[-1:]}",
        )


def kills(tally: Tally) -> None:
    """SIGKILL at every file operation of a run, of ``resume=never`` too; then a normal start."""
    with tempfile.TemporaryDirectory() as temporary:
        place = _Place(Path(temporary).resolve())
        cases = [("fresh", RUN, i, name) for i, name in enumerate(place.fresh)]
        cases += [("never", NEVER, i, name) for i, name in enumerate(place.never)]
        for kind, arguments, at, name in tally.chosen(cases, 5):
            case = f"{kind}-{at}"
            if not tally.wants(case):
                continue
            cwd, killed = place.attack(arguments, kind == "never", at, "kill")
            if killed.code == -9 or not tally.crash(case, killed):
                _ends_whole(
                    tally, case, RUN, place, cwd, f"SIGKILL of {kind} at operation {at} ({name})"
                )
            shutil.rmtree(cwd)


def disk(tally: Tally) -> None:
    """Fill the disk from some operation on: the command must print one line and exit with 1.

    With free space, the same command must finish the run.
    """
    with tempfile.TemporaryDirectory() as temporary:
        place = _Place(Path(temporary).resolve())
        grows = [
            (i, name) for i, name in enumerate(place.fresh) if name.split()[0] in ("write", "mkdir")
        ]
        for at, name in tally.chosen(grows, 3):
            case = f"full-{at}"
            if not tally.wants(case):
                continue
            cwd, failed = place.attack(RUN, False, at, "full")
            where = f"a disk that is full from operation {at} ({name})"
            if not tally.crash(case, failed):
                _refused_clearly(tally, case, failed, where)
            _ends_whole(tally, case, RUN, place, cwd, where)
            report = fork("report", ["runs/default"], cwd)
            if not tally.crash(case, report) and report.code != 0:
                tally.fail("lost", case, report.shown, f"after {where}: {report.last_line}")
            shutil.rmtree(cwd)


def _refused_clearly(tally: Tally, case: str, failed: Outcome, where: str) -> None:
    if failed.code == 0 and where.endswith("log.txt)"):
        return  # the run is whole; its log alone lacks its last lines
    if failed.code == 0:
        tally.fail("silent", case, failed.shown, f"exit code 0 on {where}")
    elif failed.code != 1 or failed.lines != 1:
        tally.fail(
            "other",
            case,
            failed.shown,
            f"exit code {failed.code} and {failed.lines} lines on {where}: {failed.last_line}",
        )
