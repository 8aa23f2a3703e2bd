#!/usr/bin/env bash
# franka-rs, Robot.joint_targets(fraction=1.0, backend="robot"): with the whole of the robot's limits as its budget a smooth
# motion is aborted for a limit, with every packet in time; half of the budget runs through.  (It plans from positions
# that the robot echoes as float32.)  The judge is franka-sim, which checks as the robot does.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check "franka-rs==0.4.0" "franka-sim==1.1.7"
cat >"$folder/finding.py" <<'PYTHON'
import fcntl
import os
import socket
import struct
import subprocess
import sys
import threading
import time
import xml.etree.ElementTree as ET
from importlib.metadata import version
from pathlib import Path

import franka
import franka_sim
import mujoco
import numpy as np

with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as handle:  # loopback, in this network of our own
    fcntl.ioctl(handle, 0x8914, struct.pack("16sh14x", b"lo", 1))
robot = ET.parse(Path(franka_sim.__file__).parent / "models/fr3.urdf").getroot()
for link in robot.iter("link"):
    for shape in [*link.findall("visual"), *link.findall("collision")]:
        link.remove(shape)
spec = mujoco.MjSpec.from_string(ET.tostring(robot, encoding="unicode"))
for joint in spec.joints:
    joint.armature, joint.damping = 0.2, 1.0
spec.compile()
path = Path(sys.argv[1]) / "fr3.xml"
path.write_text(spec.to_xml())
words = ["chrt", "--fifo", "80"] if os.geteuid() == 0 else []
command = [*words, sys.executable, "-m", "franka_sim.run_server", "--enforce-motion-limits", "--no-gripper"]
log = open(Path(sys.argv[1]) / "log", "w")
server = subprocess.Popen(command, env={**os.environ, "FR3_MJCF": str(path)}, stdout=log, stderr=log)


def moved(fraction):
    """What ended a smooth motion of 4 s: '' where nothing did."""
    found = {}

    def connect():
        found["robot"] = franka.Robot("127.0.0.1", realtime="ignore")
        found["arm"] = found["robot"].joint_targets(fraction=fraction, backend="robot")

    thread = threading.Thread(target=connect)  # it gets a real-time priority
    thread.start()
    thread.join()
    arm, times = found["arm"], np.arange(0.0, 4.0, 0.001)
    swing = np.sin(np.pi * times / 4.0) ** 2 * np.sin(np.pi * times)
    arm.follow(arm.target() + swing[:, None] * [0.2, 0.1, 0.15, 0.1, 0.3, 0.15, 0.3], dt=0.001)
    time.sleep(4.3)
    try:
        arm.stop()
    except franka.FrankaError as error:
        return " ".join(str(error).split())
    return ""


def lost(why):
    return bool(why) and "control_command_success_rate: 1" not in why


try:
    subprocess.run([str(Path(sys.executable).parent / "franka-sim-check"), "--timeout", "60"], check=True)
    print("franka-rs", version("franka-rs"), "franka-sim", version("franka-sim"))
    found = {}
    for fraction in (1.0, 0.5):
        for _ in range(5):  # a busy machine may lose packets, which proves nothing
            found[fraction] = moved(fraction)
            if not lost(found[fraction]):
                break
        print(f"fraction {fraction}:", found[fraction] or "ran through")
finally:
    server.kill()
print(*(line for line in open(log.name) if "motion limit violated" in line), sep="")
sys.exit(0 if "discontinuity" in found[1.0] and not lost(found[1.0]) and not found[0.5] else 1)
PYTHON
map=$([ "$(id -u)" = 0 ] || echo --map-root-user)
unshare --net $map "$folder/venv/bin/python" "$folder/finding.py" "$folder"
