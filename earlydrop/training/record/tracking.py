"""Tracking with Weights & Biases or another backend: offline by default, never a prompt."""

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
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from earlydrop.metrics import METRICS, improved
from earlydrop.training.config import Config
from earlydrop.training.keys import keys
from earlydrop.training.names import first_line
from earlydrop.training.record.trackers import BACKENDS, Opened

log = logging.getLogger(__name__)

STEP = "trainer/step"
TIMING = "timing/"
"""The prefix of the names of values from ``timing.jsonl``."""
URL = "wandb/url.txt"
"""The file in a run's folder that holds the address of its W&B page, if it was online."""
_FINISH_TIMEOUT = 60  # seconds
_LONGEST_ID = 60  # characters


class Tracker:
    """One run on a dashboard, or nothing. Every metric is logged against the training step.

    An error of the dashboard never ends a run. It is logged once, and training continues without
    the dashboard.
    """

    def __init__(self, run: Any) -> None:
        self._run = run
        # W&B draws its charts against a metric, so the step is logged as a metric too.
        self._logs_step = type(run) not in BACKENDS.values()
        self._last: dict[str, float] = {}
        self._best: dict[str, float] = {}
        self._timing: dict[int, dict[str, float]] = {}

    def time(self, line: dict[str, float]) -> None:
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
        on_server = getattr(self._run, "starting_step", 0)  # these steps are not sent again
        axis = {STEP: step} if self._logs_step else {}
        if step >= on_server:
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
                self.time(timed[int(line["step"])])
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
                "tracking failed (%s): going on without it; metrics.jsonl has everything",
                _first_line(error),
            )
            self._run = None


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _reachable(url: str) -> bool:
    """Whether something answers at the server's address within 3 seconds."""
    parts = urllib.parse.urlsplit(url)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    try:
        socket.create_connection((parts.hostname or "", port), timeout=3).close()
    except OSError:
        return False
    return True


def _has_key(url: str) -> bool:
    """Whether the environment or ~/.netrc holds a key.

    `wandb.login` would check this too, but while another run is open it only warns.
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
        known = (
            wandb.login(prompt=False, verify=False)
            if wandb.run is None
            else _has_key(settings.base_url)
        )
        reason = None if known else "there is no API key (wandb login)"
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

    Args:
        study: The study.
        fingerprint: The run's fingerprint.

    Returns:
        At most 60 letters, digits and dashes. A longer id is cut, and begins with a digest of the
        whole id.
    """
    text = f"{study}-{fingerprint}"
    plain = re.sub(r"[^A-Za-z0-9-]+", "-", text).strip("-")
    if len(plain) <= _LONGEST_ID:
        return plain
    digest = hashlib.sha256(text.encode()).hexdigest()[:12]
    return f"{digest}-{plain[len(digest) + 1 - _LONGEST_ID :]}"


@contextmanager
def tracking(
    config: Config,
    *,
    folder: Path,
    name: str,
    identity: str,
    job_type: str,
    tags: list[str],
    extra: dict[str, Any],
) -> Iterator[tuple[Tracker, Any]]:
    """Context in which a run is open on the dashboard.

    An exception marks the run as failed, except a `KeyboardInterrupt`, which only stops it.
    ``extra`` is recorded with the configuration.

    Yields:
        The `Tracker`, and the backend's own run; the run is None if there is none.
    """
    start = _start if config.tracking.backend == "wandb" else _start_other
    run = None
    if config.tracking.mode != "off":
        run = start(
            config,
            folder=folder,
            name=name,
            identity=identity,
            job_type=job_type,
            tags=tags,
            extra=extra,
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
                if (
                    config.tracking.mode == "online"
                    and time.monotonic() - began > 0.9 * _FINISH_TIMEOUT
                ):
                    log.warning(
                        "the upload was cut off after %d s: `wandb sync %s/wandb/*run-*` sends the "
                        "rest",
                        _FINISH_TIMEOUT,
                        folder,
                    )
            except Exception as error:
                upload = (
                    ": `wandb sync` uploads what is there"
                    if config.tracking.backend == "wandb"
                    else ""
                )
                log.warning("tracking could not be finished (%s)%s", _first_line(error), upload)


def _start_other(
    config: Config,
    folder: Path,
    name: str,
    identity: str,
    job_type: str,
    tags: list[str],
    extra: dict[str, Any],
) -> Any:
    """A run of another backend; None where it cannot be opened."""
    settings = {key: each.of(config) for key, each in keys().items()} | extra
    online = config.tracking.mode == "online"
    try:
        return BACKENDS[config.tracking.backend](
            Opened(
                folder=folder,
                name=name,
                identity=identity,
                project=config.project,
                tags=tags,
                settings=settings,
                online=online,
            )
        )
    except Exception as error:
        log.warning(
            "tracking is not possible (%s): going on without it; metrics.jsonl has everything",
            _first_line(error),
        )
        return None


def _start(
    config: Config,
    folder: Path,
    name: str,
    identity: str,
    job_type: str,
    tags: list[str],
    extra: dict[str, Any],
) -> Any:
    """Start a W&B run; offline where online fails; None where that fails too."""
    import wandb

    _prepare_environment()
    if os.environ.get("WANDB_SWEEP_ID") and os.environ.get("WANDB_RUN_ID"):
        identity = os.environ["WANDB_RUN_ID"]  # a sweep's agent waits for this run
    # A run that the user has open in this process goes on.
    reinit: Any = "finish_previous" if wandb.run is None else "create_new"

    def start(mode: str) -> Any:
        if mode == "offline":
            _forget_fragments(folder, identity)
        return wandb.init(
            project=config.project,
            name=name,
            group=config.study,
            job_type=job_type,
            id=identity,
            resume="allow",
            mode=mode,  # type: ignore[arg-type]
            tags=[tag[:64] for tag in tags],
            config=dataclasses.asdict(config) | extra,
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

    try:
        run = _start_or_fall_back(start, _usable_mode(config.tracking.mode), folder)
        run.define_metric(STEP)
        run.define_metric("*", step_metric=STEP)
        if not run.offline:
            (folder / URL).write_text(run.url + "\n", encoding="utf-8")
    except Exception as error:
        log.warning(
            "tracking is not possible (%s): going on without it; metrics.jsonl has everything",
            _first_line(error),
        )
        return None
    return run


def _prepare_environment() -> None:
    """Prepare the process for W&B: a plain key, and silence at its end."""
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
    try:
        return start(mode)
    except (wandb.errors.CommError, wandb.errors.UsageError, TimeoutError, OSError) as error:
        if mode != "online":
            raise
        log.warning(
            "tracking=online failed (%s): tracking offline; `wandb sync` uploads it later",
            _first_line(error),
        )
        wandb.teardown()
        for attempt in set(folder.glob("wandb/run-*")) - before:
            shutil.rmtree(attempt, ignore_errors=True)
        return start("offline")


def _forget_fragments(folder: Path, identity: str) -> None:
    """Remove the offline fragments of earlier processes: the run's whole past is logged again."""
    for fragment in folder.glob(f"wandb/offline-run-*-{identity}"):
        if not list(fragment.glob("*.synced")):
            shutil.rmtree(fragment, ignore_errors=True)
