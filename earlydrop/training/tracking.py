"""Tracking with Weights & Biases: offline by default, never a prompt, and never in the way of training."""

from __future__ import annotations

import dataclasses
import logging
import os
import re
import socket
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from earlydrop.training.config import Config

log = logging.getLogger(__name__)

STEP = "trainer/step"
_BEST = {"test/accuracy": max, "test/loss": min, "train_eval/loss": min}


class Tracker:
    """One run on a dashboard; every metric on the training step's axis.

    Args:
        run: The W&B run, or None for no tracking.
    """

    def __init__(self, run: Any) -> None:
        self._run = run
        self._last: dict[str, float] = {}
        self._best: dict[str, float] = {}

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """Log what was measured after ``step`` optimizer steps.

        Args:
            step: Optimizer steps done.
            metrics: Names and values.
        """
        if self._run is not None:
            self.remember(metrics)
            self._run.log({STEP: step} | metrics, step=step)

    def remember(self, metrics: dict[str, float]) -> None:
        """Take metrics into account for the summary without logging them again, as a resumed run must with its past.

        Args:
            metrics: Names and values, in the order of the steps.
        """
        self._last |= metrics
        for name, better in _BEST.items():
            if name in metrics:
                self._best[name] = better(metrics[name], self._best.get(name, metrics[name]))

    def summarise(self, values: dict[str, Any]) -> None:
        """Write final and best values to the summary.

        Args:
            values: Further values.
        """
        if self._run is not None:
            final = {f"final/{name}": value for name, value in self._last.items() if name != STEP}
            best = {f"best/{name}": value for name, value in self._best.items()}
            self._run.summary.update(final | best | values)


def _reachable(url: str) -> bool:
    """Whether something answers at the server's address within 3 seconds."""
    parts = urllib.parse.urlsplit(url)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    try:
        socket.create_connection((parts.hostname or "", port), timeout=3).close()
    except OSError:
        return False
    return True


def _usable_mode(mode: str) -> str:
    """``online`` only if there is a key and a network; one warning otherwise."""
    if mode != "online":
        return mode
    import wandb

    # silent: wandb.login would ask the server for the user's name; mode: under WANDB_MODE=offline it would not look for a key
    settings = wandb.setup(settings=wandb.Settings(silent=True, mode="online")).settings
    try:
        reason = None if wandb.login(prompt=False, verify=False) else "there is no API key (wandb login)"
    except wandb.errors.AuthenticationError as error:
        reason = f"the API key is not one ({str(error).splitlines()[0]})"
    if reason is None and not _reachable(settings.base_url):
        reason = f"{urllib.parse.urlsplit(settings.base_url).hostname} does not answer"
    if reason is not None:
        log.warning("tracking=online is not possible, %s: tracking offline; `wandb sync` uploads it later", reason)
        return "offline"
    return mode


def run_id(study: str, fingerprint: str) -> str:
    """A run's id, the same every time that it is resumed.

    Args:
        study: The study.
        fingerprint: The run's fingerprint.

    Returns:
        Letters, digits and dashes.
    """
    return re.sub(r"[^A-Za-z0-9-]+", "-", f"{study}-{fingerprint}")[-60:].strip("-")


@contextmanager
def tracking(
    config: Config, *, folder: Path, name: str, identity: str, job_type: str, tags: list[str], extra: dict[str, Any]
) -> Iterator[tuple[Tracker, Any]]:
    """Open a W&B run for as long as the context lasts; an exception in it marks the run failed.

    Args:
        config: The run's configuration: ``tracking``, ``project``, ``study``.
        folder: Where the tracking files go.
        name: The run's name.
        identity: The run's id.
        job_type: ``"train"`` or ``"report"``.
        tags: Tags.
        extra: Entries beside the configuration.

    Yields:
        The tracker, and the W&B run itself (None with ``tracking=off``).
    """
    if config.tracking == "off":
        yield Tracker(None), None
        return
    import wandb

    key = os.environ.get("WANDB_API_KEY", "")
    if key != key.strip():  # wandb refuses a key with a line break around it, even offline
        os.environ["WANDB_API_KEY"] = key.strip()

    def start(mode: str) -> Any:
        return wandb.init(
            project=config.project, name=name, group=config.study, job_type=job_type, id=identity, resume="allow", mode=mode,  # type: ignore[arg-type]
            tags=[tag[:64] for tag in tags], config=dataclasses.asdict(config) | extra, dir=str(folder), reinit="finish_previous",
            settings=wandb.Settings(init_timeout=15, finish_timeout=60, silent=True, console="off", x_disable_stats=True),
        )  # fmt: skip

    mode = _usable_mode(config.tracking)
    try:
        run = start(mode)
    except (wandb.errors.CommError, wandb.errors.UsageError, TimeoutError, OSError) as error:
        if mode != "online":
            raise
        log.warning("tracking=online failed (%s): tracking offline; `wandb sync` uploads it later", str(error).splitlines()[0])
        wandb.teardown()
        run = start("offline")
    run.define_metric(STEP)
    run.define_metric("*", step_metric=STEP)
    code = 1
    try:
        yield Tracker(run), run
        code = 0
    finally:
        run.finish(exit_code=code)
