"""Tab completion as ``earlydrop --help`` prints it, in each shell that is installed."""

import os
import pty
import select
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

PATH = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"


def printed(shell):
    """The line that the help prints for a shell."""
    done = subprocess.run(
        [sys.executable, "-m", "earlydrop", "--help"], capture_output=True, text=True, check=True
    )
    (line,) = [line.strip() for line in done.stdout.splitlines() if f"install={shell}" in line]
    return line


def needs(shell):
    if shutil.which(shell) is None or shutil.which("earlydrop", path=PATH) is None:
        pytest.skip(f"no {shell}, or no earlydrop command")


@pytest.mark.parametrize(
    ("typed", "completed"), [("schedule=e", "schedule=early"), ("trainer.ep", "trainer.epochs=")]
)
def test_bash(typed, completed):
    needs("bash")
    line = f"earlydrop {typed}"
    ask = (
        f"COMP_LINE='{line}' COMP_POINT={len(line)} COMP_CWORD=1; hydra_bash_completion; "
        f"printf '%s\\n' \"${{COMPREPLY[@]}}\""
    )
    done = subprocess.run(
        ["bash", "-c", f"{printed('bash')}; {ask}"],
        capture_output=True,
        text=True,
        env={"PATH": PATH},
        check=False,
    )
    assert done.stdout.split() == [completed], done.stderr


def test_fish(tmp_path):
    needs("fish")
    environment = {"PATH": PATH, "HOME": str(tmp_path)}
    done = subprocess.run(
        ["fish", "-c", f"{printed('fish')}; complete -C 'earlydrop schedule=e'"],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    assert done.stdout.split() == ["schedule=early"], done.stderr


def test_zsh(tmp_path):
    """Run zsh in a terminal, which it needs, and read its output up to the completed word."""
    needs("zsh")
    child, terminal = pty.fork()
    if child == 0:
        os.execvpe(
            "zsh",
            ["zsh", "-f", "-i"],
            {"PATH": PATH, "HOME": str(tmp_path), "TERM": "dumb", "PS1": "ready> "},
        )
    seen = ""

    def wait(text, seconds=60.0):
        nonlocal seen
        end = time.monotonic() + seconds
        while text not in seen and time.monotonic() < end:
            if select.select([terminal], [], [], 0.1)[0]:
                seen += os.read(terminal, 65536).decode(errors="replace")
        assert text in seen
        seen = seen[seen.index(text) + len(text) :]

    wait("ready> ")
    os.write(terminal, f"{printed('zsh')} && echo lo''aded\n".encode())
    wait("\nloaded")
    wait("ready> ")
    os.write(terminal, b"earlydrop schedule=e\t")
    wait("schedule=early")
    os.write(terminal, b"\x03exit\n")
    os.close(terminal)
    os.waitpid(child, 0)
