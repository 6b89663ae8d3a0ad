"""The README's Python runs as printed, and its commands and files exist."""

import re
import shlex
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from earlydrop.analysis import load_runs
from earlydrop.commands.run import main
from earlydrop.training.compose import compose

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
PAGES = README + "".join(path.read_text() for path in sorted((ROOT / "docs").glob("*.md")))


def test_the_python_blocks_run_in_order(capsys):
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len(blocks) == 2
    names = {"__name__": "__main__"}
    exec(blocks[0], names)
    assert len(capsys.readouterr().out.split()) == 5  # the probe's five numbers
    for block in blocks[1:]:  # other libraries may print at their import
        exec(block, names)


def test_it_fits_its_reader():
    """At most 150 lines; no code that a reader must scroll sideways for."""
    lines = README.splitlines()
    assert len(lines) <= 150
    code = False
    for line in lines:
        code ^= line.startswith("```")
        table = line.startswith("|") and "](" not in line
        assert len(line) <= (120 if code else 150 if table else 130), line


def test_a_model_of_ones_own_is_swept_from_an_empty_folder(tmp_path, monkeypatch):
    (name, code), (command,) = (
        re.search(r"<!-- file: (\S+) -->\n```python\n(.*?)```", README, re.DOTALL).groups(),
        re.search(r"<!-- ci: own -->\n```bash\nearlydrop (.*?)\n```", README, re.DOTALL).groups(),
    )
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).write_text(code)
    small = [
        "tracking=off",
        "data.train_images=100",
        "trainer.batch_size=50",
        "trainer.steps=2",
        "probe=none",
        "device=cpu",
    ]
    monkeypatch.setattr("sys.argv", ["earlydrop", *command.split(), *small])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 0
    runs = load_runs(tmp_path / "runs")
    assert set(runs["arm"]) == {
        f"{kind} · model.args.width={width}"
        for kind in ("none", "early-0.1-20%")
        for width in (64, 128)
    }
    assert set(runs["state"]) == {"finished"}


def test_paths_and_commands_that_it_names_exist():
    for path in re.findall(r"`((?:earlydrop|conf|scripts|results)/[\w./]*)`", README) + re.findall(
        r"\]\((results/[^)]+)\)", README
    ):
        assert (ROOT / path).exists(), path
    scripts = (ROOT / "pyproject.toml").read_text()
    for command in set(re.findall(r"\bearlydrop-[a-z]+", README)):
        assert f"{command} =" in scripts, command
    for script in set(re.findall(r"scripts/\w+\.py", README)):
        assert (ROOT / script).is_file()


def test_every_earlydrop_command_composes():
    text = PAGES.replace("\\\n", " ")
    commands = re.findall(r"^(?:.*(?:&& \S*|-m ))?earlydrop ([^#\n]*=[^#\n]*)", text, re.MULTILINE)
    assert len(commands) >= 8
    for command in commands:
        overrides = [part for part in shlex.split(command) if not part.startswith("-")]
        assert all("=" in part for part in overrides), command
        compose(
            [part.partition(",")[0] for part in overrides if "(" not in part]
        )  # an interval is a sweeper's


@pytest.mark.parametrize("url", sorted(set(re.findall(r"\]\((https?://[^)]+)\)", README))))
def test_links_open(url):
    """Where there is a network, each link answers; where there is none, that is said."""
    request = urllib.request.Request(url, headers={"User-Agent": "Mozilla/5.0"})
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            assert answer.status == 200
    except urllib.error.HTTPError as error:
        if error.code in (404, 410):
            raise
        pytest.skip(f"{error}: it answers, though not to us")
    except OSError as error:
        pytest.skip(f"no network: {error}")
