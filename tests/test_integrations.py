"""Other people's training loops, driven as the README shows."""

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from earlydrop import DropoutScheduler, early

DATA = [(torch.randn(4), i % 2) for i in range(32)]


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 2))
        self.seen = []

    def forward(self, x, labels=None):
        if self.training:
            self.seen.append(self.layers[1].p)
        logits = self.layers(x)
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits} if labels is not None else logits


EXPECTED = [early(0.5, 4)(step) for step in range(8)]


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


def test_lightning(tmp_path):
    import lightning

    from earlydrop.integrations.lightning import DropoutCallback

    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = Net()

        def training_step(self, batch, _):
            return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), 0.1)

    x, y = torch.stack([x for x, _ in DATA]), torch.tensor([y for _, y in DATA])
    module = Module()
    trainer = lightning.Trainer(
        max_epochs=2, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=tmp_path, callbacks=[DropoutCallback(early(0.5, "1ep"))],
    )  # fmt: skip
    trainer.fit(module, DataLoader(TensorDataset(x, y), batch_size=8))
    assert module.net.seen == EXPECTED
    assert trainer.callback_metrics["dropout_rate"].item() == 0


@pytest.mark.parametrize("accumulate", [1, 2])
def test_accelerate(accumulate):
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=accumulate)
    net = Net()
    loader = DataLoader(DATA * 2, batch_size=8 // accumulate)
    model, optimizer, loader = accelerator.prepare(net, torch.optim.SGD(net.parameters(), 0.1), loader)
    scheduler = DropoutScheduler(model, early(0.5, 4))
    for x, y in loader:
        with accelerator.accumulate(model):
            accelerator.backward(nn.functional.cross_entropy(model(x), y))
            optimizer.step()
            optimizer.zero_grad()
            if accelerator.sync_gradients:
                scheduler.step()
    assert net.seen == [rate for rate in EXPECTED for _ in range(accumulate)]
