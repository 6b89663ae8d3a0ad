"""A student's modules, written into the folder where the test then is."""

import textwrap

MODELS = """
from torch import nn

def build(task, width: int = 8):
    inputs = task.channels * task.image_size**2
    hidden = [nn.Linear(inputs, width), nn.ReLU(), nn.Dropout(task.unit)]
    layers = [*hidden, nn.Linear(width, task.classes)]
    return nn.Sequential(nn.Flatten(), *layers)

def plain(task):
    return nn.Sequential(nn.Flatten(), nn.Linear(task.channels * task.image_size**2, task.classes))
"""
SCHEDULES = """
import earlydrop

def falling(peak: float, total_steps: int):
    return lambda step: peak * (1 - step / total_steps)

def short(rate, cutoff):
    return earlydrop.early(rate, cutoff)
"""
DATA = """
import torch

class Faces(torch.utils.data.Dataset):
    def __init__(self, train, count):
        generator = torch.Generator().manual_seed(int(train))
        self.images = torch.rand(count, 1, 8, 8, generator=generator)

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return self.images[index], index % 3

def faces(count: int = 64):
    return Faces(True, count), Faces(False, 32)
"""
MEASURES = """
import torch

def spread(moments):
    return moments.spread / moments.n

def mixed(moments, model=None):
    return 1.0

def by_name(*, moments):
    return 1.0

def by_position(model, /):
    return 1.0

def critical_sharpness(moments):
    return 1.0

largest = max

def sharpness(model, loss_fn, batches):
    with torch.no_grad():
        return float(loss_fn(model, batches[0]))
"""


def write(folder, **modules):
    """Write modules, by name, into a folder; their usual content where it is None."""
    usual = {"mymodels": MODELS, "myschedules": SCHEDULES, "mydata": DATA, "mymeasures": MEASURES}
    for name in usual.keys() | modules.keys():
        text = modules.get(name) or usual[name]
        (folder / f"{name}.py").write_text(textwrap.dedent(text))
