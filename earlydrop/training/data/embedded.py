"""The data files that come with earlydrop."""

from __future__ import annotations

import hashlib
import lzma
from pathlib import Path

from earlydrop.training.fields import ConfigError


def unpacked(file: Path, sha256: str) -> bytes:
    """The content of an embedded file."""
    try:
        content = lzma.decompress(file.read_bytes())
    except (lzma.LZMAError, EOFError, OSError) as error:
        raise ConfigError(
            f"{file.name} cannot be read ({error}): install earlydrop again"
        ) from error
    if hashlib.sha256(content).hexdigest() != sha256:
        raise ConfigError(
            f"{file.name} is damaged: the SHA-256 of its content is not the expected one; "
            "install earlydrop again"
        )
    return content
