"""The fingerprint of a run, which hashes everything that determines its numbers.

The fingerprint, and the settings that tell a run from others, follow from the roles of the keys in
`earlydrop.training.config`. A new key is hashed only if its value is not the default, so earlier
fingerprints do not change.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from earlydrop.training.config import IMAGE_FOLDERS, Config
from earlydrop.training.fields import CADENCE, NUMBERS
from earlydrop.training.keys import OPEN, keys
from earlydrop.training.schedule_config import drops

if TYPE_CHECKING:
    from earlydrop.schedules import Schedule
    from earlydrop.training.data.source import Source

VERSIONS = {
    "data": 1,  # arrays in memory: shift, flip, normalisation
    # image folders: transforms by sample. 2: they follow the keys of `augment`, RandAugment works
    # on every Pillow
    "folder": 2,
    "torchcodec": 2,  # image folders: decoding and crops by torchcodec and torchvision
    "mixing": 1,
    "parts": 2,  # a batch in several parts. 2: each part has random numbers of its own
    "masks": 1,
    # trainer.masks=fast in compiled graphs. 2: they draw 16-bit masks on a CPU too
    "compiled_masks": 2,
    # fused attention in compiled graphs. 2: on a GPU it stays fused while attention drops
    "compiled_attention": 2,
    "models": 1,
    # models that `models.library` builds; files of initial weights. 2: the rate .125 that timm
    # fixes in the MLP of relative positions follows the schedule's peak
    "library_models": 2,
    "own_data": 2,  # pairs of a user's datasets, read into memory
    # 3: no weight decay on the relative position bias tables, as in the released code (2 had it)
    "swin": 3,
    "vit": 2,  # timm's ViTs by name. 2: the class token begins as in the released code, at std 0.02
    "optimizer": 1,
    "evaluation": 1,
    "probe": 1,
    # the probe of a batch in several parts. 2: they go through the model one by one, as in training
    "probe_parts": 2,
    "monte_carlo": 1,
}
"""The numerics version of each part.

Raise the version of a part whenever the same configuration would give other numbers than before.
A version above 1 enters the fingerprint of the runs that use the part, and of no others.
"""

# The oldest keys: they are hashed even at their defaults. All newer keys are hashed only at other
# values (see `_further`).
_ALWAYS = {
    "model": (
        "name", "width", "depth", "heads", "patch", "hidden", "attention", "dropout", "profile",
        "input_dropout",
    ),
    "optim": (
        "name", "lr", "min_lr", "weight_decay", "beta1", "beta2", "eps", "momentum", "clip", "l1",
        "l2", "max_norm",
    ),
    "augment": ("shift", "flip", "mixup", "cutmix", "switch", "smoothing"),
    "probe": ("batches", "dataset_limit", "clean"),
}  # fmt: skip
_ELSEWHERE = (  # hashed under other names, or through values computed from them
    "model.pretrained", "data.name", "data.train_images", "data.image_size", "optim.warmup",
    "probe.at", "trainer.epochs", "trainer.steps", "trainer.batch_size", "trainer.accumulate",
    "trainer.precision", "trainer.compile", "trainer.masks", "trainer.log_every",
    "trainer.eval_every", "trainer.stop_metric", "trainer.stop_patience", "trainer.mc_passes",
)  # fmt: skip


EXPLICIT_MODELS = (
    "vit_",
    "deit_",
    "mixer_",
    "swin_",
    "convnext_",
    "mlp",
    "convnet_micro",
    "gpt_micro",
)
"""Prefixes of the names of models that `models.library` does not build."""
LIBRARY_MODELS = ("vit_relpos_", "vit_srelpos_")
"""Prefixes of the names that it builds all the same: ViTs that take no ``pos_drop_rate``."""


def parts_used(config: Config) -> set[str]:
    """The parts of `VERSIONS` that a run computes with."""
    name, trainer = config.model.name, config.trainer
    folder = config.data.name in IMAGE_FOLDERS
    drop = drops(config)
    in_parts = trainer.accumulate > 1
    fast = trainer.masks == "fast"
    is_explicit = name.startswith(EXPLICIT_MODELS) and not name.startswith(LIBRARY_MODELS)
    known_model = ":" in name or is_explicit
    uses = {
        "models": True,
        "optimizer": True,
        "evaluation": True,
        "data": not folder,
        "folder": folder,
        "torchcodec": folder and config.data.decoder == "torchcodec",
        "library_models": bool(config.model.pretrained) or not known_model,
        "swin": name.startswith("swin"),
        "vit": is_explicit and name.startswith("vit_") and name != "vit_micro",
        "mixing": config.augment.mixup > 0 or config.augment.cutmix > 0,
        "parts": in_parts,
        "masks": drop,
        "compiled_masks": drop and trainer.compile and fast,
        "compiled_attention": (
            drop and trainer.compile and not fast and config.model.attention == "fused"
        ),
        "probe": bool(config.probe.at),
        "probe_parts": bool(config.probe.at) and in_parts,
        "monte_carlo": trainer.mc_passes is not None,
    }
    return {part for part, is_used in uses.items() if is_used}


def settings(config: Config) -> dict[str, Any]:
    """The settings that act on a run's weights, except its seed.

    They are the keys in use whose role is ``numbers``, null ones included. A run that never drops
    has ``schedule.name`` ``none``, whatever the configuration says.
    """
    acting: dict[str, Any] = {}
    for name, key in keys().items():
        if key.role != NUMBERS or not key.used(config):
            continue
        if name in OPEN:
            for argument, value in key.of(config).items():
                acting[f"{name}.{argument}"] = value
        else:
            acting[name] = key.of(config)
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
    """Hash everything that determines a run's numbers, to twelve hexadecimal digits.

    ``code`` holds the digests of the user's code, and ``pretrained`` the digest of the initial
    weights from a file.
    """
    code, probed = code or {}, list(probe_steps)
    trainer = config.trainer
    second = {} if config.schedule.path_rate is None else {"path_rate": config.schedule.path_rate}
    rates: dict[str, Any] = {"name": "none"}
    if schedule.peak > 0:
        sites = {"kind": config.schedule.kind, "masks": trainer.masks}
        rates = {**schedule.to_config(), **sites, **second}
    content: dict[str, Any] = {
        "numerics": 1,
        "data": {
            "name": config.data.name,
            "digest": source.digest,
            "image_size": source.image_size,
        },
        "schedule": rates,
        "steps": total,
        "batch_size": trainer.batch_size,
        "accumulate": trainer.accumulate,
        "precision": trainer.precision,
        "compile": trainer.compile,
        "log_every": trainer.log_every,
        "eval_steps": list(eval_steps),
        "seed": config.seed,
    }
    content |= {section: _used(config, section, names) for section, names in _ALWAYS.items()}
    content["optim"]["warmup"] = warmup
    content["probe"] = content["probe"] | {"at": probed} if probed else None
    if content["probe"] and config.probe.compare and not drops(config):
        content["probe"]["compare"] = {
            "rate": config.schedule.rate, "kind": config.schedule.kind, "masks": trainer.masks,
            "dropout": config.model.dropout, "profile": config.model.profile, **second,
        }  # fmt: skip
    if trainer.stop_metric is not None:
        content["stop"] = {"metric": trainer.stop_metric, "patience": trainer.stop_patience}
    if trainer.mc_passes is not None:
        content["mc_passes"] = trainer.mc_passes
    parts = parts_used(config) | ({"own_data"} if "data.name" in code else set())
    raised = {part: VERSIONS[part] for part in sorted(parts) if VERSIONS[part] > 1}
    for name, part in (("further", _further(config)), ("versions", raised), ("code", dict(code))):
        if part:
            content[name] = part
    if pretrained is not None:
        content["pretrained"] = pretrained
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]


def _used(config: Config, section: str, names: Iterable[str]) -> dict[str, Any]:
    known, values = keys(), {}
    for name in names:
        key = known[f"{section}.{name}"]
        value = key.of(config)
        if key.used(config) and value is not None:
            values[name] = value
    return values


def _further(config: Config) -> dict[str, Any]:
    """Every other key that acts and is not at its default."""
    hashed = set(_ELSEWHERE)
    for section, names in _ALWAYS.items():
        hashed |= {f"{section}.{name}" for name in names}
    values = {}
    for name, key in keys().items():
        acts = key.role in (NUMBERS, CADENCE) and key.used(config)
        if not acts or name in hashed or name.startswith("schedule."):
            continue
        if key.of(config) != key.default:
            values[name] = key.of(config)
    return values
