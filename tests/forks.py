"""Python programs that start at once: forks of a process that has Keras.

For most programs of the tests, starting Python and importing Keras and its
backend takes longer than all that they do. `python -m tests.forks` imports
them once, and forks for each program that it is asked for. A fork has nothing
of another program, and is killed, watched and waited for as any process.
"""

import gc
import itertools
import json
import os
import pathlib
import runpy
import signal
import subprocess
import sys
import tempfile
import time
import warnings


class Fork:
    """A program that was started.

    Attributes:
        pid: the process's number.
    """

    def __init__(self, forks, args, environment):
        self._forks = forks
        self._outputs = [forks.new_file(), forks.new_file()]
        self.pid = forks.ask(
            args=list(map(str, args)),
            environment={**os.environ, **environment},
            outputs=list(map(str, self._outputs)),
        )

    def wait(self, timeout=600):
        """Waits for its end and returns a `subprocess.CompletedProcess`.

        Kills it after `timeout` seconds and raises TimeoutError.
        """
        status = self._forks.ask(wait=self.pid, timeout=timeout)
        printed = [path.read_text() for path in self._outputs]
        if status is None:
            said = "".join(printed)
            raise TimeoutError(f"killed after {timeout} s. It printed: {said}")
        return subprocess.CompletedProcess(self.pid, status, *printed)


class Forks:
    """The process of one backend that forks; it starts with the first."""

    def __init__(self, backend):
        self._folder = tempfile.TemporaryDirectory()
        self._files = itertools.count()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.forks"],
            cwd=pathlib.Path(__file__).parent.parent,
            env={**os.environ, "KERAS_BACKEND": backend},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def start(self, *args, **environment):
        """Starts a program.

        Args:
            args: as those of `python`: "-c" and code, "-m" and the name of a
                module, or a file; and the program's own.
            environment: variables beside those that there are.
        """
        return Fork(self, args, environment)

    def run(self, *args, **environment):
        """Starts a program and waits for its end."""
        return self.start(*args, **environment).wait()

    def ask(self, **request):
        print(json.dumps(request), file=self._process.stdin, flush=True)
        return json.loads(self._process.stdout.readline())

    def new_file(self):
        return pathlib.Path(self._folder.name) / str(next(self._files))

    def close(self):
        self._process.communicate()
        self._folder.cleanup()


def serve():
    """Forks for each request; returns in the fork, with what it is to run."""
    while line := sys.stdin.readline():
        request = json.loads(line)
        if "wait" in request:
            answer = await_end(request["wait"], request["timeout"])
        elif answer := os.fork():
            pass
        else:
            return request
        print(json.dumps(answer), flush=True)
    sys.exit()


def await_end(pid, timeout):
    """Returns the exit code of a fork; None for one that had to be killed."""
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return None


def main():
    # Nothing here runs threads yet.
    warnings.filterwarnings("ignore", r"os\.fork\(\) was called")
    request = serve()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number, path in enumerate([os.devnull, *request["outputs"]]):
        file = os.open(path, os.O_RDWR | os.O_CREAT)
        os.dup2(file, number)
        os.close(file)
    os.environ.clear()
    os.environ.update(request["environment"])
    kind, *args = request["args"]
    if kind == "-c":
        sys.argv = ["-c", *args[1:]]
        program = type(sys)("__main__")
        sys.modules["__main__"] = program
        exec(compile(args[0], "<string>", "exec"), vars(program))
    elif kind == "-m":
        sys.argv = args
        runpy.run_module(args[0], run_name="__main__", alter_sys=True)
    else:
        sys.argv = [kind, *args]
        runpy.run_path(kind, run_name="__main__")


if __name__ == "__main__":
    import keras  # noqa: F401

    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)
    main()
