"""What CONTRIBUTING.md says to write is all that there is to write: each addition, in a copy, appears where it should."""

import json
import os
import re
import shutil
import subprocess
import sys

import pytest

BLOCK = re.compile(r"```(?:python|yaml)\n# (\S+) \((.+?)\)\n(.*?)```", re.DOTALL)


def add(root, path, where, code):
    file = root / path
    if where == "new":
        file.write_text(code)
    elif where == "at the end":
        file.write_text(file.read_text() + code)
    else:
        side, text = re.fullmatch(r"(after|before) `(.*)`", where).groups()
        lines = file.read_text().splitlines(keepends=True)
        at = next(i for i, line in enumerate(lines) if text in line)
        lines.insert(at + (side == "after"), code)
        file.write_text("".join(lines))


@pytest.fixture(scope="module")
def copy(tmp_path_factory, request):
    source, root = request.config.rootpath, tmp_path_factory.mktemp("copy")
    for folder in ("earlydrop", "conf"):
        shutil.copytree(source / folder, root / folder, ignore=shutil.ignore_patterns("__pycache__"))
    blocks = BLOCK.findall((source / "CONTRIBUTING.md").read_text())
    assert len(blocks) == 15
    for block in blocks:
        add(root, *block)
    return root


def run(copy, *arguments, module="earlydrop"):
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments], cwd=copy, env=os.environ | {"PYTHONPATH": str(copy)}, capture_output=True,
        text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_schedule_a_dataset_and_a_model_are_there(copy):
    plan = run(copy, "mode=plan", "schedule=power", "schedule.exponent=3", "data=noise", "model=linear", "probe=none")
    assert "power-0.1-100pct-3-seed0" in plan
    assert "power(rate=0.1, cutoff=" in plan
    assert "noise: 1,000 training and 200 test images" in plan
    assert "linear, 7,850 parameters" in plan
    code = "import earlydrop; print(earlydrop.power(0.5, 4, 2.0)(2))"
    out = subprocess.run(
        [sys.executable, "-c", code],
        cwd=copy,
        check=False,
        env=os.environ | {"PYTHONPATH": str(copy)},
        capture_output=True,
        text=True,
    )
    assert out.stdout.strip() == "0.125", out.stderr


def test_keys_that_a_new_model_does_not_take_are_refused(copy):
    command = [sys.executable, "-m", "earlydrop", "data=noise", "model=linear", "model.depth=3", "tracking=off"]
    done = subprocess.run(
        command, cwd=copy, env=os.environ | {"PYTHONPATH": str(copy)}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "model.depth is 3: model.name=linear has no such key" in done.stderr


def test_a_measure_is_recorded_reported_drawn_and_claimed(copy):
    run(copy, "experiment=findings/smoke", "schedule=none,constant", "seed=0,1", "hydra/launcher=basic", "threads=1")
    study = copy / "runs" / "smoke"
    lines = [json.loads(line) for line in next(study.glob("none-*/metrics.jsonl")).read_text().splitlines()]
    assert all(0 < line["probe/alignment"] <= 1 for line in lines if "probe/gdv" in line)
    assert "early alignment" in (study / "table.md").read_text()
    assert (study / "figures" / "alignment.png").is_file()
    run(copy, "runs", module="earlydrop.commands.findings")
    table = (copy / "runs" / "findings" / "table.md").read_text()
    row = next(line for line in table.splitlines() if line.startswith("| G1 "))
    assert "probe/alignment, 5% to 100%" in row
    assert (copy / "runs" / "findings" / "fingerprints.csv").read_text().count("smoke smoke G1") == 1


def test_a_new_key_keeps_every_fingerprint_at_its_default(copy, request):
    code = """
import sys
from earlydrop.training.compose import compose, config_from_dict
from earlydrop.training.plan import make_plan
for overrides in (["optim=sgd"], ["optim=sgd", "optim.nesterov=true"], ["optim.nesterov=true"], []):
    try:
        print(make_plan(config_from_dict(compose(overrides))).fingerprint)
    except Exception:
        print("-")
"""
    prints = []
    for root in (copy, request.config.rootpath):
        done = subprocess.run([sys.executable, "-c", code], cwd=root, check=True, env=os.environ | {"PYTHONPATH": str(root)},
                              capture_output=True, text=True)  # fmt: skip
        prints.append(done.stdout.split())
    there, here = prints
    assert here[1:3] == ["-", "-"]
    assert (there[0], there[3]) == (here[0], here[3])
    assert there[1] != there[0]
    assert there[2] == there[3]  # AdamW has no use for it
