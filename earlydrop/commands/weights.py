"""``earlydrop-weights RUN FILE``: the weights of a run as a plain file, a tensor by each name, which other programs load."""

from __future__ import annotations

import argparse
import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

from earlydrop.commands import command

if TYPE_CHECKING:
    from torch import Tensor

WHICH = ("last", "averaged", "best")
_ENDINGS = (".safetensors", ".pth", ".pt")


def plain_weights(run: Path, which: str = "last") -> tuple[dict[str, Tensor], int]:
    """The weights of a run by the names that its model's library gives them, and the step that they are from.

    Args:
        run: The run's folder.
        which: The ``last`` ones, their ``averaged`` ones (``trainer.ema``), or the ``best`` ones (``trainer.stop_metric``).

    Raises:
        ConfigError: It is no run, or has no such weights.
    """
    from torch import Tensor

    from earlydrop.training.fields import ConfigError
    from earlydrop.training.models import WithInputDropout
    from earlydrop.training.record.checkpoint import load_best, load_checkpoint
    from earlydrop.training.record.folder import read_config, read_provenance

    fingerprint, config = read_provenance(run)["fingerprint"], read_config(run)
    folder = run / "checkpoints"
    content = load_best(folder, fingerprint) if which == "best" else load_checkpoint(folder, fingerprint)
    if content is None:
        need = "trainer.stop_metric" if which == "best" else "a checkpoint"
        raise ConfigError(f"{run} has no {which} weights: it was trained without {need}")
    if which == "averaged" and "model_ema" not in content:
        raise ConfigError(f"{run} has no averaged weights: it was trained without trainer.ema")
    weights: dict[str, Any] = content["model_ema" if which == "averaged" else "model"]
    if config.get("model", {}).get("input_dropout"):
        weights = {name.removeprefix(WithInputDropout.PREFIX): value for name, value in weights.items()}
    return {name: value for name, value in weights.items() if isinstance(value, Tensor)}, int(content["step"])


def write_weights(weights: dict[str, Tensor], file: Path) -> None:
    """Write weights by name, as a .safetensors file or as torch writes a ``state_dict``.

    Raises:
        ConfigError: The file's name ends in something else.
    """
    import torch

    from earlydrop.training.fields import ConfigError
    from earlydrop.training.record.files import write_atomically

    if file.suffix not in _ENDINGS:
        raise ConfigError(f"{file} ends in {file.suffix!r}: expected {', '.join(_ENDINGS)}")
    if file.suffix == ".safetensors":
        from safetensors.torch import save

        write_atomically(file, save({name: value.clone().contiguous() for name, value in weights.items()}))
        return
    buffer = io.BytesIO()
    torch.save(weights, buffer)
    write_atomically(file, buffer.getvalue())


@command
def main() -> None:
    """Write the weights of a run to a file."""
    parser = argparse.ArgumentParser(
        allow_abbrev=False, prog="earlydrop-weights", description="Write the weights of a run as a plain state_dict file."
    )
    parser.add_argument("run", type=Path, help="the folder of a run")
    parser.add_argument("file", type=Path, help="where they go: a .safetensors, .pth or .pt file")
    parser.add_argument("--which", choices=WHICH, default="last", help="which of the run's weights (default: last)")
    arguments = parser.parse_args()
    weights, step = plain_weights(arguments.run, arguments.which)
    write_weights(weights, arguments.file)
    print(f"{arguments.file}: {len(weights)} tensors, the {arguments.which} weights of {arguments.run}, step {step}")


if __name__ == "__main__":
    main()
