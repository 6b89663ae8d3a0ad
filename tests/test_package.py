import subprocess
import sys

import pytest

import earlydrop

HEAVY = ("hydra", "omegaconf", "wandb", "timm", "torchvision", "pandas", "matplotlib", "transformers", "lightning")


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
