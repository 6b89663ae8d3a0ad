"""The pages under docs: their Python runs, and their sweeps work with the tools that they name."""

import os
import re
import shlex
from pathlib import Path

import pytest
import yaml

from earlydrop.analysis import load_runs

DOCS = Path(__file__).parents[1] / "docs"
SMALL = [
    "tracking=off",
    "model=mlp",
    "model.hidden=[16]",
    "data.train_images=200",
    "trainer.epochs=1",
    "trainer.batch_size=50",
    "probe=none",
    "device=cpu",
]


def blocks(page, language):
    return re.findall(rf"```{language}\n(.*?)```", (DOCS / f"{page}.md").read_text(), re.DOTALL)


@pytest.mark.parametrize(
    "page", ["integrations", pytest.param("python", marks=pytest.mark.slow), "tuning"]
)
def test_the_python_of_a_page_runs_in_order(page, tmp_path, monkeypatch, capsys):
    if page == "tuning":
        pytest.importorskip("optuna")
    monkeypatch.chdir(tmp_path)
    script = "\n".join(blocks(page, "python"))
    (tmp_path / "page.py").write_text(script)  # functions are read where they were written
    exec(compile(script, str(tmp_path / "page.py"), "exec"), {"__name__": "page"})
    if page == "python":
        assert (tmp_path / "curves.png").is_file()
        assert "early-0.1-20% minus none" in capsys.readouterr().out


def test_optuna_tunes_what_the_page_says_and_goes_on(warm, tmp_path):
    optuna = pytest.importorskip("optuna")
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    command = blocks("tuning", "bash")[0].replace("\\\n", " ")
    words = [word for word in shlex.split(command)[1:] if "n_trials" not in word]
    for trials in (2, 4):
        done = warm.run(
            *words,
            "hydra.sweeper.n_trials=2",
            *SMALL,
            cwd=tmp_path,
            env={"WANDB_MODE": "offline"},
            program="earlydrop",
        )
        assert done.returncode == 0, done.stderr
        assert "2 of 2 jobs done" in done.stdout
        study = optuna.load_study(study_name="early", storage=f"sqlite:///{tmp_path / 'tuning.db'}")
        assert len(study.trials) == trials
    runs = load_runs(tmp_path / "runs").set_index("config/schedule.rate")
    for trial in study.trials:
        row = runs.loc[trial.params["schedule.rate"]]
        assert trial.value == row["final/test/accuracy"]
        assert row["config/schedule.cutoff"] == trial.params["schedule.cutoff"]
    best = yaml.safe_load((tmp_path / "runs" / "default" / "optimization_results.yaml").read_text())
    assert best["best_value"] == max(trial.value for trial in study.trials)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["-m", "hydra/sweeper=optuna"],
            "say which metric with objective=, such as objective=test/accuracy",
        ),
        (
            ["objective=test/acuracy"],
            "objective is 'test/acuracy': expected a metric.*did you mean test/accuracy",
        ),
        (
            ["objective=probe/gdv", "probe=none"],
            "probe.at is empty, so it is not measured; give probe=few",
        ),
        (
            ["objective=test/loss", "evaluation.splits=[train_eval]"],
            r"evaluation.splits is .* not measured; give evaluation.splits=",
        ),
    ],
    ids=str,
)
def test_an_objective_that_is_none_is_refused(words, message, warm, tmp_path):
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    done = warm.run(*words, cwd=tmp_path, env={"WANDB_MODE": "offline"}, program="earlydrop")
    assert done.returncode == 1
    assert re.search(message, done.stderr), done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "runs").exists()


def test_the_agent_of_a_sweep_of_wandb_runs_the_command(warm, tmp_path):
    """The command line is made by W&B's own code, with the environment that its agent sets."""
    from wandb.sdk.launch.sweeps import utils

    sweep = yaml.safe_load(blocks("tuning", "yaml")[0])
    chosen = {
        name: each.get("value", each.get("values", [each.get("max")]))
        for name, each in sweep["parameters"].items()
    }
    args = {
        name: {"value": value[-1] if isinstance(value, list) else value}
        for name, value in chosen.items()
    }
    assert args["tracking"] == {"value": "online"}
    args["tracking"] = {"value": "offline"}
    variables = utils.create_sweep_command_args({"args": args}) | {"program": [sweep["program"]]}
    command = []
    for word in utils.create_sweep_command(sweep["command"]):
        command += variables[word[2:-1]] if word.startswith("${") else [word]
    assert command[0] == "earlydrop"
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith("WANDB_")
    }
    environment |= {
        "WANDB_SWEEP_ID": "sweep1",
        "WANDB_RUN_ID": "agents1",
        "WANDB_MODE": "offline",
        "WANDB_SILENT": "true",
    }
    done = warm.run(*command[1:], *SMALL[1:], cwd=tmp_path, env=environment, program="earlydrop")
    assert done.returncode == 0, done.stderr
    (run,) = load_runs(tmp_path / "runs").to_dict("records")
    assert (
        run["config/schedule.name"],
        run["config/schedule.rate"],
        run["config/schedule.cutoff"],
    ) == ("late", 0.3, "40%")
    assert list(
        Path(run["folder"]).glob("wandb/offline-run-*-agents1")
    )  # the run that the agent waits for
