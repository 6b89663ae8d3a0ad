"""Data of the user's own, named as ``module:function``: a pair of datasets, or a whole `Source`."""

from __future__ import annotations

import hashlib
import math
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from earlydrop.training.arguments import arguments, parameter_names
from earlydrop.training.config import AugmentConfig, DataConfig
from earlydrop.training.data.arrays import ImagesInMemory, stratified
from earlydrop.training.data.source import Source
from earlydrop.training.fields import ConfigError
from earlydrop.training.keys import keys
from earlydrop.training.plugins import Code, raised

_EXPECTED = (
    "expected a pair of datasets, for training and for test, each with a length and (image, label) "
    "at every index; or a Source (earlydrop.training.data.source)"
)
# Keys of image folders, by the parameter of a user's function that holds them.
_FOLDER_KEYS = {
    "config": ("data.decoder", "data.image", "data.label"),
    "options": ("augment.crop", "augment.randaugment", "augment.color_jitter"),
}
# Keys of `data` that are not passed to a parameter of their name.
_SHARED = ("name", "args", "download", "workers", "image", "label", "extra", "decoder")


def own_source(
    code: Code, config: DataConfig, options: AugmentConfig, device: torch.device
) -> Source:
    """Call a function of the user's for its data.

    Its arguments are the keys of ``data.args``. Parameters named ``root``, ``train_images``,
    ``image_size`` and ``skip_corrupt`` take these keys of ``data``. ``config`` takes the whole
    group, ``options`` the group ``augment``, and ``device`` the device.

    Raises:
        ConfigError: An argument does not fit, the function raises an error, or it does not return
            data.
    """
    prefix = f"data.name is {config.name!r}"
    known = parameter_names("data", config.name, code.value)
    offered: dict[str, Any] = {"config": config, "options": options, "device": device}
    takes_all = "config" in known
    for name in (key.removeprefix("data.") for key in keys() if key.startswith("data.")):
        value = getattr(config, name)
        if name in _SHARED:
            continue
        if name in known:
            offered[name] = value
        elif not takes_all and name != "train_images":
            _refuse_ignored(config.name, name, value)
    _warn_of_unread(known, config, options)
    values = arguments("data", config.name, code.value, config.args, offered)
    try:
        returned = code.value(**values)
        if _is_source(returned):
            if not takes_all and "train_images" not in known:
                _refuse_ignored(config.name, "train_images", config.train_images)
            _check_source(prefix, returned)
            source: Source = returned
            return source
        return OwnImages(
            splits=pair_of(prefix, returned),
            config=config,
            options=options,
            device=device,
            first_only="train_images" not in known,
        )
    except ConfigError:
        raise
    except Exception as error:
        raise ConfigError(f"{prefix}: reading it raised {raised(error, code.paths)}") from error


def _warn_of_unread(known: Sequence[str], config: DataConfig, options: AugmentConfig) -> None:
    """Warn of keys of image folders that are set and that a user's function cannot read."""
    groups: dict[str, Any] = {"config": config, "options": options}
    for parameter, names in _FOLDER_KEYS.items():
        unread = []
        for name in names:
            value = getattr(groups[parameter], name.partition(".")[2])
            if parameter not in known and value != keys()[name].default:
                unread.append(name)
        if unread and os.environ.get("RANK", "0") == "0":
            reason = f"data.name={config.name} has no parameter {parameter}"
            print(f"warning: {', '.join(unread)} not used: {reason}", file=sys.stderr)


def _is_source(returned: Any) -> bool:
    return Source in type(returned).__mro__ or all(
        hasattr(returned, name) for name in ("batches", "sizes")
    )


def _check_source(prefix: str, source: Any) -> None:
    """Refuse a source that lacks something, or whose first images have a wrong shape or label."""
    if Source not in type(source).__mro__:
        raise ConfigError(
            f"{prefix}: {type(source).__name__} is no Source; make it a subclass of "
            "earlydrop.training.data.source.Source"
        )
    lacking = [
        name
        for name in ("classes", "channels", "image_size", "sizes", "digest")
        if not hasattr(source, name)
    ]
    if lacking:
        raise ConfigError(
            f"{prefix}: its Source has no {', '.join(lacking)}; see "
            "earlydrop.training.data.source.Source"
        )
    for split in ("train", "test"):
        if source.sizes.get(split, 0) < 1:
            raise ConfigError(
                f"{prefix}: its Source has no length for {split!r}: sizes is {source.sizes}"
            )
        keyed = [(0, torch.arange(min(2, source.sizes[split])))]
        for images, labels in source.batches(keyed, split, None):
            expected = tuple(source.blank(len(keyed[0][1]), images.device).shape)
            if tuple(images.shape) != expected:
                raise ConfigError(
                    f"{prefix}: its {split} images have shape {tuple(images.shape)}, expected "
                    f"{expected}"
                )
            if images.is_floating_point() and not images.isfinite().all():
                raise ConfigError(
                    f"{prefix}: its first {split} images hold NaN or infinity; fix the data"
                )
            if labels.dtype != torch.int64 or (
                labels.numel() and (labels.min() < 0 or labels.max() >= source.classes)
            ):
                raise ConfigError(
                    f"{prefix}: its {split} labels are {labels.tolist()}: expected int64, 0 to "
                    f"{source.classes - 1}"
                )


def _refuse_ignored(function: str, name: str, value: object) -> None:
    """Refuse a key of ``data`` that is set and that the user's function does not take."""
    if value not in (None, False):
        raise ConfigError(
            f"data.{name} is {value!r}: data.name={function} has no such argument; leave it out"
        )


def pair_of(prefix: str, returned: Any, verb: str = "it returned") -> dict[str, Any]:
    """The training and the test set of a user's data.

    Args:
        prefix: The start of every message, such as ``data.name is 'faces:load'``.
        returned: A pair of datasets, or a mapping with the keys ``"train"`` and ``"test"``.
        verb: Words of a message for how the data was given.

    Returns:
        The datasets, by ``"train"`` and ``"test"``.

    Raises:
        ConfigError: It is not a pair, or a dataset has no length, no index or no item.
    """
    if isinstance(returned, Mapping) and {"train", "test"} <= returned.keys():
        returned = (returned["train"], returned["test"])
    if not isinstance(returned, (tuple, list)) or len(returned) != 2:
        raise ConfigError(f"{prefix}: {verb} a {type(returned).__name__}; {_EXPECTED}")
    splits = {"train": returned[0], "test": returned[1]}
    for split, dataset in splits.items():
        if not hasattr(dataset, "__len__"):
            raise ConfigError(
                f"{prefix}: its {split} set, a {type(dataset).__name__}, has no length; {_EXPECTED}"
            )
        if not hasattr(dataset, "__getitem__"):
            raise ConfigError(
                f"{prefix}: its {split} set, a {type(dataset).__name__}, has no index; {_EXPECTED}"
            )
        if len(dataset) == 0:
            raise ConfigError(f"{prefix}: its {split} set is empty")
    return splits


def read_images(prefix: str, split: str, dataset: Any) -> tuple[Tensor, Tensor]:
    """A dataset's images, (N, C, H, H), uint8 or float32, and labels, (N,), int64.

    Raises:
        ConfigError: An item is not an image with a label, the images differ in shape or are not
            square, or a value is not finite.
    """
    images, labels = [], []
    for index in range(len(dataset)):
        item = dataset[index]
        if not isinstance(item, (tuple, list)) or len(item) < 2:
            raise ConfigError(
                f"{prefix}: {split}[{index}] is a {type(item).__name__}, expected (image, label)"
            )
        images.append(as_image(prefix, f"{split}[{index}]", item[0]))
        labels.append(_as_label(prefix, f"{split}[{index}]", item[1]))
    shapes = {tuple(image.shape) for image in images}
    if len(shapes) > 1:
        raise ConfigError(
            f"{prefix}: its {split} images have different shapes, such as {min(shapes)} and "
            f"{max(shapes)}; resize them"
        )
    kinds = {str(image.dtype) for image in images}
    if len(kinds) > 1:
        raise ConfigError(
            f"{prefix}: its {split} images are {' and '.join(sorted(kinds))}: expected the same, "
            "bytes from 0 to 255 or floats from 0 to 1"
        )
    stacked = torch.stack(images)
    if stacked.shape[-1] != stacked.shape[-2]:
        raise ConfigError(
            f"{prefix}: its {split} images have shape {tuple(stacked.shape[1:])}, expected square "
            "ones; crop them"
        )
    if not stacked.float().isfinite().all():
        bad = next(i for i, image in enumerate(images) if not image.float().isfinite().all())
        raise ConfigError(f"{prefix}: {split}[{bad}] holds NaN or infinity; fix the data")
    return stacked, torch.tensor(labels)


def channels_last(shape: Sequence[int]) -> bool:
    """Whether the channels of an image's array come last: there are 1, 3 or 4 of them."""
    first, _, last = shape
    return last in (1, 3, 4) and first not in (1, 3, 4)


def as_image(prefix: str, where: str, image: Any) -> Tensor:
    """An image as (C, H, W), uint8 if its values are, else float32.

    A tensor must have this order, or no channels. In an array the channels may also come last, if
    there are 1, 3 or 4 of them. A picture of PIL with a palette is read in its colours.

    Raises:
        ConfigError: It is not an image, or has more than three dimensions.
    """
    if isinstance(image, Tensor):
        tensor = image.detach().cpu()
    else:
        is_picture = hasattr(image, "getbands")
        array = np.array(image.convert("RGB") if is_picture and image.mode == "P" else image)
        if array.dtype == object or array.ndim == 0:
            raise ConfigError(
                f"{prefix}: the image of {where} is a {type(image).__name__}, expected a tensor, "
                "an array or a picture"
            )
        tensor = torch.from_numpy(array)
        if array.ndim == 3 and (is_picture or channels_last(array.shape)):
            tensor = tensor.permute(2, 0, 1)
    if tensor.dim() == 2:
        tensor = tensor.unsqueeze(0)
    if tensor.dim() != 3:
        raise ConfigError(
            f"{prefix}: the image of {where} has shape {tuple(tensor.shape)}, expected (C, H, W)"
        )
    return tensor if tensor.dtype == torch.uint8 else tensor.float()


def _as_label(prefix: str, where: str, label: Any) -> int:
    shape = tuple(getattr(label, "shape", ()))
    if math.prod(shape) != 1:
        raise ConfigError(
            f"{prefix}: the label of {where} is a {type(label).__name__} of shape {shape}, "
            "expected a class from 0 on"
        )
    value = label.item() if hasattr(label, "item") else label
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ConfigError(
            f"{prefix}: the label of {where} is {label!r}, expected a class from 0 on"
        )
    return value


class OwnImages(ImagesInMemory):
    """Images of a pair of datasets, read once into memory.

    They are normalised by the training images' mean and spread, shifted and flipped.
    """

    def __init__(
        self,
        splits: Mapping[str, Any],
        config: DataConfig,
        options: AugmentConfig,
        device: torch.device,
        first_only: bool,
    ) -> None:
        prefix = f"data.name is {config.name!r}"
        read = {split: read_images(prefix, split, dataset) for split, dataset in splits.items()}
        if first_only and config.train_images is not None:
            read["train"] = _first(config.train_images, *read["train"])
        if read["train"][0].shape[1:] != read["test"][0].shape[1:]:
            shapes = " and ".join(str(tuple(images.shape[1:])) for images, _ in read.values())
            raise ConfigError(
                f"{prefix}: its training and test images have shapes {shapes}, expected the same"
            )
        kinds = {split: images.dtype for split, (images, _) in read.items()}
        if kinds["train"] != kinds["test"]:
            raise ConfigError(
                f"{prefix}: its training images are {kinds['train']} and its test images "
                f"{kinds['test']}: expected the same, bytes from 0 to 255 or floats from 0 to 1"
            )
        count, self.channels, self.image_size, _ = read["train"][0].shape
        if options.shift >= self.image_size:
            raise ConfigError(
                f"augment.shift is {options.shift}: expected less than the image's "
                f"{self.image_size} pixels"
            )
        self.classes = int(max(labels.max() for _, labels in read.values())) + 1
        self.sizes = {split: len(labels) for split, (_, labels) in read.items()}
        self.digest = digest_of_images(read)
        unit = 255 if read["train"][0].dtype == torch.uint8 else 1
        pixels = read["train"][0].double() / unit
        mean, spread = pixels.mean((0, 2, 3)), pixels.std((0, 2, 3), correction=0)
        if not spread.all():
            raise ConfigError(
                f"{prefix}: a channel of its {count} training images has the same value in every "
                "pixel, so it cannot be normalised; leave that channel out"
            )
        self.hold(
            images={split: images for split, (images, _) in read.items()},
            labels={split: labels for split, (_, labels) in read.items()},
            scale=1 / (unit * spread),
            offset=mean / spread,
            options=options,
            device=device,
        )


def _first(count: int, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The first images of each class, as `stratified` chooses them."""
    classes = int(labels.max()) + 1
    if not classes <= count <= len(labels):
        raise ConfigError(
            f"data.train_images is {count}: there are {len(labels)} training images of {classes} "
            f"classes; expected {classes} to {len(labels)}"
        )
    keep = torch.from_numpy(stratified(labels.numpy(), count, classes))
    return images[keep], labels[keep]


def digest_of_images(read: Mapping[str, tuple[Tensor, Tensor]]) -> str:
    """Hash of the splits' images, with their shapes and types, and of their labels."""
    digest = hashlib.sha256()
    for split, (images, labels) in sorted(read.items()):
        digest.update(f"{split} {tuple(images.shape)} {images.dtype}".encode())
        digest.update(images.contiguous().numpy().tobytes())
        digest.update(labels.numpy().tobytes())
    return digest.hexdigest()
