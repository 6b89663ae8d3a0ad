"""``earlydrop-weights RUN FILE``: a run's weights as a plain file that other programs load."""

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
    """The weights of a run.

    Args:
        run: The run's folder.
        which: The ``last`` weights, the ``averaged`` ones (``trainer.ema``) or the ``best`` ones
            (``trainer.stop_metric``).

    Returns:
        Tensors by the names that the model's library gives them, and the step that they are from.

    Raises:
        ConfigError: The folder is not a run, or has no such weights.
    """
    from torch import Tensor

    from earlydrop.training.fields import ConfigError
    from earlydrop.training.models import WithInputDropout
    from earlydrop.training.record.checkpoint import load_best, load_checkpoint
    from earlydrop.training.record.folder import read_config, read_provenance

    fingerprint, config = read_provenance(run)["fingerprint"], read_config(run)
    folder = run / "checkpoints"
    load = load_best if which == "best" else load_checkpoint
    content = load(folder, fingerprint)
    if content is None:
        need = "trainer.stop_metric" if which == "best" else "a checkpoint"
        raise ConfigError(f"{run} has no {which} weights: it was trained without {need}")
    if which == "averaged" and "model_ema" not in content:
        raise ConfigError(f"{run} has no averaged weights: it was trained without trainer.ema")
    weights: dict[str, Any] = content["model_ema" if which == "averaged" else "model"]
    if config.get("model", {}).get("input_dropout"):
        prefix = WithInputDropout.PREFIX
        weights = {name.removeprefix(prefix): value for name, value in weights.items()}
    tensors = {name: value for name, value in weights.items() if isinstance(value, Tensor)}
    return tensors, int(content["step"])


def write_weights(weights: dict[str, Tensor], file: Path) -> None:
    """Write weights as a .safetensors file, or as torch writes a ``state_dict``.

    Args:
        weights: Tensors by name.
        file: The file to write; its ending selects the format.

    Raises:
        ConfigError: Its name has another ending.
    """
    import torch

    from earlydrop.training.fields import ConfigError
    from earlydrop.training.record.files import write_atomically

    if file.suffix not in _ENDINGS:
        raise ConfigError(f"{file} ends in {file.suffix!r}: expected {', '.join(_ENDINGS)}")
    if file.suffix == ".safetensors":
        from safetensors.torch import save

        contiguous = {name: value.clone().contiguous() for name, value in weights.items()}
        write_atomically(file, save(contiguous))
        return
    buffer = io.BytesIO()
    torch.save(weights, buffer)
    write_atomically(file, buffer.getvalue())


@command
def main() -> None:
    """Write the weights of a run to a file."""
    parser = argparse.ArgumentParser(
        prog="earlydrop-weights",
        allow_abbrev=False,
        description="Write the weights of a run as a plain state_dict file.",
    )
    parser.add_argument("run", type=Path, help="the folder of a run")
    parser.add_argument("file", type=Path, help="the file to write: .safetensors, .pth or .pt")
    parser.add_argument(
        "--which",
        choices=WHICH,
        default="last",
        help="which of the run's weights (default: last)",
    )
    arguments = parser.parse_args()
    weights, step = plain_weights(arguments.run, arguments.which)
    write_weights(weights, arguments.file)
    whose = f"the {arguments.which} weights of {arguments.run}"
    print(f"{arguments.file}: {len(weights)} tensors, {whose}, step {step}")


if __name__ == "__main__":
    main()
