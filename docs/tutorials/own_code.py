# %% [markdown]
# # Your own model, data and schedule
#
# The trainer takes any model of timm, and any image classifier of torchvision, by its name. Code of
# your own is named `module:function`, found in the folder where the command runs. Its arguments
# become keys.

# %%
import os
import tempfile
from pathlib import Path

os.chdir(tempfile.mkdtemp())
Path("mine.py").write_text(
    '''
import math

from torch import nn


def net(task, width: int = 32):
    """A model: called with the task (channels, image_size, classes, and the peak rate ``unit``)."""
    first = nn.Linear(task.channels * task.image_size**2, width)
    return nn.Sequential(
        nn.Flatten(), first, nn.ReLU(), nn.Dropout(task.unit), nn.Linear(width, task.classes)
    )


def cosine(rate: float = 0.1, period: int = 20):
    """A schedule: returns a function from the step to a rate."""
    return lambda step: rate * (1 + math.cos(2 * math.pi * step / period)) / 2
'''
)
short = "trainer.steps=40 data.train_images=500 trainer.batch_size=50 probe=none tracking=off"

# %% [markdown]
# A sweep over a width of the model, with a schedule of ours and one of our own:

# %%
# !earlydrop -m model.name=mine:net +model.args.width=16,32 schedule=none,early study=widths \
#     {short} 2>&1 | tail -n 12

# %%
# !earlydrop model.name=mine:net schedule.name=mine:cosine +schedule.args.period=10 \
#     study=cosine {short} 2>&1 | tail -n 4

# %% [markdown]
# The source of `mine.py` is part of the run's fingerprint: change the code, and the run is trained
# again in a folder of its own. Commands that only read runs (`earlydrop-report`, `earlydrop-cite`,
# `earlydrop list`) never import it.
