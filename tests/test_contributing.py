"""An addition needs only the places that CONTRIBUTING.md names.

Each addition is made in a copy and appears where it should.
"""

import json
import re
import shutil

import pytest
from hydra.errors import HydraException

from earlydrop.training.compose import compose, config_from_dict
from earlydrop.training.plan import make_plan
from tests.warm import Warm

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
        shutil.copytree(
            source / folder, root / folder, ignore=shutil.ignore_patterns("__pycache__")
        )
    blocks = BLOCK.findall((source / "CONTRIBUTING.md").read_text())
    assert len(blocks) == 15
    for block in blocks:
        add(root, *block)
    return root


@pytest.fixture(scope="module")
def start(copy):
    """Starts the copy's commands."""
    process = Warm(PYTHONPATH=str(copy))
    yield process.run
    process.close()


@pytest.fixture
def run(start, copy):
    def finish(*arguments, program="earlydrop"):
        done = start(*arguments, cwd=copy, program=program)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return finish


@pytest.fixture(scope="module")
def script(start, copy):
    """What a script prints that imports the copy."""

    def finish(code):
        (copy / "script.py").write_text(code)
        done = start(cwd=copy, program=str(copy / "script.py"))
        assert done.returncode == 0, done.stderr
        return done.stdout

    return finish


def test_a_schedule_a_dataset_and_a_model_are_there(run, script):
    plan = run(
        "mode=plan",
        "schedule=power",
        "schedule.exponent=3",
        "data=noise",
        "model=linear",
        "probe=none",
    )
    assert "power-0.1-100pct-3-seed0" in plan
    assert "power(rate=0.1, cutoff=" in plan
    assert "noise: 1,000 training and 200 test images" in plan
    assert "linear, 7,850 parameters" in plan
    assert script("import earlydrop; print(earlydrop.power(0.5, 4, 2.0)(2))").strip() == "0.125"


def test_keys_that_a_new_model_does_not_take_are_refused(start, copy):
    done = start("data=noise", "model=linear", "model.depth=3", "tracking=off", cwd=copy)
    assert done.returncode == 1
    assert "model.depth is 3: model.name=linear has no such key" in done.stderr


def test_a_measure_is_recorded_reported_drawn_and_claimed(run, copy):
    run(
        "experiment=findings/smoke",
        "schedule=none,constant",
        "seed=0,1",
        "hydra/launcher=basic",
        "threads=1",
    )
    study = copy / "runs" / "smoke"
    lines = [
        json.loads(line)
        for line in next(study.glob("none-*/metrics.jsonl")).read_text().splitlines()
    ]
    assert all(0 < line["probe/alignment"] <= 1 for line in lines if "probe/gdv" in line)
    assert "early alignment" in (study / "table.md").read_text()
    assert (study / "figures" / "alignment.png").is_file()
    run("runs", program="earlydrop.commands.findings")
    table = (copy / "runs" / "findings" / "table.md").read_text()
    row = next(line for line in table.splitlines() if line.startswith("| G1 "))
    assert "probe/alignment, 5% to 100%" in row
    assert (copy / "runs" / "findings" / "fingerprints.csv").read_text().count(
        "smoke smoke G1"
    ) == 1


def test_a_new_key_keeps_every_fingerprint_at_its_default(script):
    plain, nesterov = ["optim=sgd"], ["optim=sgd", "optim.nesterov=true"]
    code = f"""
from earlydrop.training.compose import compose, config_from_dict
from earlydrop.training.plan import make_plan
for overrides in ({plain}, {nesterov}, ["optim.nesterov=true"], []):
    print(make_plan(config_from_dict(compose(overrides))).fingerprint)
"""
    there = script(code).split()
    here = [
        make_plan(config_from_dict(compose(overrides))).fingerprint for overrides in (plain, [])
    ]
    with pytest.raises(HydraException, match="nesterov"):
        compose(nesterov)
    assert (there[0], there[3]) == tuple(here)
    assert there[1] != there[0]
    assert there[2] == there[3]  # AdamW has no use for it
