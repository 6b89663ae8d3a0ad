"""The console commands. ``earlydrop`` is a Hydra application; this module imports neither torch nor the trainer until a job runs."""

from __future__ import annotations

import importlib.util
import os
import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from omegaconf import DictConfig


def conf_folder() -> Path:
    """The folder of configuration files: the repository's in a clone or an editable install, else the package's own.

    Returns:
        The folder.

    Raises:
        FileNotFoundError: Neither is there.
    """
    package = Path(__file__).resolve().parent
    for folder in (package.parent / "conf", package / "conf"):
        if (folder / "config.yaml").is_file():
            return folder
    raise FileNotFoundError(f"no configuration files beside {package}: install earlydrop again")


def _refuse_foreign_targets(arguments: list[str]) -> None:
    """A configuration names values, not code to run."""
    for argument in arguments:
        key, _, value = argument.lstrip("+~").partition("=")
        if "_target_" in argument and not (key.endswith("_target_") and value.startswith("earlydrop.")):
            raise SystemExit(
                f"error: {argument!r} names code to run: configurations of earlydrop hold plain values, give one of those"
            )


def _job(config: DictConfig) -> dict[str, Any]:
    """One Hydra job: a run. What a user can mend is one line, not a traceback."""
    from hydra.core.hydra_config import HydraConfig
    from omegaconf import OmegaConf

    from earlydrop.training import sweep
    from earlydrop.training.config import Config, ConfigError
    from earlydrop.training.run import run
    from earlydrop.training.trainer import Interrupted, TrainingFailed

    settings: Config = OmegaConf.to_object(config)  # type: ignore[assignment]
    hydra = HydraConfig.get()
    multirun = str(hydra.mode).endswith("MULTIRUN")
    if settings.threads is None and "joblib" in str(hydra.launcher.get("_target_", "")).lower():
        settings.threads = 1  # one thread a run is the way to use all cores
    try:
        return run(settings, in_sweep=multirun)
    except Interrupted:
        if multirun:
            raise  # ends the sweep
        raise SystemExit(130) from None
    except BrokenPipeError:  # earlydrop mode=plan | head
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(141) from None
    except Exception as error:
        known = isinstance(error, (ConfigError, TrainingFailed))
        print(f"error: {error}" if known else traceback.format_exc(), file=sys.stderr)
        if not multirun:
            raise SystemExit(1) from None
        # The other jobs go on; the sweep's table shows this one, and its process ends with 1.
        sweep.note_failure(settings.out, settings.study, list(hydra.overrides.task), str(error))
        return {"state": "failed"}
    finally:
        progress = sweep.note_done(hydra.job.num) if multirun else None
        if progress is not None:
            print(progress, flush=True)


def _needs_training_extra() -> None:
    missing = [
        name for name in ("hydra", "omegaconf", "timm", "torchvision", "wandb", "pandas") if importlib.util.find_spec(name) is None
    ]
    if missing:
        raise SystemExit(f"{', '.join(missing)} missing: the trainer needs more than the library; pip install 'earlydrop[train]'")


def main() -> None:
    """Train, evaluate or plan a run; or, with ``-m``, sweep over many."""
    _needs_training_extra()
    _refuse_foreign_targets(sys.argv[1:])
    import hydra
    from hydra.core.config_store import ConfigStore

    from earlydrop.training import sweep
    from earlydrop.training.config import Config

    ConfigStore.instance().store(name="schema", node=Config)
    application = hydra.main(version_base="1.3", config_path=str(conf_folder()), config_name="config")(_job)
    code: int | str | None = 0
    try:
        application()
    except SystemExit as stop:
        code = stop.code
    except KeyboardInterrupt:
        code = 130
    folder = sweep.running_sweep()
    if folder is not None and code != 130:
        from earlydrop.analysis.report import report_sweep

        report_sweep(folder)
        code = code or int(bool(sweep.failures(folder)))
    raise SystemExit(code)


if __name__ == "__main__":
    main()
