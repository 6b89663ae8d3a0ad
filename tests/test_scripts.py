import json
import subprocess
import sys
from pathlib import Path

import pytest


def test_the_workspace_serialises_without_a_network():
    pytest.importorskip("wandb_workspaces")
    script = Path(__file__).parents[1] / "scripts" / "wandb_workspace.py"
    done = subprocess.run([sys.executable, str(script), "--entity", "someone"], capture_output=True, text=True, check=True)
    workspace, report = json.loads(done.stdout)
    for made in (workspace, report):
        text = json.dumps(made)
        for metric in (
            "train_eval/loss",
            "test/accuracy",
            "dropout/unit_rate",
            "probe/gradient_norm",
            "model/distance",
            "probe/gdv",
            "probe/gde",
        ):
            assert metric in text
        assert "stddev" in text
        assert "trainer/step" in text
