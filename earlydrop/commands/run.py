"""``earlydrop``: train, evaluate or plan a run, or sweep over many.

A Hydra application. torch is imported when a job runs, not before.
"""

from __future__ import annotations

import importlib.util
import math
import os
import signal
import sys
import threading
import traceback
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from earlydrop.commands.version import show_version

if TYPE_CHECKING:
    from omegaconf import DictConfig

_EXTRA = ("hydra", "omegaconf", "timm", "torchvision", "wandb", "pandas")
"""Packages of the extra ``train`` that the command cannot do without."""


def _job(config: DictConfig) -> dict[str, Any] | float:
    """Run one Hydra job.

    An error that the user can correct is printed as one line, without a traceback.

    Args:
        config: The job's configuration.

    Returns:
        The result of the run, or its objective if it has one.
    """
    from hydra.core.hydra_config import HydraConfig

    from earlydrop.commands import sweep, terminal
    from earlydrop.training.endings import Interrupted
    from earlydrop.training.record.failures import forget_failures

    terminal.print_on_any_terminal()  # a worker of a sweep does not run main()
    hydra = HydraConfig.get()
    multirun = str(hydra.mode).endswith("MULTIRUN")
    study: Path | None = None
    failed = False
    trains = False
    try:
        launcher = str(hydra.launcher.get("_target_", "")).lower()
        if multirun and "slurm" in launcher:
            sweep.become_worker()
        job = hydra.job.num if multirun and "joblib" in launcher else None
        settings, study = _settings(config, job)
        trains = settings.mode == "train"
        if multirun:
            forget_failures(study, sweep.identity())
            sweep.end_with_parent()
        result = _run(settings, multirun, hydra.overrides.task)
        return _result_or_objective(result, settings.objective)
    except Interrupted:
        if multirun:
            raise  # ends the sweep
        raise SystemExit(130) from None
    except BrokenPipeError:  # the reader has closed the pipe: earlydrop mode=plan | head
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(141) from None
    except Exception as error:
        failed = True
        print(_explain(error), file=sys.stderr)
        if not multirun:
            raise SystemExit(1) from None
        if sweep.is_first_worker():  # the other jobs go on; the sweep's process ends with 1
            _note_failure(study, list(hydra.overrides.task), str(error))
        return math.nan if config.get("objective") else {"state": "failed"}
    finally:
        if multirun and sweep.is_first_worker():
            reported = study if trains or failed else None
            done = sweep.EndedJob(None if reported is None else str(reported), failed)
            progress = sweep.note_done(hydra.job.num, done)
            if progress is not None:
                print(progress, flush=True)


def _settings(config: DictConfig, job: int | None) -> tuple[Any, Path]:
    """A job's settings, and the folder of its study.

    Args:
        config: The job's configuration.
        job: Its number among those that run side by side on this machine; None if it runs alone.

    Raises:
        ConfigError: A key that the schema does not have.
    """
    from omegaconf import OmegaConf

    from earlydrop.analysis.arms import flat
    from earlydrop.training.names import study_folder
    from earlydrop.training.overrides import refuse_unknown_keys

    values: Any = OmegaConf.to_container(config, resolve=False)
    refuse_unknown_keys(flat(values))
    settings: Any = OmegaConf.to_object(config)
    if job is not None:
        from earlydrop.training.device import device_of_job

        # Jobs run side by side: with one thread each, they use all cores.
        settings.threads = settings.threads or 1
        settings.device = device_of_job(settings.device, job)
    return settings, study_folder(settings.out, settings.study)


def _run(settings: Any, multirun: bool, overrides: Iterable[str]) -> dict[str, Any]:
    from earlydrop.training.checks import check

    check(settings)  # before torch is imported, which takes seconds
    from earlydrop.training.overrides import unused
    from earlydrop.training.run import run

    return run(settings, in_sweep=multirun, unused=unused(overrides, settings))


def _result_or_objective(result: dict[str, Any], objective: str | None) -> dict[str, Any] | float:
    """The return value of a job: its objective if it has one, for a sweeper that optimises."""
    if objective is None:
        return result
    if objective not in result:
        from earlydrop.training.fields import ConfigError

        run = f"{result['folder']} ({result['state']})"
        raise ConfigError(f"objective is {objective!r}: the run {run} did not measure it")
    return float(result[objective])


def _explain(error: Exception) -> str:
    """One line for an error that the user can correct; a traceback for a fault of earlydrop."""
    from omegaconf.errors import OmegaConfBaseException

    from earlydrop.training.endings import TrainingFailed
    from earlydrop.training.fields import ConfigError
    from earlydrop.training.names import first_line

    if isinstance(error, (ConfigError, TrainingFailed, OSError)):
        return f"error: {error}"
    if isinstance(error, OmegaConfBaseException):
        key = f"{error.full_key}: " if error.full_key else ""
        return f"error: {key}{first_line(error)}"
    return traceback.format_exc()


def _note_failure(study: Path | None, overrides: list[str], reason: str) -> None:
    """Note a failed job in its study's folder."""
    from earlydrop.commands import sweep
    from earlydrop.training.record.failures import note_failure

    if study is None:
        return
    try:
        note_failure(study, sweep.identity(), overrides, reason)
    except OSError as error:
        why = error.strerror or error
        print(f"error: the failure could not be noted in {study}: {why}", file=sys.stderr)


def _require_training_extra() -> None:
    """Refuse to start without the packages of the extra ``train``."""
    missing = [name for name in _EXTRA if importlib.util.find_spec(name) is None]
    if missing:
        instead = "the trainer needs more than the library; pip install 'earlydrop[train]'"
        raise SystemExit(f"{', '.join(missing)} missing: {instead}")


def _original_error(error: Exception, arguments: list[str]) -> Exception:
    """The error that Hydra hides behind "Ambiguous value".

    If an experiment that sweeps cannot be composed, Hydra takes the command for a single run and
    complains about values with commas. Composing the other overrides raises the original error.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    from earlydrop.training.compose import compose
    from earlydrop.training.overrides import config_dirs

    if "Ambiguous value" not in str(error) or config_dirs(arguments):  # `compose` adds no folder
        return error
    try:
        words = [argument for argument in arguments if not argument.startswith("-")]
        overrides = OverridesParser.create().parse_overrides(words)
        single = [override for override in overrides if not override.is_sweep_override()]
        compose([override.input_line or "" for override in single])
    except (HydraException, OmegaConfBaseException) as original:
        return original
    return error


def _report(studies: list[str]) -> int:
    """Write the reports of a sweep's studies; the exit code is 1 if one could not be written."""
    from earlydrop.commands.report import report_sweep

    code = 0
    for study in studies:
        try:
            report_sweep(Path(study))
        except (OSError, ValueError) as error:
            print(f"error: the report of {study}: {error}", file=sys.stderr)
            code = 1
    return code


def _end_sweep(code: int | str | None) -> int | str | None:
    """End the sweep that this process launched: end its workers, and write its reports.

    Args:
        code: The exit code so far, or an error line. After 130 (the user stopped the sweep) no
            report is written.

    Returns:
        The exit code, or the error line.
    """
    from earlydrop.commands import sweep

    stopped = code == 130
    try:
        sweep.end_workers(kill=stopped)
        done = sweep.finish()
        if done is None or stopped:
            return code
        studies = {job.study for job in done if job.study is not None}
        reported = _report(sorted(studies))
        return code or reported or int(any(job.failed for job in done))
    except KeyboardInterrupt:
        sweep.end_workers(kill=True)
        return 130


def _list(arguments: list[str]) -> None:
    """Run ``earlydrop list [out=FOLDER] [--config-dir FOLDER]``."""
    from earlydrop.commands import command
    from earlydrop.commands.list import main as show
    from earlydrop.training.overrides import config_dirs

    folders = config_dirs(arguments)
    out = [argument.removeprefix("out=") for argument in arguments if argument.startswith("out=")]
    flags = [argument for argument in arguments if argument in ("--config-dir", "-cd")]
    # every argument is out=, a flag, or the folder of a flag
    understood = len(out) <= 1 and len(out) + len(folders) + len(flags) == len(arguments)
    understood = understood and len(flags) <= len(folders)  # each flag has its folder
    if not understood or any(not folder.is_dir() for folder in folders):
        takes = "earlydrop list takes out=FOLDER and --config-dir FOLDER alone"
        raise SystemExit(f"error: {takes}, not {' '.join(arguments)}")
    command(lambda: show(out[0] if out else "runs", folders))()


def _wait_briefly() -> None:
    """Let threads that wait for each other spin only briefly before they free their core.

    With 1,000 spins instead of GNU OpenMP's default, a run of two threads is 1.59 times as fast
    beside one busy process, and 0.90 times as fast on a quiet machine (results/benchmark, rows
    "short waits"). torch reads the variable when it is loaded. Results do not depend on it.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")


def _for_hydra(arguments: list[str]) -> list[str]:
    """The arguments of the command, as Hydra takes them.

    Raises:
        SystemExit: An argument has a mistake.
    """
    from earlydrop.training.overrides import config_dirs, mistake, with_own_keys

    flags = [argument for argument in arguments if argument in ("-m", "--multirun")]
    others = [argument for argument in arguments if argument not in flags]
    arguments = flags + others  # argparse wants the flags in front
    wrong = mistake(arguments)
    if wrong is not None:
        raise SystemExit(f"error: {wrong}")
    arguments = with_own_keys(arguments)
    if any(flag in arguments for flag in ("-sc", "--shell-completion")):
        # The command line to complete may name a folder of configurations.
        typed = config_dirs(os.environ.get("COMP_LINE", "").split())
        if typed and typed[0].is_dir():
            arguments += ["--config-dir", str(typed[0])]
    return arguments


def main() -> None:
    """Train, evaluate or plan a run; or, with ``-m``, sweep over many."""
    from earlydrop.commands import command, help_key, terminal

    terminal.prepare()
    if "--version" in sys.argv[1:]:
        return command(lambda: show_version(sys.argv[1:]))()
    _require_training_extra()
    if any(word.partition("=")[0] == help_key.FLAG for word in sys.argv[1:]):
        return command(lambda: help_key.show_help(sys.argv[1:]))()
    _wait_briefly()
    if threading.current_thread() is threading.main_thread():
        # A background job of a shell starts with Ctrl-C ignored.
        signal.signal(signal.SIGINT, signal.default_int_handler)
    import hydra
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    from earlydrop.commands.hydra_parser import accept_lazy_help
    from earlydrop.training.compose import conf_folder, one_line, register_schema

    if sys.argv[1:2] == ["list"]:
        return _list(sys.argv[2:])
    sys.argv[1:] = _for_hydra(sys.argv[1:])
    register_schema()
    accept_lazy_help()
    conf = str(conf_folder())
    application = hydra.main(version_base="1.3", config_path=conf, config_name="config")(_job)
    code: int | str | None = 0
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra raises errors instead of printing them
    try:
        application()
    except SystemExit as stop:
        code = stop.code
    except KeyboardInterrupt:
        code = 130
    except BrokenPipeError:  # the reader has closed the pipe: earlydrop --help | head
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 141
    except (HydraException, OmegaConfBaseException, OSError) as error:
        code = f"error: {one_line(_original_error(error, sys.argv[1:]))}"
    raise SystemExit(_end_sweep(code))


if __name__ == "__main__":
    main()
