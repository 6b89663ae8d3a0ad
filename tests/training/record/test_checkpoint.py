import json
from pathlib import Path

import pytest

from earlydrop.training import trainer as trainer_module
from earlydrop.training.endings import Interrupted
from earlydrop.training.fields import ConfigError
from earlydrop.training.plan import make_plan
from earlydrop.training.prepare import scheduled_model
from earlydrop.training.record.checkpoint import load_best, load_checkpoint
from earlydrop.training.record.folder import RunFolder
from earlydrop.training.run import run
from earlydrop.training.trainer import Trainer


def test_a_damaged_checkpoint_falls_back_to_the_one_before(config, monkeypatch, caplog):
    whole = Path(run(config())["folder"])
    settings = config(out=str(Path(config().out) / "damaged"), trainer__checkpoint_seconds=0.0)
    plan = make_plan(settings)
    folder = RunFolder(plan.folder)
    trainer = Trainer(
        plan, *scheduled_model(plan), folder, lambda step, metrics: None, lambda: trainer.step >= 12
    )
    trainer.resume()
    with pytest.raises(Interrupted):
        trainer.train()
    folder.close()
    newest, before = sorted((plan.folder / "checkpoints").glob("*.pt"), reverse=True)
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 1
    newest.write_bytes(content)
    monkeypatch.setattr(trainer_module.log, "propagate", True)
    assert load_checkpoint(plan.folder / "checkpoints", plan.fingerprint)["step"] == int(
        before.stem[5:]
    )
    assert "is damaged" in caplog.text
    newest.write_bytes(b"")
    finished = Path(run(settings)["folder"])
    assert (finished / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()


def test_a_checkpoint_of_another_configuration_is_refused(config):
    one, other = Path(run(config())["folder"]), make_plan(config(seed=1)).folder
    other.mkdir(parents=True)
    (one / "checkpoints").rename(other / "checkpoints")
    with pytest.raises(ConfigError, match="belongs to configuration"):
        run(config(seed=1))


def test_damaged_best_weights_are_none(config, monkeypatch, caplog):
    folder = Path(run(config(trainer__stop_metric="test/loss", trainer__stop_patience=9))["folder"])
    fingerprint = json.loads((folder / "provenance.json").read_text())["fingerprint"]
    best = folder / "checkpoints" / "best.pt"
    assert load_best(best.parent, fingerprint)["metric"] == "test/loss"
    whole = best.read_bytes()
    monkeypatch.setattr(trainer_module.log, "propagate", True)
    for content in (whole[:200], b"", b"no weights", b"hello world", b"."):
        best.write_bytes(content)
        assert load_best(best.parent, fingerprint) is None
        assert "best.pt is damaged" in caplog.text
        caplog.clear()
