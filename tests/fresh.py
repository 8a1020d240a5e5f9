"""Code in processes that have not imported the library: forks of one that has imported what the library needs.

Those imports take seconds; a fork takes none of them.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

SERVER = """
import json, os, runpy, sys
import gymnasium, numpy, safetensors.torch, tensordict, torch, torch._dynamo, tyro, yaml

assert not any(name.startswith("understudy") for name in sys.modules)
for line in sys.stdin:
    job = json.loads(line)
    child = os.fork()
    if child == 0:
        for number, (path, flags) in enumerate(job["files"]):
            os.dup2(os.open(path, flags), number)
        os.chdir(job["cwd"])
        os.environ.update(job["env"])
        kind, text, *words = job["words"]
        sys.path[0] = ""
        sys.argv = [kind, *words]
        if kind == "-m":
            runpy.run_module(text, run_name="__main__", alter_sys=True)
        else:
            exec(text, vars(sys.modules["__main__"]))
        sys.exit()
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


class Fresh:
    """`fresh("-c", code)` and `fresh("-m", module, *words)` stand for `subprocess.run([sys.executable, ...])`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.server: subprocess.Popen[str] | None = None

    def __call__(self, *words: str, check: bool = True, cwd: Path | None = None, **env: str) -> Any:
        if self.server is None:
            command = [sys.executable, "-W", "ignore", "-c", SERVER]
            pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
            self.server = subprocess.Popen(command, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, **pipes)
        write = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
        out, err = self.folder / "out", self.folder / "err"
        files = ((os.devnull, os.O_RDONLY), (str(out), write), (str(err), write))
        job = {"words": words, "files": files, "cwd": str(cwd or Path.cwd()), "env": env}
        assert self.server.stdin is not None
        assert self.server.stdout is not None
        self.server.stdin.write(json.dumps(job) + "\n")
        self.server.stdin.flush()
        code = int(self.server.stdout.readline())
        done = subprocess.CompletedProcess(words, code, out.read_text(), err.read_text())
        assert not check or code == 0, done.stderr
        return done

    def close(self) -> None:
        """End the process that forks."""
        if self.server is not None:
            self.server.communicate()
