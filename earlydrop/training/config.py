"""The configuration's schema. Plain values; nothing here needs torch.

A class for each group of keys; the sentence under a key says what it means.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from earlydrop.metrics import WATCHED
from earlydrop.training.fields import CADENCE, MACHINE, NAME, SEED
from earlydrop.training.fields import key as _key
from earlydrop.training.schedule_config import ScheduleConfig, drops

IMAGE_FOLDERS = ("imagefolder", "shards", "huggingface")
"""Datasets that are read image by image, with the released augmentation."""
_NOT_SHIFTED = ("glyphs", "text")
"""Datasets that are not shifted or flipped: glyphs, which are drawn distorted, and text."""


def _folder(config: Config) -> bool:
    return config.data.name in IMAGE_FOLDERS


def _may_read(config: Config) -> bool:
    """Whether the data may read the keys of image folders; a function of the user's may."""
    return _folder(config) or ":" in config.data.name


def _may_read_columns(config: Config) -> bool:
    return config.data.name == "huggingface" or ":" in config.data.name


def _in_memory(config: Config) -> bool:
    return not _folder(config) and config.data.name not in _NOT_SHIFTED


@dataclass
class ModelConfig:
    """The model."""

    name: str = _key("vit_micro")
    """One of ours, a model of timm (``resnet18``) or torchvision (``torchvision/swin_t``), or a
    function of your own, ``module:function``."""
    width: int | None = _key(bounds="positive")
    """Width of the embedding, or of the first block of a ConvNet; null is the named model's own."""
    depth: int | None = _key(bounds="positive")
    """Number of blocks; null is the named model's own."""
    heads: int | None = _key(bounds="positive")
    """Number of attention heads; null is the named model's own."""
    patch: int | None = _key(bounds="positive")
    """Side of a patch in pixels; null is the named model's own."""
    hidden: list[int] | None = _key()
    """Widths of the MLP's hidden layers; null is the MLP's own."""
    attention: str = _key("plain", choices=("plain", "fused"))
    """How attention is computed, in our models and those with timm's attention: written out
    (``plain``) or by torch's fused kernel (``fused``)."""
    dropout: str | None = _key(used=drops)
    """The dropout layer: inverted, standard, shared or gaussian for ``mlp``; element, channel or
    block for ``convnet_micro``."""
    profile: list[float] | None = _key(used=drops)
    """Proportions of the rates of the MLP's layers, such as ``[0.5,1]``; null is one rate for all.
    """
    input_dropout: float | None = _key(bounds="rate")
    """A fixed dropout rate in front of the model, which no schedule drives; null is none."""
    args: dict[str, Any] = _key({})
    """Arguments of a model of timm, torchvision or your own, such as ``+model.args.width=64``."""
    pretrained: str | None = _key()
    """A file of initial weights. A head for another number of classes is newly initialised."""


@dataclass
class DataConfig:
    """The images or text, and their place."""

    name: str = _key("fashion_mnist_mini")
    """One of ours (a wrong name lists them), or a function of your own, ``module:function``."""
    root: str | None = _key(None, MACHINE, cited=True)
    """Folder of the data; for a text, its file. Null is the embedded copy, or
    ``~/.cache/earlydrop/data``."""
    train_images: int | None = _key(bounds="positive", used=lambda config: not _folder(config))
    """Number of training images to keep: a stratified subset; for a text, its first contexts. For
    glyphs, which are endless: the images of an epoch, and of ``train_clean``. Null is all; for
    glyphs, 5,000."""
    image_size: int | None = _key(bounds="positive")
    """Side of the images in pixels; null is the dataset's own, and 224 for images of a folder."""
    workers: int = _key(0, MACHINE, bounds="not negative", cited=True)
    """Processes that read and augment images of a folder; 0 reads in the training process."""
    skip_corrupt: bool = _key(False, used=_may_read)
    """Read every image of a folder once and leave out those that cannot be decoded, instead of
    ending the run at the first."""
    decoder: str = _key("pil", choices=("pil", "torchcodec"), used=_may_read)
    """Libraries that decode and crop images of a folder: Pillow, as in the released code (``pil``),
    or torchcodec and torchvision, which are faster and round differently (``torchcodec``)."""
    download: bool = _key(False, MACHINE)
    """Fetch a public dataset that is not on this machine into ``data.root``."""
    image: str = _key("image", used=_may_read_columns)
    """Column of the images in a dataset of Hugging Face."""
    label: str = _key("label", used=_may_read_columns)
    """Column of the labels in a dataset of Hugging Face."""
    extra: dict[str, Any] = _key({}, MACHINE, used=_folder, cited=True)
    """Further test sets, measured at the end of a run and by ``mode=eval``: names, each with a
    folder of class folders or a file of label lists (ReaL), such as
    ``+data.extra.v2=/data/imagenetv2``."""
    args: dict[str, Any] = _key({})
    """Arguments of a dataset of your own, such as ``+data.args.noise=0.1``."""


def _optimizer(*names: str) -> Callable[[Config], bool]:
    return lambda config: config.optim.name in names


@dataclass
class OptimConfig:
    """Optimizer and learning rate: linear warm-up, then cosine, with the released arithmetic."""

    name: str = _key("adamw", choices=("adamw", "sgd", "rmsprop"))
    """The optimizer: ``adamw``, ``sgd`` or ``rmsprop``."""
    lr: float = _key(2e-3, bounds="positive")
    """The peak learning rate, reached at the end of the warm-up."""
    min_lr: float = _key(1e-6, bounds="not negative")
    """The learning rate at the end of training."""
    warmup: str = _key("10%")
    """Length of the linear warm-up: steps, epochs (``5ep``) or a share of training (``10%``)."""
    weight_decay: float = _key(0.05, bounds="not negative")
    """Weight decay of matrices, decoupled for AdamW and added to the gradient for SGD and RMSprop.
    Biases and norms are not decayed."""
    beta1: float = _key(0.9, bounds="below one", used=_optimizer("adamw"))
    """AdamW's decay rate of the mean gradient."""
    beta2: float = _key(0.999, bounds="below one", used=_optimizer("adamw"))
    """AdamW's decay rate of the mean squared gradient."""
    eps: float = _key(1e-8, bounds="not negative", used=_optimizer("adamw", "rmsprop"))
    """Added to the root of the mean squared gradient (AdamW, RMSprop)."""
    momentum: float = _key(0.9, bounds="below one", used=_optimizer("sgd"))
    """SGD's momentum."""
    clip: float | None = _key(bounds="positive")
    """Largest norm of the whole gradient; a longer one is scaled down to it. Null is no clipping.
    """
    l1: float | None = _key(bounds="positive")
    """Adds l1 · Σ|w| over the decayed weights to the minimised loss, not to the logged one."""
    l2: float | None = _key(bounds="positive")
    """Adds l2 · Σw² over the decayed weights to the minimised loss, not to the logged one."""
    max_norm: float | None = _key(bounds="positive")
    """Largest norm of each unit's incoming weights, enforced after every step."""


@dataclass
class AugmentConfig:
    """Random changes of the training images, mixing of a batch, and label smoothing."""

    shift: int = _key(2, bounds="not negative", used=_in_memory)
    """Largest random shift in pixels, for images in memory."""
    flip: bool = _key(True, used=lambda config: config.data.name not in _NOT_SHIFTED)
    """Flip images left to right with probability 1/2."""
    mixup: float = _key(0.0, bounds="not negative")
    """Mixup's alpha; 0 is off."""
    cutmix: float = _key(0.0, bounds="not negative")
    """CutMix's alpha; 0 is off."""
    switch: float = _key(
        0.5,
        bounds="probability",
        used=lambda config: config.augment.mixup > 0 and config.augment.cutmix > 0,
    )
    """Probability of CutMix instead of mixup, where both are on."""
    smoothing: float = _key(0.0, bounds="below one")
    """Label smoothing."""
    crop: bool = _key(False, used=_may_read)
    """Random resized crop, for images of a folder."""
    randaugment: str | None = _key(used=_may_read)
    """RandAugment in timm's notation, such as ``rand-m9-mstd0.5-inc1``, for images of a folder."""
    color_jitter: float = _key(0.0, bounds="not negative", used=_may_read)
    """Strength of colour jitter, for images of a folder. timm leaves it out where ``randaugment``
    is set, except for 3-Augment (``3a``)."""
    erasing: float = _key(
        0.0, bounds="probability", used=lambda config: config.data.name not in _NOT_SHIFTED
    )
    """Probability that a random rectangle of an image is replaced by noise."""


def _probed(config: Config) -> bool:
    return bool(config.probe.at)


@dataclass
class ProbeConfig:
    """The times of a probe, and the batches and images that it measures gradients from."""

    at: list[str] = _key([], CADENCE)
    """When: a list of steps, epochs or shares of training, such as ``[0,5%,50%]``; empty is never.
    """
    batches: int = _key(16, CADENCE, used=_probed)
    """Number of batches whose gradients give the norm, GDV and GDE."""
    dataset_limit: int | None = _key(None, CADENCE, bounds="positive", used=_probed)
    """Number of training images behind the full gradient of GDE; null is all up to 100,000, else
    50,000."""
    clean: bool = _key(False, CADENCE, used=_probed)
    """Measure without augmentation, mixing and label smoothing."""
    compare: bool = _key(False, CADENCE, used=_probed)
    """Measure twice at the same weights and batches, with dropout on and off. Where the present
    rate is 0, "on" is the schedule's peak, or ``schedule.rate`` if the schedule never drops."""
    curvature: bool = _key(False, CADENCE, used=_probed)
    """Measure the critical sharpness along Adam's next update, and the largest eigenvalue of the
    preconditioned Hessian. A probe then takes longer, by about 65 training passes over one part.
    """
    measures: list[str] = _key([], CADENCE, used=_probed)
    """Further measures of your own, each ``module:function``."""


SPLITS = ("test", "train_eval", "train_clean")


@dataclass
class EvaluationConfig:
    """The splits that an evaluation reads, and their number of images."""

    splits: list[str] = _key(list(SPLITS), CADENCE)
    """One or more of ``test``; ``train_eval``, the training objective (augmentation and mixing from
    one fixed stream) without dropout; ``train_clean``, training images without augmentation."""
    train_images: int | None = _key(None, CADENCE, bounds="positive")
    """Number of training images behind ``train_eval`` and ``train_clean``, a fixed subset; null is
    all up to 100,000, else 50,000."""
    interim_images: int | None = _key(None, CADENCE, bounds="positive")
    """Number of images of every split in all evaluations but the last. Null is all."""
    batch_size: int = _key(500, CADENCE, bounds="positive")
    """Images that are evaluated at once."""


@dataclass
class TrainerConfig:
    """Length, batch, precision, and how often things are logged."""

    epochs: int = _key(10, bounds="positive", used=lambda config: config.trainer.steps is None)
    """Length of training in epochs, where ``trainer.steps`` is null."""
    steps: int | None = _key(bounds="positive")
    """Length of training in optimizer steps; null is ``trainer.epochs``."""
    batch_size: int = _key(128, bounds="positive")
    """Images of an optimizer step, over all workers and parts."""
    accumulate: int = _key(1, bounds="positive")
    """Number of parts that a step is computed in, each with its own masks, augmentation and mixing.
    Workers share the parts."""
    precision: str = _key("float32", choices=("float32", "tf32", "bf16"))
    """``float32``; ``bf16``, autocast to bfloat16; or, on a GPU, ``tf32``, which rounds the factors
    of products and convolutions to 10 bits."""
    compile: bool = _key(False)
    """Compile the model with torch.compile; needs a C++ compiler."""
    compile_mode: str = _key(
        "default",
        choices=("default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"),
        used=lambda config: config.trainer.compile,
    )
    """torch.compile's mode; ``reduce-overhead`` replays CUDA graphs."""
    channels_last: bool = _key(False)
    """Use the channels-last memory format for convolutions, which tensor cores prefer."""
    deterministic: bool = _key(False)
    """Allow torch only algorithms that give the same bits twice, which a GPU does not promise
    otherwise."""
    masks: str = _key("fast", choices=("native", "fast"), used=drops)
    """How dropout masks are drawn: by torch (``native``) or from 16-bit numbers, faster on a CPU
    (``fast``)."""
    log_every: int = _key(10, CADENCE, bounds="positive")
    """Optimizer steps between two logged training losses."""
    eval_every: str = _key("20%", CADENCE)
    """Time between two evaluations: steps, epochs or a share of training."""
    checkpoint_seconds: float = _key(15.0, MACHINE, bounds="not negative", cited=True)
    """Seconds between two checkpoints."""
    stop_metric: str | None = _key(choices=(None, *WATCHED))
    """Metric that ends a run early when it stops improving; null is never."""
    stop_patience: int = _key(
        3, bounds="positive", used=lambda config: config.trainer.stop_metric is not None
    )
    """Evaluations without improvement of ``trainer.stop_metric`` after which a run ends."""
    mc_passes: int | None = _key(None, CADENCE, bounds="positive")
    """Forward passes of Monte Carlo dropout on the test set at the end; null is none."""
    ema: float | None = _key(None, CADENCE, bounds="below one")
    """Decay of an exponential moving average of the weights, such as 0.9999, which is evaluated as
    ``ema/...``; null is none. It does not affect training."""
    profile: str | None = _key(None, MACHINE)
    """Steps to trace, such as ``10:20``. The trace is written into the run's folder; open it in
    Perfetto. Null is none."""


@dataclass
class DistributedConfig:
    """Several workers for one run, started by torchrun."""

    timeout: float = _key(600.0, MACHINE, bounds="positive")
    """Seconds after which a worker that does not answer counts as lost."""


@dataclass
class PlanConfig:
    """The machine that ``mode=plan`` plans for."""

    workers: int | None = _key(None, MACHINE, bounds="positive")
    """Number of workers; null is torchrun's."""
    images_per_second: float | None = _key(None, MACHINE, bounds="positive")
    """Images that one worker trains per second; null measures it briefly on this machine."""


def _with_wandb(config: Config) -> bool:
    return config.tracking.mode != "off" and config.tracking.backend == "wandb"


@dataclass
class TrackingConfig:
    """The dashboards of a run, beside its own ``metrics.jsonl``."""

    mode: str = _key("offline", MACHINE, choices=("offline", "online", "off"))
    """``offline`` records on this machine, ``online`` sends, ``off`` does neither. Written
    ``tracking=off`` on a command line."""
    backend: str = _key("wandb", MACHINE, choices=("wandb", "tensorboard", "csv", "mlflow"))
    """Weights & Biases (``wandb``), ``tensorboard``, ``csv`` files, or ``mlflow``."""
    console: bool = _key(False, MACHINE, used=_with_wandb)
    """Record the console output of a run in W&B."""
    system: bool = _key(False, MACHINE, used=_with_wandb)
    """Record the load of the machine in W&B."""


@dataclass
class Config:
    """The configuration of a run."""

    mode: str = _key("train", MACHINE, choices=("train", "eval", "plan"))
    """``train``, ``eval`` (evaluate a checkpoint), or ``plan`` (sites, memory and time, without
    training)."""
    study: str = _key("default", NAME)
    """Name of the study: the folder of its runs, and their group in W&B."""
    label: str | None = _key(None, NAME)
    """Name of the run; null is made from its schedule and seed."""
    seed: int = _key(0, SEED, bounds="not negative")
    """Seed of weights, batches, augmentation and masks; runs with one seed are paired."""
    out: str = _key("runs", MACHINE)
    """Folder of the studies."""
    device: str = _key("auto", MACHINE)
    """``auto``, ``cpu``, ``cuda``, ``cuda:1``, ``mps``, ..."""
    threads: int | None = _key(None, MACHINE, bounds="threads")
    """CPU threads of the run; null is what torch chooses."""
    resume: str = _key("auto", MACHINE, choices=("auto", "force", "never"))
    """``auto`` goes on from the last checkpoint on the same kind of machine, ``force`` on any,
    ``never`` begins anew."""
    checkpoint: str | None = _key(None, MACHINE)
    """File of weights for ``mode=eval``."""
    objective: str | None = _key(None, MACHINE)
    """Metric whose last value a job returns, for a sweeper that optimises it, such as Optuna's."""
    project: str = _key("earlydrop", MACHINE)
    """Project in W&B."""
    tags: list[str] = _key([], MACHINE)
    """Tags in W&B."""
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
