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


@pytest.mark.parametrize("code", [None, 0, 2])
def test_output_that_nobody_reads_ends_a_command_that_exits(code, monkeypatch):
    """argparse prints its help and raises SystemExit, with the text still in the buffer."""

    class Closed:
        def flush(self):
            raise BrokenPipeError

        def fileno(self):
            return 99

    monkeypatch.setattr("os.dup2", lambda *_: None)
    monkeypatch.setattr("sys.stdout", Closed())
    with pytest.raises(SystemExit) as stop:
        raises(SystemExit(code))()
    assert stop.value.code == 141
    with pytest.raises(SystemExit) as stop:
        raises(SystemExit("error: no runs"))()
    assert stop.value.code == "error: no runs"
