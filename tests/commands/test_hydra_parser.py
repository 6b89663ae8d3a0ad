import argparse
import importlib
import sys

import pytest

from earlydrop.commands.hydra_parser import accept_lazy_help, build_parser


class LazyHelp:
    """A help that is not a text, as Hydra's ``--shell-completion`` has."""

    def __repr__(self):
        return "Install completion"


def make_parser(lazy=True, text="Plain text"):
    parser = argparse.ArgumentParser()
    if lazy:
        parser.add_argument("--shell-completion", action="store_true", help=LazyHelp())
    parser.add_argument("--plain", help=text)
    return parser


@pytest.fixture
def python_3_14(monkeypatch):
    """argparse as in Python 3.14: a help text is checked when it is added."""
    checked = []

    def check_help(self, action):
        checked.append(action.help)
        try:
            if action.help:
                action.help % {}
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError("badly formed help string") from error

    def add_argument(self, *args, **kwargs):
        action = original(self, *args, **kwargs)
        self._check_help(action)
        return action

    original = argparse._ActionsContainer.add_argument
    monkeypatch.setattr(argparse._ActionsContainer, "_check_help", check_help, raising=False)
    if sys.version_info < (3, 14):
        monkeypatch.setattr(argparse._ActionsContainer, "add_argument", add_argument)
    return checked


def test_a_lazy_help_is_accepted_where_argparse_checks_texts(python_3_14):
    with pytest.raises(ValueError, match="badly formed"):
        make_parser()
    parser = build_parser(make_parser)
    assert parser.parse_args(["--shell-completion"]).shell_completion
    with pytest.raises(ValueError, match="badly formed"):  # the check is back
        make_parser()


def test_a_malformed_text_is_still_refused(python_3_14):
    with pytest.raises(ValueError, match="badly formed"):
        build_parser(lambda: make_parser(text="100% wrong %(nothing)z"))


def test_nothing_changes_where_the_parser_can_be_made(python_3_14):
    build_parser(lambda: make_parser(lazy=False))
    assert python_3_14 == ["show this help message and exit", "Plain text"]  # checked once


def test_before_python_3_14_an_error_stays_an_error(monkeypatch):
    monkeypatch.delattr(argparse._ActionsContainer, "_check_help", raising=False)

    def fail():
        raise ValueError("another reason")

    with pytest.raises(ValueError, match="another reason"):
        build_parser(fail)


def test_hydra_makes_every_parser_so(monkeypatch, python_3_14):
    modules = [importlib.import_module(name) for name in ("hydra.main", "hydra._internal.utils")]
    for module in modules:
        monkeypatch.setattr(module, "get_args_parser", module.get_args_parser)
    accept_lazy_help()
    for module in modules:
        assert module.get_args_parser().parse_args(["--multirun", "seed=1"]).multirun
    assert modules[1].get_args([]).overrides == []  # what completion uses
