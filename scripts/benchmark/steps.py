"""The cost of scheduling, masks, attention, precision, the trainer and compilation."""

import tempfile
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

import earlydrop
from benchmark.measure import (
    DEVICE,
    Measured,
    Row,
    compare,
    stepper,
    study_stepper,
    synchronised,
    vit,
)
from earlydrop.training.config import Config, ModelConfig, TrackingConfig
from earlydrop.training.models import Task, build_model
from earlydrop.training.optim import make_optimizer
from earlydrop.training.plan import make_plan
from earlydrop.training.prepare import scheduled_model
from earlydrop.training.record.folder import RunFolder
from earlydrop.training.streams import seed_device
from earlydrop.training.trainer import Trainer


def row_scheduler(quick: bool) -> list[Row]:
    model = vit(0.1, depth=12, attention="fused")
    scheduler = earlydrop.DropoutScheduler(model, earlydrop.early(0.1, cutoff=100_000))
    measured = compare(
        stepper(model, 64, after=scheduler.step),
        stepper(vit(0.1, 12, "fused"), 64),
        30 if quick else 80,
    )
    what = "eager step, early linear, against the same step at a constant rate (depth 12)"
    return [measured.row("scheduler", what, at_most=1.02)]


def row_off(quick: bool) -> list[Row]:
    model = vit(0.1)
    scheduler = earlydrop.DropoutScheduler(model, earlydrop.early(0.1, cutoff=1))
    scheduler.step()
    measured = compare(stepper(model, after=scheduler.step), stepper(vit(0.0)), 30 if quick else 80)
    return [
        measured.row(
            "off",
            "eager step after the cutoff, against a model built without dropout",
            at_most=1.01,
        )
    ]


def row_cpu_step(quick: bool) -> list[Row]:
    rows = []
    for name, bf16, target in (("bf16", True, 0.7), ("float32", False, 0.85)):
        ours = vit(0.1)
        earlydrop.DropoutScheduler(ours, earlydrop.constant(0.1), masks="fast")
        native = stepper(vit(0.1, attention="fused"), 256, bf16)
        measured = compare(stepper(ours, 256, bf16), native, 12 if quick else 30)
        what = (
            f"vit_micro step, p = 0.1, {name}: plain attention and 16-bit masks, against native "
            "dropout and fused attention"
        )
        rows.append(measured.row(f"cpu step {name}", what, at_most=target))
    return rows


def row_parts(quick: bool) -> list[Row]:
    """The gain of each CPU default by itself: a vit_micro step at p = 0.1 with and without it."""
    repeats = 10 if quick else 24

    def step(
        attention: str, masks: str, bf16: bool = False, fused: bool = True
    ) -> Callable[[], None]:
        model = vit(0.1, attention=attention)
        earlydrop.DropoutScheduler(model, earlydrop.constant(0.1), masks=masks)
        return stepper(model, 256, bf16, fused=fused)

    pairs = {
        "16-bit masks": (
            "plain attention: 16-bit masks, against native ones",
            step("plain", "fast"),
            step("plain", "native"),
        ),
        "plain attention": (
            "native masks: plain attention, against fused",
            step("plain", "native"),
            step("fused", "native"),
        ),
        "fused optimizer": (
            "defaults: fused AdamW, against torch's choice",
            step("plain", "fast"),
            step("plain", "fast", fused=False),
        ),
        "bf16": (
            "defaults: bfloat16 autocast, against float32",
            step("plain", "fast", True),
            step("plain", "fast"),
        ),
    }
    rows = []
    for name, (what, ours, theirs) in pairs.items():
        measured = compare(ours, theirs, repeats)
        rows.append(measured.row(name, what))
    return [*rows, _shared_mask(10 * repeats)]


def _shared_mask(repeats: int) -> Row:
    images, labels = torch.randn(128, 784, device=DEVICE), torch.randint(10, (128,), device=DEVICE)
    layers = []
    for layer in (earlydrop.SharedMaskDropout, nn.Dropout):
        hidden = []
        for width in (784, 512):
            hidden += [nn.Linear(width, 512), nn.ReLU(), layer(0.5)]
        layers.append(nn.Sequential(*hidden, nn.Linear(512, 10)).to(DEVICE))

    def train(model: nn.Module) -> None:
        F.cross_entropy(model(images), labels).backward()

    measured = compare(lambda: train(layers[0]), lambda: train(layers[1]), repeats)
    what = (
        "MLP 784-512-512-10, forward and backward: one mask for the mini-batch, against one a "
        "sample"
    )
    return measured.row("shared mask", what)


def row_seed(quick: bool) -> list[Row]:
    """Seeding before each part: the generators that are used, against those of all devices."""
    seeds = range(500)
    measured = compare(
        lambda: [seed_device(DEVICE, seed) for seed in seeds],
        lambda: [torch.manual_seed(seed) for seed in seeds],
        10 if quick else 30,
    )
    what = "seeding the default generators of one device, against torch.manual_seed"
    measured = measured._replace(note=f"{measured.note} for {len(seeds)}")
    return [measured.row("seed", what, at_most=0.2)]


def row_trainer(quick: bool) -> list[Row]:
    with tempfile.TemporaryDirectory() as temporary:
        config = Config(out=temporary, tracking=TrackingConfig(mode="off"), device=DEVICE.type)
        config.trainer.epochs, config.trainer.eval_every = 1_000, "100%"
        plan = make_plan(config)
        trainer = Trainer(
            plan, *scheduled_model(plan), RunFolder(plan.folder), track=lambda step, metrics: None
        )
        trainer.folder.open_metrics(0)
        trainer.model.train()
        batches = iter(trainer.batches())
        chunk = 20

        def with_metrics() -> None:
            for _ in range(chunk):
                trainer.train_step(next(batches))
                if trainer.step % config.trainer.log_every == 0:
                    trainer.record(trainer.take_window())
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
                F.cross_entropy(
                    model(images[start : start + size]), labels[start : start + size]
                ).backward()
                optimizer.step()
                optimizer.zero_grad()

        measured = compare(bare, with_metrics, 6 if quick else 16, warm_up=1)
        trainer.folder.close()
    what = "trainer's images per second with all per-step metrics, against a bare loop in memory"
    measured = measured._replace(note=f"{measured.note} for {chunk} steps (bare first)")
    return [measured.row("trainer", what, at_least=0.95)]


def _count_graphs(run: Callable[[], object]) -> tuple[float, int]:
    torch._dynamo.reset()
    before = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    seconds = synchronised(run)
    return seconds, torch._dynamo.utils.counters["stats"]["unique_graphs"] - before


def row_compiled_naive(quick: bool) -> list[Row]:
    steps, seconds, graphs = 200, [], []
    torch._inductor.config.force_disable_caches = True
    schedule = earlydrop.early(0.1, cutoff=150)
    stepper(
        torch.compile(nn.Sequential(nn.Flatten(), nn.Linear(784, 10)).to(DEVICE)), 64
    )()  # the compiler's own start-up
    for ours in (True, False):
        model = build_model(
            ModelConfig(name="mlp"),
            Task(channels=1, classes=10, image_size=28, unit=0.1, path=0.0),
            0,
        ).to(DEVICE)
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
    what = (
        "200 compiled steps of the MLP at a changing rate (two evaluations), against module.p = "
        "rate; compile time included"
    )
    return [
        Row(
            "compiled, naive",
            what,
            value=value,
            target="at most 0.5, 3 graphs",
            met=value <= 0.5 and graphs[0] == 3,
            note=note,
        )
    ]


def row_compiled_step(quick: bool) -> list[Row]:
    rows = []
    ours, native = vit(0.1, depth=4), vit(0.1, depth=4)
    scheduler = earlydrop.DropoutScheduler(ours, earlydrop.early(0.1, cutoff=100_000))
    measured = compare(
        stepper(torch.compile(ours), after=scheduler.step), stepper(torch.compile(native)), 40
    )
    what = "compiled step at a changing rate, against native dropout at a constant one, compiled"
    rows.append(measured.row("compiled step", what, at_most=1.03))
    off, none = vit(0.1, depth=4), vit(0.0, depth=4)
    scheduler_off = earlydrop.DropoutScheduler(off, earlydrop.early(0.1, cutoff=1))
    scheduler_off.step()
    measured = compare(
        stepper(torch.compile(off), after=scheduler_off.step), stepper(torch.compile(none)), 40
    )
    what = "compiled step after the cutoff, against a model built without dropout"
    rows.append(measured.row("off, compiled", what, at_most=1.01))
    fast, full = vit(0.1, depth=4), vit(0.1, depth=4)
    for model, masks in ((fast, "fast"), (full, "native")):
        earlydrop.DropoutScheduler(model, earlydrop.constant(0.1), masks=masks)
    measured = compare(stepper(torch.compile(fast)), stepper(torch.compile(full)), 40)
    what = "compiled step at p = 0.1: 16-bit masks, against native ones"
    rows.append(measured.row("16-bit masks, compiled", what))
    return rows


_PRODUCTS = (
    "aten::mm",
    "aten::addmm",
    "aten::bmm",
    "aten::baddbmm",
    "aten::mkldnn_convolution",
    "aten::convolution_backward",
)


def row_study_step(quick: bool) -> list[Row]:
    """The step of the underfitting study on one core: in bfloat16, compiled, and its products."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        eager = study_stepper("findings/underfitting")
        rows = []
        for name, bf16, compiled in (
            ("bfloat16", True, False),
            ("compiled", False, True),
            ("compiled, bfloat16", True, True),
        ):
            variant = study_stepper("findings/underfitting", bf16, compiled)
            measured = compare(variant, eager, 20 if quick else 60, warm_up=5)
            what = (
                "step of the underfitting study without dropout, one thread, "
                f"{name}, against eager in float32"
            )
            rows.append(measured.row(f"study step, {name}", what))
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiled:
            for _ in range(20):
                eager()
    finally:
        torch.set_num_threads(threads)
    spent = {event.key: event.self_cpu_time_total for event in profiled.key_averages()}
    value = sum(spent.get(name, 0) for name in _PRODUCTS) / sum(spent.values())
    note = "the inverse is the most that could be gained if all else took no time"
    what = "matrix products of that step, against all of it (eager, float32, by torch's profiler)"
    return [
        *rows,
        Measured(value, note=note).row("study step, products", what),
    ]
