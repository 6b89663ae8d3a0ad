"""What scheduling and measuring cost, as ratios measured side by side in one run, on whatever device is there.

    python scripts/benchmark.py --quick              without the compiled rows; about 3 minutes on two cores
    python scripts/benchmark.py                      all rows; about 15 minutes on two cores
    python scripts/benchmark.py --rows probe,off     some rows, measured again; the others are kept as they were

Prints a table and writes it, with a JSON file, to results/benchmark/<device>/ (--out elsewhere). Each ratio is the median of ratios of
alternating measurements after a warm-up; the spread is their 10th and 90th percentile.
"""

import argparse
import dataclasses
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

import earlydrop
from earlydrop.training.config import Config, ModelConfig
from earlydrop.training.data.objective import Objective
from earlydrop.training.data.order import training_order
from earlydrop.training.models import Task, build_model
from earlydrop.training.optim import make_optimizer
from earlydrop.training.plan import make_plan
from earlydrop.training.prepare import scheduled_model
from earlydrop.training.record.folder import RunFolder
from earlydrop.training.record.provenance import processor
from earlydrop.training.trainer import Trainer

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
QUICK = False


@dataclasses.dataclass
class Row:
    """One line of the table."""

    name: str
    what: str
    value: float
    target: str
    met: bool
    low: float | None = None
    high: float | None = None
    note: str = ""


def synchronised(act: Callable[[], object]) -> float:
    """Seconds that a call takes, the device included."""
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
    began = time.perf_counter()
    act()
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began


def compare(
    ours: Callable[[], object], theirs: Callable[[], object], repeats: int, warm_up: int = 3
) -> tuple[float, float, float, str]:
    """Median and spread of ours/theirs over alternating measurements, and both medians in words."""
    for _ in range(warm_up):
        ours(), theirs()
    pairs = []
    for i in range(repeats):
        first, second = (ours, theirs) if i % 2 == 0 else (theirs, ours)
        a, b = synchronised(first), synchronised(second)
        pairs.append((a, b) if i % 2 == 0 else (b, a))
    ratios = sorted(a / b for a, b in pairs)
    a, b = (1e3 * statistics.median(side) for side in zip(*pairs, strict=True))
    return statistics.median(ratios), ratios[len(ratios) // 10], ratios[-1 - len(ratios) // 10], f"{a:.1f} ms against {b:.1f} ms"


def vit(unit: float, depth: int = 6, attention: str = "plain") -> nn.Module:
    return build_model(ModelConfig(depth=depth, attention=attention), Task(1, 10, 28, unit, 0.0), 0).to(DEVICE)


def stepper(
    model: nn.Module, batch: int = 128, bf16: bool = False, after: Callable[[], object] = lambda: None, fused: bool | None = True
) -> Callable[[], None]:
    """One training step on fixed images: forward, backward, optimizer step."""
    images, labels = torch.randn(batch, 1, 28, 28, device=DEVICE), torch.randint(10, (batch,), device=DEVICE)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-4, fused=fused or None)

    def step() -> None:
        with torch.autocast(DEVICE.type, torch.bfloat16, enabled=bf16):
            loss = F.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        after()

    return step


def row_scheduler() -> list[Row]:
    model = vit(0.1, depth=12, attention="fused")
    scheduler = earlydrop.DropoutScheduler(model, earlydrop.early(0.1, cutoff=100_000))
    value, low, high, note = compare(
        stepper(model, 64, after=scheduler.step), stepper(vit(0.1, 12, "fused"), 64), 30 if QUICK else 80
    )
    what = "eager step, early linear, against the same step at a constant rate (depth 12)"
    return [Row("scheduler", what, value, "at most 1.02", value <= 1.02, low, high, note)]


def row_off() -> list[Row]:
    model = vit(0.1)
    scheduler = earlydrop.DropoutScheduler(model, earlydrop.early(0.1, cutoff=1))
    scheduler.step()
    value, low, high, note = compare(stepper(model, after=scheduler.step), stepper(vit(0.0)), 30 if QUICK else 80)
    return [
        Row(
            "off",
            "eager step after the cutoff, against a model built without dropout",
            value,
            "at most 1.01",
            value <= 1.01,
            low,
            high,
            note,
        )
    ]


def row_cpu_step() -> list[Row]:
    rows = []
    for name, bf16, target in (("bf16", True, 0.7), ("float32", False, 0.85)):
        ours = vit(0.1)
        earlydrop.DropoutScheduler(ours, earlydrop.constant(0.1), masks="fast")
        native = stepper(vit(0.1, attention="fused"), 256, bf16)
        value, low, high, note = compare(stepper(ours, 256, bf16), native, 12 if QUICK else 30)
        what = f"vit_micro step, p = 0.1, {name}: plain attention and 16-bit masks, against native dropout and fused attention"
        rows.append(Row(f"cpu step {name}", what, value, f"at most {target}", value <= target, low, high, note))
    return rows


def row_parts() -> list[Row]:
    """What each choice of the CPU defaults gives by itself: a vit_micro step at p = 0.1 with it, against the same step without."""
    repeats = 10 if QUICK else 24

    def step(attention: str, masks: str, bf16: bool = False, fused: bool = True) -> Callable[[], None]:
        model = vit(0.1, attention=attention)
        earlydrop.DropoutScheduler(model, earlydrop.constant(0.1), masks=masks)
        return stepper(model, 256, bf16, fused=fused)

    pairs = {
        "16-bit masks": ("plain attention: 16-bit masks, against native ones", step("plain", "fast"), step("plain", "native")),
        "plain attention": ("native masks: plain attention, against fused", step("plain", "native"), step("fused", "native")),
        "fused optimizer": (
            "defaults: fused AdamW, against torch's choice",
            step("plain", "fast"),
            step("plain", "fast", fused=False),
        ),
        "bf16": ("defaults: bfloat16 autocast, against float32", step("plain", "fast", True), step("plain", "fast")),
    }
    rows = []
    for name, (what, ours, theirs) in pairs.items():
        value, low, high, note = compare(ours, theirs, repeats)
        rows.append(Row(name, what, value, "(no target)", True, low, high, note))
    images, labels = torch.randn(128, 784, device=DEVICE), torch.randint(10, (128,), device=DEVICE)
    layers = []
    for layer in (earlydrop.SharedMaskDropout, nn.Dropout):
        stack = nn.Sequential(
            *(module for width in (784, 512) for module in (nn.Linear(width, 512), nn.ReLU(), layer(0.5))), nn.Linear(512, 10)
        )
        layers.append(stack.to(DEVICE))

    def train(model: nn.Module) -> None:
        F.cross_entropy(model(images), labels).backward()

    value, low, high, note = compare(lambda: train(layers[0]), lambda: train(layers[1]), 10 * repeats)
    what = "MLP 784-512-512-10, forward and backward: one mask for the mini-batch, against one a sample"
    return [*rows, Row("shared mask", what, value, "(no target)", True, low, high, note)]


def row_trainer() -> list[Row]:
    with tempfile.TemporaryDirectory() as temporary:
        config = Config(out=temporary, tracking="off", device=DEVICE.type)
        config.trainer.epochs, config.trainer.eval_every = 1_000, "100%"
        plan = make_plan(config)
        trainer = Trainer(plan, *scheduled_model(plan), RunFolder(plan.folder), track=lambda step, metrics: None)
        trainer.folder.open_metrics(0)
        trainer.model.train()
        batches = iter(trainer.batches())
        chunk = 20

        def with_metrics() -> None:
            for _ in range(chunk):
                trainer.train_step(next(batches))
                if trainer.step % config.trainer.log_every == 0:
                    trainer._record(trainer._read_window())
                if trainer.scheduler is not None:
                    trainer.scheduler.step()

        model, _ = scheduled_model(plan)
        model.train()
        optimizer = make_optimizer(model, config.optim)
        size = config.trainer.batch_size
        images = torch.randn(4_096, 1, 28, 28, device=DEVICE)
        labels = torch.randint(10, (4_096,), device=DEVICE)
        position = 0

        def bare() -> None:
            nonlocal position
            for _ in range(chunk):
                start = position * size % (4_096 - size)
                position += 1
                F.cross_entropy(model(images[start : start + size]), labels[start : start + size]).backward()
                optimizer.step()
                optimizer.zero_grad()

        value, low, high, note = compare(bare, with_metrics, 6 if QUICK else 16, warm_up=1)
        trainer.folder.close()
    what = "trainer's images per second with all per-step metrics, against a bare loop in memory"
    return [Row("trainer", what, value, "at least 0.95", value >= 0.95, low, high, f"{note} for {chunk} steps (bare first)")]


def row_probe() -> list[Row]:
    model = vit(0.1)
    earlydrop.DropoutScheduler(model, earlydrop.constant(0.1), masks="fast")
    many = 16 if QUICK else 64
    batches = [(torch.randn(64, 1, 28, 28, device=DEVICE), torch.randint(10, (64,), device=DEVICE)) for _ in range(many)]
    parameters = list(model.parameters())

    def loss_fn(model: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        return F.cross_entropy(model(batch[0]), batch[1])

    def bare() -> None:
        with earlydrop.sites.sites_off(model):
            for batch in batches:
                torch.autograd.grad(loss_fn(model, batch), parameters)
        for batch in batches:
            torch.autograd.grad(loss_fn(model, batch), parameters)

    value, low, high, note = compare(
        lambda: earlydrop.probe(model, loss_fn, batches, dataset=batches), bare, 5 if QUICK else 12, warm_up=1
    )
    what = f"{many} gradients and a whole-dataset gradient, against as many bare forward-backward passes"
    return [Row("probe", what, value, "at most 1.05", value <= 1.05, low, high, note)]


def peak_memory(act: Callable[[], object]) -> int:
    """Bytes that a call needs at its peak beyond what was held before: the device's, or the process's resident memory (Linux)."""
    if DEVICE.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        act()
        return torch.cuda.max_memory_allocated() - before

    def resident(field: str) -> int:
        return next(
            1024 * int(line.split()[1]) for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field)
        )

    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = resident("VmRSS")
    act()
    return resident("VmHWM") - before


def row_probe_memory() -> list[Row]:
    """A model of one large layer and tiny batches, so that gradients are all there is to count."""
    many = 16 if QUICK else 64
    model = nn.Sequential(nn.Dropout(0.1), nn.Linear(4_096, 4_096, bias=False)).to(DEVICE)
    one = 4 * sum(p.numel() for p in model.parameters())
    batches = [torch.randn(1, 4_096, device=DEVICE) for _ in range(many)]

    def loss_fn(model: nn.Module, batch: torch.Tensor) -> torch.Tensor:
        return model(batch).square().mean()

    def stacked() -> None:
        gradients = torch.stack([torch.autograd.grad(loss_fn(model, batch), model[1].weight)[0].flatten() for batch in batches])
        directions = F.normalize(gradients)
        (directions @ directions.T).sum().item()

    acts = (lambda: earlydrop.probe(model, loss_fn, batches, dataset=batches), stacked)
    peaks = [min(peak_memory(act) for _ in range(3)) / one for act in acts]  # the first call also fills the allocator's caches
    what = f"peak extra memory of the probe with {many} gradients, in gradient-sized vectors (resident memory, temporaries of 0.1 included)"
    return [Row("probe memory", what, peaks[0], "at most 4", peaks[0] < 4.1, note=f"stack and matrix: {peaks[1]:.1f}")]


def row_input() -> list[Row]:
    config = Config(device=DEVICE.type)
    plan = make_plan(config)
    objective, size = Objective(plan.source, config.augment), config.trainer.batch_size
    steps = 40

    def read() -> None:
        for images, _ in objective.batches(training_order(0, plan.source.sizes["train"], size, 0, steps), 0, "augment"):
            images.sum()

    model, _ = scheduled_model(plan)
    train = stepper(model, size)
    value, low, high, note = compare(lambda: [train() for _ in range(steps)], read, 3 if QUICK else 8, warm_up=1)
    return [
        Row(
            "input",
            "images per second of the input path, against what vit_micro consumes",
            value,
            "at least 10",
            value >= 10,
            low,
            high,
            note,
        )
    ]


_BARE = """
import sys, time, torch
torch.set_num_threads(1)
sys.path.insert(0, sys.argv[1])
import benchmark
step = benchmark.stepper(benchmark.vit(0.0))
step()
sys.stdin.readline()
began = time.perf_counter()
for _ in range(int(sys.argv[2])):
    step()
print(time.perf_counter() - began)
"""


def side_by_side(copies: int, steps: int) -> float:
    """Seconds that bare training loops of one thread take, so many at a time: what two processes can gain on this machine at all."""
    command = [sys.executable, "-c", _BARE, str(Path(__file__).parent), str(steps)]
    processes = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(copies)]
    time.sleep(15)  # all are imported and warm
    for process in processes:
        process.stdin.write("go\n")
        process.stdin.flush()
    return max(float(process.communicate()[0]) for process in processes)


def row_two_cores() -> list[Row]:
    steps = 60 if QUICK else 240
    base = [sys.executable, "-m", "earlydrop", "-m", "schedule=none,constant,early,late", f"trainer.steps={steps}", "tracking=off",
            "trainer.eval_every=100%", "probe=none"]  # fmt: skip
    seconds = {}
    with tempfile.TemporaryDirectory() as temporary:
        for name, extra in (
            ("joblib", ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]),
            ("one thread", ["threads=1"]),
            ("two threads", ["threads=2"]),
        ):
            began = time.perf_counter()
            subprocess.run([*base, *extra, f"out={temporary}/{name.replace(' ', '-')}"], check=True, capture_output=True)
            seconds[name] = time.perf_counter() - began
    value = seconds["joblib"] / seconds["one thread"]
    bare = 20 if QUICK else 60
    limit = side_by_side(2, bare) / (2 * side_by_side(1, bare))
    note = ", ".join(f"{name} {s:.0f} s" for name, s in seconds.items()) + f" ({steps} steps a run, start-up included); "
    note += f"two bare loops side by side take {limit:.3f} of one after the other: this machine's limit"
    what = "4-run sweep with two joblib workers, against one after another at one thread"
    return [Row("two cores", what, value, "at most 0.6", value <= 0.6, note=note)]


def row_start() -> list[Row]:
    use = "m = nn.Sequential(nn.Dropout(.1)); s = earlydrop.DropoutScheduler(m, earlydrop.early(.1, 9)); s.step()"
    code = f"import time, torch\nfrom torch import nn\nt = time.perf_counter()\nimport earlydrop\n{use}\nprint(time.perf_counter() - t)"
    times = [
        float(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout) for _ in range(5)
    ]
    helps = []
    for _ in range(5):
        began = time.perf_counter()
        subprocess.run([sys.executable, "-m", "earlydrop", "--help"], capture_output=True, check=True)
        helps.append(time.perf_counter() - began)
    rows = []
    for name, what, values, target in (
        ("start", "import earlydrop and one use of it, beyond import torch (seconds)", times, 0.1),
        ("help", "earlydrop --help (seconds)", helps, 2.0),
    ):
        value = statistics.median(values)
        rows.append(Row(name, what, value, f"at most {target}", value <= target, min(values), max(values)))
    return rows


def _count_graphs(run: Callable[[], object]) -> tuple[float, int]:
    torch._dynamo.reset()
    before = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    seconds = synchronised(run)
    return seconds, torch._dynamo.utils.counters["stats"]["unique_graphs"] - before


def row_compiled_naive() -> list[Row]:
    steps, seconds, graphs = 200, [], []
    torch._inductor.config.force_disable_caches = True
    schedule = earlydrop.early(0.1, cutoff=150)
    stepper(torch.compile(nn.Sequential(nn.Flatten(), nn.Linear(784, 10)).to(DEVICE)), 64)()  # the compiler's own start-up
    for ours in (True, False):
        model = build_model(ModelConfig(name="mlp"), Task(1, 10, 28, 0.1, 0.0), 0).to(DEVICE)
        dropouts = [m for m in model.modules() if isinstance(m, nn.Dropout) and m.p > 0]
        scheduler = earlydrop.DropoutScheduler(model, schedule) if ours else None
        compiled = torch.compile(model)
        step = stepper(compiled, 64)

        def run(step=step, compiled=compiled, scheduler=scheduler, dropouts=dropouts) -> None:
            for i in range(steps):
                if scheduler is None:
                    for module in dropouts:
                        module.p = schedule(i)
                step()
                if scheduler is not None:
                    scheduler.step()
                if i in (50, 180):
                    compiled.eval()
                    with torch.no_grad():
                        compiled(torch.zeros(64, 1, 28, 28, device=DEVICE))
                    compiled.train()

        elapsed, count = _count_graphs(run)
        seconds.append(elapsed)
        graphs.append(count)
    value = seconds[0] / seconds[1]
    note = f"{seconds[0]:.0f} s, {graphs[0]} graphs, against {seconds[1]:.0f} s, {graphs[1]} graphs"
    what = "200 compiled steps of the MLP at a changing rate (two evaluations), against module.p = rate; compile time included"
    return [Row("compiled, naive", what, value, "at most 0.5, 3 graphs", value <= 0.5 and graphs[0] == 3, note=note)]


def row_compiled_step() -> list[Row]:
    rows = []
    ours, native = vit(0.1, depth=4), vit(0.1, depth=4)
    scheduler = earlydrop.DropoutScheduler(ours, earlydrop.early(0.1, cutoff=100_000))
    value, low, high, note = compare(stepper(torch.compile(ours), after=scheduler.step), stepper(torch.compile(native)), 40)
    rows.append(Row("compiled step", "compiled step at a changing rate, against native dropout at a constant one, compiled", value, "at most 1.03",
                    value <= 1.03, low, high, note))  # fmt: skip
    off, none = vit(0.1, depth=4), vit(0.0, depth=4)
    scheduler_off = earlydrop.DropoutScheduler(off, earlydrop.early(0.1, cutoff=1))
    scheduler_off.step()
    value, low, high, note = compare(stepper(torch.compile(off), after=scheduler_off.step), stepper(torch.compile(none)), 40)
    rows.append(Row("off, compiled", "compiled step after the cutoff, against a model built without dropout", value, "at most 1.01",
                    value <= 1.01, low, high, note))  # fmt: skip
    return rows


ROWS = {
    "scheduler": row_scheduler, "off": row_off, "cpu_step": row_cpu_step, "parts": row_parts, "trainer": row_trainer, "probe": row_probe,
    "probe_memory": row_probe_memory, "input": row_input, "two_cores": row_two_cores, "start": row_start,
    "compiled_step": row_compiled_step, "compiled_naive": row_compiled_naive,
}  # fmt: skip


def device_name() -> str:
    name = processor(DEVICE)
    return name if DEVICE.type == "cuda" else f"{name}, {torch.get_num_threads()} threads"


def table(rows: list[Row]) -> str:
    lines = ["| row | what against what | ratio | spread | to reach | |", "|---|---|---|---|---|---|"]
    for row in rows:
        spread = f"{row.low:.3f} to {row.high:.3f}" if row.low is not None else ""
        reached = row.target if row.met else f"**{row.target}** (missed)"
        lines.append(f"| {row.name} | {row.what} | {row.value:.3f} | {spread} | {reached} | {row.note} |")
    return "\n".join(lines)


def main() -> None:
    global QUICK
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="without the compiled rows, fewer repeats")
    parser.add_argument("--rows", help=f"comma-separated, of {', '.join(ROWS)}")
    parser.add_argument("--out", type=Path, help="folder for table.md and benchmark.json")
    arguments = parser.parse_args()
    QUICK = arguments.quick
    names = arguments.rows.split(",") if arguments.rows else [name for name in ROWS if not (QUICK and name.startswith("compiled"))]
    unknown = [name for name in names if name not in ROWS]
    if unknown:
        parser.error(f"--rows has {', '.join(unknown)}: expected some of {', '.join(ROWS)}")
    device, rows = device_name(), []
    print(f"{device}, torch {torch.__version__}, {os.cpu_count()} cores", flush=True)
    slug = "".join(c if c.isalnum() else "-" for c in device.lower()).strip("-").replace("--", "-")
    out = arguments.out or Path(__file__).resolve().parents[1] / "results" / "benchmark" / slug
    out.mkdir(parents=True, exist_ok=True)
    kept = json.loads((out / "benchmark.json").read_text())["rows"] if arguments.rows and (out / "benchmark.json").is_file() else []
    earlier = [Row(**row) for row in kept]
    head = f"{device}; torch {torch.__version__}, Python {platform.python_version()}" + ("; quick" if QUICK else "")
    for name in names:
        began = time.perf_counter()
        rows += ROWS[name]()
        done = {row.name: row for row in [*earlier, *rows]}
        print(f"{name}: {rows[-1].value:.3f} ({rows[-1].note}) in {time.perf_counter() - began:.0f} s", flush=True)
        (out / "table.md").write_text(f"{head}\n\n{table(list(done.values()))}\n")
        content = {
            "device": device,
            "torch": str(torch.__version__),
            "quick": QUICK,
            "rows": [dataclasses.asdict(row) for row in done.values()],
        }
        (out / "benchmark.json").write_text(json.dumps(content, indent=1) + "\n")
    print(f"\n{(out / 'table.md').read_text()}\n{out}")


if __name__ == "__main__":
    main()
