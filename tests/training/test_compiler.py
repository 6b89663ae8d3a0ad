import pytest
import torch

from earlydrop.training import compiler
from earlydrop.training.fields import ConfigError
from earlydrop.training.run import run


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        (
            "No working C++ compiler found in cpp.cxx: (None, 'g++')",
            "there is no C++ compiler (on Debian",
        ),
        (
            "C++ compile error\nfatal error: Python.h: No such file",
            "the Python headers are missing (on Debian",
        ),
        (
            "Cannot find a working triton\nmore",
            "a function of one line fails with Cannot find a working triton",
        ),
    ],
)
def test_what_is_missing_is_named(message, expected, monkeypatch):
    def fail(function):
        raise RuntimeError(message)

    monkeypatch.setattr(torch, "compile", fail)
    assert compiler.compiler_problem.__wrapped__("cpu").startswith(expected)


def test_a_compiler_that_gives_wrong_numbers_is_named(monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda function: lambda x: x)
    assert "wrong numbers" in compiler.compiler_problem.__wrapped__("cpu")


@pytest.mark.usefixtures("needs_compiler")
def test_the_one_line_compiles_here():
    assert compiler.compiler_problem("cpu") is None


def test_a_run_that_cannot_compile_is_refused_in_one_line_and_leaves_nothing(
    config, monkeypatch, tmp_path
):
    monkeypatch.setattr(
        "earlydrop.training.prepare.compiler_problem", lambda device: "there is no C++ compiler"
    )
    for mode in ("train", "plan"):
        with pytest.raises(
            ConfigError, match=r"trainer.compile is true.*no C\+\+ compiler; or set"
        ):
            run(config(trainer__compile=True, mode=mode))
    assert not list((tmp_path / "runs").rglob("*"))
