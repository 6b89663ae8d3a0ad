"""Tracking with Weights & Biases or another backend.

It is offline by default, and never asks for input.
"""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import netrc
import os
import re
import shutil
import socket
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from earlydrop.metrics import METRICS, improved
from earlydrop.training.names import first_line
from earlydrop.training.record.trackers import BACKENDS, Opened

log = logging.getLogger(__name__)

STEP = "trainer/step"
TIMING = "timing/"
"""The prefix of the names of values from ``timing.jsonl``."""
URL_FILE = "wandb/url.txt"
"""The file in a run's folder that holds the address of its W&B page, if it was online."""
_FINISH_TIMEOUT = 60  # seconds
_LONGEST_ID = 60  # characters


class Tracker:
    """One run on a dashboard, or nothing. Every metric is logged against the training step.

    An error of the dashboard never ends a run. A warning says so, and training continues without
    the dashboard.
    """

    def __init__(self, run: Any) -> None:
        self._run = run
        # W&B draws its charts against a metric, so the step is logged as a metric too.
        self._is_wandb = not isinstance(run, tuple(BACKENDS.values()))
        self._last: dict[str, float] = {}
        self._best: dict[str, float] = {}
        self._timing: dict[int, dict[str, float]] = {}

    def add_timing(self, line: dict[str, float]) -> None:
        """Store a line of ``timing.jsonl``. `log` adds it to the metrics of its step."""
        named = {f"{TIMING}{name}": value for name, value in line.items() if name != "step"}
        self._timing = {int(line["step"]): named}

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """Log the metrics measured after ``step`` optimizer steps."""
        if self._run is None:
            return
        self._last |= metrics
        for name, value in metrics.items():
            known = METRICS.get(name)
            if known is None or not known.summarised:
                continue
            if name not in self._best or improved(name, value, self._best[name]):
                self._best[name] = value
        first_to_send = getattr(self._run, "starting_step", 0)  # earlier steps are on the server
        axis = {STEP: step} if self._is_wandb else {}
        if step >= first_to_send:
            logged = axis | metrics | self._timing.pop(step, {})
            self._try(lambda: self._run.log(logged, step=step))

    def replay(self, lines: list[dict[str, float]], timing: list[dict[str, float]]) -> None:
        """Log the past of a resumed run again: a killed process may not have written all of it.

        Args:
            lines: Those of ``metrics.jsonl``.
            timing: Those of ``timing.jsonl``. If a step was trained twice, its last line is used.
        """
        timed = {int(line["step"]): line for line in timing}
        for line in lines:
            if int(line["step"]) in timed:
                self.add_timing(timed[int(line["step"])])
            self.log(
                int(line["step"]), {name: value for name, value in line.items() if name != "step"}
            )

    def summarise(self, values: dict[str, Any]) -> None:
        """Write the final and best values of the metrics, and ``values``, to the summary."""
        if self._run is None:
            return
        final = {f"final/{name}": value for name, value in self._last.items()}
        best = {f"best/{name}": value for name, value in self._best.items()}
        self._try(lambda: self._run.summary.update(final | best | values))

    def _try(self, act: Callable[[], object]) -> None:
        try:
            act()
        except Exception as error:
            log.warning(
                "tracking failed (%s): going on without it; the files in the folder are complete",
                first_line(error),
            )
            self._run = None


def _reachable(url: str) -> bool:
    """Whether something answers at the server's address within 3 seconds.

    True if a proxy is set for it: then the address itself need not answer.
    """
    parts = urllib.parse.urlsplit(url)
    if parts.scheme in urllib.request.getproxies():
        return True
    port = parts.port or (443 if parts.scheme == "https" else 80)
    try:
        socket.create_connection((parts.hostname or "", port), timeout=3).close()
    except OSError:
        return False
    return True


def _has_key(url: str) -> bool:
    """Whether there is a key in WANDB_API_KEY, or in a netrc file (that of NETRC, else ~/.netrc).

    While another run is open, `wandb.login` only warns and returns False, so it cannot be asked.
    """
    if os.environ.get("WANDB_API_KEY"):
        return True
    try:
        return (
            netrc.netrc(os.environ.get("NETRC")).authenticators(
                urllib.parse.urlsplit(url).hostname or ""
            )
            is not None
        )
    except (OSError, netrc.NetrcParseError):
        return False


def _usable_mode(mode: str) -> str:
    """``online`` only if there is a key and a network; one warning otherwise."""
    if mode != "online":
        return mode
    import wandb

    # Without silent, wandb.login would ask the server for the user's name. Without mode, it would
    # not look for a key under WANDB_MODE=offline.
    settings = wandb.setup(settings=wandb.Settings(silent=True, mode="online")).settings
    try:
        if wandb.run is None:
            has_key = wandb.login(prompt=False, verify=False)
        else:  # an online run of the user has one
            has_key = not wandb.run.offline or _has_key(settings.base_url)
        reason = None if has_key else "there is no API key (wandb login)"
    except wandb.errors.AuthenticationError as error:
        reason = f"the API key is not valid ({first_line(error)})"
    if reason is None and not _reachable(settings.base_url):
        reason = f"{urllib.parse.urlsplit(settings.base_url).hostname} does not answer"
    if reason is not None:
        log.warning(
            "tracking=online is not possible, %s: tracking offline; `wandb sync` uploads it later",
            reason,
        )
        return "offline"
    return mode


def run_id(study: str, fingerprint: str) -> str:
    """A run's id, the same every time that it is resumed.

    It has at most 60 letters, digits, dashes, underscores and dots. If other characters had to be
    replaced, or the id is cut, it begins with a digest of study and fingerprint.
    """
    text = f"{study}-{fingerprint}"
    plain = re.sub(r"[^A-Za-z0-9_.-]+", "-", text)
    if plain == text and len(plain) <= _LONGEST_ID:
        return plain
    digest = hashlib.sha256(text.encode()).hexdigest()[:12]
    room = _LONGEST_ID - len(digest) - 1
    return f"{digest}-{plain[-room:]}"


@contextmanager
def tracking(opened: Opened) -> Iterator[tuple[Tracker, Any]]:
    """Context in which a run is open on the dashboard.

    An exception marks the run as failed, except a `KeyboardInterrupt`, which only stops it.

    Yields:
        The `Tracker`, and the backend's own run; the run is None if there is none.
    """
    options = opened.config.tracking
    start = _start if options.backend == "wandb" else BACKENDS[options.backend]
    run: Any = None
    if options.mode != "off":
        try:
            run = start(opened)
        except Exception as error:
            log.warning(
                "tracking is not possible (%s): going on without it; the files in the folder are "
                "complete",
                first_line(error),
            )
    code = 1
    try:
        yield Tracker(run), run
        code = 0
    except KeyboardInterrupt:
        code = 0  # stopped, not failed: the same command resumes
        raise
    finally:
        if run is not None:
            began = time.monotonic()
            try:
                run.finish(exit_code=code)
                took = time.monotonic() - began
                is_online_wandb = options.backend == "wandb" and options.mode == "online"
                if is_online_wandb and took > 0.9 * _FINISH_TIMEOUT:
                    log.warning(
                        "the upload took %.0f s and may have been cut off: `wandb sync "
                        "%s/wandb/*run-*` sends the rest",
                        took,
                        opened.folder,
                    )
            except Exception as error:
                remedy = (
                    ": `wandb sync` uploads what is there" if options.backend == "wandb" else ""
                )
                log.warning("tracking could not be finished (%s)%s", first_line(error), remedy)


def _start(opened: Opened) -> Any:
    """Start a W&B run; offline where online fails."""
    import wandb

    _prepare_environment()
    config, folder, identity = opened.config, opened.folder, opened.identity
    if os.environ.get("WANDB_SWEEP_ID") and os.environ.get("WANDB_RUN_ID"):
        identity = os.environ["WANDB_RUN_ID"]  # a sweep's agent waits for this run
    # A run that the user has open in this process goes on.
    reinit: Any = "finish_previous" if wandb.run is None else "create_new"

    def start(mode: str) -> Any:
        if mode == "offline":
            _remove_offline_folders(folder, identity)
        return wandb.init(
            project=config.project,
            name=opened.name,
            group=config.study,
            job_type=opened.job_type,
            id=identity,
            resume="allow",
            mode=mode,  # type: ignore[arg-type]
            tags=[tag[:64] for tag in opened.tags],  # W&B refuses longer ones
            config=dataclasses.asdict(config) | opened.extra,
            dir=str(folder),
            reinit=reinit,
            settings=wandb.Settings(
                init_timeout=15,
                finish_timeout=_FINISH_TIMEOUT,
                silent=True,
                console="wrap" if config.tracking.console else "off",
                x_disable_stats=not config.tracking.system,
            ),
        )

    run = _start_or_fall_back(start, _usable_mode(config.tracking.mode), folder)
    run.define_metric(STEP)
    run.define_metric("*", step_metric=STEP)
    if not run.offline:
        try:
            (folder / URL_FILE).write_text(run.url + "\n", encoding="utf-8")
        except OSError as error:  # such as a full disk
            log.warning("%s could not be written (%s)", folder / URL_FILE, first_line(error))
    return run


def _prepare_environment() -> None:
    """Remove spaces around the API key, and the warnings that W&B prints when a process ends."""
    # W&B's own telemetry is shut down twice when a process ends, and warns of it after our last
    # line.
    logging.getLogger("opentelemetry").setLevel(logging.ERROR)
    key = os.environ.get("WANDB_API_KEY", "")
    if key != key.strip():  # wandb refuses a key with a line break around it, even offline
        os.environ["WANDB_API_KEY"] = key.strip()


def _start_or_fall_back(start: Callable[[str], Any], mode: str, folder: Path) -> Any:
    """Start a run in a mode; where ``online`` fails, remove its attempt and start offline."""
    import wandb

    before = set(folder.glob("wandb/run-*"))
    no_other_run = wandb.run is None
    try:
        return start(mode)
    except (wandb.errors.CommError, wandb.errors.UsageError, TimeoutError, OSError) as error:
        if mode != "online":
            raise
        log.warning(
            "tracking=online failed (%s): tracking offline; `wandb sync` uploads it later",
            first_line(error),
        )
        if no_other_run:
            wandb.teardown()  # it ends every run of the process
        for attempt in set(folder.glob("wandb/run-*")) - before:
            shutil.rmtree(attempt, ignore_errors=True)
        return start("offline")


def _remove_offline_folders(folder: Path, identity: str) -> None:
    """Remove the offline folders of earlier processes that were not synced.

    The run's whole past is logged again.
    """
    for offline in folder.glob(f"wandb/offline-run-*-{identity}"):
        if not list(offline.glob("*.synced")):
            shutil.rmtree(offline, ignore_errors=True)
