"""The configuration's schema: every key with its type and its default. Plain values only; nothing here imports torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


class ConfigError(ValueError):
    """A value in the configuration cannot be used; the message names it and says what was expected."""


@dataclass
class ModelConfig:
    """What is trained. Sizes left null take the named model's own.

    ``dropout`` is the sort of dropout layer, for ``mlp`` (inverted, standard, shared, gaussian) and ``convnet_micro`` (element, channel,
    block). ``profile`` gives the MLP's layers rates in these proportions. ``input_dropout`` is a fixed rate in front of the model that
    no schedule drives, ``none`` included.
    """

    name: str = "vit_micro"
    width: int | None = None
    depth: int | None = None
    heads: int | None = None
    patch: int | None = None
    hidden: list[int] | None = None
    attention: str = "plain"
    dropout: str | None = None
    profile: list[float] | None = None
    input_dropout: float | None = None


@dataclass
class DataConfig:
    """Which images, and where they are. ``train_images`` keeps a stratified subset of the training images."""

    name: str = "fashion_mnist_mini"
    root: str | None = None
    train_images: int | None = None
    image_size: int | None = None
    workers: int = 0


@dataclass
class ScheduleConfig:
    """Which rate at which step. A schedule ignores the keys that it has no use for, so that sweeps over schedules work."""

    name: str = "early"
    kind: str = "unit"
    rate: float = 0.1
    cutoff: str = "20%"
    shape: str | None = None
    points: str | None = None
    gamma: float | None = None


@dataclass
class OptimConfig:
    """Optimizer and learning rate: linear warm-up, then cosine, with the released arithmetic.

    ``l1`` and ``l2`` add l1 · Σ|w| and l2 · Σw² over the weights that decay to what is minimised (not to the loss that is logged).
    ``max_norm`` limits the norm of each unit's incoming weights after every step.
    """

    name: str = "adamw"
    lr: float = 2e-3
    min_lr: float = 1e-6
    warmup: str = "10%"
    weight_decay: float = 0.05
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    momentum: float = 0.9
    clip: float | None = None
    l1: float | None = None
    l2: float | None = None
    max_norm: float | None = None


@dataclass
class AugmentConfig:
    """The training objective's randomness: per-sample shift and flip, mixing by the batch, label smoothing."""

    shift: int = 2
    flip: bool = True
    mixup: float = 0.0
    cutmix: float = 0.0
    switch: float = 0.5
    smoothing: float = 0.0


@dataclass
class ProbeConfig:
    """When gradients are measured, and from how many batches and images."""

    at: list[str] = field(default_factory=list)
    batches: int = 16
    dataset_limit: int | None = None
    clean: bool = False


@dataclass
class TrainerConfig:
    """Length, batch, precision and cadence.

    ``stop_metric`` ends a run early, once this metric has not improved in ``stop_patience`` evaluations. ``mc_passes`` measures Monte
    Carlo dropout on the test set at the end.
    """

    epochs: int = 10
    steps: int | None = None
    batch_size: int = 128
    accumulate: int = 1
    precision: str = "float32"
    compile: bool = False
    masks: str = "fast"
    log_every: int = 10
    eval_every: str = "20%"
    checkpoint_seconds: float = 15.0
    stop_metric: str | None = None
    stop_patience: int = 3
    mc_passes: int | None = None


@dataclass
class Config:
    """A whole run."""

    mode: str = "train"
    study: str = "default"
    label: str | None = None
    seed: int = 0
    out: str = "runs"
    device: str = "auto"
    threads: int | None = None
    resume: str = "auto"
    tracking: str = "offline"
    project: str = "earlydrop"
    tags: list[str] = field(default_factory=list)
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    probe: ProbeConfig = field(default_factory=ProbeConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)


CHOICES = {
    "mode": ("train", "eval", "plan"),
    "resume": ("auto", "force", "never"),
    "tracking": ("offline", "online", "off"),
    "model.attention": ("plain", "fused"),
    "schedule.kind": ("unit", "path", "all"),
    "optim.name": ("adamw", "sgd", "rmsprop"),
    "trainer.precision": ("float32", "bf16"),
    "trainer.masks": ("native", "fast"),
}
POSITIVE = (
    "trainer.epochs", "trainer.steps", "trainer.batch_size", "trainer.accumulate", "trainer.log_every", "data.train_images",
    "data.image_size", "model.width", "model.depth", "model.heads", "model.patch", "threads", "optim.lr", "probe.dataset_limit",
    "optim.clip", "optim.l1", "optim.l2", "optim.max_norm", "schedule.gamma", "trainer.stop_patience", "trainer.mc_passes",
)  # fmt: skip
NOT_NEGATIVE = (
    "optim.min_lr", "optim.weight_decay", "optim.momentum", "optim.eps", "augment.shift", "augment.mixup", "augment.cutmix",
    "augment.smoothing", "augment.switch", "seed", "data.workers", "trainer.checkpoint_seconds",
)  # fmt: skip
EVALUATED = tuple(f"{split}/{what}" for split in ("test", "train_eval", "train_clean") for what in ("loss", "accuracy"))
BELOW_ONE = ("augment.smoothing", "optim.momentum", "optim.beta1", "optim.beta2")


def _get(config: Config, key: str) -> Any:
    value: Any = config
    for part in key.split("."):
        value = getattr(value, part)
    return value


def check(config: Config) -> None:
    """Check every value that can be checked without the data or the model.

    Args:
        config: The configuration as the schema's dataclasses.

    Raises:
        ConfigError: A value is not one of the choices, or out of range.
    """
    for key, choices in CHOICES.items():
        if _get(config, key) not in choices:
            raise ConfigError(f"{key} is {_get(config, key)!r}: expected one of {', '.join(choices)}")
    for key in POSITIVE:
        value = _get(config, key)
        if value is not None and not value > 0:
            raise ConfigError(f"{key} is {value!r}: expected more than 0")
    for key in NOT_NEGATIVE:
        if not _get(config, key) >= 0:
            raise ConfigError(f"{key} is {_get(config, key)!r}: expected 0 or more")
    for key in BELOW_ONE:
        if not 0 <= _get(config, key) < 1:
            raise ConfigError(f"{key} is {_get(config, key)!r}: expected a number in [0, 1)")
    if config.model.input_dropout is not None and not 0 <= config.model.input_dropout < 1:
        raise ConfigError(f"model.input_dropout is {config.model.input_dropout!r}: expected a rate in [0, 1)")
    if config.trainer.stop_metric not in (None, *EVALUATED):
        raise ConfigError(
            f"trainer.stop_metric is {config.trainer.stop_metric!r}: not measured at evaluations; expected one of {', '.join(EVALUATED)}"
        )
    if config.augment.switch > 1:
        raise ConfigError(f"augment.switch is {config.augment.switch!r}: expected a probability in [0, 1]")
    if config.probe.at and config.probe.batches < 2:
        raise ConfigError(f"probe.batches is {config.probe.batches!r}: gradient direction variance needs at least 2 gradients")
    if config.trainer.batch_size % config.trainer.accumulate:
        raise ConfigError(
            f"trainer.accumulate is {config.trainer.accumulate}: expected a divisor of trainer.batch_size "
            f"({config.trainer.batch_size}), which counts the images of one optimizer step"
        )
