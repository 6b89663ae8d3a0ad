"""The configuration's schema. Plain values; nothing here needs torch.

A class for each group of keys; a key's meaning stands under ``Attributes``.
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
DRAWN = ("glyphs", "text")
"""Datasets that are not shifted and flipped: endless images, which come under maps of their own, and text."""


def _folder(config: Config) -> bool:
    return config.data.name in IMAGE_FOLDERS


def _huggingface(config: Config) -> bool:
    return config.data.name == "huggingface"


def _in_memory(config: Config) -> bool:
    return not _folder(config) and config.data.name not in DRAWN


@dataclass
class ModelConfig:
    """What is trained.

    Attributes:
        name: One of ours, a model of timm (``resnet18``) or torchvision (``torchvision/swin_t``),
            or a function of your own, ``module:function``.
        width: Width of the hidden layers or of the embedding; null is the named model's own.
        depth: Number of blocks or hidden layers; null is the named model's own.
        heads: Number of attention heads; null is the named model's own.
        patch: Side of a patch in pixels; null is the named model's own.
        hidden: Widths of the MLP's hidden layers; null is the MLP's own.
        attention: How our models compute attention: written out (``plain``) or by torch's fused
            kernel (``fused``).
        dropout: The dropout layer: inverted, standard, shared or gaussian for ``mlp``; element,
            channel or block for ``convnet_micro``.
        profile: Proportions of the rates of the MLP's layers, such as ``[0.5,1]``; null is one
            rate for all.
        input_dropout: A fixed dropout rate in front of the model, which no schedule drives; null
            is none.
        args: Arguments of a model of timm, torchvision or your own, such as
            ``+model.args.width=64``.
        pretrained: A file of weights to begin with; a head for another number of classes is made
            new.
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

    Attributes:
        name: One of ours (``earlydrop --help`` lists them), or a function of your own,
            ``module:function``.
        root: Folder of the data; null is the embedded copy, or ``~/.cache/earlydrop/data``.
        train_images: Number of training images to keep: a stratified subset; of a text, its first
            contexts; of endless images, the size of the fixed set that stands for them. Null is
            all.
        image_size: Side of the images in pixels; null is the dataset's or the model's own.
        workers: Processes that read and augment images of a folder; 0 reads in the training
            process.
        skip_corrupt: Read every image of a folder once and leave out those that cannot be decoded,
            instead of ending the run at the first.
        download: Fetch a public dataset that is not on this machine into ``data.root``.
        image: Column of the images in a dataset of Hugging Face.
        label: Column of the labels in a dataset of Hugging Face.
        args: Arguments of a dataset of your own, such as ``+data.args.noise=0.1``.
    """

    name: str = _key("fashion_mnist_mini")
    root: str | None = _key(None, MACHINE, cited=True)
    train_images: int | None = _key(bounds="positive", used=lambda config: not _folder(config))
    image_size: int | None = _key(bounds="positive")
    workers: int = _key(0, MACHINE, bounds="not negative", cited=True)
    skip_corrupt: bool = _key(False, used=_folder)
    download: bool = _key(False, MACHINE)
    image: str = _key("image", used=_huggingface)
    label: str = _key("label", used=_huggingface)
    args: dict[str, Any] = _key({})


def _optimizer(*names: str) -> Callable[[Config], bool]:
    return lambda config: config.optim.name in names


@dataclass
class OptimConfig:
    """Optimizer and learning rate: linear warm-up, then cosine, with the released arithmetic.

    Attributes:
        name: The optimizer: ``adamw``, ``sgd`` or ``rmsprop``.
        lr: The peak learning rate, reached at the end of the warm-up.
        min_lr: The learning rate at the end of training.
        warmup: Length of the linear warm-up: steps, epochs (``5ep``) or a share of training
            (``10%``).
        weight_decay: Decoupled weight decay of matrices; biases and norms are not decayed.
        beta1: AdamW's decay rate of the mean gradient.
        beta2: AdamW's decay rate of the mean squared gradient.
        eps: Added to the root of the mean squared gradient (AdamW, RMSprop).
        momentum: SGD's momentum.
        clip: Largest norm of the whole gradient; a longer one is scaled down to it. Null is no
            clipping.
        l1: Adds l1 · Σ|w| over the decayed weights to what is minimised, not to the logged loss.
        l2: Adds l2 · Σw² over the decayed weights to what is minimised, not to the logged loss.
        max_norm: Largest norm of each unit's incoming weights, enforced after every step.
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
    """Random changes of the training images, mixing of a batch, and label smoothing.

    Attributes:
        shift: Largest random shift in pixels, for images in memory.
        flip: Flip images left to right with probability 1/2.
        mixup: Mixup's alpha; 0 is off.
        cutmix: CutMix's alpha; 0 is off.
        switch: Probability of CutMix instead of mixup, where both are on.
        smoothing: Label smoothing.
        crop: Random resized crop, for images of a folder.
        randaugment: RandAugment in timm's notation, such as ``rand-m9-mstd0.5-inc1``, for images
            of a folder.
        color_jitter: Strength of colour jitter, for images of a folder; timm leaves it out where
            RandAugment is on.
        erasing: Probability that a random rectangle of an image is replaced by noise.
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

    Attributes:
        at: When: a list of steps, epochs or shares of training, such as ``[0,5%,50%]``; empty is
            never.
        batches: Number of batches whose gradients give the norm, GDV and GDE.
        dataset_limit: Number of training images behind the full gradient of GDE; null is all.
        clean: Measure without augmentation, mixing and label smoothing.
        compare: Measure twice at the same weights and batches: with dropout on (at
            ``schedule.rate`` where the run's own is 0) and off.
        measures: Further measures of your own, each ``module:function``.
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

    Attributes:
        splits: Of ``test``; ``train_eval``, the training objective (augmentation and mixing from
            one fixed stream) without dropout; ``train_clean``, training images as they are.
        train_images: Number of training images behind ``train_eval`` and ``train_clean``, a fixed
            subset; null is all up to 100,000, else 50,000.
        interim_images: Number of images of every split before the last evaluation, which reads
            all.
        batch_size: Images that are evaluated at once.
    """

    splits: list[str] = _key(list(SPLITS), CADENCE)
    train_images: int | None = _key(None, CADENCE, bounds="positive")
    interim_images: int | None = _key(None, CADENCE, bounds="positive")
    batch_size: int = _key(500, CADENCE, bounds="positive")


@dataclass
class TrainerConfig:
    """Length, batch, precision, and how often things are logged.

    Attributes:
        epochs: Length of training in epochs, where ``trainer.steps`` is null.
        steps: Length of training in optimizer steps; null is ``trainer.epochs``.
        batch_size: Images of an optimizer step, over all workers and parts.
        accumulate: Number of parts that a step is computed in, each with its own masks,
            augmentation and mixing. Workers share the parts.
        precision: ``float32``; ``bf16``, autocast to bfloat16; or, on a GPU, ``tf32``, which rounds
            the factors of products and convolutions to 10 bits.
        compile: Compile the model with torch.compile; needs a C++ compiler.
        compile_mode: torch.compile's mode; ``reduce-overhead`` replays CUDA graphs.
        channels_last: Lay out the weights of convolutions as tensor cores read them.
        masks: How dropout masks are drawn: by torch (``native``) or from 16-bit numbers, faster on
            a CPU (``fast``).
        log_every: Optimizer steps between two logged training losses.
        eval_every: Time between two evaluations: steps, epochs or a share of training.
        checkpoint_seconds: Seconds between two checkpoints.
        stop_metric: Metric whose standstill ends a run early; null is never.
        stop_patience: Evaluations without improvement of ``trainer.stop_metric`` after which a run
            ends.
        mc_passes: Forwards of Monte Carlo dropout on the test set at the end; null is none.
        deterministic: Allow torch only algorithms that give the same bits twice, which a GPU does
            not promise otherwise.
        ema: Decay of an exponential moving average of the weights, such as 0.9999, which is
            evaluated as ``ema/...``; null is none. It changes nothing of training.
        profile: Window of steps, such as ``10:20``, whose trace goes into the run's folder, for
            Perfetto; null is none.
    """

    epochs: int = _key(10, bounds="positive", used=lambda config: config.trainer.steps is None)
    steps: int | None = _key(bounds="positive")
    batch_size: int = _key(128, bounds="positive")
    accumulate: int = _key(1, bounds="positive")
    precision: str = _key("float32", choices=("float32", "tf32", "bf16"))
    compile: bool = _key(False)
    compile_mode: str = _key(
        "default",
        choices=("default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"),
        used=lambda config: config.trainer.compile,
    )
    channels_last: bool = _key(False)
    deterministic: bool = _key(False)
    masks: str = _key("fast", choices=("native", "fast"), used=drops)
    log_every: int = _key(10, CADENCE, bounds="positive")
    eval_every: str = _key("20%", CADENCE)
    checkpoint_seconds: float = _key(15.0, MACHINE, bounds="not negative", cited=True)
    stop_metric: str | None = _key(choices=(None, *WATCHED))
    stop_patience: int = _key(3, bounds="positive", used=lambda config: config.trainer.stop_metric is not None)
    mc_passes: int | None = _key(None, CADENCE, bounds="positive")
    ema: float | None = _key(None, CADENCE, bounds="below one")
    profile: str | None = _key(None, MACHINE)


@dataclass
class DistributedConfig:
    """Several workers for one run, started by torchrun.

    Attributes:
        timeout: Seconds after which a worker that does not answer counts as lost.
    """

    timeout: float = _key(600.0, MACHINE, bounds="positive")


@dataclass
class PlanConfig:
    """What ``mode=plan`` is told of the machine that it plans for.

    Attributes:
        workers: Number of workers; null is torchrun's.
        images_per_second: Images that one worker trains a second; null is measured here, briefly.
    """

    workers: int | None = _key(None, MACHINE, bounds="positive")
    images_per_second: float | None = _key(None, MACHINE, bounds="positive")


def _with_wandb(config: Config) -> bool:
    return config.tracking.mode != "off" and config.tracking.backend == "wandb"


@dataclass
class TrackingConfig:
    """Where a run can be watched, beside its own ``metrics.jsonl``.

    Attributes:
        mode: ``offline`` records on this machine, ``online`` sends, ``off`` does neither. Written
            ``tracking=off`` on a command line.
        backend: Weights & Biases (``wandb``), ``tensorboard``, ``csv`` files, or ``mlflow``.
        console: Keep in W&B what a run prints.
        system: Keep W&B's charts of the machine's load.
    """

    mode: str = _key("offline", MACHINE, choices=("offline", "online", "off"))
    backend: str = _key("wandb", MACHINE, choices=("wandb", "tensorboard", "csv", "mlflow"))
    console: bool = _key(False, MACHINE, used=_with_wandb)
    system: bool = _key(False, MACHINE, used=_with_wandb)


@dataclass
class Config:
    """A whole run.

    Attributes:
        mode: ``train``, ``eval`` (evaluate a checkpoint), or ``plan`` (sites, memory and time,
            without training).
        study: Name of the study: the folder of its runs, and their group in W&B.
        label: Name of the run; null is made from its schedule and seed.
        seed: Seed of weights, batches, augmentation and masks; runs with one seed are paired.
        out: Folder of the studies.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:1``, ``mps``, ...
        threads: CPU threads of the run; null is what torch chooses.
        resume: ``auto`` goes on from the last checkpoint on the same kind of machine, ``force`` on
            any, ``never`` begins anew.
        checkpoint: File of weights for ``mode=eval``.
        objective: Metric whose last value a job returns, for a sweeper that optimises it, such as
            Optuna's.
        project: Project in W&B.
        tags: Tags in W&B.
        model: What is trained.
        data: Which images or text.
        schedule: Which drop rate at which step.
        optim: Optimizer and learning rate.
        augment: Augmentation, mixing and label smoothing.
        probe: When gradients are measured.
        evaluation: What is evaluated.
        distributed: Several workers for one run.
        plan: The machine that ``mode=plan`` plans for.
        tracking: Where a run can be watched.
        trainer: Length, batch, precision and cadence.
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
