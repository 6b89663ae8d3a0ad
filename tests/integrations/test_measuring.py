import subprocess
import sys

import pytest

CODE = """
import sys
sys.modules |= dict.fromkeys({refused!r})  # as if the package were not installed
import earlydrop.integrations.{module} as module
print(module.DropoutCallback.__name__, module.ProbeCallback(every=5, batches=2).measuring.every)
"""
TRAINER = {"hydra", "omegaconf", "timm"}


@pytest.mark.parametrize(
    ("module", "others"),
    [
        (
            "lightning",
            set(),
        ),  # torchmetrics, a part of it, imports transformers where that is installed
        ("huggingface", {"lightning", "pytorch_lightning"}),
    ],
)
def test_each_integration_imports_alone(module, others):
    code = CODE.format(refused=others | TRAINER, module=module)
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=False
    )
    assert done.stdout.splitlines()[-1:] == ["DropoutCallback 5"], done.stderr


@pytest.mark.parametrize(
    ("module", "needs", "extra"),
    [("lightning", "lightning", "lightning"), ("huggingface", "transformers", "hf")],
)
def test_without_its_framework_it_says_what_to_install(module, needs, extra):
    code = CODE.format(refused={needs}, module=module)
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=False
    )
    assert f"pip install 'earlydrop[{extra}]'" in done.stderr.splitlines()[-1]
