# %% [markdown]
# # Early dropout in your own loop
#
# A model, its data and a loop as you have them. Two lines are new.

# %%
import torch
from torch import nn

import earlydrop

torch.manual_seed(0)
model = nn.Sequential(
    nn.Linear(20, 64),
    nn.ReLU(),
    nn.Dropout(0.1),
    nn.Linear(64, 2),
)
data = [(torch.randn(32, 20), torch.randint(2, (32,))) for _ in range(30)]
optimizer = torch.optim.AdamW(model.parameters())

scheduler = earlydrop.DropoutScheduler(model, earlydrop.early(rate=0.1, cutoff=20))  # new
scheduler.attach(optimizer)  # new

rates = []
for inputs, labels in data:
    rates.append(scheduler.last_rate)
    nn.functional.cross_entropy(model(inputs), labels).backward()
    optimizer.step()
    optimizer.zero_grad()

# %% [markdown]
# `attach` sets the next rate after each `optimizer.step()`. The rate falls from 0.1 to 0 over 20
# steps and stays there:

# %%
print([round(rate, 3) for rate in rates[::5]])

# %% [markdown]
# ## What does my model drop?
#
# `find_sites` lists the drop rates that a model has. `audit` runs the model and tells what really
# drops, and what no scheduler drives.

# %%
print(earlydrop.find_sites(model))
print(earlydrop.audit(model, data[0][0]))

# %% [markdown]
# ## Which sites, which kind
#
# `kind="unit"` (the default) drives dropout, `kind="path"` stochastic depth, `kind="all"` both.
# `sites=` takes names or globs. The layers keep the proportions of the rates that they were built
# with: the largest one gets the schedule's rate.

# %%
deep = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.1), nn.Linear(4, 4), nn.Dropout(0.2))
second = earlydrop.DropoutScheduler(deep, earlydrop.constant(0.3))
print(second.rates)

# %% [markdown]
# ## Save and resume
#
# With `attach`, the optimizer's `state_dict` carries the step. Without it, save
# `scheduler.state_dict()` beside your own. `restore()` gives the model back as it was built.

# %%
second.restore()
print(deep[1].p, deep[3].p)

# %% [markdown]
# ## Your own schedule
#
# Any function from the optimizer step to a rate in [0, 1) is a schedule.

# %%
wave = earlydrop.DropoutScheduler(deep, lambda step: 0.1 * (step % 2))
wave.step()
print(wave.rates)
