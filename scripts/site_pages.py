"""Pages of the documentation that are made when it is built: keys, commands, findings, changelog.

mkdocs calls `on_files` (mkdocs.yml names this file under ``hooks``).
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
FINDINGS = ROOT / "results" / "findings"
COMMANDS = {
    "earlydrop": ["-m", "earlydrop", "--help"],
    "earlydrop-report": ["-m", "earlydrop.commands.report", "--help"],
    "earlydrop-findings": ["-m", "earlydrop.commands.findings", "--help"],
    "earlydrop-cite": ["-m", "earlydrop.commands.cite", "--help"],
    "earlydrop-reproduce": ["-m", "earlydrop.commands.reproduce", "--help"],
    "earlydrop-weights": ["-m", "earlydrop.commands.weights", "--help"],
}


def on_files(files: Any, config: Any) -> Any:
    """Add the generated pages and the pictures that they show."""
    from mkdocs.structure.files import File

    pages = {
        "reference/keys.md": keys_page(),
        "reference/commands.md": commands_page(),
        "findings.md": findings_page(),
        "changelog.md": (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"),
    }
    for name, text in pages.items():
        files.append(File.generated(config, name, content=text))
    for picture in [*pictures(), *sorted((ROOT / "results" / "quickstart").glob("*.png"))]:
        files.append(File.generated(config, f"figures/{picture.name}", abs_src_path=str(picture)))
    return files


def keys_page() -> str:
    """Every configuration key: default, values, meaning."""
    from earlydrop.training.keys import expected, keys, shown

    lines = [
        "# Configuration keys",
        "",
        "Any key can be given on the command line: `earlydrop optim.lr=0.001`. With `-m`, a list "
        "of values is a sweep. `earlydrop --help-key optim.lr` prints a row of this page.",
    ]
    group = None
    for name, key in keys().items():
        if name.rpartition(".")[0] != group:
            group = name.rpartition(".")[0]
            lines += ["", f"## {group or 'The run'}", ""]
            lines += ["| key | default | values | meaning |", "|---|---|---|---|"]
        meaning = key.help.replace("``", "`").replace("|", "\\|")
        lines.append(f"| `{name}` | `{shown(key.default)}` | {expected(key)} | {meaning} |")
    return "\n".join([*lines, ""])


def commands_page() -> str:
    """Each command's own help."""
    lines = ["# Commands", ""]
    environment = os.environ | {"COLUMNS": "100", "PYTHONPATH": str(ROOT)}
    for name, arguments in COMMANDS.items():
        done = subprocess.run(
            [sys.executable, *arguments],
            capture_output=True,
            text=True,
            check=True,
            env=environment,
        )
        lines += [f"## {name}", "", "```text", done.stdout.strip(), "```", ""]
    return "\n".join(lines)


def _judged() -> tuple[list[Any], list[Any]]:
    from earlydrop.claims.judge import judge_all
    from earlydrop.claims.read import claims_folder, load_declarations
    from earlydrop.claims.summaries import read_summaries

    declarations = load_declarations(claims_folder("findings"))
    return declarations, judge_all(declarations, read_summaries(FINDINGS))


def pictures() -> list[Path]:
    """The figures of the committed findings."""
    return sorted((FINDINGS / "figures").glob("*.png"))


def findings_page() -> str:
    """The answer, then each claim: what the paper says, what was seen, a picture."""
    from earlydrop.claims.answer import answer_rows, counting_verdicts, dataset_label, not_replaced
    from earlydrop.claims.shown import sentences
    from earlydrop.metrics import METRICS

    declarations, verdicts = _judged()
    declarations = not_replaced(declarations, verdicts)
    answer = (FINDINGS / "answer.md").read_text(encoding="utf-8")
    lines = [
        "# Findings",
        "",
        *_INTRODUCTION,
        "",
        answer,
        "",
        "![All claims](figures/answer.png)",
        "",
    ]
    there = {picture.name for picture in pictures()}
    for row in answer_rows():
        cells = [
            (declaration, verdict)
            for declaration in declarations
            for verdict in counting_verdicts(declaration, verdicts).values()
            if verdict.claim.id in row.claims and verdict.verdict not in ("not run", "incomplete")
        ]
        if not cells:
            continue
        claim = cells[0][1].claim
        metric = METRICS[claim.metric].label
        lines += [
            f"## {row.words}",
            "",
            f"Claim {claim.finding}: {claim.claim} ({claim.source}). It is tested on the {metric}.",
            "",
        ]
        for declaration, verdict in cells:
            lines.append(
                f"- **{dataset_label(declaration)}**: {' '.join(sentences(verdict).split())}"
            )
        for declaration, verdict in cells:
            picture = f"{verdict.study}-{verdict.claim.metric.replace('/', '-')}.png"
            if picture in there and f"figures/{picture}" not in "".join(lines):
                lines += ["", f"![{metric}, {dataset_label(declaration)}](figures/{picture})"]
        lines.append("")
    maps = sorted(picture for picture in there if picture.startswith("map-"))
    if maps:
        lines += [*_MAPS, *(f"![{Path(picture).stem}](figures/{picture})" for picture in maps), ""]
    return "\n".join(lines)


_MAPS = (
    "## Where early dropout helps: learning rate and warm-up",
    "",
    "Each cell is a learning rate and a warm-up, with two seeds: the difference of early dropout "
    "to no dropout in the final training loss. The maps explore; no verdict uses their seeds.",
    "",
)

_INTRODUCTION = (
    "Each row is a claim, each column a dataset at our small scale. Claims, metrics, windows and "
    "seeds were written into `conf/claims/` before the runs that test them. Runs are paired: two "
    "arms with one seed see the same initial weights, batches and augmentation. ✓ confirmed: "
    "shown at the 5% level, after Holm's correction. ✗ opposite: the opposite is shown. "
    "= no effect: the difference is shown to be smaller than what matters. "
    "? undecided: not enough seeds to tell.",
)
