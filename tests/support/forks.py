"""Runs scripts in forks of a process that has read torch and fairseq, which takes five seconds. Of this project it has
read nothing, and nothing that a command of fairseq sets up for itself."""

from __future__ import annotations

import atexit
import functools
import gc
import json
import logging
import os
import runpy
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

LOADED = ("OMP_NUM_THREADS",)  # variables that count when torch is read
READ = ("torch._dynamo", "fairseq.trainer", "fairseq.sequence_generator", "hydra.experimental")


def run(command: list[str], *, cwd: Path, given: str = "", **env: str) -> subprocess.CompletedProcess[str]:
    """Run Python with a command, a script or -m and a module first, like subprocess.run. Its variables are there once
    torch and fairseq have been read; where one counts before that and differs, it
    is only that. What PYTHONPATH names replaces nothing of what was read."""
    read = _environment()
    env = {**read, **env}
    if any(env.get(name) != read.get(name) for name in LOADED):
        return subprocess.run([sys.executable, *command], cwd=cwd, env=env, input=given, capture_output=True, text=True)
    with tempfile.TemporaryDirectory() as folder:
        names = [str(Path(folder, name)) for name in ("stdin", "stdout", "stderr")]
        for name, text in zip(names, (given, "", ""), strict=True):
            Path(name).write_text(text)
        server = _server()
        assert server.stdin and server.stdout
        server.stdin.write(json.dumps([command, str(cwd), env, names]) + "\n")
        server.stdin.flush()
        code = server.stdout.readline()
        assert code, f"what runs the commands has ended: {server.wait()}"
        return subprocess.CompletedProcess(command, int(code), *(Path(name).read_text() for name in names[1:]))


def _environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1"}


@functools.cache
def _server() -> subprocess.Popen[str]:  # which ends when its input does, with this process
    command = [sys.executable, "-P", __file__]
    # fairseq counts the GPUs, without NVML by CUDA, which its forks couldn't use then
    hidden = {"CUDA_VISIBLE_DEVICES": ""}
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env={**_environment(), **hidden})


def finish(code: int) -> None:
    """End as Python does, but leave out what was read, whose end takes four tenths of a second."""
    threading._shutdown()  # type: ignore[attr-defined]  # waits for threads
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def serve() -> None:
    for name in READ:
        __import__(name)
    logging.root.handlers.clear()  # a command's own come before fairseq's
    logging.root.setLevel(logging.WARNING)
    gc.freeze()  # or each fork goes through all that was read as it ends: two seconds
    while line := sys.stdin.readline():
        command, cwd, env, names = json.loads(line)
        child = os.fork()
        if not child:
            for number, name in enumerate(names):
                os.dup2(os.open(name, os.O_RDWR), number)
            sys.stdin = os.fdopen(0, closefd=False)  # without what the other has read ahead
            os.chdir(cwd)
            os.environ.clear()
            os.environ.update(env)
            named = env.get("PYTHONPATH", "").split(os.pathsep)
            sys.path[:0] = [path for path in named if path and path not in sys.path]
            first, *rest = command
            sys.argv[:] = rest if first == "-m" else command
            try:
                if first == "-m":
                    runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
                else:
                    runpy.run_path(first, run_name="__main__")
            except SystemExit as ended:
                if isinstance(ended.code, str):
                    raise
                finish(ended.code or 0)
            finish(0)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


if __name__ == "__main__":
    serve()
