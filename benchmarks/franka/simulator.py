"""franka-sim as a process: what it needs, how it starts, and what it says of the motions that it was asked for."""

from __future__ import annotations

import os
from pathlib import Path

from benchmarks.clients.environments import Environment, clean
from benchmarks.franka.model import write_mjcf, write_urdf
from policies.types import VegaError
from vega3d_ros.inference.process import ChildProcess, stop_all

PACKAGE = "franka-sim==1.1.7"
# A folder with an environment that has it; else one is made for the time of the measurement.
VARIABLE = "VEGA3D_FRANKA_SIM"
START_S, END_S = 60.0, 20.0
PRIORITY = 80  # above policy_node, below the thread that answers it


class Simulator:
    """An FR3 on every interface of this network, port 1337, its limits enforced.  folder: for its files.

    urdf: for policy_node.
    """

    def __init__(self, folder: Path) -> None:
        given = os.environ.get(VARIABLE)
        home = Path(given) if given else Environment(folder / "franka-sim", [PACKAGE]).folder
        found = list(home.glob("lib/python*/site-packages/franka_sim/models/fr3.urdf"))
        if len(found) != 1:
            raise VegaError(f"{home} has no franka-sim: install {PACKAGE} there, or unset {VARIABLE}.")
        self.urdf, mjcf = folder / "fr3.urdf", folder / "fr3.xml"
        write_urdf(found[0], self.urdf)
        write_mjcf(found[0], mjcf)
        command = [str(home / "bin/python"), "-m", "franka_sim.run_server"]
        command += ["--enforce-motion-limits", "--enforce-comm-constraints"]
        # Its 1 kHz must not wait for the rest of a busy machine, as a robot's would not.
        words = ["chrt", "--fifo", str(PRIORITY)] if os.geteuid() == 0 else []
        environment = clean({"FR3_MJCF": str(mjcf), "PYTHONUNBUFFERED": "1"})
        self.process = ChildProcess("franka-sim", [*words, *command], environment=environment, on_line=None)
        self.process.wait_for_line("Starting Genesis simulator", START_S)

    def close(self) -> None:
        stop_all([self.process], END_S)
