from pathlib import Path

import pytest

from earlydrop.commands.reproduce import first_difference, main
from earlydrop.training.run import run
from tests.analysis.made_up import make_run


def test_where_two_records_part():
    a = [{"step": 1, "x": 1.0}, {"step": 2, "x": 2.0}]
    assert first_difference(a, [dict(line) for line in a]) is None
    changed = first_difference(a, [a[0], {"step": 2, "x": 2.5}])
    assert changed == "step 2, x: 2.0 in the run, 2.5 in its repetition"
    assert first_difference(a, a[:1]) == "2 lines in the run, 1 in its repetition"


def test_a_run_is_trained_elsewhere_and_a_changed_record_named(config, capsys, monkeypatch):
    folder = Path(run(config())["folder"])

    def reproduce(*arguments):
        monkeypatch.setattr("sys.argv", ["earlydrop-reproduce", str(folder), *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        said = capsys.readouterr()
        return ended.value.code, said.out + said.err

    code, _ = reproduce("--out", config().out)
    assert "is where the run itself is: give another folder" in str(code)
    text = (folder / "metrics.jsonl").read_text()
    (folder / "metrics.jsonl").write_text(text.replace('"test/loss": ', '"test/loss": 1', 1))
    code, said = reproduce("--out", str(folder.parent / "elsewhere"))
    assert code
    assert "metrics.jsonl was changed after the run" in said
    assert "different: step" in said
    (folder / "metrics.jsonl").write_text(text)
    code, said = reproduce(
        "--out", str(folder.parent / "elsewhere")
    )  # trains again, though that folder holds a finished run
    assert (code, said.count("finished before")) == (False, 0)
    (folder / "provenance.json").unlink()
    assert "provenance.json is missing or damaged" in str(reproduce()[0])


def test_a_study_is_no_run_to_reproduce(tmp_path, monkeypatch):
    make_run(tmp_path / "seeds", "none", 0, 0.5)
    make_run(tmp_path / "seeds", "none", 1, 0.5)
    monkeypatch.setattr("sys.argv", ["earlydrop-reproduce", str(tmp_path / "seeds")])
    with pytest.raises(
        SystemExit, match=r"seeds is a folder of 2 runs: give one of them, such as .*none-seed0"
    ):
        main()


def test_a_run_without_a_status_is_not_a_folder_of_runs(tmp_path, monkeypatch):
    make_run(tmp_path / "seeds", "none", 0, 0.5)
    (folder,) = (tmp_path / "seeds").iterdir()
    (folder / "status.json").unlink()
    monkeypatch.setattr("sys.argv", ["earlydrop-reproduce", str(folder)])
    with pytest.raises(SystemExit, match=r"is not a finished run according to its status\.json"):
        main()
