import warnings
from datetime import timedelta

import lightning
import pytest
import torch
import torchmetrics
from lightning.pytorch.callbacks import GradientAccumulationScheduler, ModelCheckpoint
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from earlydrop import constant, early, model_distance, probe
from earlydrop.integrations.lightning import DropoutCallback, ProbeCallback
from tests.integrations.watched import DATA, EXPECTED, Net

IMAGES, LABELS = torch.stack([x for x, _ in DATA]), torch.tensor([y for _, y in DATA])


def loader():
    """Four batches."""
    return DataLoader(TensorDataset(IMAGES, LABELS), batch_size=8)


class Stream(IterableDataset):
    """Data of a length that nobody knows."""

    def __iter__(self):
        return iter(zip(IMAGES, LABELS, strict=True))


class Module(lightning.LightningModule):
    def __init__(self, **net):
        super().__init__()
        self.net = Net(**net)
        self.counted = 0  # steps of the first optimizer
        self.before = []  # how many there were before each forward

    def training_step(self, batch, _):
        self.before.append(self.counted)
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self):
        return self.optimizer()

    def optimizer(self):
        optimizer = torch.optim.SGD(self.parameters(), 0.1)
        optimizer.register_step_post_hook(self.count)
        return optimizer

    def count(self, *_):
        self.counted += 1


class Manual(Module):
    """Manual optimization with several optimizers; each steps at the batches given for it."""

    def __init__(self, *every, **net):
        super().__init__(**net)
        self.automatic_optimization = False
        self.every = every

    def training_step(self, batch, batch_idx):
        self.before.append(self.counted)
        optimizers = self.optimizers()
        for every, optimizer in zip(
            self.every, optimizers if len(self.every) > 1 else [optimizers], strict=True
        ):
            if batch_idx == 0 or batch_idx % every == every - 1:
                loss = nn.functional.cross_entropy(self.net.layers.eval()(batch[0]), batch[1])
                self.net.layers.train()
                self.manual_backward(loss)
                optimizer.step()
                optimizer.zero_grad()
        self.net(batch[0])  # one forward a batch is watched

    def configure_optimizers(self):
        return [
            self.optimizer(),
            *(torch.optim.SGD(self.parameters(), 0.1) for _ in self.every[1:]),
        ]


def fit(folder, module, *callbacks, data=None, resume=None, **options):
    options = {"enable_checkpointing": False} | options
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = lightning.Trainer(
            accelerator="cpu",
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=folder,
            callbacks=list(callbacks),
            **options,
        )
        trainer.fit(module, loader() if data is None else data, ckpt_path=resume)
    return trainer


def on(module):
    """At how many forwards the rate was above 0; and how many there were."""
    return sum(rate > 0 for rate in module.net.seen), len(module.net.seen)


def first(cutoff):
    return DropoutCallback(early(0.5, cutoff, shape="constant"))


def test_lightning(tmp_path):
    module = Module()
    trainer = fit(tmp_path, module, DropoutCallback(early(0.5, "1ep")), max_epochs=2)
    assert module.net.seen == EXPECTED
    assert trainer.callback_metrics["dropout_rate"].item() == 0
    assert type(module.net.layers[1]) is nn.Dropout


@pytest.mark.parametrize(
    "length",
    [
        {"max_steps": 6},
        {"max_steps": 9, "max_epochs": 10},
        {"max_steps": 6, "max_epochs": 100},
        {"max_epochs": 3},
        {"max_epochs": -1, "max_steps": 7},
    ],
    ids=str,
)
def test_an_epoch_is_what_the_loader_says(tmp_path, length):
    module = Module()
    fit(tmp_path, module, first("1ep"), **length)
    assert on(module)[0] == 4 < on(module)[1]


def test_accumulation_makes_an_epoch_shorter_and_its_last_part_counts(tmp_path):
    module = Module()
    fit(tmp_path, module, first("1ep"), max_epochs=3, accumulate_grad_batches=3)
    assert on(module) == (4, 12)  # two steps, of three batches and of one
    module = Module()
    fit(tmp_path, module, first("50%"), max_steps=4, accumulate_grad_batches=3)
    assert on(module) == (4, 8)


def test_where_the_accumulation_changes_epochs_are_refused_and_the_length_is_right(tmp_path):
    with pytest.raises(ValueError, match="the accumulation changes between epochs"):
        fit(tmp_path, Module(), first("1ep"), GradientAccumulationScheduler({1: 4}), max_epochs=3)
    module = Module()  # 4 + 1 + 1 steps
    fit(tmp_path, module, first("50%"), GradientAccumulationScheduler({1: 4}), max_epochs=3)
    assert on(module) == (3, 12)
    module = Module()
    fit(tmp_path, module, first("1ep"), GradientAccumulationScheduler({0: 2}), max_epochs=3)
    assert on(module) == (4, 12)


class Enough(lightning.Callback):
    """Ends a fit that nothing else would end."""

    def on_train_batch_end(self, trainer, *_):
        trainer.should_stop = trainer.global_step >= 8


def test_a_run_that_time_ends_takes_steps_and_epochs_and_refuses_percent(tmp_path):
    length = {"max_epochs": -1, "max_time": timedelta(hours=1)}
    for cutoff in (4, "1ep"):
        module = Module()
        fit(tmp_path, module, DropoutCallback(early(0.5, cutoff)), Enough(), **length)
        assert module.net.seen == EXPECTED
    for schedule in (constant(0.5), lambda step: 0.5):
        module = Module()
        fit(tmp_path, module, DropoutCallback(schedule), Enough(), **length)
        assert set(module.net.seen) == {0.5}
    with pytest.raises(
        ValueError,
        match=r"'50%'.*depends on the length of the run, but neither max_steps nor max_epochs",
    ):
        fit(tmp_path, Module(), first("50%"), **length)


def test_a_loader_without_a_length_takes_steps_and_refuses_epochs(tmp_path):
    def stream():
        return DataLoader(Stream(), batch_size=8)

    for length in ({"max_epochs": 2}, {"max_steps": 8}):
        module = Module()
        fit(tmp_path, module, DropoutCallback(early(0.5, 4)), data=stream(), **length)
        assert module.net.seen == EXPECTED
        with pytest.raises(
            ValueError, match=r"'1ep'.*duration in epochs, but the loader has no length"
        ):
            fit(tmp_path, Module(), first("1ep"), data=stream(), **length)
    module = Module()
    fit(tmp_path, module, DropoutCallback(early(0.5, "50%")), data=stream(), max_steps=8)
    assert module.net.seen == EXPECTED
    with pytest.raises(ValueError, match=r"'50%'.*depends on the length of the run"):
        fit(tmp_path, Module(), first("50%"), data=stream(), max_epochs=2)


@pytest.mark.parametrize("every", [(1,), (1, 1), (1, 1, 1), (1, 3), (2, 3)], ids=str)
def test_with_several_optimizers_a_step_is_a_batch_in_which_one_stepped(tmp_path, every):
    """The first batch steps all of them, so that a count of optimizers would go wrong at once."""
    module = Manual(*every)
    fit(tmp_path, module, first(3), max_epochs=3)
    stepped = [
        i for i in range(12) if i % 4 == 0 or any(i % 4 % each == each - 1 for each in every)
    ]
    assert on(module) == (stepped[2] + 1, 12)


@pytest.mark.parametrize("every", [(1,), (1, 1)], ids=str)
@pytest.mark.parametrize(
    ("length", "cutoff"),
    [({"max_epochs": 2}, "1ep"), ({"max_epochs": 2}, "50%"), ({"max_steps": 8}, "50%")],
)
def test_durations_of_a_manual_optimization_are_in_batches(tmp_path, every, length, cutoff):
    module = Manual(*every)
    if "max_steps" in length:
        length = {"max_steps": 8 * len(every)}
    fit(tmp_path, module, DropoutCallback(early(0.5, cutoff)), **length)
    assert module.net.seen == EXPECTED


@pytest.mark.parametrize(
    ("every", "length"), [((3,), {"max_epochs": 2}), ((1, 3), {"max_steps": 8})], ids=str
)
def test_a_manual_optimization_that_skips_batches_takes_steps_only(tmp_path, every, length):
    module = Manual(*every)
    with pytest.raises(ValueError, match=r"with manual optimization .* give the duration in steps"):
        fit(tmp_path, module, first("50%"), **length)
    assert len(module.net.seen) <= 2
    assert type(module.net.layers[1]) is nn.Dropout
    fit(tmp_path, Manual(*every), first(2), **length)


def test_a_manual_optimization_that_skips_a_later_batch_is_warned_of_once(tmp_path):
    module = Manual(2)  # every batch but the third of an epoch
    trainer = lightning.Trainer(
        max_epochs=3,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
        enable_checkpointing=False,
        callbacks=[first("1ep")],
    )
    with pytest.warns(UserWarning, match="in this batch there were 0 steps") as caught:
        trainer.fit(module, loader())
    assert sum("in this batch" in str(each.message) for each in caught) == 1
    assert on(module) == (5, 12)


@pytest.mark.parametrize(
    "make", [Module, lambda: Manual(1), lambda: Manual(1, 1), lambda: Manual(2, 3)]
)
def test_it_resumes(tmp_path, make):
    whole = make()
    saving = ModelCheckpoint(tmp_path, filename="{step}", every_n_epochs=1, save_top_k=-1)
    fit(
        tmp_path,
        whole,
        DropoutCallback(early(0.5, 6)),
        saving,
        max_epochs=2,
        enable_checkpointing=True,
    )
    checkpoint = min(tmp_path.glob("*.ckpt"), key=lambda path: int(path.stem.partition("=")[2]))
    rest = make()
    fit(tmp_path, rest, DropoutCallback(early(0.5, 6)), resume=checkpoint, max_epochs=2)
    assert rest.net.seen == whole.net.seen[4:]
    assert len(set(rest.net.seen)) > 1


def test_a_checkpoint_without_a_count_of_several_optimizers_is_refused(tmp_path):
    saving = ModelCheckpoint(tmp_path, filename="plain")
    fit(tmp_path, Manual(1, 1), saving, max_epochs=1, enable_checkpointing=True)
    with pytest.raises(
        ValueError, match=r"global_step is 8 .* 2 optimizers.*checkpoint\['earlydrop'\]"
    ):
        fit(tmp_path, Manual(1, 1), first(6), resume=tmp_path / "plain.ckpt", max_epochs=2)
    module = Manual(1)
    saving = ModelCheckpoint(tmp_path, filename="single")
    fit(tmp_path, module, saving, max_epochs=1, enable_checkpointing=True)
    fit(tmp_path, module, first(6), resume=tmp_path / "single.ckpt", max_epochs=2)
    assert on(module)[0] == 4 + 2  # undriven, and two of six steps


@pytest.mark.parametrize("make", [Module, lambda **net: Manual(1, 1, **net)])
@pytest.mark.parametrize(
    "error",
    [ZeroDivisionError("in the model"), KeyboardInterrupt()],
    ids=["exception", "interrupt"],
)
def test_an_exception_gives_the_model_back(tmp_path, make, error):
    module = make(fails_at=2, error=error)
    given = DropoutCallback(early(0.5, 4))
    with pytest.raises((type(error), SystemExit)):
        fit(tmp_path, module, given, max_epochs=2)
    assert type(module.net.layers[1]) is nn.Dropout
    assert module.net.layers[1].p == 0.5
    module.net.fails_at = None
    for again in (given, DropoutCallback(early(0.5, 4))):
        module.net.seen.clear()
        fit(tmp_path, module, again, max_epochs=2)
        assert module.net.seen == EXPECTED


def test_fit_again_goes_on_where_its_trainer_is(tmp_path):
    for module in (Module(), Manual(1, 1)):
        trainer = fit(tmp_path, module, DropoutCallback(early(0.5, 4)), max_epochs=1)
        trainer.fit_loop.max_epochs = 2
        trainer.fit(module, loader())
        assert module.net.seen == EXPECTED


class Noted(lightning.pytorch.loggers.logger.DummyLogger):
    """Keeps what it is given."""

    def __init__(self):
        super().__init__()
        self.lines = []

    def log_metrics(self, metrics, step=None):
        self.lines.append((step, dict(metrics)))


class Random(lightning.LightningModule):
    """All that a measurement could disturb: shuffling, dropout, BatchNorm, a metric, a log."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 2)
        )
        self.correct = torchmetrics.classification.MulticlassAccuracy(2)
        self.losses = []

    def training_step(self, batch, index):
        x, y = batch
        logits = self.net(x)
        loss = nn.functional.cross_entropy(logits, y)
        self.correct.update(logits, y)
        self.log("loss", loss, on_step=True, on_epoch=True)
        self.log("seen", self.correct.compute())
        self.losses.append(loss.item()) if loss.requires_grad and self.trainer.global_step == len(
            self.losses
        ) else None
        return loss

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1, momentum=0.9)


def train_random(tmp_path, *callbacks, **options):
    lightning.seed_everything(3, verbose=False)
    module, noted = Random(), Noted()
    data = DataLoader(TensorDataset(IMAGES, LABELS), batch_size=8, shuffle=True)
    trainer = lightning.Trainer(
        max_epochs=3,
        accelerator="cpu",
        logger=noted,
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=1,
        default_root_dir=tmp_path,
        enable_checkpointing=False,
        callbacks=list(callbacks),
        **options,
    )
    trainer.fit(module, data)
    return module, noted.lines, trainer


def test_measuring_leaves_the_training_as_it_is_to_the_bit(tmp_path):
    plain, lines, _ = train_random(tmp_path)
    measured, more, trainer = train_random(tmp_path, ProbeCallback(every=5, batches=3))
    assert all(
        torch.equal(value, measured.state_dict()[name])
        for name, value in plain.state_dict().items()
    )
    assert torch.equal(plain.correct.compute(), measured.correct.compute())
    probes = [(step, values) for step, values in more if "probe/gdv" in values]
    assert [line for line in more if "probe/gdv" not in line[1]] == lines
    assert [step for step, _ in probes] == [0, 5, 10]
    for step, values in probes:
        assert values.keys() == {"probe/gradient_norm", "probe/gdv", "probe/gde", "model/distance"}
        assert (values["model/distance"] == 0) == (step == 0)
    assert trainer.callback_metrics["probe/gdv"] == pytest.approx(probes[-1][1]["probe/gdv"])


def test_what_is_logged_is_what_the_probe_measures(tmp_path):
    batches = [(IMAGES[i : i + 8], LABELS[i : i + 8]) for i in range(0, 32, 8)]

    def loss_fn(module, batch):
        return nn.functional.cross_entropy(
            module.net[0](batch[0])[:, :2], batch[1]
        )  # what draws nothing

    given = ProbeCallback(every=12, batches=batches[:2], dataset=batches, loss_fn=loss_fn)
    module, lines, _ = train_random(tmp_path, given)
    ((_, first), (step, last)) = [(step, values) for step, values in lines if "probe/gdv" in values]
    report = probe(module, loss_fn, batches[:2], dataset=batches)
    assert step == 12
    assert (last["probe/gdv"], last["probe/gde"], last["probe/gradient_norm"]) == (
        report.gdv,
        report.gde,
        report.gradient_norm,
    )
    lightning.seed_everything(3, verbose=False)
    assert last["model/distance"] == model_distance(module, Random())
    assert first["probe/gdv"] != last["probe/gdv"]


def test_random_generators_of_the_users_loss_are_as_before(tmp_path):
    generator = torch.Generator().manual_seed(7)

    def loss_fn(module, batch):
        noise = torch.randn(batch[0].shape, generator=generator)
        return nn.functional.cross_entropy(module.net(batch[0] + noise)[:, :2], batch[1])

    train_random(tmp_path, ProbeCallback(every=5, batches=3, loss_fn=loss_fn))
    assert torch.equal(generator.get_state(), torch.Generator().manual_seed(7).get_state())


def test_accumulated_steps_are_measured_once(tmp_path):
    _, lines, _ = train_random(
        tmp_path, ProbeCallback(every=2, batches=2), accumulate_grad_batches=2
    )
    assert [step for step, values in lines if "probe/gdv" in values] == [0, 2, 4, 6]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"every": 0}, "every is 0: expected a number of optimizer steps, 1 or more"),
        ({"every": 1, "batches": 1}, "batches is 1: expected a number of mini-batches, at least 2"),
        (
            {"every": 1, "batches": iter([])},
            "batches is .*: expected a number of mini-batches, at least 2, or a list",
        ),
        (
            {"every": 1, "batches": 5},
            "the training data has 32 items, and 40 are needed; give fewer",
        ),
    ],
    ids=["every", "batches", "iterator", "too many"],
)
def test_what_cannot_be_measured_is_refused(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        fit(tmp_path, Module(), ProbeCallback(**options), max_epochs=1)


def test_data_without_an_index_and_manual_optimization_say_what_to_give(tmp_path):
    trainer = lightning.Trainer(
        max_steps=2,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
        enable_checkpointing=False,
        callbacks=[ProbeCallback(every=1, batches=2)],
    )
    with pytest.raises(
        ValueError, match=r"\(Stream\) has no index to take them by; give batches= as a list"
    ):
        trainer.fit(Module(), DataLoader(Stream(), batch_size=8))
    with pytest.raises(ValueError, match=r"give ProbeCallback\(loss_fn=...\)"):
        fit(tmp_path, Manual(1), ProbeCallback(every=1, batches=2), max_epochs=1)


def test_a_schedule_may_react_to_what_is_measured(tmp_path):
    """Dropout of 0.5 until the gradients' directions vary by less than at the start."""
    rates = {"now": 0.5}

    class Watch(lightning.Callback):
        first, seen = None, ()

        def on_train_batch_end(self, trainer, module, *_):
            self.seen = (*self.seen, drop.scheduler.last_rate)
            gdv = trainer.callback_metrics.get("probe/gdv")
            if gdv is not None:
                self.first = gdv if self.first is None else self.first
                rates["now"] = 0.0 if gdv != self.first else rates["now"]

    watch, drop = Watch(), DropoutCallback(lambda step: rates["now"])
    fit(tmp_path, Module(), ProbeCallback(every=2, batches=2), watch, drop, max_epochs=2)
    assert watch.seen == (
        0.5,
        0.5,
        0.5,
        0.5,
        0.0,
        0.0,
        0.0,
        0.0,
    )  # measured after two and after four steps
