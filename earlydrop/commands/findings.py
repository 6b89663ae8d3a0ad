"""``earlydrop-findings FOLDER``: verdicts on the claims of ``conf/claims/``, from runs."""

from __future__ import annotations

import argparse
import dataclasses
import shlex
from pathlib import Path

import pandas as pd

from earlydrop.claims.declare import FIRST, SETS
from earlydrop.claims.judge import judge_all
from earlydrop.claims.looks import Next, next_look, no_runs
from earlydrop.claims.read import claims_folder, load_declarations
from earlydrop.claims.repeat import TestedStudy, begin, begun_seeds, fresh_seeds, repeat, studies_of
from earlydrop.claims.shown import sentences
from earlydrop.claims.sizing import power_table
from earlydrop.claims.summaries import RUNS, read_summaries, summaries_in
from earlydrop.claims.tables import verdict_table
from earlydrop.claims.verdict import UNJUDGED, Verdict
from earlydrop.claims.write import write_findings
from earlydrop.commands import command
from earlydrop.commands.cite import command_line
from earlydrop.training.compose import results_folder
from earlydrop.training.config import Config

_DEFAULT_CLAIMS = "findings"

_WIDE = ("display.width", 200, "display.max_columns", None, "display.max_colwidth", None)


@command
def main() -> None:
    """Test every claim against a folder of runs, or against committed summaries."""
    parser = _parser()
    arguments = parser.parse_args()
    _check(parser, arguments)
    folder, claims = arguments.folder, arguments.claims
    if arguments.next is not None:
        _print_next(arguments.next, folder or Path("runs"), claims)
    elif arguments.repeat is not None:
        _repeat(
            finding=arguments.repeat,
            study=arguments.study,
            seeds=arguments.seeds,
            out=folder or Path("runs"),
            claims=claims,
        )
    elif folder is None:
        parser.error("give a folder of runs or of summaries, such as runs or results/findings")
    elif arguments.power:
        _print_power(folder, claims)
    else:
        default_out = folder if (folder / RUNS).is_file() else folder / claims
        out = arguments.out or default_out
        if arguments.add and not (out / RUNS).is_file():
            remedy = "give the folder of earlier summaries with --out"
            parser.error(f"--add: {out} has no {RUNS} to add to; {remedy}")
        _write(folder, out, claims, arguments.add)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="earlydrop-findings",
        allow_abbrev=False,
        usage="%(prog)s [FOLDER] [--out OUT] [--add] [--claims SET] [--power | --next FINDING | "
        "--repeat FINDING [--study STUDY] [--seeds N]]",
        description="Verdicts on the claims of conf/claims/, with tables, figures and a page.",
    )
    parser.add_argument(
        "folder",
        type=Path,
        nargs="?",
        help="runs, or a folder that holds runs.csv and history.csv.xz (default with --next and "
        "--repeat: runs)",
    )
    parser.add_argument(
        "--out",
        type=Path,
        help="where to write (default: the folder, if it holds summaries; else FOLDER/<claims>)",
    )
    parser.add_argument(
        "--add",
        action="store_true",
        help="add the runs to the summaries in --out, such as a later round to earlier ones",
    )
    parser.add_argument(
        "--claims",
        choices=SETS,
        default=_DEFAULT_CLAIMS,
        help=f"the set of claims (default: {_DEFAULT_CLAIMS})",
    )
    parser.add_argument(
        "--power",
        action="store_true",
        help="print how many seeds each claim needs and their cost, from the label round alone",
    )
    parser.add_argument(
        "--next",
        metavar="FINDING",
        help="print the next runs of a finding whose file declares looks; none if it is decided",
    )
    parser.add_argument(
        "--repeat",
        metavar="FINDING",
        help="train a finding's arms on seeds that nothing has used, and judge them",
    )
    parser.add_argument(
        "--study",
        help="with --repeat: the study (default: the main study of each file that claims it)",
    )
    parser.add_argument(
        "--seeds",
        type=int,
        help="with --repeat: the number of seeds (default: as many as the study's first round)",
    )
    return parser


def _check(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> None:
    """End with an error where arguments do not go together."""
    repeats, has_out = arguments.repeat is not None, arguments.out is not None
    if arguments.seeds is not None and (not repeats or arguments.seeds < 2):
        parser.error(f"--seeds is {arguments.seeds}: expected 2 or more, with --repeat")
    if arguments.study is not None and not repeats:
        parser.error(f"--study is {arguments.study}: it goes with --repeat")
    if repeats and (arguments.power or arguments.add or has_out):
        reason = "its runs go to the folder, runs/ by default"
        parser.error(f"--repeat takes no --power, --add or --out: {reason}")
    if arguments.power and (arguments.add or has_out):
        reason = "it prints what rounds need, and writes nothing"
        parser.error(f"--power takes no --add and no --out: {reason}")
    excluded = repeats or arguments.power or arguments.add or has_out
    if arguments.next is not None and excluded:
        reason = "it prints what to run, and writes nothing"
        parser.error(f"--next takes no --repeat, --power, --add or --out: {reason}")


def _print_power(folder: Path, claims: str) -> None:
    """Print how many seeds each claim needs, estimated from the label seeds that have run."""
    declarations = load_declarations(claims_folder(claims))
    table = power_table(declarations, summaries_in(folder, declarations))
    if len(table):
        print(table.to_string(index=False, float_format="%.4g"))
    else:
        print(f"{folder}: no claim has two label seeds that finished in both of its arms")


def _write(folder: Path, out: Path, claims: str, add: bool) -> None:
    """Write the findings, and print their verdicts and regimes."""
    table, words, _ = write_findings(folder, out, claims, add)
    with pd.option_context(*_WIDE):
        print(table.drop(columns=["compared", "metric"]).to_string())
    for study, label in words.items():
        print(f"{study}: {label}")
    print(f"\n{out / 'findings.html'}")


def _print_next(finding: str, folder: Path, claims: str) -> None:
    """Print the verdicts on a finding so far, and the commands of its next look."""
    declarations = load_declarations(claims_folder(claims))
    tested = studies_of(declarations, finding, study=None)
    with_looks = [place for place in tested if place.declaration.looks is not None]
    if not with_looks:
        reason = "its rounds are judged once, when all their seeds have finished"
        raise SystemExit(f"error: no file that claims {finding} declares looks: {reason}")
    try:
        summaries = summaries_in(folder, declarations)
    except FileNotFoundError:
        summaries = no_runs()
    for place in with_looks:
        _print_look(finding, next_look(place.declaration, place.claims, summaries), folder, claims)


def _print_look(finding: str, look: Next, folder: Path, claims: str) -> None:
    """Print the verdicts of one study, and the commands of its next look.

    If the folder holds runs, the new runs go there. If it holds summaries, they go to ``runs``, and
    are added to the summaries by a further command.
    """
    for verdict in look.verdicts:
        print(sentences(verdict))
    if not look.seeds:
        reason = f"every claim of {finding} is decided or not measured, or its last look is done"
        print(f"{look.study}: nothing to run; {reason}")
        return
    has_summaries = (folder / RUNS).is_file()
    out = Path("runs") if has_summaries else folder
    print(f"{look.study}: run the seeds {look.seeds[0]} to {look.seeds[-1]}, then ask again:")
    for config in look.configs:
        print("  " + _sweep(config, look.seeds, out))
    if has_summaries:
        added = ["earlydrop-findings", str(out / look.study), "--out", str(folder), "--add"]
        if claims != _DEFAULT_CLAIMS:
            added += ["--claims", claims]
        print("  " + shlex.join(added))


def _sweep(config: Config, seeds: tuple[int, ...], out: Path) -> str:
    """The command that trains one configuration with some seeds, below a folder of runs."""
    words = shlex.split(command_line(dataclasses.asdict(config)))[1:]
    left_out = ("seed=", "study=", "tracking.mode=", "out=")
    kept = [word for word in words if not word.startswith(left_out)]
    values = ",".join(map(str, seeds))
    if seeds == tuple(range(seeds[0], seeds[-1] + 1)):
        values = f"range({seeds[0]},{seeds[-1] + 1})"
    seeded = [f"study={config.study}", f"seed={values}", "hydra/launcher=joblib"]
    if out != Path("runs"):
        seeded.append(f"out={out}")
    return shlex.join(["earlydrop", "-m", *kept, *seeded])


def _repeat(finding: str, study: str | None, seeds: int | None, out: Path, claims: str) -> None:
    """Repeat a finding in each study that tests it; print the verdicts below the published ones.

    Raises:
        SystemExit: With code 1 if a claim is not judged, since some runs failed or have no value.
            The same command goes on with the same seeds.
    """
    declarations = load_declarations(claims_folder(claims))
    results = results_folder()
    published = results / claims if results is not None else None
    all_judged = True
    for place in studies_of(declarations, finding, study):
        rounds = place.study.rounds
        count = seeds or len(rounds.get(FIRST) or next(iter(rounds.values())))
        notes = out / place.study.name / f"repeat-{finding}.json"
        fresh = begun_seeds(notes, count) or fresh_seeds(declarations, out, count)
        ids = ", ".join(claim.id for claim in place.claims)
        print(f"{place.study.name}: {ids} on the seeds {fresh[0]} to {fresh[-1]}", flush=True)
        begin(notes, fresh)
        verdicts = repeat(place.declaration, place.study, place.claims, seeds=fresh, out=out)
        if any(verdict.verdict in UNJUDGED for verdict in verdicts):
            all_judged = False
        else:
            notes.unlink()
        if published is not None and (published / RUNS).is_file():
            before = judge_all(declarations, read_summaries(published))
            verdicts = _verdicts_at(place, before) + verdicts
        table = verdict_table(verdicts, summaries_in(out, declarations, published))
        with pd.option_context(*_WIDE):
            print(table.drop(columns=["compared", "model"]).to_string())
    if not all_judged:
        raise SystemExit(1)


def _verdicts_at(place: TestedStudy, verdicts: list[Verdict]) -> list[Verdict]:
    """The verdicts on the claims of a tested study, in this study only."""
    kept = []
    for verdict in verdicts:
        claimed = any(verdict.claim is claim for claim in place.claims)
        if claimed and verdict.study == place.study.name:
            kept.append(verdict)
    return kept


if __name__ == "__main__":
    main()
