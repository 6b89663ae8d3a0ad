"""What a type checker and an editor see of the installed package."""

import dataclasses
import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from earlydrop.gradients import GradientReport
from earlydrop.gradients.measures import MEASURES
from earlydrop.schedules import MAKERS
from earlydrop.training.schedule_config import ScheduleConfig

ROOT = Path(__file__).parents[1]


def check(folder, code):
    """The lines of mypy on some code, with earlydrop installed as a package.

    It is found on the path and typed by its py.typed.
    """
    site = folder / "site"
    shutil.copytree(
        ROOT / "earlydrop", site / "earlydrop", ignore=shutil.ignore_patterns("__pycache__", "*.xz")
    )
    (folder / "code.py").write_text(textwrap.dedent(code))
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "mypy",
            "--config-file",
            str(ROOT / "pyproject.toml"),  # it skips packages that take long
            "--cache-dir",
            str(folder / "cache"),
            "code.py",
        ],
        cwd=folder,
        env={k: v for k, v in os.environ.items() if k != "MYPYPATH"} | {"PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout + done.stderr


@pytest.mark.slow
def test_mypy_sees_the_installed_package(tmp_path):
    said = check(
        tmp_path,
        """
        import torch
        from torch import Tensor, nn
        import earlydrop

        model = nn.Sequential(nn.Dropout(0.1))
        schedule = earlydrop.early(0.1, 10)
        scheduler = earlydrop.DropoutScheduler(model, schedule, kind="path", masks="fast")
        earlydrop.DropoutScheduler(model, earlydrop.early(0.1, 10), kind="paths")
        earlydrop.audit(model, torch.ones(1), kind="unit")

        def loss(module: nn.Module, batch: Tensor) -> Tensor:
            return batch

        report = earlydrop.probe(model, loss, [])
        reveal_type(report.gdv)
        reveal_type(report.noise_scale)
        report.gvd
        reveal_type(earlydrop.find_sites(model)[0].kind)
        """,
    )
    assert (
        'Argument "kind" to "DropoutScheduler" has incompatible type "Literal[\'paths\']"' in said
    )
    assert 'Revealed type is "float"' in said.replace("builtins.", "")
    assert 'Revealed type is "float | None"' in said.replace("builtins.", "").replace(
        "Union[float, None]", "float | None"
    )
    assert '"GradientReport" has no attribute "gvd"' in said
    assert 'Revealed type is "str"' in said.replace("builtins.", "")
    assert "Found 2 errors in 1 file" in said, said


def test_the_report_and_the_schedules_keys_are_written_out():
    """An editor reads the source: a field that is made at run time is not completed."""
    report = {f.name for f in dataclasses.fields(GradientReport)}
    assert report == MEASURES.keys() | {"gradients", "images", "dataset_images", "further"}
    source = (ROOT / "earlydrop" / "training" / "schedule_config.py").read_text()
    body = source.split("class ScheduleConfig:")[1].split("\ndef ")[0]
    for maker in MAKERS.values():
        for name in maker.__annotations__.keys() - {"return"}:
            assert f"    {name}: " in body, name
    assert {f.name for f in dataclasses.fields(ScheduleConfig)} == {
        line.split(":")[0].strip()
        for line in body.splitlines()
        if ": " in line and line.startswith("    ") and "= _key(" in line
    }


def test_the_wheel_says_that_it_is_typed():
    assert (ROOT / "earlydrop" / "py.typed").is_file()
    assert 'earlydrop = ["py.typed"]' in (ROOT / "pyproject.toml").read_text()
