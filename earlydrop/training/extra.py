"""The names and places of further test sets (``data.extra``), checked without torch.

`earlydrop.training.data.extra` reads the sets.
"""

from __future__ import annotations

from pathlib import Path

from earlydrop.metrics import RESERVED, extra_metric
from earlydrop.training.config import IMAGE_FOLDERS, DataConfig
from earlydrop.training.fields import ConfigError
from earlydrop.training.names import printable


def check_extra(config: DataConfig) -> None:
    """Check the names and the paths of ``data.extra`` without reading the sets.

    Raises:
        ConfigError: The data is not an image folder, a name cannot begin the name of a metric, or
            a path is neither a folder nor a JSON file.
    """
    if config.extra and config.name not in IMAGE_FOLDERS:
        names = ", ".join(IMAGE_FOLDERS)
        raise ConfigError(
            f"data.extra is {config.extra!r}: data={config.name} is not read from images in class "
            f"folders; expected one of {names}, or no data.extra"
        )
    for name, place in config.extra.items():
        if "/" in str(name) or extra_metric(f"{name}/accuracy") is None:
            raise ConfigError(
                f"data.extra has the name {name!r}: expected a letter, then letters, digits, - or "
                f"_, and none of {', '.join(sorted(RESERVED))}"
            )
        prefix = f"data.extra.{name} is {place!r}"
        if not isinstance(place, str) or printable(place) != place:
            raise ConfigError(
                f"{prefix}: expected the path of a folder or of a JSON file, in UTF-8"
            )
        try:
            path = Path(place).expanduser()
        except RuntimeError as error:  # there is no such user
            raise ConfigError(f"{prefix}: {error}") from error
        if not (path.is_file() if holds_lists(place) else path.is_dir()):
            raise ConfigError(
                f"{prefix}: there is no such folder, and no such file that ends in .json; expected "
                "a folder with one folder per class, or a file of label lists"
            )


def holds_lists(place: str) -> bool:
    """Whether a further test set is a JSON file of label lists."""
    return place.lower().endswith(".json")


def metrics_of(config: DataConfig) -> list[str]:
    """The metrics that the further test sets give; label lists have no loss."""
    names = []
    for name, place in config.extra.items():
        names.append(f"{name}/accuracy")
        if not holds_lists(str(place)):
            names.append(f"{name}/loss")
    return names
