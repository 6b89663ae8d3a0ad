import gc
import os
import random
from collections import Counter

import numpy
import pytest
import torch

from earlydrop.training.compiler import compiler_problem
from earlydrop.training.compose import config_from_dict
from tests.analysis.made_up import make_run
from tests.warm import Warm


@pytest.fixture(scope="module", autouse=True)
def _garbage_collection_skips_imports():
    """Exclude imported modules from garbage collection.

    Accelerate collects garbage at the end of each training. This takes .8 s if all imported
    libraries are searched.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _seeded():
    """Every test draws the same numbers, whatever ran before it."""
    random.seed(0)
    numpy.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def warm():
    """Starts commands as processes of their own, without the seconds that their imports take."""
    process = Warm()
    yield process
    process.close()


@pytest.fixture
def needs_compiler():
    """Skip on a machine where torch.compile does not work; .ci/run does not allow that."""
    problem = compiler_problem("cpu")
    if problem is not None and os.environ.get("EARLYDROP_NEEDS_COMPILER"):
        pytest.fail(f"torch.compile does not work: {problem}")
    if problem is not None:
        pytest.skip(f"torch.compile does not work: {problem}")


@pytest.fixture
def study(tmp_path):
    for arm, shift in (("none", 0.0), ("early-0.1-20%", -0.1)):
        for seed, loss in enumerate((0.5, 0.6, 0.9)):
            make_run(tmp_path / "study", arm, seed, loss + shift)
    return tmp_path / "study"


@pytest.fixture
def config(tmp_path):
    """A configuration that trains in a second; arguments override it, with __ for the dot."""

    def make(**overrides):
        values = {
            "out": str(tmp_path / "runs"),
            "tracking": "off",
            "device": "cpu",
            "model": {"name": "mlp", "hidden": [16]},
            "data": {"train_images": 300},
            "schedule": {"cutoff": "50%", "rate": 0.3},
            "trainer": {
                "epochs": 2,
                "batch_size": 32,
                "log_every": 4,
                "eval_every": "50%",
                "checkpoint_seconds": 1000.0,
            },
            "probe": {"at": ["0%", "50%", "100%"], "batches": 3, "dataset_limit": 64},
        }
        for key, value in overrides.items():
            node = values
            *parents, leaf = key.split("__")
            for parent in parents:
                node = node.setdefault(parent, {})
            node[leaf] = value
        return config_from_dict(values)

    return make


LEFT_OUT = ("slow", "sweep", "gpu")
left_out = Counter()


# Files with the longest tests: from 15 seconds to more than a minute.
_LONG = (
    "test_distributed.py",
    "test_recipes.py",
    "test_repeat.py",
    "test_results.py",
    "test_run.py",
    "test_scripts.py",
    "test_slurm.py",
    "test_student.py",
    "test_sweeps.py",
    "test_typing.py",
    "test_windows.py",
)


def pytest_collection_modifyitems(items):
    """Begin with the long tests, so that no process waits for another's long test at the end."""
    items.sort(key=lambda item: item.path.name not in _LONG)


def pytest_deselected(items):
    for item in items:
        left_out.update([mark for mark in LEFT_OUT if item.get_closest_marker(mark)][:1])


def pytest_sessionfinish(session):
    if hasattr(
        session.config, "workeroutput"
    ):  # of pytest-xdist, whose workers all collect the same tests
        session.config.workeroutput["left_out"] = dict(left_out)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node, error):
    left_out.update(Counter(getattr(node, "workeroutput", {}).get("left_out", {})) - left_out)


def pytest_terminal_summary(terminalreporter):
    if left_out:
        parts = ", ".join(f"{count} {mark} (-m {mark})" for mark, count in left_out.items())
        terminalreporter.write_line(f"left out: {parts}; CI runs all that need no GPU")
