"""Training and comparing runs from Python: what the command ``earlydrop`` does, for scripts and notebooks. Needs ``earlydrop[train]``.

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

_missing = [name for name in ("hydra", "omegaconf", "timm", "torchvision", "pandas") if importlib.util.find_spec(name) is None]
if _missing:
    raise ImportError(
        f"{', '.join(_missing)} missing: earlydrop.experiment needs more than the library; pip install 'earlydrop[train]'"
    )

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
from earlydrop.training.compose import compose_one, config_from_dict
from earlydrop.training.config import Config as Config
from earlydrop.training.endings import Interrupted
from earlydrop.training.fields import ConfigError as ConfigError
from earlydrop.training.given import given_data, given_model, reference_of
from earlydrop.training.outside import names_of
from earlydrop.training.overrides import mistake, unknown_keys, unused, with_own_keys
from earlydrop.training.plan import make_plan
from earlydrop.training.plugins import Code, given, nearest
from earlydrop.training.prepare import scheduled_model
from earlydrop.training.record.checkpoint import load_best, load_checkpoint
from earlydrop.training.record.folder import read_config, read_provenance, read_status
from earlydrop.training.run import run as carry_out

Callback = Callable[[int, dict[str, float]], object]
"""Called with the step and what was measured after it; one that returns True ends the run there."""


def compose(overrides: str | Iterable[str] = ()) -> Config:
    """The configuration that a command line with these overrides gives.

    Args:
        overrides: What stands behind ``earlydrop`` on a command line, such as ``["schedule=late", "seed=1"]``; or one text of
            words. Each key has one value.

    Returns:
        The configuration, complete. Its values can be changed before `train`, which checks them.

    Raises:
        ConfigError: There is no such key or option, or a value cannot be used.
    """
    return _settings_of(compose_one(_checked(overrides)))


def _settings_of(values: Mapping[str, Any]) -> Config:
    """A configuration from nested plain values; a key that there is not is a `ConfigError`."""
    wrong = unknown_keys(flat(values))
    if wrong is not None:
        raise ConfigError(wrong)
    return config_from_dict(values)


def _checked(overrides: str | Iterable[str]) -> list[str]:
    if not isinstance(overrides, (str, Iterable)) or isinstance(overrides, (Mapping, bytes)):
        raise ConfigError(f"overrides is a {type(overrides).__name__}: expected a list of texts such as 'schedule.rate=0.2'")
    words = shlex.split(overrides) if isinstance(overrides, str) else list(overrides)
    for word in words:
        if not isinstance(word, str):
            raise ConfigError(f"overrides holds {word!r}: expected texts such as 'schedule.rate=0.2'")
        if word.startswith("-"):
            raise ConfigError(f"overrides holds {word!r}, a flag of the command: expected key=value")
    wrong = mistake(words)
    if wrong is not None:
        raise ConfigError(wrong)
    return with_own_keys(words)


def train(
    config_or_overrides: Config | str | Iterable[str] = (),
    *,
    model: nn.Module | Callable[..., nn.Module] | None = None,
    data: Any = None,
    callbacks: Sequence[Callback] = (),
) -> Run:
    """Train a run to its end, as the command ``earlydrop`` does: a finished one is not trained again, a stopped one goes on.

    Ctrl-C saves and stops; the same call goes on from there. The caller's random numbers, number of threads and signal handlers
    are as before afterwards.

    Args:
        config_or_overrides: A configuration, or the overrides that `compose` makes one of.
        model: In place of ``model.name``: a function that is called with the `Task` and returns a module, or a module, of which a copy
            is trained from its present weights. Of a module, the dropout that the schedule does not drive is off.
        data: In place of ``data.name``: a pair for training and test, each a dataset of (image, label) or a pair of tensors
            (images, labels); or a `Source`.
        callbacks: Functions of ``(step, metrics)``, called for every line of ``metrics.jsonl`` from here on. One that returns True
            ends the run there: it is saved, and ``run.state`` is ``"interrupted"``.

    Returns:
        The run.

    Raises:
        ConfigError: A value that cannot be used; nothing was trained.
        TrainingFailed: The run stopped by itself; its status says why.
        KeyboardInterrupt: It was asked to stop, and has saved.
    """
    overrides: list[str] = []
    if isinstance(config_or_overrides, Config):
        _refuse_unknown(config_or_overrides, "config")
        config = config_from_dict(dataclasses.asdict(config_or_overrides))  # a copy, and every value of its type
    else:
        overrides = _checked(config_or_overrides)
        config = compose(overrides)
    if config.mode != "train":
        raise ConfigError(f"mode is {config.mode!r}: train() trains; the command earlydrop does the rest")
    codes = _put_in(config, model, data)
    watch = _Watch(callbacks)
    with given(codes), _as_before():
        try:
            done = carry_out(config, unused=unused(overrides, config), watch=watch if callbacks else None)
            folder = Path(done["folder"])
        except Interrupted:
            if not watch.asked:
                raise
            folder = make_plan(config).folder
    return Run(folder, codes=codes, trusted=True)


def _refuse_unknown(config: Any, said: str) -> None:
    """Refuse an attribute that was set and that the schema does not have: it would be read by nobody."""
    known = [field.name for field in dataclasses.fields(config)]
    for name, value in vars(config).items():
        if name not in known:
            raise ConfigError(f"{said}.{name} is set, and there is no such key{nearest(name, known)}")
        if dataclasses.is_dataclass(value):
            _refuse_unknown(value, f"{said}.{name}")


def _put_in(config: Config, model: Any, data: Any) -> list[Code]:
    """Name what is given as objects in a configuration; what stands for these names."""
    codes = []
    if model is not None:
        named = reference_of(model)
        if named is None:
            codes.append(given_model(model))
        config.model = dataclasses.replace(config.model, name=named or codes[-1].name)
    if data is not None:
        codes.append(given_data(data))
        config.data = dataclasses.replace(config.data, name=codes[-1].name)
    return codes


class _Watch:
    """Tells callbacks of what is measured, and notes whether one asked to stop."""

    def __init__(self, callbacks: Sequence[Callback]) -> None:
        for callback in callbacks:
            if not callable(callback):
                raise ConfigError(f"callbacks holds a {type(callback).__name__}: expected functions of (step, metrics)")
        self.callbacks = callbacks
        self.asked = False

    def __call__(self, step: int, metrics: dict[str, float]) -> bool:
        answers = [callback(step, metrics) for callback in self.callbacks]
        self.asked = self.asked or any(answer is True for answer in answers)
        return self.asked


@contextlib.contextmanager
def _as_before() -> Iterator[None]:
    """Afterwards the process's random numbers and number of threads are as before."""
    threads = torch.get_num_threads()
    with leave_no_trace(nn.Module()):
        try:
            yield
        finally:
            if torch.get_num_threads() != threads:
                torch.set_num_threads(threads)


class Run:
    """A run, by its folder.

    Args:
        folder: The run's folder.
        codes: What was given as objects.
        trusted: Whether the person at the keyboard named what the configuration names.
    """

    def __init__(self, folder: str | Path, *, codes: Sequence[Code] = (), trusted: bool = False) -> None:
        self.folder = Path(folder)
        self._codes, self._trusted = tuple(codes), trusted
        read_provenance(self.folder)  # refuses what is no run

    @property
    def config(self) -> Config:
        """Its configuration, as it was recorded."""
        return config_from_dict(read_config(self.folder))

    @property
    def fingerprint(self) -> str:
        """The hash of what determines its numbers."""
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
        """What was measured: the column ``step`` and a column a metric, NaN where it was not measured."""
        return load_history(self.folder)

    @property
    def final(self) -> dict[str, float]:
        """The last value of every metric."""
        last = self.metrics.drop(columns="step").ffill().iloc[-1]
        return {str(name): float(value) for name, value in last.items()}

    def model(self, *, best: bool = False, trust: bool = False) -> nn.Module:
        """The trained model on the CPU, in evaluation mode; its dropout at the rate of the step that its weights are from.

        `earlydrop.restore` gives its dropout layers the rates that they were built with.

        Args:
            best: The weights at which ``trainer.stop_metric`` was best, not the last ones.
            trust: Import the code that the configuration names, if this run was not trained by this process.

        Returns:
            The model.

        Raises:
            ConfigError: There are no such weights, or the configuration names code that is not earlydrop's.
        """
        config = self.config
        if not self._trusted and not trust and names_of(config):
            raise ConfigError(
                f"{self.folder / 'config.yaml'} names code that is not earlydrop's ({', '.join(names_of(config))}), and building the "
                "model would import that code: look at it first, then say model(trust=True)"
            )
        load = load_best if best else load_checkpoint
        content = load(self.folder / "checkpoints", self.fingerprint)
        if content is None:
            raise ConfigError(f"{self.folder} has no {'best weights: set trainer.stop_metric' if best else 'checkpoint'}")
        config.mode, config.device = "plan", "cpu"  # which does without data that is not here
        with given(self._codes), leave_no_trace(nn.Module()):
            built, scheduler = scheduled_model(make_plan(config))
        built.load_state_dict(content["model"])
        if scheduler is not None and content["scheduler"]:
            scheduler.load_state_dict(content["scheduler"])
        return built.eval()

    def plot(self, *metrics: str) -> Picture:
        """Its curves as a figure, which a notebook shows and ``savefig`` writes.

        Args:
            *metrics: Names such as ``test/accuracy``; without any, those that a report draws.

        Returns:
            The figure, of matplotlib.

        Raises:
            ValueError: A metric that was not measured.
        """
        return picture(runs_in([self.folder], str(self.folder)), metrics)

    def __repr__(self) -> str:
        return f"Run({str(self.folder)!r}, {self.state} at step {self.step})"

    def _repr_html_(self) -> str:
        row = summary_table(runs_in([self.folder], str(self.folder)))
        return f"<p><code>{html.escape(str(self.folder))}</code>: {self.state} at step {self.step}</p>{html_table(row)}"


@dataclasses.dataclass(frozen=True, repr=False)
class Comparison:
    """Arms of runs, and their paired differences. It prints as tables.

    Attributes:
        runs: The runs, as `load_runs` gives them.
        against: The name of the arm that the others are compared with; None for each arm's own without dropout.
    """

    runs: pd.DataFrame
    against: str | None

    @property
    def arms(self) -> pd.DataFrame:
        """One row an arm, in text: means over seeds, ± the half-width of their 95% intervals."""
        return summary_table(self.runs)

    @property
    def differences(self) -> pd.DataFrame:
        """One row an arm and metric: mean paired difference, its 95% interval (Student's t), its p-value, and the number of seeds."""
        rows = [
            (arm, metric, found.effect, found.low, found.high, found.p, len(found.seeds))
            for arm, by_metric in differences(self.runs, self.against).items()
            for metric, found in by_metric.items()
        ]
        return pd.DataFrame(rows, columns=["arm", "metric", "difference", "low", "high", "p", "seeds"])

    def _tables(self) -> list[pd.DataFrame]:
        paired = paired_table(self.runs, self.against)
        return [self.arms] if paired.empty else [self.arms, paired]

    def __str__(self) -> str:
        said = "" if len(self._tables()) > 1 else "\nno two arms share two finished seeds: there is no difference to show"
        return "\n\n".join(table.to_string() for table in self._tables()) + said

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return "".join(html_table(table) for table in self._tables())


def compare(runs: pd.DataFrame | str | Path | Iterable[Run], against: str | None = None) -> Comparison:
    """Compare the arms of some runs, seed by seed.

    Args:
        runs: A folder, what `load_runs` gives, or some runs.
        against: The name of an arm, as the column ``arm`` of `load_runs` has it. None compares each arm with the one without dropout
            that shares its other settings.

    Returns:
        The comparison.

    Raises:
        ValueError: There is no such arm.
        FileNotFoundError: There are no runs.
    """
    if isinstance(runs, (str, Path)):
        runs = load_runs(runs)
    elif not isinstance(runs, pd.DataFrame):
        runs = runs_in([run.folder for run in runs], "runs")
    names = sorted(set(runs["arm"]))
    if against is not None and against not in names:
        raise ValueError(
            f"against is {against!r}: expected an arm of these runs{nearest(against, names)}; there are {', '.join(names)}"
        )
    return Comparison(runs, against)
