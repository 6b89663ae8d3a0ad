import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from earlydrop import early
from tests.integrations.watched import DATA, EXPECTED, Net


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
