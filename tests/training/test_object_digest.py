"""The digest of a model given as an object holds all that makes it another model."""

import os
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import pytest
import torch
from torch import nn

import earlydrop
from earlydrop.training.fields import ConfigError
from earlydrop.training.given import given_model
from earlydrop.training.models import Task

TASK = Task(channels=1, classes=3, image_size=4, unit=0.1, path=0.0)


class Private(nn.Module):
    """A model with state that is neither a public attribute nor saved."""

    def __init__(self, task, slope=0.1, shift=0.0, hook=None, kinds=()):
        super().__init__()
        self.drop = nn.Dropout(task.unit)
        self.out = nn.Linear(task.channels * task.image_size**2, task.classes)
        self.memory = nn.LSTM(2, 2)  # has private weak references, which cannot be hashed
        self._slope = slope
        self.kinds = set(kinds)
        self.register_buffer("shift", torch.tensor(shift), persistent=False)
        if hook is not None:
            self.register_forward_hook(hook)

    def forward(self, images):
        return self.out(self.drop(self._slope * images.flatten(1) + self.shift))


def negated(module, inputs, output):
    return -output


def halved(module, inputs, output):
    return output / 2


def test_private_attributes_hooks_and_buffers_that_are_not_saved_make_another_model():
    options = [
        {},
        {"slope": 0.2},
        {"shift": 1.0},
        {"hook": negated},
        {"hook": halved},
        {"kinds": ("a", "b", "c")},
    ]
    digests = []
    for option in [*options, {}]:
        torch.manual_seed(0)
        digests.append(given_model(Private(TASK, **option)).digest)
    assert len(set(digests)) == len(options)
    assert digests[0] == digests[-1]
    torch.manual_seed(0)
    released = Private(TASK)
    scheduler = earlydrop.DropoutScheduler(released, earlydrop.early(0.1, 3))
    scheduler.restore()
    assert given_model(released).digest == digests[0]


def test_the_digest_of_a_set_is_that_of_every_process():
    """Python orders the texts of a set by a hash that differs between processes."""
    program = (
        "import torch; from tests.training.test_object_digest import Private; "
        "from earlydrop.training.given import given_model; "
        "from tests.training.test_object_digest import TASK; torch.manual_seed(0); "
        "print(given_model(Private(TASK, kinds=[f'kind {i}' for i in range(9)])).digest)"
    )
    torch.manual_seed(0)
    here = given_model(Private(TASK, kinds=[f"kind {i}" for i in range(9)])).digest
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"PYTHONHASHSEED": "1"},
        cwd=Path(__file__).parents[2],
    )
    assert done.stdout.strip() == here


def test_a_set_of_objects_has_no_order_and_is_refused():
    with pytest.raises(ConfigError, match=r"a set that holds a object, .* use a list"):
        given_model(Private(TASK, kinds=[object()]))


CHANGES = {
    "the function of an enum's member": (
        """
        class Width(str, enum.Enum):
            SMALL = "small"
            def factor(self):
                return VALUE
        small = Width.SMALL
        def model(task):
            return nn.Linear(16, small.factor())
        """,
        (3, 4),
    ),
    "one of two lambdas": (
        "width = lambda x: VALUE\nmodel = lambda task: nn.Linear(width(1), 3)",
        (16, 17),
    ),
    "one of two closures of a function": (
        """
        def scaled(k):
            def scale(x):
                return k * x
            return scale
        first, second, third = scaled(2), scaled(VALUE), scaled(3)
        def model(task):
            return nn.Linear(first(2), second(2) + third(0))
        """,
        (2, 3),
    ),
    "one of two modules that a builder uses": (
        """
        torch.manual_seed(0)
        features = nn.Sequential(nn.Flatten(), nn.LeakyReLU(0.5))
        head = nn.Sequential(nn.Linear(16, 3), nn.LeakyReLU(VALUE))
        def model(task):
            return nn.Sequential(features, head)
        """,
        (0.1, 0.3),
    ),
    "the function behind a cache": (
        """
        @functools.cache
        def width():
            return VALUE
        def model(task):
            return nn.Linear(16, width())
        """,
        (3, 4),
    ),
    "a decorator": (
        """
        def wider(function):
            @functools.wraps(function)
            def wrapper(task):
                return nn.Sequential(function(task), nn.Linear(3, VALUE))
            return wrapper
        @wider
        def model(task):
            return nn.Linear(16, 3)
        """,
        (3, 4),
    ),
    "the function behind a decorator of torch": (
        "@torch.no_grad()\ndef model(task):\n    return nn.Linear(16, VALUE)",
        (3, 4),
    ),
    "the order of two functions of torch": (
        """
        class Layer(nn.Module):
            def __init__(self, activation):
                super().__init__()
                self.activation = activation
        functions = [torch.relu, torch.tanh]
        model = nn.Sequential(*[Layer(function) for function in functions[::VALUE]])
        """,
        (1, -1),
    ),
    "a default of a dataclass": (
        """
        import dataclasses
        @dataclasses.dataclass
        class Options:
            width: int = 8
            heads: list = dataclasses.field(default_factory=lambda: [1, VALUE])
        def model(task):
            return nn.Linear(16, sum(Options().heads))
        """,
        (3, 4),
    ),
    "a cached property": (
        """
        class Options:
            @functools.cached_property
            def width(self):
                return VALUE
        options = Options()
        def model(task):
            return nn.Linear(16, options.width)
        """,
        (3, 4),
    ),
    "a method of an abstract class": (
        """
        import abc
        class Options(abc.ABC):
            def width(self):
                return VALUE
        options = Options()
        def model(task):
            return nn.Linear(16, options.width())
        """,
        (3, 4),
    ),
    "a set and a tensor inside objects": (
        """
        class Options:
            def __init__(self):
                self.names = {"alpha", "beta", "gamma", "delta"}
                self.weights = torch.full((3,), VALUE)
        options = Options()
        def model(task):
            return nn.Linear(16, len(options.names))
        """,
        (1.0, 2.0),
    ),
    "a compiled pattern": (
        """
        import re
        pattern = re.compile("a" * VALUE)
        def model(task):
            return nn.Linear(16, len(pattern.pattern))
        """,
        (3, 4),
    ),
    "the settings of a language model of transformers": (
        """
        import transformers
        settings = transformers.GenerationConfig(max_length=VALUE)
        def model(task):
            return nn.Linear(16, settings.max_length)
        """,
        (3, 4),
    ),
    "the order of a mapping": (
        """
        widths = {"a": 3, "b": 4} if VALUE else {"b": 4, "a": 3}
        def model(task):
            return nn.Linear(16, list(widths.values())[0])
        """,
        (0, 1),
    ),
    "an entry of a mapping with numbers as keys": (
        """
        widths = {1: 3, 2: VALUE}
        def model(task):
            return nn.Linear(16, widths[2])
        """,
        (3, 4),
    ),
    "which weights are frozen": (
        "torch.manual_seed(0)\nmodel = nn.Linear(16, 3)\nmodel.weight.requires_grad_(VALUE)",
        (True, False),
    ),
    "which weights are shared": (
        """
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
        copy = nn.Parameter(model[0].weight.detach().clone())
        model[1].weight = model[0].weight if VALUE else copy
        """,
        (True, False),
    ),
}


RUN_SCRIPTS = """
import runpy
import sys
from earlydrop.training.given import given_model

for path in sys.argv[1:]:
    print(given_model(runpy.run_path(path, run_name="__main__")["model"]).digest)
"""


@pytest.fixture(scope="module")
def digests(tmp_path_factory):
    """The digest of each script's model: before its change, in another process, and after it."""
    folder = tmp_path_factory.mktemp("scripts")
    before, after = [], []
    for index, (body, values) in enumerate(CHANGES.values()):
        for paths, value in zip((before, after), values, strict=True):
            path = folder / f"script_{index}_{len(paths)}_{value}.py"
            text = textwrap.dedent(body).replace("VALUE", str(value))
            path.write_text(f"import enum, functools, torch\nfrom torch import nn\n{text}")
            paths.append(str(path))
    of_processes = []
    for seed, paths in (("0", before), ("1", before + after)):
        done = subprocess.run(
            [sys.executable, "-c", RUN_SCRIPTS, *paths],
            capture_output=True,
            text=True,
            check=True,
            cwd=Path(__file__).parents[2],
            env=os.environ | {"PYTHONHASHSEED": seed},
        )
        of_processes.append(done.stdout.split())
    first, second = of_processes
    again, changed = second[: len(before)], second[len(before) :]
    return dict(zip(CHANGES, zip(first, again, changed, strict=True), strict=True))


@pytest.mark.parametrize("changed", CHANGES)
def test_a_change_in_a_script_makes_another_model(digests, changed):
    first, again, after = digests[changed]
    assert first == again != after


def test_an_object_that_pickle_refuses_is_refused():
    lock = threading.Lock()

    def build(task):
        return nn.Linear(16, 3 if lock else 4)

    with pytest.raises(ConfigError, match=r"build: lock, a lock, which cannot be hashed"):
        given_model(build)


def test_lazy_layers_are_refused_until_they_have_seen_a_batch():
    model = nn.Sequential(nn.Flatten(), nn.LazyLinear(3))
    with pytest.raises(ConfigError, match=r"weights without a shape \(1.weight, .* one batch"):
        given_model(model)
    model(torch.zeros(1, 1, 4, 4))
    assert given_model(model).digest


class Recurrent(nn.LSTM):
    """A class of a user's that inherits private weak references."""


def test_what_a_base_class_keeps_for_itself_is_hashed():
    digests = [given_model(nn.Sequential(nn.Flatten(), Recurrent(2, 2))).digest for _ in range(2)]
    assert len(set(digests)) == 2  # they have other weights


class Conjugate(nn.Module):
    def __init__(self, value):
        super().__init__()
        self.register_buffer("phase", value.conj(), persistent=False)


def test_a_conjugate_tensor_is_hashed_by_its_values():
    values = torch.tensor([1 + 2j, 3 - 1j])
    assert given_model(Conjugate(values)).digest == given_model(Conjugate(values.clone())).digest
    assert given_model(Conjugate(values)).digest != given_model(Conjugate(values.conj())).digest


def test_tensors_without_values_are_refused():
    with pytest.raises(ConfigError, match="device meta cannot be hashed"):
        given_model(Conjugate(torch.ones(2, device="meta")))
