import json
import subprocess
import sys
from pathlib import Path

import pytest


def test_the_workspace_serialises_without_a_network():
    pytest.importorskip("wandb_workspaces")
    script = Path(__file__).parents[1] / "scripts" / "wandb_workspace.py"
    done = subprocess.run(
        [sys.executable, str(script), "--entity", "someone"],
        capture_output=True,
        text=True,
        check=True,
    )
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


def test_the_workspace_helps_and_names_what_is_missing():
    """As after the README's install, which does not bring wandb-workspaces."""
    script = Path(__file__).parents[1] / "scripts" / "wandb_workspace.py"
    without = (
        "import runpy, sys; sys.modules['wandb_workspaces'] = None; sys.argv = sys.argv[1:]; "
        "runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    command = [sys.executable, "-c", without, str(script)]
    helped = subprocess.run([*command, "--help"], capture_output=True, text=True, check=True)
    assert "--entity" in helped.stdout
    done = subprocess.run(
        [*command, "--entity", "someone"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert done.stderr == "error: wandb_workspaces is missing: pip install wandb-workspaces\n"


@pytest.mark.sweep
def test_the_benchmark_measures_a_row_and_keeps_the_others(tmp_path):
    script = Path(__file__).parents[1] / "scripts" / "benchmark.py"
    for rows in ("seed", "input"):
        command = [sys.executable, str(script), "--quick", "--rows", rows, "--out", str(tmp_path)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    assert [
        row["name"] for row in json.loads((tmp_path / "benchmark.json").read_text())["rows"]
    ] == ["seed", "input"]
    done = subprocess.run(
        [sys.executable, str(script), "--rows", "inptu"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "--rows has inptu: expected some of" in done.stderr


def test_the_lowest_versions_are_those_of_pyproject():
    script = Path(__file__).parents[1] / "scripts" / "lowest_versions.py"
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=True)
    lines = done.stdout.split()
    assert "torch==2.11" in lines
    assert "hydra-core==1.3.8" in lines  # its upper bound is left out
    assert all(line.count("==") == 1 for line in lines)
