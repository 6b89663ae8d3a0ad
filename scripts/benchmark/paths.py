"""Input paths: images per second in memory and from JPEG files, against a model's."""

import itertools
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from benchmark.measure import DEVICE, Measured, Row, compare, stepper, synchronised
from earlydrop.training.compose import compose, config_from_dict
from earlydrop.training.config import Config
from earlydrop.training.data import Source, make_source
from earlydrop.training.data.decode import torchcodec_problem
from earlydrop.training.data.objective import Objective
from earlydrop.training.data.order import training_order
from earlydrop.training.plan import make_plan
from earlydrop.training.prepare import scheduled_model


def row_input(quick: bool) -> list[Row]:
    config = Config(device=DEVICE.type)
    plan = make_plan(config)
    objective, size = Objective(plan.source, config.augment), config.trainer.batch_size
    steps = 40

    def read() -> None:
        for images, _ in objective.batches(
            training_order(0, plan.source.sizes["train"], size, 0, steps), 0, "augment"
        ):
            images.sum()

    model, _ = scheduled_model(plan)
    train = stepper(model, size)
    measured = compare(lambda: [train() for _ in range(steps)], read, 3 if quick else 8, warm_up=1)
    return [
        measured.row(
            "input",
            "images per second of the input path, against what vit_micro consumes",
            at_least=10,
        )
    ]


def row_folder_input(quick: bool) -> list[Row]:
    """JPEG files of about ImageNet's size under the released augmentation, read by one core."""
    rows, count = [], 64 if quick else 256
    with tempfile.TemporaryDirectory() as temporary:
        script = str(Path(__file__).parents[1] / "make_image_folder.py")
        size = ["--classes", "16", "--train", str(count // 16), "--val", "1", "--side", "400"]
        subprocess.run([sys.executable, script, temporary, *size], check=True, capture_output=True)
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        for recipe in ("paper/vit_tiny", "paper/vit_tiny_improved"):
            config = config_from_dict(
                compose(
                    [
                        f"experiment={recipe}",
                        f"data.root={temporary}",
                        "data.workers=0",
                        "device=cpu",
                    ]
                )
            )
            source = make_source(config.data, config.augment, torch.device("cpu"))
            objective = Objective(source, config.augment)

            keys = itertools.count(1)

            def read(objective: Objective = objective, keys: Iterator[int] = keys) -> None:
                batch = next(keys), torch.arange(count)
                for images, _ in objective.batches([batch], 0, "augment"):
                    images.sum()

            read()
            rates = sorted(count / synchronised(read) for _ in range(3 if quick else 7))
            what = (
                "images per second and core: JPEG files 400 pixels high, decoded and augmented as "
                f"in {recipe}"
            )
            rows.append(
                Measured(rates[len(rates) // 2], low=rates[0], high=rates[-1]).row(
                    f"folder input, {recipe.split('/')[1]}", what
                )
            )
        torch.set_num_threads(threads)
    return rows


def row_decoder(quick: bool) -> list[Row]:
    """The same files decoded and cropped by Pillow and by torchcodec, read by one core.

    Processor time is compared, not the time on the clock, which other processes lengthen.
    """
    if torchcodec_problem() is not None:
        raise SystemExit(f"error: the row decoder needs torchcodec ({torchcodec_problem()})")
    count, rows = 64, []
    with tempfile.TemporaryDirectory() as temporary:
        script = str(Path(__file__).parents[1] / "make_image_folder.py")
        size = ["--classes", "16", "--train", str(count // 16), "--val", "1", "--side", "400"]
        subprocess.run([sys.executable, script, temporary, *size], check=True, capture_output=True)
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        released = ["experiment=paper/vit_tiny", f"data.root={temporary}", "data.workers=0"]
        for what, options, augmented in (
            ("training as in paper/vit_tiny", [], (0, "augment")),
            ("training without RandAugment", ["augment.randaugment=null"], (0, "augment")),
            ("evaluation", [], None),
        ):
            reads = [
                _reading([*released, *options, f"data.decoder={name}"], count, augmented)
                for name in ("pil", "torchcodec")
            ]
            rows.append(_faster(f"decoder, {what}", reads, count, 5 if quick else 15))
        torch.set_num_threads(threads)
    return rows


def _reading(
    overrides: list[str], count: int, augmented: tuple[int, str] | None
) -> Callable[[], object]:
    """A function that reads ``count`` training images, with the same random numbers each time.

    Batches are made on the meta device, because the training device normalises them, not the core
    that reads.
    """
    config = config_from_dict(compose(overrides))
    source = make_source(config.data, config.augment, torch.device("meta"))
    return lambda: list(source.batches([(0, torch.arange(count))], "train", augmented))


def _faster(name: str, reads: list[Callable[[], object]], count: int, repeats: int) -> Row:
    """Images per second of processor time: torchcodec's over Pillow's, in turns."""
    pairs = []
    for i in range(repeats + 1):
        times = {}
        for place in (0, 1) if i % 2 else (1, 0):
            began = time.process_time()
            reads[place]()
            times[place] = time.process_time() - began
        pairs.append((times[0], times[1]))
    pairs = pairs[1:]  # the first opens files and loads modules
    ratios = sorted(pillow / torchcodec for pillow, torchcodec in pairs)
    pillow, torchcodec = (count / statistics.median(side) for side in zip(*pairs, strict=True))
    return Measured(
        statistics.median(ratios),
        low=ratios[len(ratios) // 10],
        high=ratios[-1 - len(ratios) // 10],
        note=f"{torchcodec:.0f} images/s against {pillow:.0f}",
    ).row(name, "images per second of a core: data.decoder=torchcodec, against pil")


def row_loaders(quick: bool) -> list[Row]:
    """The same files at 256 pixels, read by one and by two processes.

    Evaluations too, by processes that are kept and by processes that are started for each.
    """
    rows, count = [], 40 if quick else 200
    with tempfile.TemporaryDirectory() as temporary:
        script = str(Path(__file__).parents[1] / "make_image_folder.py")
        size = [
            "--classes",
            "10",
            "--train",
            str(count // 10),
            "--val",
            str(count // 10),
            "--side",
            "256",
        ]
        subprocess.run([sys.executable, script, temporary, *size], check=True, capture_output=True)
        for workers in (1, 2):
            options = [
                "experiment=paper/vit_tiny",
                f"data.root={temporary}",
                f"data.workers={workers}",
                "device=cpu",
            ]
            config = config_from_dict(compose(options))
            source = make_source(config.data, config.augment, torch.device("cpu"))
            objective = Objective(source, config.augment)

            def read(objective: Objective = objective) -> None:
                for images, _ in objective.batches(
                    enumerate(torch.arange(count).split(10)), 0, "augment"
                ):
                    images.sum()

            read()
            rates = sorted(count / synchronised(read) for _ in range(3 if quick else 7))
            what = (
                "images per second, decoded and augmented as in paper/vit_tiny, "
                "to the training process"
            )
            rows.append(
                Measured(rates[len(rates) // 2], low=rates[0], high=rates[-1]).row(
                    f"loader, {workers} processes", what
                )
            )

            def evaluate(source: Source = source) -> None:
                for images, _ in source.batches(
                    list(enumerate(torch.arange(count).split(20))), "test", None
                ):
                    images.sum()

            def evaluate_anew(
                source: Source = source, evaluate: Callable[[], None] = evaluate
            ) -> None:
                source.close()
                evaluate()

            measured = compare(evaluate, evaluate_anew, 3 if quick else 7, warm_up=1)
            what = (
                f"time of an evaluation of {count} images by processes that are kept, "
                "against processes that are started for it"
            )
            rows.append(measured.row(f"evaluation, {workers} processes", what, at_most=1.1))
            source.close()
    return rows
