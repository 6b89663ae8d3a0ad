"""What determines the numbers of a run: the hash that names its folder, and the settings that tell it from other runs.

Both follow from the roles in `earlydrop.training.config`. A new key is hashed wherever a run gives it another value than its default, so
its default keeps every fingerprint.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from earlydrop.training.config import IMAGE_FOLDERS, Config
from earlydrop.training.fields import CADENCE, NUMBERS
from earlydrop.training.keys import OPEN, Key, keys
from earlydrop.training.schedule_config import drops

if TYPE_CHECKING:
    from earlydrop.schedules import Schedule
    from earlydrop.training.data.source import Source

VERSIONS = {
    "data": 1,  # arrays in memory: shift, flip, normalisation
    "folder": 2,  # image folders: transforms by sample. 2: they follow the keys of `augment`, RandAugment works on every Pillow
    "mixing": 1,
    "parts": 2,  # a batch in several parts. 2: what is random is drawn for each part by itself
    "masks": 1,
    "compiled_masks": 2,  # trainer.masks=fast in compiled graphs. 2: they draw 16-bit masks on a CPU too
    "models": 1,
    "library_models": 1,  # models that timm and torchvision build, found by their signature; weights to begin with
    "own_data": 1,  # pairs of datasets of somebody's own, read into memory
    "swin": 3,  # 3: its tables of position biases do not decay, as in the released code (in 2 they did)
    "vit": 2,  # timm's ViTs by name. 2: the class token begins as in the released code, at std 0.02
    "optimizer": 1,
    "evaluation": 1,
    "probe": 1,
    "probe_parts": 2,  # the probe of a batch in several parts. 2: they go through the model one by one, as in training
    "monte_carlo": 1,
}
"""The numerics version of each part. Raise a part's version whenever the same configuration would give other numbers than before: it
enters the fingerprint of the runs that use the part, and of no others, once it is above 1."""

_ALWAYS = {  # keys that were hashed before new ones were left out at their defaults: they are hashed at their defaults too
    "model": ("name", "width", "depth", "heads", "patch", "hidden", "attention", "dropout", "profile", "input_dropout"),
    "optim": (
        "name", "lr", "min_lr", "weight_decay", "beta1", "beta2", "eps", "momentum", "clip", "l1", "l2", "max_norm",
    ),
    "augment": ("shift", "flip", "mixup", "cutmix", "switch", "smoothing"),
    "probe": ("batches", "dataset_limit", "clean"),
}  # fmt: skip
_ELSEWHERE = (  # hashed under other names, or as what follows from them
    "model.pretrained", "data.name", "data.train_images", "data.image_size", "optim.warmup", "probe.at", "trainer.epochs", "trainer.steps",
    "trainer.batch_size", "trainer.accumulate", "trainer.precision", "trainer.compile", "trainer.masks", "trainer.log_every",
    "trainer.eval_every", "trainer.stop_metric", "trainer.stop_patience", "trainer.mc_passes",
)  # fmt: skip


EXPLICIT_MODELS = ("vit_", "deit_", "mixer_", "swin_", "convnext_", "mlp", "convnet_micro", "gpt_micro")
"""What the names of models begin with whose dropout is no finding of `earlydrop.training.models.library`."""


def parts_used(config: Config) -> set[str]:
    """The parts of `VERSIONS` that a run computes with."""
    folder = config.data.name in IMAGE_FOLDERS
    used = {"models", "optimizer", "evaluation", "folder" if folder else "data"}
    name = config.model.name
    used |= {"library_models"} if config.model.pretrained or not (":" in name or name.startswith(EXPLICIT_MODELS)) else set()
    used |= {"mixing"} if config.augment.mixup > 0 or config.augment.cutmix > 0 else set()
    used |= {"swin"} if config.model.name.startswith("swin") else set()
    used |= {"vit"} if config.model.name.startswith("vit_") and config.model.name != "vit_micro" else set()
    used |= {"parts"} if config.trainer.accumulate > 1 else set()
    used |= {"masks"} if drops(config) else set()
    used |= {"compiled_masks"} if drops(config) and config.trainer.compile and config.trainer.masks == "fast" else set()
    used |= {"probe"} if config.probe.at else set()
    used |= {"probe_parts"} if config.probe.at and config.trainer.accumulate > 1 else set()
    return used | ({"monte_carlo"} if config.trainer.mc_passes is not None else set())


def settings(config: Config) -> dict[str, Any]:
    """The settings that act on a run's weights, but for its seed: every key in use whose role is ``numbers``, null ones too.

    A run that never drops has the schedule ``none``, whatever it is called.
    """
    acting: dict[str, Any] = {}
    for name, key in keys().items():
        if key.role == NUMBERS and key.used(config):
            acting |= (
                {f"{name}.{each}": value for each, value in key.of(config).items()} if name in OPEN else {name: key.of(config)}
            )
    return acting if drops(config) else acting | {"schedule.name": "none"}


def fingerprint(
    config: Config,
    source: Source,
    schedule: Schedule,
    total: int,
    warmup: int,
    eval_steps: Iterable[int],
    probe_steps: Iterable[int],
    code: Mapping[str, str] | None = None,
    pretrained: str | None = None,
) -> str:
    """Twelve hexadecimal digits of the hash of everything that determines a run's numbers, durations in steps.

    ``code`` holds the digests of what is somebody's own, ``pretrained`` that of the weights that a run begins with.
    """
    content = _content(config, source, schedule, total, warmup, list(eval_steps), list(probe_steps), code or {})
    if code:
        content["code"] = dict(code)
    if pretrained is not None:
        content["pretrained"] = pretrained
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]


def _content(
    config: Config,
    source: Source,
    schedule: Schedule,
    total: int,
    warmup: int,
    eval_steps: list[int],
    probe_steps: list[int],
    code: Mapping[str, str],
) -> dict[str, Any]:
    trainer = config.trainer
    second = {} if config.schedule.path_rate is None else {"path_rate": config.schedule.path_rate}
    content: dict[str, Any] = {
        "numerics": 1,
        "data": {"name": config.data.name, "digest": source.digest, "image_size": source.image_size},
        "schedule": schedule.to_config() | {"kind": config.schedule.kind, "masks": trainer.masks} | second
        if schedule.peak > 0
        else {"name": "none"},
        "steps": total,
        "batch_size": trainer.batch_size,
        "accumulate": trainer.accumulate,
        "precision": trainer.precision,
        "compile": trainer.compile,
        "log_every": trainer.log_every,
        "eval_steps": eval_steps,
        "seed": config.seed,
    }
    content |= {section: _used(config, section, names) for section, names in _ALWAYS.items()}
    content["optim"]["warmup"] = warmup
    content["probe"] = content["probe"] | {"at": probe_steps} if probe_steps else None
    if content["probe"] and config.probe.compare and not drops(config):
        content["probe"]["compare"] = {
            "rate": config.schedule.rate, "kind": config.schedule.kind, "masks": trainer.masks,
            "dropout": config.model.dropout, "profile": config.model.profile, **second,
        }  # fmt: skip
    if trainer.stop_metric is not None:
        content["stop"] = {"metric": trainer.stop_metric, "patience": trainer.stop_patience}
    if trainer.mc_passes is not None:
        content["mc_passes"] = trainer.mc_passes
    further = _further(config, keys())
    parts = parts_used(config) | ({"own_data"} if "data.name" in code else set())
    raised = {part: VERSIONS[part] for part in sorted(parts) if VERSIONS[part] > 1}
    return content | ({"further": further} if further else {}) | ({"versions": raised} if raised else {})


def _used(config: Config, section: str, names: Iterable[str]) -> dict[str, Any]:
    known = keys()
    found = {name: known[f"{section}.{name}"] for name in names}
    return {name: key.of(config) for name, key in found.items() if key.used(config) and key.of(config) is not None}


def _further(config: Config, known: Mapping[str, Key]) -> dict[str, Any]:
    """Every other key that acts and is not at its default."""
    hashed = {f"{section}.{name}" for section, names in _ALWAYS.items() for name in names} | set(_ELSEWHERE)
    return {
        name: key.of(config)
        for name, key in known.items()
        if key.role in (NUMBERS, CADENCE) and name not in hashed and not name.startswith("schedule.")
        and key.used(config) and key.of(config) != key.default
    }  # fmt: skip
