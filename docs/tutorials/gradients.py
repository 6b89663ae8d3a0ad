# %% [markdown]
# # Measuring gradients
#
# The paper explains early dropout by the gradients of mini-batches. In its models, dropout makes
# them shorter, and at the start of training their directions agree more. `earlydrop.probe` measures
# both in any training loop, and changes nothing in it.

# %%
import torch
from torch import nn

import earlydrop

torch.manual_seed(0)
model = nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Dropout(0.3), nn.Linear(64, 4))
teacher = nn.Linear(20, 4)
data = []
for _ in range(40):
    inputs = torch.randn(32, 20)
    data.append((inputs, teacher(inputs).argmax(1)))


def loss_fn(model, batch):
    inputs, labels = batch
    return nn.functional.cross_entropy(model(inputs), labels)


report = earlydrop.probe(model, loss_fn, batches=data[:16], dataset=data)
for name in ("gradient_norm", "gdv", "gde", "bias", "noise_scale"):
    value = getattr(report, name)
    print(f"{name:<14} {'not measurable' if value is None else round(value, 4)}")

# %% [markdown]
# `batches` give the mini-batch gradients, `dataset` the gradient of the whole dataset.
# [The measures](../explanation/measures.md) has the equations.
#
# ## With dropout and without
#
# One model, the same weights and batches, with dropout on and off. The difference is due to the
# masks alone. In this model, at its initial weights, both numbers are larger with dropout. The
# paper measured smaller ones early in the training of ViT-T on ImageNet. `none` switches off the
# dropout that the model was built with.

# %%
scheduler = earlydrop.DropoutScheduler(model, earlydrop.constant(0.3))
on = earlydrop.probe(model, loss_fn, batches=data[:16], dataset=data)
scheduler.restore()
scheduler = earlydrop.DropoutScheduler(model, earlydrop.none())
off = earlydrop.probe(model, loss_fn, batches=data[:16], dataset=data)
scheduler.restore()
print(f"GDV  {on.gdv:.4f} with dropout, {off.gdv:.4f} without")
print(f"norm {on.gradient_norm:.4f} with dropout, {off.gradient_norm:.4f} without")

# %% [markdown]
# ## Model distance
#
# How far the weights have moved from where they began.

# %%
start = {name: value.clone() for name, value in model.state_dict().items()}
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
for batch in data:
    loss_fn(model, batch).backward()
    optimizer.step()
    optimizer.zero_grad()
print(round(earlydrop.model_distance(model, start), 4))
