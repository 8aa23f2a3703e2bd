"""Another build of this package as a process of its own, asked the same as this one, in turns."""

from __future__ import annotations

import json
import os
import subprocess
import threading
from pathlib import Path
from typing import Any

from policies.types import VegaError

Job = dict[str, Any]
DEADLINE_S = 900.0  # for one job, on a machine that does much else


class Worker:
    """`script` under the environment in `folder`/.venv and with the code of `folder`; answers jobs."""

    def __init__(self, folder: Path, script: Path) -> None:
        python = folder / ".venv" / "bin" / "python"
        if not python.is_file():
            raise VegaError(f"There is no environment in '{folder / '.venv'}': run `make venv` there.")
        self._folder = folder
        own = {"PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            [str(python), str(script), str(folder)], env=os.environ | own, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        )  # fmt: skip

    def __call__(self, do: str, **job: Any) -> Job:
        """The answer to a job.  VegaError where the build gives none."""
        assert self._process.stdin is not None and self._process.stdout is not None
        watchdog = threading.Timer(DEADLINE_S, self._process.kill)
        watchdog.start()
        try:
            self._process.stdin.write(json.dumps({"do": do, **job}) + "\n")
            self._process.stdin.flush()
            answer = self._process.stdout.readline()
        except OSError:
            answer = ""
        finally:
            watchdog.cancel()
        if not answer:
            raise VegaError(f"The build in '{self._folder}' cannot do this: {do}; is it a checkout of vega3d_ros?")
        return dict(json.loads(answer))

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
