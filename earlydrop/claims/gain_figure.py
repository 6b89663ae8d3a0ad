"""The figure of the gain of early dropout, in each training setting.

The gain is the change of the final training loss against no dropout.

The rows are in ``conf/claims/gain.yaml``.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import matplotlib as mpl
import yaml
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from earlydrop.analysis.plots import LOOK
from earlydrop.analysis.styles import styles
from earlydrop.claims.answer import WORDS, counting_verdicts
from earlydrop.claims.declare import Declaration
from earlydrop.claims.verdict import Verdict
from earlydrop.training.compose import conf_folder

_KINDS = {  # key of a row in gain.yaml: (name in the legend, arm whose colour and marker are used)
    "dropout": ("early dropout", "early-0.1-20%"),
    "depth": ("early stochastic depth", "early-0.1-20%-path"),
}


def draw_gain(
    declarations: Iterable[Declaration], verdicts: Iterable[Verdict], path: Path
) -> list[str]:
    """Draw how much early dropout changes the loss, in percent, with 95% intervals.

    Args:
        declarations: The files of claims.
        verdicts: The verdicts on them.
        path: The PNG file to write.

    Returns:
        The fingerprints of the runs behind it. If no row has a judged claim, it is empty, and no
        file is written.
    """
    content = yaml.safe_load((conf_folder() / "claims" / "gain.yaml").read_text(encoding="utf-8"))
    verdicts = list(verdicts)
    by_claim: dict[str, Verdict] = {}
    for declaration in declarations:
        if declaration.main_study == content["study"]:
            by_claim |= counting_verdicts(declaration, verdicts)
    judged = {name: verdict for name, verdict in by_claim.items() if verdict.verdict in WORDS}
    rows = [row for row in content["rows"] if any(row.get(kind) in judged for kind in _KINDS)]
    if not rows:
        return []
    shown: list[Verdict] = []
    with mpl.rc_context(LOOK):
        figure = Figure(figsize=(6.2, 1.9 + 0.62 * len(rows)), layout="constrained")
        axes = figure.subplots()
        axes.axvline(0, color="#999999", linewidth=1)
        for height, row in enumerate(rows):
            for offset, kind in zip((-0.15, 0.15), _KINDS, strict=True):
                verdict = judged.get(row.get(kind, ""))
                if verdict is not None:
                    _draw_point(axes, verdict, kind, height + offset)
                    shown.append(verdict)
        axes.set_yticks(range(len(rows)), [row["words"] for row in rows])
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.set_xlabel(
            "change of the final training loss against no dropout, in % "
            "(\N{LEFTWARDS ARROW} better)\n"
            "means over paired seeds and their 95% intervals"
        )
        look = styles([arm for _, arm in _KINDS.values()])
        for words, arm in _KINDS.values():
            axes.plot([], [], label=words, **look[arm] | {"linestyle": "none"})
        axes.legend(frameon=False, fontsize=9, ncols=2, loc="lower left", bbox_to_anchor=(0, 1.0))
        axes.grid(alpha=0.25, axis="x")
        figure.suptitle(content["title"], fontsize=11, x=0.01, ha="left")
        figure.savefig(path, dpi=130)
    fingerprints: set[str] = set()
    for verdict in shown:
        fingerprints.update(verdict.fingerprints)
    return sorted(fingerprints)


def _draw_point(axes: Axes, verdict: Verdict, kind: str, height: float) -> None:
    """One difference with its interval and its number of seeds."""
    difference, smallest = verdict.paired, verdict.smallest
    if difference is None or not smallest or not verdict.claim.relative:
        raise ValueError(
            f"gain.yaml: claim {verdict.claim.id} has no relative difference: expected a claim "
            "whose smallest effect is a percentage"
        )
    # The smallest effect of a relative claim is its percentage times the loss without dropout.
    loss = smallest / verdict.claim.smallest
    effect, low, high = (
        100 * value / loss for value in (difference.effect, difference.low, difference.high)
    )
    arms = [arm for _, arm in _KINDS.values()]
    look = styles(arms)[_KINDS[kind][1]] | {"linestyle": "none"}
    axes.errorbar([effect], [height], xerr=[[effect - low], [high - effect]], capsize=3, **look)
    axes.annotate(
        f"{effect:+.1f}%, n = {len(difference.seeds)}".replace("-", "\N{MINUS SIGN}"),
        (effect, height),
        xytext=(0, 6),
        textcoords="offset points",
        ha="center",
        fontsize=8,
        color="#555555",
    )
