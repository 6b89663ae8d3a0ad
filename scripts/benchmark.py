"""The cost of scheduling and measuring, in ratios measured side by side on this device.

    python scripts/benchmark.py --quick              the short rows, fewer repeats
    python scripts/benchmark.py                      all rows
    python scripts/benchmark.py --rows probe,off     some rows again; the others are kept

Prints a table and writes it, with a JSON file, to results/benchmark/<device>/ (--out elsewhere).
Each ratio is the median of ratios of alternating measurements after a warm-up; the spread is their
10th and 90th percentile. On a CPU, run it on a machine that does nothing else.
"""

import argparse
import dataclasses
import json
import os
import platform
import time
from pathlib import Path

import torch
from benchmark import paths, probes, processes, steps
from benchmark.measure import DEVICE, Row

from earlydrop.training.record.provenance import processor

ROWS = {
    "scheduler": steps.row_scheduler,
    "off": steps.row_off,
    "cpu_step": steps.row_cpu_step,
    "parts": steps.row_parts,
    "seed": steps.row_seed,
    "trainer": steps.row_trainer,
    "probe": probes.row_probe,
    "probe_memory": probes.row_probe_memory,
    "input": paths.row_input,
    "folder_input": paths.row_folder_input,
    "loaders": paths.row_loaders,
    "decoder": paths.row_decoder,
    "start": processes.row_start,
    "two_cores": processes.row_two_cores,
    "workers": processes.row_workers,
    "busy": processes.row_busy,
    "compiled_step": steps.row_compiled_step,
    "compiled_naive": steps.row_compiled_naive,
    "quickstart": processes.row_quickstart,
    "throughput": processes.row_throughput,
    "study_step": steps.row_study_step,
}
LONG = ("compiled_step", "compiled_naive", "quickstart", "throughput", "study_step")
"""Rows that --quick leaves out."""


def device_name() -> str:
    name = processor(DEVICE)
    return name if DEVICE.type == "cuda" else f"{name}, {torch.get_num_threads()} threads"


_HOW = (
    "A ratio is the median of the ratios of alternating measurements, so it can differ from the "
    "quotient of the two medians in its row. The spread is the 10th and 90th percentile of these "
    "ratios. A limit within a row's spread is met or missed by chance."
)


def table(rows: list[Row]) -> str:
    lines = [
        "| row | what against what | ratio | spread | to reach | | torch |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        spread = f"{row.low:.3f} to {row.high:.3f}" if row.low is not None else ""
        reached = row.target if row.met else f"**{row.target}** (missed)"
        lines.append(
            f"| {row.name} | {row.what} | {row.value:.3f} | {spread} | {reached} | {row.note} | "
            f"{row.torch} |"
        )
    return "\n".join([*lines, "", _HOW])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="without the long rows, fewer repeats")
    parser.add_argument("--rows", help=f"comma-separated, of {', '.join(ROWS)}")
    parser.add_argument("--out", type=Path, help="folder for table.md and benchmark.json")
    arguments = parser.parse_args()
    names = [name for name in ROWS if not (arguments.quick and name in LONG)]
    if arguments.rows is not None:
        names = arguments.rows.split(",")
    unknown = [name for name in names if name not in ROWS]
    if unknown:
        parser.error(f"--rows has {', '.join(unknown)}: expected some of {', '.join(ROWS)}")
    device, rows = device_name(), []
    print(f"{device}, torch {torch.__version__}, {os.cpu_count()} cores", flush=True)
    slug = "".join(c if c.isalnum() else "-" for c in device.lower()).strip("-").replace("--", "-")
    out = arguments.out or Path(__file__).resolve().parents[1] / "results" / "benchmark" / slug
    out.mkdir(parents=True, exist_ok=True)
    earlier = []
    if arguments.rows is not None and (out / "benchmark.json").is_file():
        kept = json.loads((out / "benchmark.json").read_text())["rows"]
        earlier = [Row(**row) for row in kept]
    head = f"{device}; Python {platform.python_version()}"
    for name in names:
        began = time.perf_counter()
        measured = ROWS[name](arguments.quick)
        if arguments.quick:
            measured = [
                dataclasses.replace(row, note=f"{row.note}; --quick".removeprefix("; "))
                for row in measured
            ]
        rows += measured
        done = {row.name: row for row in [*earlier, *rows]}
        print(
            f"{name}: {rows[-1].value:.3f} ({rows[-1].note}) in {time.perf_counter() - began:.0f} "
            "s",
            flush=True,
        )
        (out / "table.md").write_text(f"{head}\n\n{table(list(done.values()))}\n")
        content = {"device": device, "rows": [dataclasses.asdict(row) for row in done.values()]}
        (out / "benchmark.json").write_text(json.dumps(content, indent=1) + "\n")
    print(f"\n{(out / 'table.md').read_text()}\n{out}")


if __name__ == "__main__":
    main()
