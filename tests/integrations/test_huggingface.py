import warnings

import pytest
import torch
from torch import nn
from torch.utils.data import IterableDataset

from earlydrop import early, model_distance, probe
from tests.integrations.watched import DATA, EXPECTED, Net

ITEMS = [{"x": x, "labels": y} for x, y in DATA]


class Stream(IterableDataset):
    """Data of a length that nobody knows."""

    def __iter__(self):
        return iter(ITEMS)


def make_trainer(folder, model, *callbacks, data=ITEMS, **options):
    from transformers import Trainer, TrainingArguments

    options = {"save_strategy": "no", "per_device_train_batch_size": 8} | options
    arguments = TrainingArguments(
        str(folder), logging_steps=1, report_to="none", use_cpu=True, disable_tqdm=True, **options
    )
    return Trainer(model, arguments, train_dataset=data, callbacks=list(callbacks))


def callback(schedule, **options):
    from earlydrop.integrations.huggingface import DropoutCallback

    return DropoutCallback(schedule, **options)


def test_hugging_face_trainer(tmp_path):
    def train(resume):
        model = Net()
        trainer = make_trainer(
            tmp_path,
            model,
            callback(early(0.5, "50%")),
            max_steps=8,
            save_strategy="steps",
            save_steps=3,
        )
        trainer.train(resume_from_checkpoint=resume)
        return model, trainer

    model, trainer = train(None)
    assert model.seen == EXPECTED
    assert [log["dropout_rate"] for log in trainer.state.log_history if "loss" in log][
        2
    ] == EXPECTED[3]
    assert type(model.layers[1]) is nn.Dropout
    assert train(str(tmp_path / "checkpoint-3"))[0].seen == EXPECTED[3:]


@pytest.mark.parametrize(
    "length",
    [{"max_steps": 6}, {"max_steps": 9}, {"num_train_epochs": 2.5}, {"num_train_epochs": 1.2}],
    ids=str,
)
@pytest.mark.parametrize(("accumulate", "steps"), [(1, 4), (3, 2)])
def test_an_epoch_is_what_the_loader_and_the_accumulation_say(tmp_path, length, accumulate, steps):
    given = callback(early(0.5, "1ep", shape="constant"))
    model = Net()
    make_trainer(tmp_path, model, given, gradient_accumulation_steps=accumulate, **length).train()
    before = [rate > 0 for rate in model.seen]
    assert before[:4] == [True] * 4  # an epoch has 4 batches, whatever the steps
    assert sum(before) == 4
    assert len(before) > 4


def test_an_epoch_of_a_loader_without_a_length_is_refused_by_name(tmp_path):
    trainer = make_trainer(tmp_path, Net(), callback(early(0.5, "1ep")), data=Stream(), max_steps=8)
    with pytest.raises(
        ValueError,
        match=(
            r"'1ep'.*duration in epochs, but the trainer's loader has no length.*give it in steps"
        ),
    ):
        trainer.train()
    for schedule in (early(0.5, "50%"), early(0.5, 4)):
        model = Net()
        make_trainer(tmp_path, model, callback(schedule), data=Stream(), max_steps=8).train()
        assert model.seen == EXPECTED


def test_a_plain_function_of_the_step_is_taken(tmp_path):
    model = Net()
    make_trainer(tmp_path, model, callback(lambda step: early(0.5, 4)(step)), max_steps=8).train()
    assert model.seen == EXPECTED
    with pytest.raises(ValueError, match=r"schedule is 0.5: expected a schedule"):
        make_trainer(tmp_path, Net(), callback(0.5), max_steps=8).train()


@pytest.mark.parametrize(
    "error",
    [ZeroDivisionError("in the model"), KeyboardInterrupt()],
    ids=["exception", "interrupt"],
)
def test_an_exception_gives_the_model_back(tmp_path, error):
    model = Net(fails_at=2, error=error)
    trainer = make_trainer(tmp_path, model, callback(early(0.5, 4)), max_steps=8)
    with pytest.raises(type(error)):
        trainer.train()
    assert type(model.layers[1]) is nn.Dropout
    assert model.layers[1].p == 0.5
    model.fails_at = None
    for again in (trainer, make_trainer(tmp_path, model, callback(early(0.5, 4)), max_steps=8)):
        model.seen.clear()
        again.train()
        assert model.seen == EXPECTED


def test_what_a_callback_that_was_added_later_left_is_let_go_by_the_next_train(tmp_path):
    model = Net(fails_at=2, error=ZeroDivisionError())
    trainer = make_trainer(tmp_path, model, max_steps=8)
    trainer.add_callback(callback(early(0.5, 4)))
    with pytest.raises(ZeroDivisionError):
        trainer.train()
    model.fails_at = None
    for again in (trainer, make_trainer(tmp_path, model, callback(early(0.5, 4)), max_steps=8)):
        model.seen.clear()
        again.train()
        assert model.seen == EXPECTED
    twice = make_trainer(
        tmp_path, model, callback(early(0.5, 4)), callback(early(0.5, 4)), max_steps=8
    )
    with pytest.raises(ValueError, match="driven by a DropoutScheduler already"):
        twice.train()
    assert type(model.layers[1]) is nn.Dropout


def test_a_smaller_batch_after_running_out_of_memory_starts_again(tmp_path):
    model = Net(fails_at=2, error=RuntimeError("CUDA out of memory."))
    given = callback(early(0.5, "1ep", shape="constant"))
    trainer = make_trainer(tmp_path, model, given, max_steps=20, auto_find_batch_size=True)
    trainer.train()
    assert len(model.seen) == 3 + 20
    smaller = trainer.state.train_batch_size
    assert smaller < 8
    assert sum(rate > 0 for rate in model.seen[3:]) == -(-32 // smaller)


def test_reporters_see_the_rate_when_the_callback_leads(tmp_path):
    from transformers import TrainerCallback

    class Reporter(TrainerCallback):
        seen = ()

        def on_log(self, args, state, control, logs=None, **kwargs):
            self.seen = (*self.seen, logs.get("dropout_rate"))

    for leads in (False, True):
        reporter, given = Reporter(), callback(early(0.5, 2))
        trainer = make_trainer(tmp_path, Net(), reporter, given, max_steps=2)
        if leads:
            given.lead(trainer)
        trainer.train()
        assert (reporter.seen[0] is not None) == leads
    with pytest.raises(ValueError, match="does not have this callback"):
        callback(early(0.5, 4)).lead(trainer)


def test_reporters_that_run_before_the_callback_are_named(tmp_path):
    from transformers.integrations import TensorBoardCallback

    given = callback(early(0.5, 2))
    for _ in range(2):  # in front of the reporters of one trainer, not of the other
        trainer = make_trainer(tmp_path, Net(), given, max_steps=2)
        trainer.callback_handler.callbacks.insert(0, TensorBoardCallback())
        with pytest.warns(
            UserWarning, match=r"tensorboard run before this callback.*callback.lead\(trainer\)"
        ):
            trainer.train()
        given.lead(trainer)
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message=".*run before this callback")
            trainer.train()


class Random(nn.Module):
    """Everything that a measurement could disturb: dropout, BatchNorm."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 2)
        )

    def forward(self, x, labels=None):
        logits = self.net(x)
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


def measured(tmp_path, *callbacks, **options):
    torch.manual_seed(3)
    model = Random()
    trainer = make_trainer(tmp_path, model, *callbacks, max_steps=10, learning_rate=0.1, **options)
    trainer.train()
    return model, trainer.state.log_history


def probe_callback(**options):
    from earlydrop.integrations.huggingface import ProbeCallback

    return ProbeCallback(**options)


def test_random_generators_of_the_users_loss_are_as_before(tmp_path):
    generator = torch.Generator().manual_seed(7)

    def loss_fn(model, batch):
        return model(**batch)["loss"] * torch.rand((), generator=generator)

    _, lines = measured(tmp_path, probe_callback(every=4, batches=3, loss_fn=loss_fn))
    assert "probe/gdv" in lines[0]
    assert torch.equal(generator.get_state(), torch.Generator().manual_seed(7).get_state())


@pytest.mark.parametrize(
    "options", [{}, {"gradient_accumulation_steps": 2}], ids=["plain", "accumulated"]
)
def test_measuring_leaves_the_training_as_it_is_to_the_bit(tmp_path, options):
    plain, lines = measured(tmp_path, **options)
    model, more = measured(tmp_path, probe_callback(every=4, batches=3), **options)
    assert all(
        torch.equal(value, model.state_dict()[name]) for name, value in plain.state_dict().items()
    )
    assert [each["loss"] for each in more if "loss" in each] == [
        each["loss"] for each in lines if "loss" in each
    ]
    probes = [each for each in more if "probe/gdv" in each]
    assert [each["step"] for each in probes] == [0, 4, 8]
    assert all(
        {"probe/gradient_norm", "probe/gde", "model/distance"} <= each.keys() for each in probes
    )
    assert probes[0]["model/distance"] == 0 < probes[1]["model/distance"]


def test_what_is_logged_is_what_the_probe_measures(tmp_path):
    batches = [
        {
            k: torch.stack([torch.as_tensor(each[k]) for each in ITEMS[i : i + 8]])
            for k in ("x", "labels")
        }
        for i in (0, 8, 16)
    ]

    def loss_fn(model, batch):
        return nn.functional.cross_entropy(
            model.net[0](batch["x"])[:, :2], batch["labels"]
        )  # what draws nothing

    model, lines = measured(
        tmp_path, probe_callback(every=10, batches=batches[:2], dataset=batches, loss_fn=loss_fn)
    )
    last = [each for each in lines if "probe/gdv" in each][-1]
    report = probe(model, loss_fn, batches[:2], dataset=batches)
    assert (last["probe/gdv"], last["probe/gde"], last["probe/gradient_norm"]) == (
        report.gdv,
        report.gde,
        report.gradient_norm,
    )
    torch.manual_seed(3)
    assert last["model/distance"] == model_distance(model, Random())


def test_reporters_see_what_is_measured(tmp_path):
    from transformers import TrainerCallback

    class Reporter(TrainerCallback):
        seen = ()

        def on_log(self, args, state, control, logs=None, **kwargs):
            self.seen = (*self.seen, (state.global_step, "probe/gdv" in logs))

    reporter = Reporter()
    measured(tmp_path, reporter, probe_callback(every=10, batches=2))
    assert [step for step, probed in reporter.seen if probed] == [0, 10]


def test_data_without_an_index_says_what_to_give(tmp_path):
    trainer = make_trainer(
        tmp_path, Random(), probe_callback(every=2, batches=2), data=Stream(), max_steps=2
    )
    with pytest.raises(
        ValueError, match=r"has no index to take them by; give batches= as a list of batches"
    ):
        trainer.train()
