"""``earlydrop-findings FOLDER``: verdicts on the claims of ``conf/claims/``, from runs or from committed summaries."""

from __future__ import annotations

import argparse
from pathlib import Path

import pandas as pd

from earlydrop.claims.declare import SETS
from earlydrop.claims.summaries import RUNS
from earlydrop.claims.tables import write_findings
from earlydrop.commands import command


@command
def main() -> None:
    """Test every claim against a folder of runs, or against committed summaries."""
    parser = argparse.ArgumentParser(
        prog="earlydrop-findings", description="Verdicts on the claims of conf/claims/, with table, figures and one HTML page."
    )
    parser.add_argument("folder", type=Path, help="runs, or a folder that holds runs.csv and history.csv.xz")
    parser.add_argument(
        "--out", type=Path, help="where to write (default: the folder, if it holds summaries; else FOLDER/<claims>)"
    )
    parser.add_argument("--claims", choices=SETS, default="findings", help="which set of claims (default: findings)")
    arguments = parser.parse_args()
    out = arguments.out or (arguments.folder if (arguments.folder / RUNS).is_file() else arguments.folder / arguments.claims)
    table, words, _ = write_findings(arguments.folder, out, arguments.claims)
    with pd.option_context("display.width", 200, "display.max_columns", None, "display.max_colwidth", None):
        print(table.drop(columns=["compared", "metric"]).to_string())
    for study, label in words.items():
        print(f"{study}: {label}")
    print(f"\n{out / 'findings.html'}")


if __name__ == "__main__":
    main()
