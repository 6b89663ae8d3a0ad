"""The curve of a schedule as a small picture (SVG), for notebooks."""

from __future__ import annotations

import html
from collections.abc import Callable
from typing import Any

_WIDTH, _HEIGHT = 360, 120  # of the plot, in pixels
_LEFT, _TOP, _BELOW = 46, 10, 34  # room for the labels
_SAMPLES = 360
_FURTHEST = 2**40  # at this step every schedule has reached its last value
_PER_EPOCH = 100  # steps of a drawn epoch, where the length of an epoch is not known
_TOTAL = 1_000  # steps of a drawn run, where the length of the run is not known


def curve_svg(schedule: Any) -> str:
    """Draw the rate against the step: the whole run, or a little past the last change.

    Args:
        schedule: A `Schedule`. The axis shows the share of the run where durations are in percent,
            and epochs where they are in epochs. If the rate depends on the end of the run too, the
            run is drawn with 10 epochs, or with the next power of ten that its epochs fit in.

    Returns:
        An ``<svg>`` element.
    """
    resolved, length, unit, scale = _drawn(schedule)
    steps = sorted({round(i * length / _SAMPLES) for i in range(_SAMPLES + 1)})
    rates = [resolved(step) for step in steps]
    top = max(rates) or 0.1
    points = []
    for step, rate in zip(steps, rates, strict=True):
        x = _LEFT + _WIDTH * step / length
        y = _TOP + _HEIGHT * (1 - rate / top)
        points.append(f"{x:.1f},{y:.1f}")
    bottom, right = _TOP + _HEIGHT, _LEFT + _WIDTH
    words = html.escape(repr(schedule))
    style = "max-width:100%;font:12px sans-serif;fill:currentColor"
    axes = f"M{_LEFT},{_TOP}V{bottom}H{right}"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" role="img" aria-label="{words}" '
        f'width="{right + 20}" height="{bottom + _BELOW}" '
        f'style="{style}"><title>{words}</title>'
        f'<path d="{axes}" fill="none" stroke="currentColor" opacity="0.4"/>'
        f'<polyline points="{" ".join(points)}" fill="none" stroke="#0072b2" stroke-width="2"/>'
        f'<text x="{_LEFT - 6}" y="{_TOP + 4}" text-anchor="end">{top:.3g}</text>'
        f'<text x="{_LEFT - 6}" y="{bottom + 4}" text-anchor="end">0</text>'
        f'<text x="{_LEFT}" y="{bottom + 16}" text-anchor="middle">0</text>'
        f'<text x="{right}" y="{bottom + 16}" text-anchor="end">{length * scale:,.10g}</text>'
        f'<text x="{_LEFT + _WIDTH / 2}" y="{bottom + 28}" text-anchor="middle">{unit}</text></svg>'
    )


def _drawn(schedule: Any) -> tuple[Callable[[int], float], int, str, float]:
    """The schedule in steps, the last step to draw, the unit of the axis, and units per step."""
    if schedule.resolved:
        total = getattr(schedule, "total_steps", None)  # of `piecewise`, which depends on it
        return schedule, total or _length(schedule), "optimizer step", 1.0
    try:
        return schedule.resolve(_TOTAL), _TOTAL, "% of the run", 100 / _TOTAL
    except ValueError:  # a duration is in epochs
        pass
    for epochs in (10, 100, 1_000, 10_000, 100_000, 1_000_000):
        try:
            resolved = schedule.resolve(epochs * _PER_EPOCH, _PER_EPOCH)
        except ValueError:
            continue
        return resolved, min(_length(resolved), epochs * _PER_EPOCH), "epoch", 1 / _PER_EPOCH
    remedy = "give its length with schedule.resolve(total_steps, steps_per_epoch)"
    raise ValueError(f"{schedule!r} cannot be drawn: {remedy}")


def _length(schedule: Callable[[int], float]) -> int:
    """A quarter more than the first step from which the rate keeps its last value, at least 8.

    `_PER_EPOCH` if the rate never changes from step 1 on.
    """
    last = schedule(_FURTHEST)
    tried = sorted({int(2 ** (quarter / 4)) for quarter in range(160)})
    changing = [step for step in tried if schedule(step) != last]
    if not changing:
        return _PER_EPOCH
    low = changing[-1]
    high = next((step for step in tried if step > low), _FURTHEST)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if schedule(middle) != last else (low, middle)
    return max(high + high // 4, 8)
