"""Training and comparing runs from Python, as the command ``earlydrop`` does.

Needs ``earlydrop[train]``.

>>> config = compose(["model=mlp", "schedule=late", "schedule.rate=0.2", "seed=3"])
>>> config.schedule.rate, config.seed
(0.2, 3)
"""

from __future__ import annotations

import contextlib
import dataclasses
import html
import importlib.util
import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

_EXTRA = ("hydra", "omegaconf", "timm", "torchvision", "pandas")
_INSTALL = "pip install 'earlydrop[train]'"
_missing = [name for name in _EXTRA if importlib.util.find_spec(name) is None]
if _missing:
    _names = ", ".join(_missing)
    raise ImportError(f"{_names} missing: {__name__} needs more than the library; {_INSTALL}")

import pandas as pd
import torch
from torch import nn

from earlydrop.analysis.arms import flat
from earlydrop.analysis.compare import differences, paired_table, summary_table
from earlydrop.analysis.page import html_table
from earlydrop.analysis.plots import Picture, picture
from earlydrop.analysis.runs import load_history, runs_in
from earlydrop.analysis.runs import load_runs as load_runs
from earlydrop.sites.traceless import leave_no_trace
from earlydrop.training.callbacks import Callback as Callback
from earlydrop.training.callbacks import Callbacks
from earlydrop.training.compose import compose_one, config_from_dict
from earlydrop.training.config import Config as Config
from earlydrop.training.endings import Interrupted
from earlydrop.training.fields import ConfigError as ConfigError
from earlydrop.training.given import given_data, given_model, reference_of
from earlydrop.training.outside import check_trusted
from earlydrop.training.overrides import mistake, refuse_unknown_keys, unused, with_own_keys
from earlydrop.training.plan import make_plan
from earlydrop.training.plugins import Code, given, nearest
from earlydrop.training.prepare import scheduled_model
from earlydrop.training.record.checkpoint import load_best, load_checkpoint
from earlydrop.training.record.folder import read_config, read_provenance, read_status
from earlydrop.training.run import run as carry_out

_EXAMPLE = "'schedule.rate=0.2'"


def compose(overrides: str | Iterable[str] = ()) -> Config:
    """The configuration that a command line gives.

    Args:
        overrides: The arguments after ``earlydrop`` on a command line, such as
            ``["schedule=late", "seed=1"]``, or one string that holds them. A key has one value (no
            sweeps).

    Returns:
        The complete configuration. You can change its values before you pass it to `train`, which
        checks them.

    Raises:
        ConfigError: An unknown key or option, or an impossible value.
    """
    values = compose_one(_checked(overrides))
    refuse_unknown_keys(flat(values))
    return config_from_dict(values)


def _checked(overrides: str | Iterable[str]) -> list[str]:
    """Check overrides and return them as a list for Hydra.

    Keys below an open key, such as ``model.args.width``, get the prefix ``++``.
    """
    if not isinstance(overrides, (str, Iterable)) or isinstance(overrides, (Mapping, bytes)):
        kind = type(overrides).__name__
        raise ConfigError(f"overrides is a {kind}: expected a list of strings such as {_EXAMPLE}")
    words = _words(overrides) if isinstance(overrides, str) else list(overrides)
    for word in words:
        if not isinstance(word, str):
            raise ConfigError(f"overrides holds {word!r}: expected strings such as {_EXAMPLE}")
        if word.startswith("-"):
            flag = f"{word!r}, a flag of the command"
            raise ConfigError(f"overrides holds {flag}: expected key=value")
    wrong = mistake(words)
    if wrong is not None:
        raise ConfigError(wrong)
    return with_own_keys(words)


def _words(overrides: str) -> list[str]:
    """The arguments in a string, as a shell splits them."""
    try:
        return shlex.split(overrides)
    except ValueError as error:  # a quotation that is not closed
        raise ConfigError(f"overrides is {overrides!r}: {error}") from error


def train(
    config_or_overrides: Config | str | Iterable[str] = (),
    *,
    model: nn.Module | Callable[..., nn.Module] | None = None,
    data: Any = None,
    callbacks: Sequence[Callback] = (),
) -> Run:
    """Train a run to its end, as the command ``earlydrop`` does.

    A finished run is not trained again. A stopped run is resumed. Ctrl-C saves and stops; the same
    call resumes. The random state, number of threads and signal handlers of the process are
    restored.

    Args:
        config_or_overrides: A configuration, or overrides for `compose`.
        model: Used instead of ``model.name``: a module, or a function of the `Task` that returns
            one. A copy of the module is trained from its present weights. Dropout that the
            schedule does not drive is turned off in the copy.
        data: Used instead of ``data.name``: a `Source`, or a pair (training, test). Each of the
            pair is a dataset of (image, label) or a pair of tensors (images, labels).
        callbacks: Functions of ``(step, metrics)``, called for every new line of
            ``metrics.jsonl``. One that returns True ends the run: it is saved, and ``run.state`` is
            ``"interrupted"``.

    Returns:
        The run.

    Raises:
        ConfigError: An impossible value; nothing was trained.
        TrainingFailed: The run failed; its status says why.
        KeyboardInterrupt: The run was stopped, and is saved.
    """
    overrides: list[str] = []
    if isinstance(config_or_overrides, Config):
        _refuse_unknown(config_or_overrides, "config")
        values = dataclasses.asdict(config_or_overrides)
        config = config_from_dict(values)  # a copy, and every value of its type
    else:
        overrides = _checked(config_or_overrides)
        config = compose(overrides)
    if config.mode != "train":
        raise ConfigError(
            f"mode is {config.mode!r}: train() accepts only mode=train; use the command earlydrop "
            "for other modes"
        )
    codes = _name_objects(config, model, data)
    watch = Callbacks(callbacks)
    with given(codes), _restoring_process_state():
        try:
            ignored = unused(overrides, config)
            done = carry_out(config, unused=ignored, watch=watch if callbacks else None)
            folder = Path(done["folder"])
        except Interrupted:
            if not watch.stop_requested:
                raise
            folder = make_plan(config).folder
    return Run(folder, codes=codes, trusted=True)


def _refuse_unknown(config: Any, path: str) -> None:
    """Refuse an attribute that the schema does not have: nothing would read it."""
    known = [field.name for field in dataclasses.fields(config)]
    for name, value in vars(config).items():
        if name not in known:
            hint = nearest(name, known)
            raise ConfigError(f"{path}.{name} is set, and there is no such key{hint}")
        if dataclasses.is_dataclass(value):
            _refuse_unknown(value, f"{path}.{name}")


def _name_objects(config: Config, model: Any, data: Any) -> list[Code]:
    """Write the names of a given model and data into the configuration.

    Return the code of those that have no importable name.
    """
    codes = []
    if model is not None:
        name = reference_of(model)
        if name is None:
            code = given_model(model)
            codes.append(code)
            name = code.name
        config.model = dataclasses.replace(config.model, name=name)
    if data is not None:
        code = given_data(data)
        codes.append(code)
        config.data = dataclasses.replace(config.data, name=code.name)
    return codes


@contextlib.contextmanager
def _restoring_process_state() -> Iterator[None]:
    """Restore the process's random state and number of threads afterwards."""
    threads = torch.get_num_threads()
    with leave_no_trace(nn.Module()):  # an empty module: only the random state is kept
        try:
            yield
        finally:
            if torch.get_num_threads() != threads:
                torch.set_num_threads(threads)


class Run:
    """A run, read from its folder.

    Args:
        folder: The run's folder.
        codes: The code of a model and data that were given as Python objects.
        trusted: Whether the code that the configuration names may be imported: True if this process
            trained the run.

    Raises:
        ConfigError: The folder is not a run's, or its ``provenance.json`` is damaged.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        codes: Sequence[Code] = (),
        trusted: bool = False,
    ) -> None:
        self.folder = Path(folder)
        self._codes, self._trusted = tuple(codes), trusted
        read_provenance(self.folder)  # refuses a folder that is not a run's

    @property
    def config(self) -> Config:
        """Its configuration, as it was recorded."""
        return config_from_dict(read_config(self.folder))

    @property
    def fingerprint(self) -> str:
        """The hash of everything that determines its numbers."""
        return str(read_provenance(self.folder)["fingerprint"])

    @property
    def state(self) -> str:
        """``finished``, ``running``, ``interrupted``, ``failed`` or ``unknown``."""
        return str(read_status(self.folder).get("state", "unknown"))

    @property
    def step(self) -> int:
        """Optimizer steps done."""
        return int(read_status(self.folder).get("step", 0))

    @property
    def metrics(self) -> pd.DataFrame:
        """The column ``step`` and one column per metric, NaN where it was not measured."""
        return load_history(self.folder)

    @property
    def final(self) -> dict[str, float]:
        """The last value of every metric; empty before the first line of metrics."""
        metrics = self.metrics.drop(columns="step").ffill()
        if metrics.empty:
            return {}
        last = metrics.iloc[-1]
        return {str(name): float(value) for name, value in last.items()}

    def model(self, *, best: bool = False, trust: bool = False) -> nn.Module:
        """The trained model on the CPU, in evaluation mode.

        Its dropout layers have the rates of the step at which the weights were saved.
        `earlydrop.restore` sets them back to the rates that the model was built with.

        Args:
            best: The weights at which ``trainer.stop_metric`` was best, instead of the last ones.
            trust: Import the code that the configuration names, if another process trained this
                run.

        Returns:
            The model.

        Raises:
            ConfigError: There are no such weights, or the configuration names code that is not
                earlydrop's.
        """
        config = self.config
        if not self._trusted:
            check_trusted(
                file=self.folder / "config.yaml",
                config=config,
                trust=trust,
                purpose="building the model",
                how="model(trust=True)",
            )
        load = load_best if best else load_checkpoint
        content = load(self.folder / "checkpoints", self.fingerprint)
        if content is None:
            if best and config.trainer.stop_metric is None:
                raise ConfigError(f"{self.folder} has no best weights: set trainer.stop_metric")
            if best:
                reason = "it ended before its first evaluation, or the file is damaged"
                raise ConfigError(f"{self.folder} has no best weights: {reason}")
            raise ConfigError(f"{self.folder} has no checkpoint")
        config.mode, config.device = "plan", "cpu"  # a plan needs no data on this machine
        with given(self._codes), leave_no_trace(nn.Module()):
            built, scheduler = scheduled_model(make_plan(config))
        built.load_state_dict(content["model"])
        if scheduler is not None and content["scheduler"]:
            scheduler.load_state_dict(content["scheduler"])
        return built.eval()

    def plot(self, *metrics: str) -> Picture:
        """Plot metrics against the step, as a matplotlib figure that a notebook shows.

        Args:
            *metrics: Names such as ``test/accuracy``; by default, the metrics that a report draws.

        Returns:
            The figure; its ``savefig`` writes it.

        Raises:
            ValueError: A metric that was not measured.
        """
        return picture(runs_in([self.folder], str(self.folder)), metrics)

    def __repr__(self) -> str:
        return f"Run({str(self.folder)!r}, {self.state} at step {self.step})"

    def _repr_html_(self) -> str:
        row = summary_table(runs_in([self.folder], str(self.folder)))
        folder = f"<code>{html.escape(str(self.folder))}</code>"
        return f"<p>{folder}: {self.state} at step {self.step}</p>{html_table(row)}"


@dataclasses.dataclass(frozen=True, repr=False)
class Comparison:
    """Arms of runs, and their paired differences. It prints as tables.

    Attributes:
        runs: The runs, as `load_runs` gives them.
        against: The arm that is subtracted from the others. None subtracts from each arm the arm
            without dropout that has the same other settings.
    """

    runs: pd.DataFrame
    against: str | None

    @property
    def arms(self) -> pd.DataFrame:
        """A table of text with one row per arm: means over seeds ± half of their 95% interval."""
        return summary_table(self.runs)

    @property
    def differences(self) -> pd.DataFrame:
        """One row per arm and metric.

        Columns: the mean paired ``difference``, the ends ``low`` and ``high`` of its 95% interval
        (Student's t), its p-value ``p``, and the number of ``seeds``.
        """
        rows = []
        for arm, by_metric in differences(self.runs, self.against).items():
            for metric, point in by_metric.items():
                numbers = (point.effect, point.low, point.high, point.p)
                rows.append((arm, metric, *numbers, len(point.seeds)))
        columns = ["arm", "metric", "difference", "low", "high", "p", "seeds"]
        return pd.DataFrame(rows, columns=columns)

    def _tables(self) -> list[pd.DataFrame]:
        paired = paired_table(self.runs, self.against)
        return [self.arms] if paired.empty else [self.arms, paired]

    def __str__(self) -> str:
        tables = self._tables()
        text = "\n\n".join(table.to_string() for table in tables)
        if len(tables) > 1:
            return text
        reason = "no arm shares two finished seeds with the arm that it is compared with"
        return f"{text}\n{reason}: there is no difference to show"

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return "".join(html_table(table) for table in self._tables())


def compare(
    runs: pd.DataFrame | str | Path | Iterable[Run],
    against: str | None = None,
) -> Comparison:
    """Compare the arms of some runs, seed by seed.

    Args:
        runs: A folder, the table of `load_runs`, or some runs.
        against: The arm that is subtracted, by its name in the column ``arm`` of `load_runs`. None
            compares each arm with the one without dropout that shares its other settings.

    Returns:
        The comparison.

    Raises:
        ValueError: There is no such arm, or ``runs`` is something else.
        FileNotFoundError: The folder holds no runs.
    """
    if isinstance(runs, (str, Path)):
        runs = load_runs(runs)
    elif not isinstance(runs, pd.DataFrame):
        listed = list(runs) if isinstance(runs, Iterable) else []
        if not listed or not all(isinstance(run, Run) for run in listed):
            raise ValueError(
                f"runs is {runs!r}: expected a folder, the table of load_runs, or a list of runs"
            )
        runs = runs_in([run.folder for run in listed], "runs")
    names = sorted(set(runs["arm"]))
    if against is not None and against not in names:
        hint = nearest(against, names)
        expected = f"expected an arm of these runs{hint}; there are {', '.join(names)}"
        raise ValueError(f"against is {against!r}: {expected}")
    return Comparison(runs, against)
