"""What every console command does with an error and with Ctrl-C."""

import pytest

from earlydrop.commands import command


def raises(error):
    def main():
        raise error

    return command(main)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ValueError("no runs"), "error: no runs"),
        (OSError("disk full"), "error: disk full"),
        (KeyboardInterrupt(), 130),
        (BrokenPipeError(), 141),
    ],
)
def test_ends_without_a_traceback(error, code, monkeypatch):
    monkeypatch.setattr("os.dup2", lambda *_: None)
    with pytest.raises(SystemExit) as stop:
        raises(error)()
    assert stop.value.code == code
