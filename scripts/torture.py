"""Attack the command line: kill runs, fill the disk, damage files, mistype, send signals.

    python scripts/torture.py                          everything; more than an hour
    python scripts/torture.py --short                  some of everything, in about a minute
    python scripts/torture.py --only mistakes          one part
    python scripts/torture.py --only kills --case fresh-17      one case, as a failure names it

The parts are kills, disk, damage, mistakes and signals.

It attacks the package of the environment that it is started in, works in temporary folders, and
needs Linux. A part prints what it tried and what went wrong: tracebacks, values accepted in
silence, processes left behind, runs lost. The exit code is 1 if anything went wrong.
"""

import argparse
import os
import sys
import tempfile

os.environ["OMP_NUM_THREADS"] = "1"  # forks need a process without threads
os.environ["WANDB_MODE"] = "offline"
# One folder for matplotlib's font cache, so that not every case builds the cache again.
os.environ.setdefault("MPLCONFIGDIR", os.path.join(tempfile.gettempdir(), "torture-matplotlib"))

from torture.commands import load
from torture.damage import damage
from torture.kills import disk, kills
from torture.mistakes import mistakes
from torture.signals import signals
from torture.tally import Tally

PARTS = {"kills": kills, "disk": disk, "damage": damage, "mistakes": mistakes, "signals": signals}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--only", choices=PARTS, action="append", help="a part (may be repeated; default: all)"
    )
    parser.add_argument("--short", action="store_true", help="a few cases of each part")
    parser.add_argument("--case", help="one case of the part")
    parser.add_argument(
        "--seed", type=int, default=0, help="seed of the random mutations, mistakes and moments"
    )
    arguments = parser.parse_args()
    if arguments.case is not None and (arguments.only is None or len(arguments.only) != 1):
        parser.error("--case needs --only PART")
    load()
    tallies = []
    for name in arguments.only or PARTS:
        print(f"{name} ...", flush=True)
        tally = Tally(name, arguments.short, arguments.seed, arguments.case)
        PARTS[name](tally)
        print("".join(f"  {note}\n" for note in tally.notes) + tally.line(), flush=True)
        tallies.append(tally)
    tried = sum(tally.tried for tally in tallies)
    if tried == 0:
        parser.error(f"there is no case {arguments.case!r}")
    failed = sum(len(tally.failures) for tally in tallies)
    print(
        "\n" + "\n".join(tally.line() for tally in tallies) + f"\n{tried} tried, {failed} failures"
    )
    sys.exit(failed > 0)


if __name__ == "__main__":
    main()
