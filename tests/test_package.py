import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import earlydrop

HEAVY = (
    "hydra",
    "omegaconf",
    "wandb",
    "timm",
    "torchvision",
    "pandas",
    "matplotlib",
    "transformers",
    "lightning",
)


def test_the_library_imports_nothing_heavy():
    code = (
        "import sys, earlydrop; assert 'torch' not in sys.modules; "
        "[getattr(earlydrop, name) for name in earlydrop.__all__]; "
        f"print([m for m in {HEAVY!r} if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_public_names():
    for name in earlydrop.__all__:
        assert getattr(earlydrop, name) is not None
    assert callable(earlydrop.probe)
    assert "early" in dir(earlydrop)
    with pytest.raises(AttributeError, match="'erly'"):
        earlydrop.erly  # noqa: B018


def test_the_library_works_with_torch_alone(tmp_path):
    """Every package that torch does not bring is refused."""
    code = """
import importlib.abc, sys
REFUSED = {
    "numpy", "hydra", "omegaconf", "wandb", "timm", "torchvision", "pandas", "scipy", "matplotlib",
    "transformers", "lightning", "filelock_", "tqdm", "yaml",
}
class Refuse(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name.split(".")[0] in REFUSED:
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Refuse())
import torch, earlydrop
from torch import nn
model = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 2))
scheduler = earlydrop.DropoutScheduler(model, earlydrop.early(0.5, 3), masks="fast")
batches = [(torch.randn(8, 4), torch.randint(2, (8,))) for _ in range(4)]
loss = lambda m, b: nn.functional.cross_entropy(m(b[0]), b[1])
report = earlydrop.probe(model, loss, batches, dataset=batches)
scheduler.step()
print(report.gdv > 0, earlydrop.model_distance(model, model.state_dict()))
"""
    out = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=False
    )
    assert out.stdout.strip() == "True 0.0", out.stderr


def test_the_command_without_the_training_extra_says_what_to_install():
    code = """
import importlib.util, sys
real = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name == "hydra" else real(name, *rest)
sys.argv = ["earlydrop"]
import earlydrop.commands.run
earlydrop.commands.run.main()
"""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert out.returncode == 1
    assert "pip install 'earlydrop[train]'" in out.stderr
    assert "Traceback" not in out.stderr


def test_the_wheel_holds_every_package():
    root = Path(__file__).parents[1]
    declared = set(
        tomllib.loads((root / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    )
    here = {
        ".".join(path.parent.relative_to(root).parts)
        for path in (root / "earlydrop").rglob("__init__.py")
    }
    assert declared == here | {"earlydrop.conf"}


def test_every_public_name_says_what_it_is():
    for name in earlydrop.__all__:
        if not name.startswith("__"):
            assert len((getattr(earlydrop, name).__doc__ or "").split()) > 5, name
