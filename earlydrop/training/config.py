"""The configuration's schema: each key with its default, its role, its bounds and when it is used. Plain values; nothing here needs torch.

A key's role says what it acts on, and everything else follows from it:

- ``numbers`` (the default): the trained weights. It is hashed into the fingerprint and tells arms apart.
- ``cadence``: what is measured and when. It is hashed into the fingerprint, but tells no arms apart.
- ``seed``: pairs runs: hashed, but no part of an arm.
- ``machine``: where and how it is computed; ``name``: what it is called. Neither is hashed.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import os
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from earlydrop import schedules
from earlydrop.metrics import WATCHED

_MOST_THREADS = max(256, os.cpu_count() or 1)

T = TypeVar("T")
NUMBERS, CADENCE, SEED, MACHINE, NAME = "numbers", "cadence", "seed", "machine", "name"
BOUNDS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "positive": (lambda value: value > 0, "more than 0"),
    "not negative": (lambda value: value >= 0, "0 or more"),
    "below one": (lambda value: 0 <= value < 1, "a number in [0, 1)"),
    "rate": (lambda value: 0 <= value < 1, "a rate in [0, 1)"),
    "probability": (lambda value: 0 <= value <= 1, "a probability in [0, 1]"),
    "threads": (lambda value: 0 < value <= _MOST_THREADS, f"more than 0, and at most {_MOST_THREADS}"),
}
IMAGE_FOLDERS = ("imagefolder",)
"""Datasets that are read image by image, with the released augmentation."""
DRAWN = ("glyphs", "text")
"""Datasets that are not shifted and flipped: endless images, which come under maps of their own, and text."""


class ConfigError(ValueError):
    """A value in the configuration cannot be used; the message names it and says what was expected."""


def _key(
    default: Any = None,
    role: str = NUMBERS,
    *,
    bounds: str | None = None,
    choices: tuple[Any, ...] = (),
    used: Callable[[Config], bool] | None = None,
    cited: bool | None = None,
) -> Any:
    """A key of the schema. ``used`` says for which configurations it means anything; ``cited`` whether a cited command repeats it."""
    cited = role not in (MACHINE, NAME) if cited is None else cited
    metadata = {"role": role, "bounds": bounds, "choices": choices, "used": used, "cited": cited}
    if isinstance(default, (list, dict)):
        return field(default_factory=lambda: type(default)(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def _folder(config: Config) -> bool:
    return config.data.name in IMAGE_FOLDERS


def _in_memory(config: Config) -> bool:
    return not _folder(config) and config.data.name not in DRAWN


def own_schedule(config: Config) -> bool:
    """Whether the schedule is somebody's own: ``module:function``, or a name that an installed package offers."""
    return config.schedule.name not in schedules.MAKERS


def drops(config: Config) -> bool:
    """Whether the schedule ever drops anything; somebody's own, which is not imported to find out, counts as one that does."""
    return own_schedule(config) or parse_schedule(config.schedule).peak > 0


@dataclass
class ModelConfig:
    """What is trained. Sizes left null take the named model's own.

    ``dropout`` is the sort of dropout layer, for ``mlp`` (inverted, standard, shared, gaussian) and ``convnet_micro`` (element, channel,
    block). ``profile`` gives the MLP's layers rates in these proportions. ``input_dropout`` is a fixed rate in front of the model that
    no schedule drives, ``none`` included.

    ``name`` is one of ours, any model of timm (``resnet18``) or torchvision (``torchvision/regnet_y_400mf``), or ``module:function`` of
    your own. ``args`` are the arguments of such a model. ``pretrained`` is a file of weights to begin with.
    """

    name: str = _key("vit_micro")
    width: int | None = _key(bounds="positive")
    depth: int | None = _key(bounds="positive")
    heads: int | None = _key(bounds="positive")
    patch: int | None = _key(bounds="positive")
    hidden: list[int] | None = _key()
    attention: str = _key("plain", choices=("plain", "fused"))
    dropout: str | None = _key(used=drops)
    profile: list[float] | None = _key(used=drops)
    input_dropout: float | None = _key(bounds="rate")
    args: dict[str, Any] = _key({})
    pretrained: str | None = _key()


@dataclass
class DataConfig:
    """Which images or text, and where they are.

    ``train_images`` keeps a stratified subset of the training images; of a text, its first contexts; of endless images, it is the size of
    the fixed set that stands for them. ``skip_corrupt`` reads every image of a folder once and leaves out those that cannot be decoded,
    instead of ending the run at the first. ``download`` fetches what is not on this machine, into ``root``, or, where that is null, into
    ``~/.cache/earlydrop/data``.

    ``name`` is one of ours, or ``module:function`` of your own; ``args`` are the arguments of that function.
    """

    name: str = _key("fashion_mnist_mini")
    root: str | None = _key(None, MACHINE, cited=True)
    train_images: int | None = _key(bounds="positive", used=lambda config: not _folder(config))
    image_size: int | None = _key(bounds="positive")
    workers: int = _key(0, MACHINE, bounds="not negative", cited=True)
    skip_corrupt: bool = _key(False, used=_folder)
    download: bool = _key(False, MACHINE)
    args: dict[str, Any] = _key({})


def _takes(parameter: str) -> Callable[[Config], bool]:
    """Whether the named schedule has such a parameter, and drops at all. Somebody's own may have any."""

    def used(config: Config) -> bool:
        return own_schedule(config) or (
            parameter in inspect.signature(schedules.MAKERS[config.schedule.name]).parameters and drops(config)
        )

    return used


def _two_kinds(config: Config) -> bool:
    """Whether unit and path sites are scheduled side by side, with peaks that can differ."""
    return config.schedule.kind == "all" and _takes("rate")(config)


def _with_parameters(cls: type[T]) -> type[T]:
    """Add a key for each parameter of a registered schedule that has none yet; null there means the schedule's own default."""
    for maker in schedules.MAKERS.values():
        for name, annotation in typing.get_type_hints(maker).items():
            if name != "return" and name not in cls.__annotations__:
                plain = annotation if annotation in (int, float, bool, str) else float
                cls.__annotations__[name] = plain | None
                setattr(cls, name, _key(used=_takes(name)))
    return cls


@dataclass
@_with_parameters
class ScheduleConfig:
    """Which rate at which step. A schedule ignores the keys that it has no use for, so that sweeps over schedules work.

    ``name`` is one of ours, or ``module:function`` of your own; ``args`` are the arguments of that function.

    ``rate`` is the peak of both kinds of sites. With ``kind=all``, ``path_rate`` gives the path sites (stochastic depth) a peak of
    their own, on the same cutoff and shape; null is the same peak.
    """

    name: str = _key("early", choices=tuple(schedules.MAKERS))
    kind: str = _key("unit", choices=("unit", "path", "all"), used=drops)
    rate: float = _key(0.1, used=_takes("rate"))
    path_rate: float | None = _key(bounds="rate", used=_two_kinds)
    cutoff: str = _key("20%", used=_takes("cutoff"))
    shape: str | None = _key(used=_takes("shape"))
    points: str | None = _key(used=_takes("points"))
    gamma: float | None = _key(bounds="positive", used=_takes("gamma"))
    args: dict[str, Any] = _key({}, used=own_schedule)


def _optimizer(*names: str) -> Callable[[Config], bool]:
    return lambda config: config.optim.name in names


@dataclass
class OptimConfig:
    """Optimizer and learning rate: linear warm-up, then cosine, with the released arithmetic.

    ``l1`` and ``l2`` add l1 · Σ|w| and l2 · Σw² over the weights that decay to what is minimised (not to the loss that is logged).
    ``max_norm`` limits the norm of each unit's incoming weights after every step.
    """

    name: str = _key("adamw", choices=("adamw", "sgd", "rmsprop"))
    lr: float = _key(2e-3, bounds="positive")
    min_lr: float = _key(1e-6, bounds="not negative")
    warmup: str = _key("10%")
    weight_decay: float = _key(0.05, bounds="not negative")
    beta1: float = _key(0.9, bounds="below one", used=_optimizer("adamw"))
    beta2: float = _key(0.999, bounds="below one", used=_optimizer("adamw"))
    eps: float = _key(1e-8, bounds="not negative", used=_optimizer("adamw", "rmsprop"))
    momentum: float = _key(0.9, bounds="below one", used=_optimizer("sgd"))
    clip: float | None = _key(bounds="positive")
    l1: float | None = _key(bounds="positive")
    l2: float | None = _key(bounds="positive")
    max_norm: float | None = _key(bounds="positive")


@dataclass
class AugmentConfig:
    """The training objective's randomness: augmentation by the sample, mixing by the batch, label smoothing.

    ``shift`` is for images in memory, ``erasing`` (probability) for those and for folders. For folders alone: ``crop`` (random resized
    crop), ``randaugment`` (timm's notation, such as ``rand-m9-mstd0.5-inc1``) and ``color_jitter`` (which timm leaves out where RandAugment
    is on).
    """

    shift: int = _key(2, bounds="not negative", used=_in_memory)
    flip: bool = _key(True, used=lambda config: config.data.name not in DRAWN)
    mixup: float = _key(0.0, bounds="not negative")
    cutmix: float = _key(0.0, bounds="not negative")
    switch: float = _key(0.5, bounds="probability", used=lambda config: config.augment.mixup > 0 and config.augment.cutmix > 0)
    smoothing: float = _key(0.0, bounds="below one")
    crop: bool = _key(False, used=_folder)
    randaugment: str | None = _key(used=_folder)
    color_jitter: float = _key(0.0, bounds="not negative", used=_folder)
    erasing: float = _key(0.0, bounds="probability", used=lambda config: config.data.name not in DRAWN)


def _probed(config: Config) -> bool:
    return bool(config.probe.at)


@dataclass
class ProbeConfig:
    """When gradients are measured, and from how many batches and images.

    ``compare`` measures twice at the same weights and batches, with dropout on (at ``schedule.rate``, where the run's own is 0) and off.
    ``measures`` are further ones of your own, each as ``module:function``.
    """

    at: list[str] = _key([], CADENCE)
    batches: int = _key(16, CADENCE, used=_probed)
    dataset_limit: int | None = _key(None, CADENCE, bounds="positive", used=_probed)
    clean: bool = _key(False, CADENCE, used=_probed)
    compare: bool = _key(False, CADENCE, used=_probed)
    measures: list[str] = _key([], CADENCE, used=_probed)


SPLITS = ("test", "train_eval", "train_clean")


@dataclass
class EvaluationConfig:
    """Which splits an evaluation reads, and how much of them.

    ``train_images`` bounds the training images behind ``train_eval`` and ``train_clean``: a fixed subset (default: all up to 100,000, else
    50,000). ``interim_images`` bounds the images of every split before the last evaluation, which is on all of them.
    """

    splits: list[str] = _key(list(SPLITS), CADENCE)
    train_images: int | None = _key(None, CADENCE, bounds="positive")
    interim_images: int | None = _key(None, CADENCE, bounds="positive")
    batch_size: int = _key(500, CADENCE, bounds="positive")


@dataclass
class TrainerConfig:
    """Length, batch, precision and cadence.

    ``batch_size`` counts the images of an optimizer step, over all workers; ``accumulate`` is the number of parts that it is computed in,
    each with its own masks, augmentation and mixing. Workers share the parts.

    ``stop_metric`` ends a run early, once this metric has not improved in ``stop_patience`` evaluations. ``mc_passes`` measures Monte
    Carlo dropout on the test set at the end.
    """

    epochs: int = _key(10, bounds="positive", used=lambda config: config.trainer.steps is None)
    steps: int | None = _key(bounds="positive")
    batch_size: int = _key(128, bounds="positive")
    accumulate: int = _key(1, bounds="positive")
    precision: str = _key("float32", choices=("float32", "bf16"))
    compile: bool = _key(False)
    masks: str = _key("fast", choices=("native", "fast"), used=drops)
    log_every: int = _key(10, CADENCE, bounds="positive")
    eval_every: str = _key("20%", CADENCE)
    checkpoint_seconds: float = _key(15.0, MACHINE, bounds="not negative", cited=True)
    stop_metric: str | None = _key(choices=(None, *WATCHED))
    stop_patience: int = _key(3, bounds="positive", used=lambda config: config.trainer.stop_metric is not None)
    mc_passes: int | None = _key(None, CADENCE, bounds="positive")


@dataclass
class DistributedConfig:
    """Several workers for one run, started by torchrun. ``timeout`` is in seconds: who does not answer for so long counts as lost."""

    timeout: float = _key(600.0, MACHINE, bounds="positive")


@dataclass
class PlanConfig:
    """What ``mode=plan`` is told of the machine that it plans for: its number of workers, and the images that one of them trains a second.

    Left null, they are those of this machine: of torchrun's workers, and of a short timing here.
    """

    workers: int | None = _key(None, MACHINE, bounds="positive")
    images_per_second: float | None = _key(None, MACHINE, bounds="positive")


def _with_wandb(config: Config) -> bool:
    return config.tracking.mode != "off" and config.tracking.backend == "wandb"


@dataclass
class TrackingConfig:
    """Where a run can be watched, beside its own ``metrics.jsonl``. ``tracking=offline``, ``online`` and ``off`` set ``mode``.

    ``backend`` is Weights & Biases, TensorBoard, CSV files or MLflow. Of W&B, ``console`` keeps what a run prints, and ``system`` charts
    the machine's load.
    """

    mode: str = _key("offline", MACHINE, choices=("offline", "online", "off"))
    backend: str = _key("wandb", MACHINE, choices=("wandb", "tensorboard", "csv", "mlflow"))
    console: bool = _key(False, MACHINE, used=_with_wandb)
    system: bool = _key(False, MACHINE, used=_with_wandb)


@dataclass
class Config:
    """A whole run.

    ``objective`` names the metric whose last value a job returns, for a sweeper that optimises it, such as Optuna's.
    """

    mode: str = _key("train", MACHINE, choices=("train", "eval", "plan"))
    study: str = _key("default", NAME)
    label: str | None = _key(None, NAME)
    seed: int = _key(0, SEED, bounds="not negative")
    out: str = _key("runs", MACHINE)
    device: str = _key("auto", MACHINE)
    threads: int | None = _key(None, MACHINE, bounds="threads")
    resume: str = _key("auto", MACHINE, choices=("auto", "force", "never"))
    checkpoint: str | None = _key(None, MACHINE)
    objective: str | None = _key(None, MACHINE)
    project: str = _key("earlydrop", MACHINE)
    tags: list[str] = _key([], MACHINE)
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    probe: ProbeConfig = field(default_factory=ProbeConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    distributed: DistributedConfig = field(default_factory=DistributedConfig)
    plan: PlanConfig = field(default_factory=PlanConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)


@dataclass(frozen=True)
class Key:
    """What the schema says of one key.

    Attributes:
        name: Dotted, such as ``optim.lr``.
        default: Its default.
        kinds: The types that its values may have.
        role: ``numbers``, ``cadence``, ``seed``, ``machine`` or ``name``.
        bounds: A name in `BOUNDS`, or None.
        choices: All its values, if they can be listed.
        cited: Whether a cited command repeats it.
    """

    name: str
    default: Any
    kinds: tuple[Any, ...]
    role: str
    bounds: str | None
    choices: tuple[Any, ...]
    cited: bool
    _used: Callable[[Config], bool] | None

    def used(self, config: Config) -> bool:
        """Whether the key means anything in a configuration."""
        return self._used is None or self._used(config)

    def of(self, config: Config) -> Any:
        value: Any = config
        for part in self.name.split("."):
            value = getattr(value, part)
        return value


@functools.cache
def keys() -> dict[str, Key]:
    """Every key of the schema by its dotted name, in the schema's order."""
    return {key.name: key for key in _walk(Config, "")}


def as_now(values: Mapping[str, Any]) -> dict[str, Any]:
    """Nested values of an earlier version, in which ``tracking`` was one word, as the schema has them now."""
    mode = values.get("tracking")
    if isinstance(mode, (str, bool)):
        return {**values, "tracking": {"mode": "off" if mode is False else mode}}
    return dict(values)


OPEN = ("model.args", "data.args", "schedule.args")
"""The keys below which somebody's own code has keys of its own, such as ``model.args.width``."""


def key_of(name: str) -> Key | None:
    """What the schema says of a dotted name; of one below an open key, what it says of that."""
    found = keys().get(name)
    return found or next((keys()[key] for key in OPEN if name.startswith(f"{key}.")), None)


def _walk(cls: Any, prefix: str) -> Iterator[Key]:
    hints = typing.get_type_hints(cls)
    for each in dataclasses.fields(cls):
        hint = hints[each.name]
        if dataclasses.is_dataclass(hint):
            yield from _walk(hint, f"{prefix}{each.name}.")
            continue
        kinds = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
        default = each.default_factory() if each.default_factory is not dataclasses.MISSING else each.default
        said = each.metadata
        yield Key(prefix + each.name, default, kinds, said["role"], said["bounds"], said["choices"], said["cited"], said["used"])


def parse_path_schedule(config: ScheduleConfig) -> schedules.Schedule | None:
    """The schedule of the path sites, where they have a peak of their own; durations as given.

    Raises:
        ValueError: A value that the schedule refuses.
    """
    if config.path_rate is None or parse_schedule(config).peak == 0:
        return None
    return parse_schedule(dataclasses.replace(config, rate=config.path_rate))


def parse_schedule(config: ScheduleConfig) -> schedules.Schedule:
    """The schedule that a configuration names, made from the keys that it uses; durations as given.

    Raises:
        ValueError: An unknown name, or a value that the schedule refuses.
    """
    if config.name not in schedules.MAKERS:
        raise ConfigError(f"schedule.name is {config.name!r}: expected one of {', '.join(schedules.MAKERS)}")
    values = {}
    for name, parameter in inspect.signature(schedules.MAKERS[config.name]).parameters.items():
        value = getattr(config, name)
        if value is not None:
            values[name] = value
        elif parameter.default is parameter.empty:
            example = ": schedule=piecewise needs points such as '0,0@0.20,0.5@0.50,0'" if name == "points" else ": give it a value"
            raise ConfigError(f"schedule.{name} is null{example}")
    return schedules.from_config({"name": config.name} | values)


def describe_schedule(config: ScheduleConfig) -> str:
    """A schedule in a few words, for labels and legends: its name and what it was given, such as ``early-0.1-20%``.

    A key that is null by default is said only where it differs from the schedule's own default.
    """
    if config.name not in schedules.MAKERS:
        values = [f"{value:g}" if isinstance(value, float) else str(value) for value in config.args.values()]
        kind = [config.kind] if config.kind != "unit" else []
        return "-".join([config.name.rpartition(":")[2], *values, *kind])
    words = [config.name]
    defaults = {f.name: f.default for f in dataclasses.fields(ScheduleConfig)}
    for name, parameter in inspect.signature(schedules.MAKERS[config.name]).parameters.items():
        value = getattr(config, name)
        if defaults[name] is not None or (value is not None and value != parameter.default):
            words.append(f"{value:g}" if isinstance(value, float) else str(value))
    if config.kind != "unit" and config.name != "none":
        words.append(config.kind)
        if config.path_rate is not None:
            words.append(f"path{config.path_rate:g}")
    return "-".join(words)


def schedule_options() -> dict[str, dict[str, Any]]:
    """The options of the group ``schedule``: each registered schedule, with its own default where the schema's would be another."""
    defaults = {f.name: f.default for f in dataclasses.fields(ScheduleConfig)}
    options: dict[str, dict[str, Any]] = {}
    for name, maker in schedules.MAKERS.items():
        own = {p.name: p.default for p in inspect.signature(maker).parameters.values() if p.default not in (p.empty, None)}
        options[name] = {"name": name} | {k: v for k, v in own.items() if defaults[k] is not None and v != defaults[k]}
    return options
