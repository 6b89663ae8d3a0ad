"""``earlydrop-findings FOLDER``: verdicts on the claims of ``conf/claims/``, from runs or from committed summaries."""

from __future__ import annotations

import argparse
import dataclasses
import shlex
from pathlib import Path

import pandas as pd

from earlydrop.claims.declare import SETS
from earlydrop.claims.judge import judge_all
from earlydrop.claims.looks import next_look, no_runs
from earlydrop.claims.read import claims_folder, load_declarations
from earlydrop.claims.repeat import begin, begun_seeds, claims_of, fresh_seeds, repeat
from earlydrop.claims.shown import sentences
from earlydrop.claims.sizing import power_table
from earlydrop.claims.summaries import RUNS, read_summaries, summaries_in
from earlydrop.claims.tables import verdict_table, write_findings
from earlydrop.commands import command
from earlydrop.commands.cite import command_line
from earlydrop.training.compose import results_folder
from earlydrop.training.config import Config

_WIDE = ("display.width", 200, "display.max_columns", None, "display.max_colwidth", None)


@command
def main() -> None:
    """Test every claim against a folder of runs, or against committed summaries."""
    parser = argparse.ArgumentParser(
        prog="earlydrop-findings",
        allow_abbrev=False,
        usage="%(prog)s FOLDER [--out OUT] [--add] [--claims SET] [--power | --next FINDING | "
        "--repeat FINDING [--study STUDY] [--seeds N]]",
        description="Verdicts on the claims of conf/claims/, with table, figures and one HTML page.",
    )
    parser.add_argument("folder", type=Path, nargs="?", help="runs, or a folder that holds runs.csv and history.csv.xz")
    parser.add_argument(
        "--out", type=Path, help="where to write (default: the folder, if it holds summaries; else FOLDER/<claims>)"
    )
    parser.add_argument(
        "--add", action="store_true", help="add the runs to the summaries that --out has, a later round to earlier ones"
    )
    parser.add_argument("--claims", choices=SETS, default="findings", help="which set of claims (default: findings)")
    parser.add_argument(
        "--power", action="store_true", help="the seeds that each claim needs and their cost, from label seeds alone"
    )
    parser.add_argument(
        "--next",
        metavar="FINDING",
        help="what a finding whose file declares looks has to run next; nothing where it is decided",
    )
    parser.add_argument("--repeat", metavar="FINDING", help="train a finding's arms on seeds that nothing has used, and judge them")
    parser.add_argument("--study", help="with --repeat: in which study (default: the main study of each file that claims it)")
    parser.add_argument("--seeds", type=int, help="with --repeat: how many (default: as many as the study's first round)")
    arguments = parser.parse_args()
    if arguments.seeds is not None and (arguments.repeat is None or arguments.seeds < 2):
        parser.error(f"--seeds is {arguments.seeds}: expected 2 or more, with --repeat")
    if arguments.study is not None and arguments.repeat is None:
        parser.error(f"--study is {arguments.study}: it goes with --repeat")
    if arguments.repeat is not None and (arguments.power or arguments.add or arguments.out is not None):
        parser.error("--repeat takes no --power, --add or --out: its runs go to the folder, runs/ by default")
    if arguments.power and (arguments.add or arguments.out is not None):
        parser.error("--power takes no --add and no --out: it prints what rounds need, and writes nothing")
    if arguments.next is not None and (arguments.repeat is not None or arguments.power or arguments.add or arguments.out):
        parser.error("--next takes no --repeat, --power, --add or --out: it prints what to run, and writes nothing")
    if arguments.next is not None:
        return _next(arguments.next, arguments.folder or Path("runs"), arguments.claims)
    if arguments.repeat is not None:
        return _repeat(arguments.repeat, arguments.study, arguments.seeds, arguments.folder or Path("runs"), arguments.claims)
    if arguments.folder is None:
        parser.error("give a folder of runs or of summaries, such as runs or results/findings")
    if arguments.power:
        declarations = load_declarations(claims_folder(arguments.claims))
        table = power_table(declarations, summaries_in(arguments.folder, declarations))
        print(table.to_string(index=False, float_format="%.4g") if len(table) else "no claim has both its arms on label seeds here")
        return None
    out = arguments.out or (arguments.folder if (arguments.folder / RUNS).is_file() else arguments.folder / arguments.claims)
    if arguments.add and not (out / RUNS).is_file():
        parser.error(f"--add: {out} has no {RUNS} to add to; give the folder of earlier summaries with --out")
    table, words, _ = write_findings(arguments.folder, out, arguments.claims, arguments.add)
    with pd.option_context(*_WIDE):
        print(table.drop(columns=["compared", "metric"]).to_string())
    for study, label in words.items():
        print(f"{study}: {label}")
    print(f"\n{out / 'findings.html'}")
    return None


def _next(finding: str, folder: Path, claims: str) -> None:
    """Print the verdicts on a finding so far, and the commands of its next look."""
    declarations = load_declarations(claims_folder(claims))
    where = [(each, which) for each, _, which in claims_of(declarations, finding, None) if each.looks is not None]
    if not where:
        raise SystemExit(f"error: no file that claims {finding} declares looks: its rounds are judged when they are whole")
    try:
        summaries = summaries_in(folder, declarations)
    except FileNotFoundError:
        summaries = no_runs()
    for declaration, which in where:
        found = next_look(declaration, which, summaries)
        for verdict in found.verdicts:
            print(sentences(verdict))
        if not found.seeds:
            print(f"{found.study}: nothing to run; every claim of {finding} is decided, or its last look is done")
            continue
        print(f"{found.study}: run the seeds {found.seeds[0]} to {found.seeds[-1]}, then ask again:")
        for config in found.configs:
            print("  " + _sweep(config, found.seeds))


def _sweep(config: Config, seeds: tuple[int, ...]) -> str:
    """The command that trains one configuration with some seeds."""
    words = shlex.split(command_line(dataclasses.asdict(config)))[1:]
    kept = [word for word in words if not word.startswith(("seed=", "study=", "tracking.mode=", "out="))]
    listed = ",".join(map(str, seeds))
    if seeds == tuple(range(seeds[0], seeds[-1] + 1)):
        listed = f"range({seeds[0]},{seeds[-1] + 1})"
    seeded = [f"study={config.study}", f"seed={listed}", "hydra/launcher=joblib"]
    return shlex.join(["earlydrop", "-m", *kept, *seeded])


def _repeat(finding: str, study: str | None, seeds: int | None, out: Path, claims: str) -> None:
    """Repeat a finding where it is claimed, and print each verdict below the one that was published.

    Raises:
        SystemExit: Some runs failed, with code 1; the same command tries them again.
    """
    declarations = load_declarations(claims_folder(claims))
    results = results_folder()
    published = results / claims if results is not None else None
    whole = True
    for declaration, where, which in claims_of(declarations, finding, study):
        count = seeds or len(where.rounds.get("first") or next(iter(where.rounds.values())))
        notes = out / where.name / f"repeat-{finding}.json"
        fresh = begun_seeds(notes, count) or fresh_seeds(declarations, out, count)
        print(
            f"{where.name}: {', '.join(claim.id for claim in which)} on the seeds {fresh[0]} to {fresh[-1]}",
            flush=True,
        )
        begin(notes, fresh)
        verdicts = repeat(declaration, where, which, fresh, out)
        if all(each.verdict not in ("incomplete", "not run") for each in verdicts):
            notes.unlink()
        else:
            whole = False
        if published is not None and (published / RUNS).is_file():
            before = judge_all(declarations, read_summaries(published))
            verdicts = [v for v in before if v.study == where.name and any(v.claim is claim for claim in which)] + verdicts
        table = verdict_table(verdicts, summaries_in(out, declarations, published))
        with pd.option_context(*_WIDE):
            print(table.drop(columns=["compared", "model"]).to_string())
    if not whole:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
