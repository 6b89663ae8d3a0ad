"""Commands in processes that start warm.

They are forks of a process that has only imported torch and the package. A command is a process of
its own, with its folder, environment, signals and exit code, without the seconds that its imports
take. Where a test is about the start (what is imported, what is read as torch is loaded), it starts
Python itself.
"""

import atexit
import gc
import importlib
import json
import os
import runpy
import select
import signal
import subprocess
import sys
import tempfile
import threading
import time

LOADED = [
    "torch",
    "timm",
    "torchvision",
    "pandas",
    "scipy.stats",
    "hydra",
    "earlydrop.training.run",
    "earlydrop.training.models",
    *(
        f"earlydrop.commands.{name}"
        for name in ("run", "sweep", "list", "report", "findings", "cite", "reproduce")
    ),
]


class Warm:
    """The process that waits.

    ``start`` and ``run`` are like subprocess's ``Popen`` and ``run`` with text.
    """

    def __init__(self, **environment):
        self.server = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            env=os.environ | environment,
        )
        self.environment, self.codes = environment, {}

    def start(self, *arguments, cwd=None, env=None, program="earlydrop"):
        """Start a module, or the file of a script, with arguments.

        Its environment is this process's, with what the waiting one was given, and ``env``.
        """
        # They are closed when they are read.
        outputs = [tempfile.NamedTemporaryFile() for _ in ("output", "error")]  # noqa: SIM115
        request = {
            "program": program,
            "arguments": [str(each) for each in arguments],
            "cwd": str(cwd or os.getcwd()),
            "env": os.environ | self.environment | (env or {}),
            "outputs": [file.name for file in outputs],
        }
        self.server.stdin.write(json.dumps(request).encode() + b"\n")
        while "pid" not in (said := self.listen(60.0)):
            pass
        return Started(self, said["pid"], outputs)

    def run(self, *arguments, **more):
        """Run it to its end."""
        started = self.start(*arguments, **more)
        output, error = started.communicate()
        return subprocess.CompletedProcess(arguments, started.returncode, output, error)

    def listen(self, seconds):
        """What the server says next: a process that it started, or one that has ended.

        An empty dictionary, if it says nothing in time.
        """
        if not select.select([self.server.stdout], [], [], seconds)[0]:
            return {}
        line = self.server.stdout.readline()
        if not line:
            raise RuntimeError("the process that starts the commands has ended")
        said = json.loads(line)
        if "ended" in said:
            self.codes[said["ended"]] = said["code"]
        return said

    def close(self):
        self.server.stdin.close()
        self.server.wait()


class Started:
    """A command that runs."""

    def __init__(self, warm, pid, outputs):
        self.warm, self.pid, self.outputs = warm, pid, outputs

    @property
    def returncode(self):
        return self.warm.codes.get(self.pid)

    def poll(self):
        while self.returncode is None and self.warm.listen(0.0):
            pass
        return self.returncode

    def wait(self, timeout=600.0):
        end = time.monotonic() + timeout
        while self.returncode is None:
            self.warm.listen(max(end - time.monotonic(), 0.0))
            if self.returncode is None and time.monotonic() > end:
                self.send_signal(signal.SIGKILL)
                raise subprocess.TimeoutExpired(str(self.pid), timeout)
        return self.returncode

    def communicate(self, timeout=600.0):
        self.wait(timeout)
        texts = []
        for file in self.outputs:
            with file:
                file.seek(0)
                texts.append(file.read().decode())
        return tuple(texts)

    def send_signal(self, number):
        if self.poll() is None:
            os.kill(self.pid, number)


def become(request):
    """In a fork: be what is asked for, up to its arguments."""
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["env"])
    for target, path in enumerate((os.devnull, *request["outputs"])):
        opened = os.open(path, os.O_RDONLY if target == 0 else os.O_RDWR | os.O_APPEND)
        os.dup2(opened, target)
        os.close(opened)
    sys.argv = [request["program"], *request["arguments"]]


def run_to_its_end(program):
    """Run a module or the file of a script, and return its exit code."""
    try:
        if program.endswith(".py"):
            runpy.run_path(program, run_name="__main__")
        else:
            if not hasattr(sys.modules.get(program), "__path__"):
                sys.modules.pop(program, None)  # it is run anew, under the name __main__
            runpy.run_module(program, run_name="__main__", alter_sys=True)
    except SystemExit as stop:
        if isinstance(stop.code, str):
            print(stop.code, file=sys.stderr)
            return 1
        return stop.code or 0
    return 0


def leave(code):
    """End a fork after its threads and exit handlers, but without the server's teardown.

    In the teardown of what the server has loaded, Triton (of torch 2.15) prints that its bindings
    leak. A command that starts by itself does not load Triton.
    """
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def serve():
    """Fork for each line of the standard input: the fork handles the request.

    The server ends with its input.
    """
    running = set()
    while True:
        ready = select.select([0], [], [], 0.01 if running else None)[0]
        while running and (ended := os.waitpid(-1, os.WNOHANG)) != (0, 0):
            running.remove(ended[0])
            say(ended=ended[0], code=os.waitstatus_to_exitcode(ended[1]))
        if ready:
            line = sys.stdin.buffer.raw.readline()
            if not line:
                return None
            pid = os.fork()
            if pid == 0:
                return json.loads(line)
            running.add(pid)
            say(pid=pid)


def say(**what):
    os.write(1, json.dumps(what).encode() + b"\n")


if __name__ == "__main__":
    sys.path.pop(0)  # this file's folder
    for name in LOADED:
        importlib.import_module(name)
    gc.freeze()  # forks share it
    request = serve()
    if request is not None:
        become(request)
        leave(run_to_its_end(request["program"]))
