import pytest

from earlydrop import __version__
from earlydrop.commands import version
from earlydrop.commands.version import show_version


def test_the_version_is_one_line(capsys):
    show_version(["--version"])
    assert capsys.readouterr().out == f"earlydrop {__version__}\n"


def test_verbose_names_the_machine_and_what_is_missing_for_compiling(capsys, monkeypatch):
    monkeypatch.setattr(
        "earlydrop.training.compiler.compiler_problem", lambda device: "there is no C++ compiler"
    )
    monkeypatch.setattr(version, "_PACKAGES", ("torch", "no-such-package"))
    show_version(["--verbose", "--version"])
    out = capsys.readouterr().out
    for expected in (
        "Python ",
        "torch ",
        "no-such-package not installed",
        "compiling    there is no C++ compiler",
    ):
        assert expected in out, out


def test_other_arguments_are_refused():
    with pytest.raises(SystemExit, match="--version goes with --verbose alone, not with seed=1"):
        show_version(["--version", "seed=1"])
