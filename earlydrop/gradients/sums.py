"""Running sums over the gradients at one set of weights.

Let g₁ … g_N be gradients at one set of weights, with directions uᵢ = gᵢ/‖gᵢ‖. Let ĝ be the
whole-dataset gradient, with direction d. Since ½(1 − cos(a, b)) = ¼‖a/‖a‖ − b/‖b‖‖², every measure
follows from sums of deviations from any fixed reference. Here they are wᵢ = gᵢ − ĝ and vᵢ = uᵢ − d:
for example Σ_{i<j} ‖uᵢ − uⱼ‖² = N Σ‖vᵢ‖² − ‖Σ vᵢ‖². The sums are over small deviations, so no small
difference of large sums is taken. Memory is O(parameters), for any number of gradients.

Shape legend: P, the number of entries of a gradient (the measured parameters, flattened, in order;
a complex entry counts as two).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from earlydrop.exact import brought_home, exact, exact_norm, home
from earlydrop.gradients.chunks import (
    checked,
    chunk_size,
    flat_chunks,
    pieces_of,
    square_of,
    sum_dtype,
)
from earlydrop.gradients.measures import MEASURES, GradientReport, Moments

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


def _check_images(images: int) -> None:
    if images < 1:
        raise ValueError(f"a mini-batch has {images} images: expected at least 1; check images_in")


class MeanGradient:
    """A weighted mean of gradients, for the whole-dataset gradient. It holds one vector, (P,).

    >>> mean = MeanGradient()
    >>> mean.add([torch.tensor([1.0, 0.0])], images=3)
    >>> mean.add([torch.tensor([0.0, 2.0])], images=1)
    >>> mean.value()
    tensor([0.7500, 0.5000])
    """

    def __init__(self) -> None:
        self.images = 0
        self._sum: Tensor | None = None

    def add(
        self,
        gradient: Sequence[Tensor | None],
        images: int,
        like: Sequence[Tensor] | None = None,
    ) -> None:
        """Add the mean gradient of some images.

        Args:
            gradient: One tensor for each parameter, or None where it has no gradient.
            images: The number of images behind the gradient.
            like: The parameters, for the shapes of missing gradients.

        Raises:
            ValueError: All tensors are None, one is None without ``like``, a shape or the number of
                entries differs, or there is no image.
        """
        _check_images(images)
        pieces, total = checked(gradient, like, None if self._sum is None else self._sum.numel())
        if self._sum is None:
            self._sum = torch.zeros(total, dtype=sum_dtype(pieces), device=pieces[0].device)
        for place, g in flat_chunks(pieces, total, self._sum.dtype, self._sum.device):
            self._sum[place].add_(g, alpha=images)
        self.images += images

    def value(self, group: ProcessGroup | None = None) -> Tensor:
        """The mean, (P,). The sum is divided in place: call this once, at the end.

        Args:
            group: Workers whose sums to combine.

        Returns:
            The mean gradient.

        Raises:
            ValueError: Nothing was added, or the mean is not finite.
        """
        if self._sum is None:
            raise ValueError(
                "the dataset gave no batches: a whole-dataset gradient needs at least one"
            )
        if group is not None:
            images = torch.tensor([self.images], dtype=torch.int64, device=self._sum.device)
            torch.distributed.all_reduce(self._sum, group=group)
            torch.distributed.all_reduce(images, group=group)
            self.images = int(images.item())
        if not math.isfinite(square_of(self._sum)):
            raise ValueError(
                "a gradient holds NaN or infinity: check the loss at these weights before "
                "measuring gradients"
            )
        return self._sum.div_(self.images)


class GradientSums:
    """Running sums over mini-batch gradients.

    They hold two vectors of P entries, and a third for the direction of the reference.

    Args:
        reference: The whole-dataset gradient, (P,), float32 or better. It is normalised in place
            and kept. Without it there is no GDE and no bias, and the sums refer to the first
            gradient.
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

    def __init__(
        self, reference: Tensor | None = None, reference_images: int | None = None
    ) -> None:
        self.count = 0
        self.images = 0
        self.has_dataset = reference is not None
        self.reference_images = reference_images
        self.reference_norm = 0.0  # of no reference yet
        self._reference: Tensor | None = None
        self._norm_sum = 0.0  # Σ ‖gᵢ‖
        self._deviation_squares = 0.0  # Σ ‖wᵢ‖²
        self._spread_squares = 0.0  # Σ ‖vᵢ‖²
        self._inverse_images = 0.0  # Σ 1/bᵢ
        self._sums = torch.empty(0)  # (2, P): Σ wᵢ and Σ vᵢ
        if reference is not None:
            norm = math.sqrt(square_of(reference))
            if not math.isfinite(norm) or norm == 0:
                raise ValueError(
                    f"the whole-dataset gradient has norm {norm}: "
                    "its direction is undefined at these weights"
                )
            self.reference_norm = norm
            self._reference = reference.detach().reshape(-1).div_(norm)

    def add(
        self,
        gradient: Sequence[Tensor | None],
        images: int = 1,
        like: Sequence[Tensor] | None = None,
    ) -> None:
        """Add one mini-batch gradient. It is read, not kept.

        Args:
            gradient: One tensor for each parameter, or None where it has no gradient.
            images: Number of images in the mini-batch.
            like: The parameters, for the shapes of missing gradients.

        Raises:
            ValueError: The gradient is zero or not finite, all tensors are None, one is None
                without ``like``, a shape or the number of entries differs, or there is no image.
        """
        _check_images(images)
        expected = self._reference.numel() if self._reference is not None else None
        pieces, total = checked(gradient, like, expected)
        if self._sums.numel() == 0:
            self._sums = torch.zeros(2, total, dtype=sum_dtype(pieces), device=pieces[0].device)
        dtype, device = self._sums.dtype, self._sums.device
        # Sum scalars in place. New small tensors between large temporaries would fragment the heap.
        scalars = torch.zeros(2, dtype=torch.float64, device=home(device))  # ‖w‖², ‖v‖²
        norm = self._norm(pieces, total, scalars.device)
        if self._reference is None:
            self.reference_norm = norm
            self._reference = torch.empty(total, dtype=dtype, device=device)
            for place, g in flat_chunks(pieces, total, dtype, device):
                torch.div(g, norm, out=self._reference[place])
        for place, g in flat_chunks(pieces, total, dtype, device):
            r = self._reference[place]
            w = torch.sub(g, r, alpha=self.reference_norm)
            self._sums[0, place].add_(w)  # not +=, which would copy the slice onto itself
            scalars[0].add_(exact_norm(w).square_())
            minus_v = torch.sub(r, g, alpha=1.0 / norm)
            self._sums[1, place].sub_(minus_v)
            scalars[1].add_(exact_norm(minus_v).square_())
        deviation_squares, spread_squares = scalars.tolist()
        self.count += 1
        self.images += images
        self._norm_sum += norm
        self._deviation_squares += deviation_squares
        self._spread_squares += spread_squares
        self._inverse_images += 1.0 / images

    def _norm(self, pieces: list[Tensor], total: int, device: torch.device) -> float:
        """The norm of a gradient. A norm that is zero or not finite raises a ValueError."""
        limit = chunk_size(total)
        parts: list[Tensor] = []
        for piece in pieces:
            if piece.numel() > limit:
                parts.extend(piece.reshape(-1).split(limit))
            else:
                parts.append(piece)
        # In float64: the squares of tiny gradients would vanish.
        norms = torch._foreach_norm([brought_home(part) for part in parts], 2, torch.float64)
        square = float(torch.stack([norm.to(device) for norm in norms]).square().sum())
        name = f"mini-batch gradient {self.count}"
        if not math.isfinite(square):
            raise ValueError(f"{name} holds NaN or infinity: check the loss at these weights")
        if square == 0:
            raise ValueError(f"{name} is zero: its direction is undefined, so GDV and GDE are too")
        return math.sqrt(square)

    def merge(self, other: GradientSums) -> None:
        """Add other sums, taken at the same weights over other mini-batches.

        Args:
            other: Sums over gradients of the same model. They stay as they are.

        Raises:
            ValueError: The models differ in size, or only one of the two sums has a whole-dataset
                gradient.
        """
        if other.count == 0 or other._reference is None:
            return
        if self.has_dataset != other.has_dataset:
            raise ValueError(
                "only one of the two has a whole-dataset gradient: measure both with it, or both "
                "without"
            )
        if self._reference is None:
            self._reference, self.reference_norm = other._reference, other.reference_norm
        if self._reference.shape != other._reference.shape:
            raise ValueError(
                f"gradients have {other._reference.numel()} entries in one and "
                f"{self._reference.numel()} in the other"
            )
        if self._sums.numel() == 0:
            self._sums = torch.zeros_like(other._sums)
        scales = ((0, self.reference_norm, other.reference_norm), (1, 1.0, 1.0))
        for row, scale, other_scale in scales:
            # The other's deviations are from another reference: shift them to ours.
            square = dot = 0.0
            vectors = (self._sums[row], other._sums[row], self._reference, other._reference)
            for ours, theirs, r, s in pieces_of(*vectors):
                shift = exact(s) * other_scale - exact(r) * scale
                square += float(shift @ shift)
                dot += float(shift @ exact(theirs))
                ours += (exact(theirs) + other.count * shift).to(ours.dtype).to(ours.device)
            # By how much the shift changes the sum of the other's squares.
            moved = 2.0 * dot + other.count * square
            if row == 0:
                self._deviation_squares += other._deviation_squares + moved
            else:
                self._spread_squares += other._spread_squares + moved
        self.count += other.count
        self.images += other.images
        self._norm_sum += other._norm_sum
        self._inverse_images += other._inverse_images

    def all_reduce(self, group: ProcessGroup) -> None:
        """Combine the sums of all workers in place.

        It takes one all-reduce of the vectors and one of the scalars. Every worker must hold the
        same whole-dataset gradient, and at least one gradient.

        Args:
            group: The workers.

        Raises:
            ValueError: There is no whole-dataset gradient, so no common reference of the workers.
        """
        if not self.has_dataset:
            raise ValueError(
                "sums without a whole-dataset gradient cannot be all-reduced: "
                "give every worker the same reference"
            )
        scalars = torch.tensor(
            [
                self._norm_sum,
                self._deviation_squares,
                self._spread_squares,
                self._inverse_images,
                float(self.count),
                float(self.images),
            ],
            dtype=torch.float64,
            device=home(self._sums.device),
        )
        torch.distributed.all_reduce(self._sums, group=group)
        torch.distributed.all_reduce(scalars, group=group)
        totals = scalars.tolist()
        self._norm_sum, self._deviation_squares, self._spread_squares, self._inverse_images = (
            totals[:4]
        )
        self.count, self.images = int(totals[4]), int(totals[5])

    def report(
        self, measures: Mapping[str, Callable[[Moments], float | None]] | None = None
    ) -> GradientReport:
        """Every measure of the gradients added so far.

        Args:
            measures: Additional measures by name, for ``further`` in the report.

        Returns:
            The report.

        Raises:
            ValueError: Fewer than two gradients were added.
        """
        moments = self.moments()
        taken: dict[str, Any] = {name: measure(moments) for name, measure in MEASURES.items()}
        further = None
        if measures:
            further = {name: measure(moments) for name, measure in measures.items()}
        return GradientReport(
            **taken,
            gradients=moments.n,
            images=self.images,
            dataset_images=self.reference_images,
            further=further,
        )

    def moments(self) -> Moments:
        """The sums from which every measure is computed.

        Returns:
            The sums, as `Moments`.

        Raises:
            ValueError: Fewer than two gradients were added.
        """
        n = self.count
        if n < 2:
            raise ValueError(
                f"gradient direction variance needs at least 2 mini-batch gradients, got {n}"
            )
        mean_square, along, bias = self._mean_gradient_moments()
        return Moments(
            n=n,
            norms=self._norm_sum,
            inverse_images=self._inverse_images,
            spread=self._spread_squares,
            spread_of_sum=square_of(self._sums[1]),
            deviation=self._deviation_squares,
            deviation_of_sum=square_of(self._sums[0]),
            mean_square=mean_square,
            along=along,
            bias=bias if self.has_dataset else None,
            dataset_gradient_norm=self.reference_norm if self.has_dataset else None,
        )

    def _mean_gradient_moments(self) -> tuple[float, float, float | None]:
        """‖ḡ‖², ḡ · d and ½(1 − cos(ḡ, d)); the last is None if ḡ is 0.

        The last is computed as ¼‖ḡ/‖ḡ‖ − d‖².
        """
        if self._reference is None:
            raise ValueError("no gradients were added")
        scale = self.reference_norm
        square = along = difference = 0.0
        for w, r in pieces_of(self._sums[0], self._reference):
            mean = exact(w) / self.count + scale * exact(r)
            square += float(mean @ mean)
            along += float(mean @ exact(r))
        if square == 0:
            return 0.0, along, None
        for w, r in pieces_of(self._sums[0], self._reference):
            direction = (exact(w) / self.count + scale * exact(r)) / math.sqrt(square)
            difference += float((direction - exact(r)).square().sum())
        return square, along, 0.25 * difference
