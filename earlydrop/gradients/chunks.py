"""Gradients as flat chunks, so that temporary tensors stay small."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor

from earlydrop.exact import exact_norm, home

_SMALLEST_CHUNK = 65_536  # entries


def chunk_size(total: int) -> int:
    """The number of entries in a chunk: a 64th of the total, and at least `_SMALLEST_CHUNK`.

    Temporaries of a chunk stay small beside a gradient, and a chunk is large enough to be fast.
    """
    return max(total // 64, _SMALLEST_CHUNK)


def pieces_of(*vectors: Tensor) -> Iterable[tuple[Tensor, ...]]:
    """The chunks of vectors of equal length: one tuple per chunk, with a part of each vector."""
    size = chunk_size(vectors[0].numel())
    return zip(*(vector.split(size) for vector in vectors), strict=True)


def flat_chunks(
    pieces: Sequence[Tensor], total: int, dtype: torch.dtype, device: torch.device
) -> Iterator[tuple[slice, Tensor]]:
    """A gradient as flat chunks. Small tensors are joined, large ones split.

    Each chunk comes with its place in the flat gradient, a slice. The chunks have the given dtype
    and device. ``total`` is the number of entries of the gradient.
    """
    waiting: list[Tensor] = []
    limit = chunk_size(total)
    start = 0
    size = 0
    for piece in pieces:
        for part in piece.reshape(-1).split(limit):
            if waiting and size + part.numel() > limit:
                yield slice(start, start + size), _joined(waiting)
                start += size
                waiting = []
                size = 0
            waiting.append(part.to(device, dtype))
            size += part.numel()
    if waiting:
        yield slice(start, start + size), _joined(waiting)


def _joined(parts: list[Tensor]) -> Tensor:
    return torch.cat(parts) if len(parts) > 1 else parts[0]


def square_of(vector: Tensor) -> float:
    """‖vector‖², summed over chunks in float64."""
    total = torch.zeros((), dtype=torch.float64, device=home(vector.device))
    for (piece,) in pieces_of(vector):
        total += exact_norm(piece).square()
    return float(total)


def sum_dtype(pieces: Sequence[Tensor]) -> torch.dtype:
    """The dtype for sums over some tensors: at least float32."""
    dtype = torch.float32
    for piece in pieces:
        dtype = torch.promote_types(dtype, piece.dtype)
    return dtype


def checked(
    gradient: Sequence[Tensor | None], like: Sequence[Tensor] | None, expected: int | None
) -> tuple[list[Tensor], int]:
    """Check a gradient; return its tensors and their number of entries.

    Tensors are detached, sparse ones made dense, complex ones viewed as pairs of real numbers. A
    missing tensor becomes zeros of the shape of its parameter.

    Args:
        gradient: One tensor for each parameter, or None where it has no gradient. One tensor alone
            is taken as a list of one.
        like: The parameters, for the shapes of missing gradients.
        expected: The number of entries of earlier gradients; None for the first.

    Returns:
        The tensors, and their number of entries.

    Raises:
        ValueError: All tensors are None, one is None without ``like``, a shape differs from that of
            its parameter in ``like``, or the number of entries differs from ``expected``.
    """
    if isinstance(gradient, Tensor):
        gradient = [gradient]
    if all(piece is None for piece in gradient):
        raise ValueError(
            "every gradient is None: does the loss depend on parameters that require gradients?"
        )
    pieces: list[Tensor] = []
    for index, piece in enumerate(gradient):
        if piece is None:
            if like is None:
                raise ValueError(
                    f"gradient {index} is None: give the parameters as like=, so that its size is "
                    "known"
                )
            parameter = like[index]
            # one expanded zero takes no memory
            piece = torch.zeros((), dtype=parameter.dtype, device=parameter.device)
            piece = piece.expand(parameter.shape)
        elif like is not None and piece.shape != like[index].shape:
            shapes = f"{tuple(piece.shape)}, its parameter {tuple(like[index].shape)}"
            raise ValueError(f"gradient {index} has shape {shapes}")
        piece = piece.detach()
        if piece.layout != torch.strided:  # nn.Embedding(sparse=True)
            piece = piece.to_dense()
        if piece.is_complex():  # a complex entry is two real ones
            piece = torch.view_as_real(piece.resolve_conj())
        pieces.append(piece)
    total = sum(piece.numel() for piece in pieces)
    if expected is not None and total != expected:
        raise ValueError(
            f"this gradient has {total} entries, those before had {expected}: "
            "parameters changed shape while being measured"
        )
    return pieces, total
