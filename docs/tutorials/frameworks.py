# %% [markdown]
# # timm, Hugging Face, Lightning
#
# ## timm
#
# Build the model with the peak rates. timm's `train.py` needs the two lines with `scheduler`.

# %%
import timm
import timm.optim
import torch
from torch import nn

import earlydrop

model = timm.create_model("test_vit", num_classes=2, drop_path_rate=0.1)
optimizer = timm.optim.create_optimizer_v2(model, opt="adamw", lr=1e-3)
scheduler = earlydrop.DropoutScheduler(model, earlydrop.early(rate=0.1, cutoff=2), kind="path")
scheduler.attach(optimizer)
for _ in range(3):
    print({name: round(rate, 3) for name, rate in scheduler.rates.items()})
    loss = nn.functional.cross_entropy(model(torch.randn(2, 3, 160, 160)), torch.tensor([0, 1]))
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()

# %% [markdown]
# Stochastic depth keeps its linear profile over depth: the deepest block has the schedule's rate.
#
# ## Hugging Face
#
# A callback drives the model of a `transformers.Trainer`. Durations may be shares of training.

# %%
from transformers import Trainer, TrainingArguments

from earlydrop.integrations import huggingface


class Classifier(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Dropout(0.1), nn.Linear(16, 2))

    def forward(self, inputs, labels):
        logits = self.body(inputs)
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


examples = [{"inputs": torch.randn(8), "labels": i % 2} for i in range(32)]
arguments = TrainingArguments(
    output_dir="trainer",
    per_device_train_batch_size=4,
    num_train_epochs=1,
    report_to=[],
    save_strategy="no",
    logging_strategy="no",
    disable_tqdm=True,
    use_cpu=True,
)
callback = huggingface.DropoutCallback(earlydrop.early(rate=0.1, cutoff="50%"))
Trainer(Classifier(), arguments, train_dataset=examples, callbacks=[callback]).train()

# %% [markdown]
# ## Lightning
#
# The same with `earlydrop.integrations.lightning.DropoutCallback`.

# %%
import logging

import lightning

from earlydrop.integrations import lightning as integration

logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)


class Module(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Dropout(0.1), nn.Linear(16, 2))

    def training_step(self, batch, index):
        return nn.functional.cross_entropy(self.body(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters())


batches = torch.utils.data.DataLoader(
    torch.utils.data.TensorDataset(torch.randn(32, 8), torch.randint(2, (32,))),
    batch_size=8,
)
trainer = lightning.Trainer(
    max_epochs=2,
    accelerator="cpu",
    logger=False,
    enable_checkpointing=False,
    enable_progress_bar=False,
    enable_model_summary=False,
    callbacks=[integration.DropoutCallback(earlydrop.early(0.1, "1ep"))],
)
trainer.fit(Module(), batches)
