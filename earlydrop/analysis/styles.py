"""The style of an arm in all figures: a colour for its schedule, lines and markers for variants."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from typing import Any

import matplotlib.colors as mcolors

_COLOURS = {  # those from constant to curriculum are Okabe and Ito's, for colour-blind readers
    "none": "#222222",
    "constant": "#d55e00",
    "early": "#0072b2",
    "late": "#009e73",
    "piecewise": "#cc79a7",
    "annealed": "#e69f00",
    "curriculum": "#56b4e9",
    "ramp": "#8c6d31",
    "early path": "#7a4fa3",
    "late path": "#5f7f00",
}
_OTHER_COLOURS = ("#a1253f", "#2a7f7f", "#999999")
_MARKERS = dict(zip(_COLOURS, "osD^vPX*8d", strict=True))
_SHADES = (0.0, 0.4, -0.4, 0.65, -0.65, 0.2, -0.2)  # towards white, or, where negative, black
_VARIANT_MARKERS = "h<>pH"
_LINE_STYLES: tuple[Any, ...] = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 3)))


def styles(arms: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Colour, line and marker of each arm, for matplotlib.

    Arms of one schedule share its colour, in other shades, with lines and markers of their own.
    Early and late stochastic depth have colours of their own.
    The first arm of one of our schedules has that schedule's look, whatever else the figure shows.
    The look of a user's own schedule depends on how many others come before it.

    Args:
        arms: Labels of arms, such as ``early-0.1-20%``, or ``study: early-0.1-20%``.

    Returns:
        By arm: ``color``, ``linestyle`` and ``marker``.
    """
    seen: Counter[str] = Counter()
    others: dict[str, int] = {}  # schedules of the user's own, numbered
    looks = {}
    for arm in arms:
        words = re.split(r"[- ]", arm.rpartition(": ")[2])
        name = words[0]
        if "path" in words and f"{name} path" in _COLOURS:
            name = f"{name} path"
        if name in _COLOURS:
            colour, marker = _COLOURS[name], _MARKERS[name]
            place = -1  # the markers of its variants begin with the first one
        else:
            place = others.setdefault(name, len(others))
            colour = _OTHER_COLOURS[place % len(_OTHER_COLOURS)]
            marker = _VARIANT_MARKERS[place % len(_VARIANT_MARKERS)]
        variant = seen[name]
        seen[name] += 1
        if variant:
            marker = _VARIANT_MARKERS[(place + variant) % len(_VARIANT_MARKERS)]
            colour = _shade(colour, _SHADES[variant % len(_SHADES)])
        line = _LINE_STYLES[variant % len(_LINE_STYLES)]
        looks[arm] = {"color": colour, "linestyle": line, "marker": marker}
    return looks


def _shade(colour: str, share: float) -> str:
    """A colour mixed with white, or, for a negative share, with black."""
    end = 1.0 if share > 0 else 0.0
    mixed = [channel + (end - channel) * abs(share) for channel in mcolors.to_rgb(colour)]
    return mcolors.to_hex(mixed)
