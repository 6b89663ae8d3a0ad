import pytest
from torch import nn

from earlydrop import early
from tests.integrations.watched import DATA, EXPECTED, Net


def test_hugging_face_trainer(tmp_path):
    from transformers import Trainer, TrainingArguments

    from earlydrop.integrations.huggingface import DropoutCallback

    def train(resume, max_steps=8):
        model = Net()
        arguments = TrainingArguments(
            str(tmp_path), max_steps=8, per_device_train_batch_size=8, save_steps=3, logging_steps=1, report_to="none", use_cpu=True,
            disable_tqdm=True,
        )  # fmt: skip
        data = [{"x": x, "labels": y} for x, y in DATA]
        trainer = Trainer(model, arguments, train_dataset=data, callbacks=[DropoutCallback(early(0.5, "50%"))])
        trainer.train(resume_from_checkpoint=resume)
        return model, trainer

    model, trainer = train(None)
    assert model.seen == EXPECTED
    assert [log["dropout_rate"] for log in trainer.state.log_history if "loss" in log][2] == EXPECTED[3]
    assert type(model.layers[1]) is nn.Dropout
    assert train(str(tmp_path / "checkpoint-3"))[0].seen == EXPECTED[3:]


def test_reporters_see_the_rate_when_the_callback_leads(tmp_path):
    from transformers import Trainer, TrainerCallback, TrainingArguments

    from earlydrop.integrations.huggingface import DropoutCallback

    class Reporter(TrainerCallback):
        seen = ()

        def on_log(self, args, state, control, logs=None, **kwargs):
            self.seen = (*self.seen, logs.get("dropout_rate"))

    arguments = TrainingArguments(str(tmp_path), max_steps=2, per_device_train_batch_size=8, logging_steps=1, report_to="none", use_cpu=True,
                                  disable_tqdm=True, save_strategy="no")  # fmt: skip
    for leads in (False, True):
        reporter, callback = Reporter(), DropoutCallback(early(0.5, 2))
        data = [{"x": x, "labels": y} for x, y in DATA]
        trainer = Trainer(Net(), arguments, train_dataset=data, callbacks=[reporter, callback])
        if leads:
            callback.lead(trainer)
        trainer.train()
        assert (reporter.seen[0] is not None) == leads
    arguments.report_to = ["tensorboard"]
    with pytest.warns(UserWarning, match=r"tensorboard run before this callback.*callback.lead\(trainer\)"):
        DropoutCallback(early(0.5, 2)).on_train_begin(arguments, trainer.state, trainer.control, model=Net())
    with pytest.raises(ValueError, match="does not have this callback"):
        DropoutCallback(early(0.5, 4)).lead(trainer)
