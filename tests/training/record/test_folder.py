import json

import pytest

from earlydrop.training.endings import TrainingFailed
from earlydrop.training.fields import ConfigError
from earlydrop.training.plan import make_plan
from earlydrop.training.record.folder import RunFolder
from earlydrop.training.run import run
from tests.training.states import final_state


def test_one_process_a_folder(config):
    held = RunFolder(make_plan(config()).folder)
    with pytest.raises(ConfigError, match="another process"):
        run(config())
    held.close()
    assert run(config())["state"] == "finished"


def test_a_full_disk_fails_the_run_and_keeps_the_last_checkpoint(config, monkeypatch):
    import earlydrop.training.record.checkpoint as module

    original = module.write_atomically

    def full(path, content):
        if path.name.startswith("step-000000009"):
            raise OSError(28, "No space left on device")
        original(path, content)

    monkeypatch.setattr(module, "write_atomically", full)
    with pytest.raises(TrainingFailed, match="No space left"):
        run(config(trainer__checkpoint_seconds=0.0))
    monkeypatch.undo()
    folder = make_plan(config()).folder
    assert json.loads((folder / "status.json").read_text())["state"] == "failed"
    assert final_state(folder)["step"] == 8
    assert run(config())["state"] == "finished"
