import pytest
from torch import nn
from torch.utils.data import IterableDataset

from earlydrop import early
from tests.integrations.watched import DATA, EXPECTED, Net

ITEMS = [{"x": x, "labels": y} for x, y in DATA]


class Stream(IterableDataset):
    """Data of a length that nobody knows."""

    def __iter__(self):
        return iter(ITEMS)


def make_trainer(folder, model, *callbacks, data=ITEMS, **options):
    from transformers import Trainer, TrainingArguments

    options = {"save_strategy": "no", "per_device_train_batch_size": 8} | options
    arguments = TrainingArguments(str(folder), logging_steps=1, report_to="none", use_cpu=True, disable_tqdm=True, **options)
    return Trainer(model, arguments, train_dataset=data, callbacks=list(callbacks))


def callback(schedule, **options):
    from earlydrop.integrations.huggingface import DropoutCallback

    return DropoutCallback(schedule, **options)


def test_hugging_face_trainer(tmp_path):
    def train(resume):
        model = Net()
        trainer = make_trainer(tmp_path, model, callback(early(0.5, "50%")), max_steps=8, save_strategy="steps", save_steps=3)
        trainer.train(resume_from_checkpoint=resume)
        return model, trainer

    model, trainer = train(None)
    assert model.seen == EXPECTED
    assert [log["dropout_rate"] for log in trainer.state.log_history if "loss" in log][2] == EXPECTED[3]
    assert type(model.layers[1]) is nn.Dropout
    assert train(str(tmp_path / "checkpoint-3"))[0].seen == EXPECTED[3:]


@pytest.mark.parametrize(
    "length", [{"max_steps": 6}, {"max_steps": 9}, {"num_train_epochs": 2.5}, {"num_train_epochs": 1.2}], ids=str
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
    with pytest.raises(ValueError, match=r"'1ep'.*duration in epochs, but the trainer's loader has no length.*give it in steps"):
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


@pytest.mark.parametrize("error", [ZeroDivisionError("in the model"), KeyboardInterrupt()], ids=["exception", "interrupt"])
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
    twice = make_trainer(tmp_path, model, callback(early(0.5, 4)), callback(early(0.5, 4)), max_steps=8)
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
    trainer.args.report_to = ["tensorboard"]
    with pytest.warns(UserWarning, match=r"tensorboard run before this callback.*callback.lead\(trainer\)"):
        callback(early(0.5, 2)).on_train_begin(trainer.args, trainer.state, trainer.control, model=Net())
    with pytest.raises(ValueError, match="does not have this callback"):
        callback(early(0.5, 4)).lead(trainer)
