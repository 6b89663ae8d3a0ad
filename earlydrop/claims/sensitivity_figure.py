"""The figure of a sensitivity, such as the loss against the learning rate: one curve per arm."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from earlydrop.analysis.arms import text
from earlydrop.analysis.plots import LOOK
from earlydrop.analysis.stats import interval
from earlydrop.analysis.styles import styles
from earlydrop.claims.declare import FIRST, Claim, Declaration, Study
from earlydrop.claims.differences import Differences, differences
from earlydrop.claims.summaries import Summaries
from earlydrop.metrics import METRICS


def draw_sensitivity(declaration: Declaration, summaries: Summaries, path: Path) -> list[str]:
    """Draw a panel for each claim about a sensitivity: the mean over seeds with its 95% interval.

    Args:
        declaration: A file of claims.
        summaries: The runs.
        path: The file to write the picture to.

    Returns:
        The fingerprints of the runs in the picture. Empty if no claim about a sensitivity has runs
        at two or more values of its setting; then no picture is written.
    """
    study = declaration.studies[declaration.main_study]
    drawn: list[Claim] = []
    curves: dict[str, dict[str, Curve]] = {}
    fingerprints: set[str] = set()
    for claim in declaration.claims:
        measured = _measured(claim, study, summaries)
        if len(measured) > 1:
            drawn.append(claim)
            curves[claim.id] = _curves(claim, study, measured)
            fingerprints.update(*(part.fingerprints for part in measured.values()))
    if not drawn:
        return []
    with mpl.rc_context(LOOK):
        figure = Figure(figsize=(4.4 * len(drawn), 4.0), layout="constrained")
        panels = figure.subplots(1, len(drawn), sharey=True, squeeze=False).ravel()
        for axes, claim in zip(panels, drawn, strict=True):
            _draw_panel(axes, claim, curves[claim.id])
        panels[0].set_ylabel(f"{METRICS[drawn[0].metric].label}, final")
        panels[0].legend(frameon=False, fontsize=9)
        model, data = (study.config.get(f"{key}.name", "") for key in ("model", "data"))
        seeds = _seeds([curves[claim.id] for claim in drawn])
        figure.suptitle(
            f"{study.name}: {model} on {data}, n = {seeds}; bands are 95% intervals",
            fontsize=9,
            x=0.02,
            ha="left",
        )
        figure.savefig(path, dpi=130)
    return sorted(fingerprints)


Curve = dict[float, list[float]]
"""The values of the metric, one per seed, for each value of the setting."""


def _measured(claim: Claim, study: Study, summaries: Summaries) -> dict[float, Differences]:
    """The paired runs of a claim about a sensitivity, by the value of its setting."""
    runs = summaries.of(study.name)
    measured: dict[float, Differences] = {}
    if claim.sensitivity is None or runs.empty or FIRST not in study.rounds:
        return measured
    for value, part in zip(claim.sensitivity.values, claim.parts, strict=True):
        pairs = differences(runs, study, part, study.rounds[FIRST])
        if pairs.arm:
            measured[value] = pairs
    return measured


def _curves(
    claim: Claim,
    study: Study,
    measured: Mapping[float, Differences],
) -> dict[str, Curve]:
    """The curve of each arm, by its name."""
    against, arm = study.arm(claim.against).words, study.arm(claim.arm).words
    curves: dict[str, Curve] = {against: {}, arm: {}}
    for value, pairs in measured.items():
        curves[against][value] = list(pairs.against.values())
        curves[arm][value] = list(pairs.arm.values())
    return curves


def _seeds(panels: Iterable[dict[str, Curve]]) -> str:
    """The number of seeds behind each point of some panels, such as ``12`` or ``5 to 12``."""
    counts: set[int] = set()
    for curves in panels:
        for curve in curves.values():
            counts.update(map(len, curve.values()))
    fewest, most = min(counts), max(counts)
    return f"{most}" if fewest == most else f"{fewest} to {most}"


def _draw_panel(axes: Axes, claim: Claim, curves: dict[str, Curve]) -> None:
    look = styles(sorted(curves))
    for arm, curve in curves.items():
        settings = np.array(sorted(curve))
        means, halves = np.array([interval(curve[value]) for value in settings]).reshape(-1, 2).T
        axes.plot(settings, means, label=arm, markersize=5, **look[arm])
        axes.fill_between(
            settings,
            means - halves,
            means + halves,
            color=look[arm]["color"],
            alpha=0.15,
            linewidth=0,
        )
    key = claim.sensitivity.key if claim.sensitivity is not None else ""
    ticks = sorted(set().union(*curves.values()))
    if ticks[0] > 0:
        axes.set_xscale("log", base=2)
    axes.set_xticks(ticks, [f"{value:g}" for value in ticks])
    axes.set_xlabel(key)
    other_settings = []  # the settings of the arm that are not part of its schedule
    for name, value in claim.arm.items():
        if not name.startswith("schedule."):
            other_settings.append(f"{name}={text(value)}")
    axes.set_title(", ".join(other_settings) or "as in the study", fontsize=10, loc="left")
    axes.grid(alpha=0.25)
