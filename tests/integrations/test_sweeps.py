"""Training loops of other packages: length, accumulation, resuming, optimizers, exceptions.

At every forward the kernels are given the schedule's rate of the optimizer step that the forward
belongs to.

For timm, the calls come in the order of its ``train.py``, with timm's own optimizers, scaler, saver
and resuming. The trainers of transformers and Lightning are the real ones.
"""

import itertools
import math
from datetime import timedelta

import pytest
import timm.optim
import timm.scheduler
import torch
from timm.models import resume_checkpoint
from timm.utils import CheckpointSaver, NativeScaler
from torch import nn

from earlydrop import DropoutScheduler, early
from tests.integrations import test_huggingface as hugging_face
from tests.integrations import test_lightning as lightning_
from tests.integrations.watched import DATA, Net, at_kernels

pytestmark = pytest.mark.sweep

BATCHES = 4  # of 8 among 32 examples
CUTOFFS = (3, "1ep", "1.5ep", "50%")


def steps_of_forwards(accumulate, epochs=100):
    """The optimizer step of each forward, when the last parts of an epoch are a step too."""
    an_epoch = math.ceil(BATCHES / accumulate)
    return [
        epoch * an_epoch + batch // accumulate
        for epoch in range(epochs)
        for batch in range(BATCHES)
    ]


def cutoff_in_steps(cutoff, accumulate, total):
    if isinstance(cutoff, int):
        return cutoff
    number, unit = (
        (cutoff[:-2], math.ceil(BATCHES / accumulate))
        if cutoff.endswith("ep")
        else (cutoff[:-1], total / 100)
    )
    return math.floor(float(number) * unit)


# timm


def timm_epoch(epoch, model, optimizer, lr_scheduler, scaler, accumulate, overflows, updated):
    """Train one epoch in the order of calls of timm's train.py.

    Before each forward, note how often the weights were updated.
    """
    batches = list(zip(*[iter(DATA)] * 8, strict=True))
    updates_per_epoch = math.ceil(len(batches) / accumulate)
    num_updates = epoch * updates_per_epoch
    model.train()
    optimizer.zero_grad()
    for batch_idx, batch in enumerate(batches):
        need_update = batch_idx == len(batches) - 1 or (batch_idx + 1) % accumulate == 0
        updated.append(updated[-1] if updated else 0)
        weight = model.layers[0].weight.detach().clone()
        logits = model(torch.stack([x for x, _ in batch]))
        loss = nn.functional.cross_entropy(logits, torch.tensor([y for _, y in batch])) / accumulate
        if scaler is not None:
            loss = loss * float("inf") if (epoch, batch_idx) in overflows else loss
            scaler(
                loss,
                optimizer,
                clip_grad=None,
                parameters=model.parameters(),
                need_update=need_update,
            )
        else:
            loss.backward()
            if need_update:
                optimizer.step()
        if not need_update:
            continue
        num_updates += 1
        optimizer.zero_grad()
        if not torch.equal(weight, model.layers[0].weight):
            updated[-1] += 1
        lr_scheduler.step_update(num_updates=num_updates)
    if hasattr(optimizer, "sync_lookahead"):
        optimizer.sync_lookahead()


def before_forwards(updated):
    """The updates before each forward, from those after it."""
    return [0, *updated[:-1]]


def timm_run(name, schedule, fused=False):
    model = Net()
    optimizer = timm.optim.create_optimizer_v2(
        model, opt=name, lr=1e-2, **({"fused": True} if fused else {})
    )
    scheduler = DropoutScheduler(model, schedule)
    scheduler.attach(optimizer)
    lr_scheduler, _ = timm.scheduler.create_scheduler_v2(optimizer, sched="cosine", num_epochs=5)
    return model, optimizer, scheduler, lr_scheduler


TIMM = ["sgd", "adamw", "lamb", "muon", "lookahead_adamw"]


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("accumulate", [1, 2, 3])
@pytest.mark.parametrize("name", TIMM)
def test_timm(name, accumulate, scaled, tmp_path):
    schedule, overflows = early(0.5, 6), {(1, 1), (2, 3)} if scaled else set()
    model, optimizer, scheduler, lr_scheduler = timm_run(
        name, schedule, fused=name == "adamw" and scaled
    )
    scaler = NativeScaler(device="cpu") if scaled else None
    saver = CheckpointSaver(
        model=model, optimizer=optimizer, amp_scaler=scaler, checkpoint_dir=str(tmp_path)
    )
    updated = []
    for epoch in range(4):
        timm_epoch(epoch, model, optimizer, lr_scheduler, scaler, accumulate, overflows, updated)
        lr_scheduler.step(epoch + 1)
        saver.save_checkpoint(epoch, metric=epoch)
    if not scaled:
        assert before_forwards(updated) == steps_of_forwards(accumulate, 4)
    else:
        assert updated[-1] < steps_of_forwards(accumulate, 4)[-1] + 1  # some were skipped
    assert model.kernels == at_kernels(schedule, before_forwards(updated))

    again, optimizer, scheduler, lr_scheduler = timm_run(
        name, schedule, fused=name == "adamw" and scaled
    )
    start = resume_checkpoint(
        again, str(tmp_path / "checkpoint-1.pth.tar"), optimizer, scaler, log_info=False
    )
    resumed = [updated[start * BATCHES - 1]]
    for epoch in range(start, 4):
        timm_epoch(epoch, again, optimizer, lr_scheduler, scaler, accumulate, overflows, resumed)
    assert again.kernels == at_kernels(schedule, resumed[:-1])

    scheduler.restore()  # by hand, for a second run of the same model
    scheduler = DropoutScheduler(again, schedule)
    scheduler.attach(optimizer)
    again.kernels.clear()
    updated = []
    timm_epoch(0, again, optimizer, lr_scheduler, None, accumulate, set(), updated)
    assert again.kernels == at_kernels(schedule, before_forwards(updated))


# transformers

LENGTHS = [
    {"max_steps": 6},
    {"max_steps": 9},
    {"num_train_epochs": 2.5},
    {"num_train_epochs": 1.75},
    {"num_train_epochs": 3},
]


@pytest.mark.parametrize("cutoff", CUTOFFS)
@pytest.mark.parametrize("accumulate", [1, 2, 3])
@pytest.mark.parametrize("length", LENGTHS, ids=str)
def test_hugging_face(length, accumulate, cutoff, tmp_path):
    an_epoch = math.ceil(BATCHES / accumulate)
    total = length.get("max_steps") or math.ceil(length["num_train_epochs"] * an_epoch)
    schedule = early(0.5, cutoff_in_steps(cutoff, accumulate, total))
    forwards = [step for step in steps_of_forwards(accumulate) if step < total]

    def train(model, *, resume=None, **more):
        given = hugging_face.callback(early(0.5, cutoff))
        options = length | {"gradient_accumulation_steps": accumulate} | more
        hugging_face.make_trainer(tmp_path, model, given, **options).train(
            resume_from_checkpoint=resume
        )

    model = Net()
    train(model, save_strategy="steps", save_steps=2)
    assert model.kernels == at_kernels(schedule, forwards)
    resumed = Net()
    train(resumed, resume=str(tmp_path / "checkpoint-2"))
    assert resumed.kernels == at_kernels(schedule, [step for step in forwards if step >= 2])
    if cutoff != CUTOFFS[0]:  # after an exception one cutoff is enough
        return
    fails = Net(fails_at=2, error=ZeroDivisionError())
    with pytest.raises(ZeroDivisionError):
        train(fails)
    assert type(fails.layers[1]) is nn.Dropout
    fails.fails_at = None
    fails.kernels.clear()
    train(fails)
    assert fails.kernels == at_kernels(schedule, forwards)


# Lightning

ENDLESS = {"max_epochs": -1, "max_time": timedelta(hours=1)}
LIGHTNING = [
    {"max_steps": 6},
    {"max_epochs": 3},
    {"max_steps": 9, "max_epochs": 10},
    {"max_steps": 7, "max_epochs": 100},
    ENDLESS,
]


@pytest.mark.parametrize("cutoff", CUTOFFS)
@pytest.mark.parametrize(
    ("optimizers", "accumulate"), [("auto", 1), ("auto", 2), ("auto", 3), (1, 1), (2, 1), (3, 1)]
)
@pytest.mark.parametrize("length", LIGHTNING, ids=str)
def test_lightning(length, optimizers, accumulate, cutoff, tmp_path):
    an_epoch = math.ceil(BATCHES / accumulate)
    total = min(
        length.get("max_steps", 10**6),
        length["max_epochs"] * an_epoch if length.get("max_epochs", -1) > 0 else 10**6,
    )
    options = dict(length)
    if isinstance(optimizers, int) and "max_steps" in options:
        options["max_steps"] *= optimizers
    if accumulate > 1:
        options["accumulate_grad_batches"] = accumulate

    def fit(module, *callbacks, **more):
        more_callbacks = [*callbacks, Until(8)] if length is ENDLESS else callbacks
        given = lightning_.DropoutCallback(early(0.5, cutoff))
        return lightning_.fit(tmp_path, module, given, *more_callbacks, **options, **more)

    def make(**net):
        return (
            lightning_.Module(**net)
            if optimizers == "auto"
            else lightning_.Manual(*[1] * optimizers, **net)
        )

    if length is ENDLESS and cutoff == "50%":
        with pytest.raises(ValueError, match="depends on the length of the run"):
            fit(make())
        return
    schedule = early(0.5, cutoff_in_steps(cutoff, accumulate, total))
    forwards = [step for step in steps_of_forwards(accumulate) if step < min(total, 8 * BATCHES)]
    if length is ENDLESS:
        forwards = list(itertools.takewhile(lambda step: step < 8, forwards))

    saving = lightning_.ModelCheckpoint(
        tmp_path, filename="{epoch}", every_n_epochs=1, save_top_k=-1
    )
    module = make()
    fit(module, saving, enable_checkpointing=True)
    assert module.net.kernels == at_kernels(schedule, forwards)
    resumed = make()
    fit(resumed, resume=tmp_path / "epoch=0.ckpt")
    # Where accumulation is resumed with max_steps, Lightning divides the batches otherwise. The
    # steps are then those of its optimizer.
    assert resumed.net.kernels == at_kernels(
        schedule, [an_epoch + before for before in resumed.before]
    )
    assert resumed.before[-1] == forwards[-1] - an_epoch
    if cutoff != CUTOFFS[0]:  # after an exception one cutoff is enough
        return
    fails = make(fails_at=2, error=ZeroDivisionError())
    with pytest.raises(ZeroDivisionError):
        fit(fails)
    assert type(fails.net.layers[1]) is nn.Dropout
    fails.net.fails_at = None
    fails.net.kernels.clear()
    fit(fails)
    assert fails.net.kernels == at_kernels(schedule, forwards)


class Until(lightning_.lightning.Callback):
    """End a fit that nothing else would end, after so many batches with an optimizer step."""

    def __init__(self, steps):
        self.steps = steps

    def on_train_batch_end(self, trainer, *_):
        trainer.should_stop = trainer.global_step >= self.steps * max(len(trainer.optimizers), 1)
