"""The tries of a part, and its failures."""

from __future__ import annotations

import random
import time
from collections import Counter
from dataclasses import dataclass, field

from torture.commands import Outcome

KINDS = {
    "traceback": "tracebacks",
    "silent": "silent acceptances",
    "orphan": "orphans",
    "lost": "lost runs",
    "other": "other faults",
}


@dataclass
class Tally:
    """Counts and failures of one part; ``only`` is the one case to try, None for all."""

    part: str
    short: bool
    seed: int = 0
    only: str | None = None
    tried: int = 0
    failures: list[tuple[str, str, str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    began: float = field(default_factory=time.monotonic)

    def wants(self, case: str) -> bool:
        """Whether to try a case; counts it if so."""
        is_wanted = self.only in (None, case)
        self.tried += is_wanted
        return is_wanted

    def fail(self, kind: str, case: str, command: str, seen: str) -> None:
        """Note a failure and show it at once: a part takes minutes."""
        repeat = f"python scripts/torture.py --only {self.part} --case {case!r}" + (
            f" --seed {self.seed}" if self.seed else ""
        )
        self.failures.append((kind, command, seen, repeat))
        print(f"  {kind}: {command}\n      {seen}\n      again: {repeat}", flush=True)

    def crash(self, case: str, outcome: Outcome) -> bool:
        """Note a traceback, a death by a signal or a timeout; return whether there was one."""
        if outcome.traceback:
            self.fail("traceback", case, outcome.shown, outcome.last_line)
        elif outcome.code is None:
            self.fail("other", case, outcome.shown, f"had not ended after {outcome.seconds:.0f} s")
        elif outcome.code < 0:
            self.fail("traceback", case, outcome.shown, f"died of signal {-outcome.code}")
        else:
            return False
        return True

    def chosen(self, items: list, few: int) -> list:
        """The items to try. The short form tries only ``few``, drawn with the seed.

        For a single case it is all, so that the case is among them.
        """
        if not self.short or self.only is not None or len(items) <= few:
            return items
        chosen = set(random.Random(self.seed).sample(range(len(items)), few))
        return [item for i, item in enumerate(items) if i in chosen]

    def line(self) -> str:
        """The part's line in the summary."""
        counts = Counter(kind for kind, *_ in self.failures)
        words = ", ".join(f"{counts[kind]} {name}" for kind, name in KINDS.items())
        return f"{self.part}: {self.tried} tried, {words} ({time.monotonic() - self.began:.0f} s)"
