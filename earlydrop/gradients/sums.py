"""Running sums over the gradients at one set of weights, from which every measure follows.

With gradients g₁ … g_N at one set of weights, their directions uᵢ = gᵢ/‖gᵢ‖, and ĝ the whole-dataset gradient with direction d: since
½(1 − cos(a, b)) = ¼‖a/‖a‖ − b/‖b‖‖², every measure follows from sums of deviations from any fixed reference: of wᵢ = gᵢ − ĝ
and vᵢ = uᵢ − d, for example Σ_{i<j} ‖uᵢ − uⱼ‖² = N Σ‖vᵢ‖² − ‖Σ vᵢ‖². So the small differences that matter are summed, not the large
numbers they come from. Memory is O(parameters), however many gradients.

Shape legend: P, the number of entries of a gradient (all parameters of a model, flattened, in order).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from earlydrop.exact import brought_home, exact, exact_norm, home
from earlydrop.gradients.measures import MEASURES, GradientReport, Moments

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

_SMALLEST_CHUNK = 1 << 16


def _chunk(total: int) -> int:
    """Entries worked on at a time: few enough that temporaries are small beside a gradient, many enough to be fast."""
    return max(total // 64, _SMALLEST_CHUNK)


def _pieces(*vectors: Tensor) -> Iterable[tuple[Tensor, ...]]:
    size = _chunk(vectors[0].numel())
    return zip(*(vector.split(size) for vector in vectors), strict=True)


def _flat_chunks(pieces: Sequence[Tensor], total: int, dtype: torch.dtype, device: torch.device) -> Iterator[tuple[slice, Tensor]]:
    """A gradient as flat chunks with their places in the whole: small tensors joined, large ones split."""
    waiting: list[Tensor] = []
    limit, start, size = _chunk(total), 0, 0
    for piece in pieces:
        flat = piece.reshape(-1)
        for part in flat.split(limit) if flat.numel() > limit else (flat,):
            if waiting and size + part.numel() > limit:
                yield slice(start, start + size), torch.cat(waiting) if len(waiting) > 1 else waiting[0]
                start, waiting, size = start + size, [], 0
            waiting.append(part if part.dtype == dtype and part.device == device else part.to(device, dtype))
            size += part.numel()
    if waiting:
        yield slice(start, start + size), torch.cat(waiting) if len(waiting) > 1 else waiting[0]


def _square(vector: Tensor) -> float:
    """‖vector‖², summed over chunks in float64."""
    total = torch.zeros((), dtype=torch.float64, device=home(vector.device))
    for (piece,) in _pieces(vector):
        total += exact_norm(piece).square()
    return float(total)


class MeanGradient:
    """A weighted mean of gradients, such as the whole-dataset gradient from its batches. Holds one vector of P entries.

    >>> mean = MeanGradient()
    >>> mean.add([torch.tensor([1.0, 0.0])], images=3)
    >>> mean.add([torch.tensor([0.0, 2.0])], images=1)
    >>> mean.value()
    tensor([0.7500, 0.5000])
    """

    def __init__(self) -> None:
        self.images = 0
        self._sum: Tensor | None = None

    def add(self, gradient: Sequence[Tensor | None], images: int, like: Sequence[Tensor] | None = None) -> None:
        """Add a mean gradient over some images.

        Args:
            gradient: One tensor for each parameter, or None where it has no gradient.
            images: The images that it is a mean over.
            like: The parameters, for the shapes of missing gradients.

        Raises:
            ValueError: The gradient has another number of entries than those before.
        """
        pieces, total = _checked(gradient, like, None if self._sum is None else self._sum.numel())
        if self._sum is None:
            self._sum = torch.zeros(total, dtype=_sum_dtype(pieces), device=pieces[0].device)
        for place, g in _flat_chunks(pieces, total, self._sum.dtype, self._sum.device):
            self._sum[place].add_(g, alpha=images)
        self.images += images

    def value(self, group: ProcessGroup | None = None) -> Tensor:
        """The mean, (P,). The sum is divided in place: call it once, at the end.

        Args:
            group: Combine the sums of these workers.

        Returns:
            The mean gradient.

        Raises:
            ValueError: Nothing was added, or the mean is not finite.
        """
        if self._sum is None or self.images == 0:
            raise ValueError("the dataset gave no batches: a whole-dataset gradient needs at least one")
        if group is not None:
            images = torch.tensor([self.images], dtype=torch.int64, device=self._sum.device)
            torch.distributed.all_reduce(self._sum, group=group)
            torch.distributed.all_reduce(images, group=group)
            self.images = int(images.item())
        if not math.isfinite(_square(self._sum)):
            raise ValueError("a gradient holds NaN or infinity: check the loss at these weights before measuring gradients")
        return self._sum.div_(self.images)


class GradientSums:
    """Running sums over mini-batch gradients, from which every measure follows. Holds two vectors of P entries, and a third for
    the reference direction.

    Args:
        reference: The whole-dataset gradient, (P,), float32 or better. It is normalised in place and kept. Without it there is no
            GDE and no bias, and the first gradient's direction takes its place in the sums.
        reference_images: Number of images behind the reference, for the report.

    Raises:
        ValueError: The reference is zero or not finite.

    >>> sums = GradientSums()
    >>> sums.add([torch.tensor([1.0, 0.0])])
    >>> sums.add([torch.tensor([0.0, 3.0])])
    >>> report = sums.report()
    >>> round(report.gdv, 6), report.gradient_norm
    (0.5, 2.0)
    """

    def __init__(self, reference: Tensor | None = None, reference_images: int | None = None) -> None:
        self.count = 0
        self.images = 0
        self.has_dataset = reference is not None
        self.reference_images = reference_images
        self.reference_norm: float | None = None
        self._reference: Tensor | None = None
        self._norms = 0.0  # Σ ‖gᵢ‖
        self._deviation = 0.0  # Σ ‖wᵢ‖²
        self._spread = 0.0  # Σ ‖vᵢ‖²
        self._inverse_images = 0.0  # Σ 1/bᵢ
        self._sums = torch.empty(0)  # (2, P): Σ wᵢ and Σ vᵢ
        if reference is not None:
            norm = math.sqrt(_square(reference))
            if not math.isfinite(norm) or norm == 0:
                raise ValueError(f"the whole-dataset gradient has norm {norm}: its direction is undefined at these weights")
            self.reference_norm = norm
            self._reference = reference.detach().reshape(-1).div_(norm)

    @torch.no_grad()
    def add(self, gradient: Sequence[Tensor | None], images: int = 1, like: Sequence[Tensor] | None = None) -> None:
        """Add one mini-batch gradient. It is read, not kept.

        Args:
            gradient: One tensor for each parameter, or None where it has no gradient.
            images: Number of images in the mini-batch.
            like: The parameters, for the shapes of missing gradients.

        Raises:
            ValueError: The gradient is zero or not finite, or has another number of entries than those before.
        """
        expected = self._reference.numel() if self._reference is not None else None
        pieces, total = _checked(gradient, like, expected)
        if self._sums.numel() == 0:
            self._sums = torch.zeros(2, total, dtype=_sum_dtype(pieces), device=pieces[0].device)
        dtype, device = self._sums.dtype, self._sums.device
        # Scalars are added up in place: kept one by one between large temporaries they would fragment the heap.
        scalars = torch.zeros(2, dtype=torch.float64, device=home(device))  # ‖w‖², ‖v‖²
        limit = _chunk(total)
        parts = [p for piece in pieces for p in (piece.reshape(-1).split(limit) if piece.numel() > limit else (piece,))]
        norms = torch._foreach_norm([brought_home(part) for part in parts], 2, torch.float64)  # tiny gradients must not vanish
        square = float(torch.stack([each.to(scalars.device) for each in norms]).square().sum())
        if not math.isfinite(square):
            raise ValueError(f"mini-batch gradient {self.count} holds NaN or infinity: check the loss at these weights")
        if square == 0:
            raise ValueError(f"mini-batch gradient {self.count} is zero: its direction is undefined, so GDV and GDE are too")
        norm = math.sqrt(square)
        if self._reference is None:
            self.reference_norm = norm
            self._reference = torch.empty(total, dtype=dtype, device=device)
            for place, g in _flat_chunks(pieces, total, dtype, device):
                torch.div(g, norm, out=self._reference[place])
        reference_norm = self.reference_norm or 0.0
        for place, g in _flat_chunks(pieces, total, dtype, device):
            r = self._reference[place]
            w = torch.sub(g, r, alpha=reference_norm)
            self._sums[0, place].add_(w)  # not +=, which would copy the slice onto itself
            scalars[0].add_(exact_norm(w).square_())
            v = torch.sub(r, g, alpha=1.0 / norm)  # −vᵢ
            self._sums[1, place].sub_(v)
            scalars[1].add_(exact_norm(v).square_())
        deviation_square, spread = scalars.tolist()
        self.count += 1
        self.images += images
        self._norms += norm
        self._deviation += deviation_square
        self._spread += spread
        self._inverse_images += 1.0 / images

    def merge(self, other: GradientSums) -> None:
        """Add another's sums, taken at the same weights over other mini-batches.

        Args:
            other: Sums over gradients of the same model; left as it is.

        Raises:
            ValueError: The two are of models of different size, or only one has a whole-dataset gradient.
        """
        if other.count == 0:
            return
        if self.has_dataset != other.has_dataset:
            raise ValueError("only one of the two has a whole-dataset gradient: measure both with it, or both without")
        if self._sums.numel() == 0:
            self._sums = torch.zeros_like(other._sums)
            if self._reference is None:
                self._reference, self.reference_norm = other._reference, other.reference_norm
        if self._sums.shape != other._sums.shape or self._reference is None or other._reference is None:
            raise ValueError(f"gradients have {other._sums.shape[-1]} entries in one and {self._sums.shape[-1]} in the other")
        for row, scale, other_scale in ((0, self.reference_norm, other.reference_norm), (1, 1.0, 1.0)):
            square = dot = 0.0  # other's deviations are from its own reference: move them to ours
            for ours, theirs, r, s in _pieces(self._sums[row], other._sums[row], self._reference, other._reference):
                shift = exact(s) * (other_scale or 0.0) - exact(r) * (scale or 0.0)
                square += float(shift @ shift)
                dot += float(shift @ exact(theirs))
                ours += (exact(theirs) + other.count * shift).to(ours.dtype).to(ours.device)
            moved = 2.0 * dot + other.count * square
            if row == 0:
                self._deviation += other._deviation + moved
            else:
                self._spread += other._spread + moved
        self.count += other.count
        self.images += other.images
        self._norms += other._norms
        self._inverse_images += other._inverse_images

    def all_reduce(self, group: ProcessGroup) -> None:
        """Combine the sums of all workers in place: one all-reduce of the vectors and one of the scalars.

        Every worker must hold the same whole-dataset gradient, and at least one gradient.

        Args:
            group: The workers.

        Raises:
            ValueError: Without a whole-dataset gradient the workers have no common reference.
        """
        if not self.has_dataset:
            raise ValueError("sums without a whole-dataset gradient cannot be all-reduced: give every worker the same reference")
        scalars = torch.tensor(
            [self._norms, self._deviation, self._spread, self._inverse_images, float(self.count), float(self.images)],
            dtype=torch.float64,
            device=home(self._sums.device),
        )
        torch.distributed.all_reduce(self._sums, group=group)
        torch.distributed.all_reduce(scalars, group=group)
        self._norms, self._deviation, self._spread, self._inverse_images, count, images = scalars.tolist()
        self.count, self.images = int(count), int(images)

    def report(self, measures: Mapping[str, Callable[[Moments], float | None]] | None = None) -> GradientReport:
        """Every measure from the sums so far.

        Args:
            measures: Measures of your own, by name, for the report's ``further``.

        Returns:
            The report.

        Raises:
            ValueError: Fewer than two gradients were added.
        """
        moments = self.moments()
        taken: dict[str, Any] = {name: measure(moments) for name, measure in MEASURES.items()}
        return GradientReport(
            **taken,
            gradients=moments.n,
            images=self.images,
            dataset_images=self.reference_images,
            further={name: measure(moments) for name, measure in measures.items()} if measures else None,
        )

    def moments(self) -> Moments:
        """The numbers that the measures are functions of.

        Returns:
            The moments.

        Raises:
            ValueError: Fewer than two gradients were added.
        """
        n = self.count
        if n < 2:
            raise ValueError(f"gradient direction variance needs at least 2 mini-batch gradients, got {n}")
        mean_square, along, bias = self._mean_gradient()
        return Moments(
            n=n,
            norms=self._norms,
            inverse_images=self._inverse_images,
            spread=self._spread,
            spread_of_sum=_square(self._sums[1]),
            deviation=self._deviation,
            deviation_of_sum=_square(self._sums[0]),
            mean_square=mean_square,
            along=along,
            bias=bias if self.has_dataset else None,
            dataset_gradient_norm=self.reference_norm if self.has_dataset else None,
        )

    def _mean_gradient(self) -> tuple[float, float, float | None]:
        """‖ḡ‖², ḡ · d, and ½(1 − cos(ḡ, d)) as ¼‖ḡ/‖ḡ‖ − d‖²."""
        if self._reference is None:
            raise ValueError("no gradients were added")
        scale = self.reference_norm or 0.0
        square = along = difference = 0.0
        for w, r in _pieces(self._sums[0], self._reference):
            mean = exact(w) / self.count + scale * exact(r)
            square += float(mean @ mean)
            along += float(mean @ exact(r))
        if square == 0:
            return 0.0, along, None
        for w, r in _pieces(self._sums[0], self._reference):
            direction = (exact(w) / self.count + scale * exact(r)) / math.sqrt(square)
            difference += float((direction - exact(r)).square().sum())
        return square, along, 0.25 * difference


def _sum_dtype(pieces: Sequence[Tensor]) -> torch.dtype:
    dtype = torch.float32
    for piece in pieces:
        dtype = torch.promote_types(dtype, piece.dtype)
    return dtype


def _checked(gradient: Sequence[Tensor | None], like: Sequence[Tensor] | None, expected: int | None) -> tuple[list[Tensor], int]:
    """The tensors of a gradient, zeros where one is missing, and the number of entries in all."""
    if isinstance(gradient, Tensor):
        gradient = [gradient]
    if all(piece is None for piece in gradient):
        raise ValueError("every gradient is None: does the loss depend on parameters that require gradients?")
    pieces: list[Tensor] = []
    for index, piece in enumerate(gradient):
        if piece is None:
            if like is None:
                raise ValueError(f"gradient {index} is None: give the parameters as like=, so that its size is known")
            piece = torch.zeros((), dtype=like[index].dtype, device=like[index].device).expand(like[index].shape)
        elif like is not None and piece.shape != like[index].shape:
            raise ValueError(f"gradient {index} has shape {tuple(piece.shape)}, its parameter {tuple(like[index].shape)}")
        piece = piece.detach()
        if piece.layout != torch.strided:  # nn.Embedding(sparse=True)
            piece = piece.to_dense()
        pieces.append(torch.view_as_real(piece.resolve_conj()) if piece.is_complex() else piece)  # a complex entry is two real ones
    total = sum(piece.numel() for piece in pieces)
    if expected is not None and total != expected:
        raise ValueError(
            f"this gradient has {total} entries, those before had {expected}: parameters changed shape while being measured"
        )
    return pieces, total
