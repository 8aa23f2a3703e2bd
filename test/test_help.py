"""Every command that setup.py installs or a text names answers --help: with every default, and nothing starts.

What several of them take, all of them refuse alike before anything starts.
"""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import yaml
from conftest import ROOT

from sim import run_libero
from vega3d_ros.control.guard.limits import combine_limits
from vega3d_ros.ros import node_parameters
from vega3d_ros.ros.node_help import answer_help

DEADLINE_S = 300.0
TEXTS = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "policies").glob("*/README.md")]
PACKAGES = r"(?:policies|sim|vega3d_ros|benchmarks)"
TORCH_IS_THEIR_SUBJECT = {
    f"policies.{name}"
    for name in (
        "benchmark",
        "compose",
        "training.study",
        "training.train_nano",
    )
}
# Skills are tried in the simulator: it is imported with them.
OF_LAYOUTS = {f"sim.demonstrations.{name}" for name in ("collect_skills", "try_layouts", "try_skills")}
SIMULATOR_IS_THEIR_SUBJECT = {*OF_LAYOUTS, "sim.demonstrations.skills.measure_grasps"}
TRAININGS = ("distil", "train_nano", "train_spatial", "train_vega", "train_world_simulator")
THREADED = (
    "policies.benchmark", "policies.correspondence.__main__", "policies.serving.serve",
    "policies.training.study.__main__", *(f"policies.training.{name}" for name in TRAININGS),
    "sim.run_libero", "sim.run_robosuite", "sim.run_spatial",
)  # fmt: skip
SEEDED = (
    "policies.compose", *(f"policies.training.{name}" for name in TRAININGS), "sim.ask", "sim.render_views",
    "sim.space.collect", *sorted(OF_LAYOUTS),
)  # fmt: skip
BIN = Path(sys.executable).parent


def commands() -> list[str]:
    """As they are typed: console scripts, what `ros2 run` starts, modules with subcommands, files."""
    scripts = re.findall(r'"([\w-]+) = [\w.]+:main"', (ROOT / "setup.py").read_text())
    found = {*scripts, *(f"scripts/lib/{path.name}" for path in (ROOT / "scripts" / "lib").iterdir())}
    for path in TEXTS:
        text = path.read_text()
        # Of what follows a module only a subcommand is part of the command.
        found |= set(re.findall(rf"python (-m {PACKAGES}[\w.]*(?: [a-z]+-[a-z]+)?)", text))
        found |= set(re.findall(rf"python ({PACKAGES}/[\w/]+\.py)", text))
        found |= set(re.findall(r"\bvega3d-(?!bag-)[a-z]+(?:-[a-z]+)*\b", text))
    return sorted(found)


def without_default(helped: str) -> list[str]:
    """The options that take a value and say neither what it is without them nor that they are required."""
    options = re.split(r"\n  (?=-)", helped.partition("\noptions:")[2].partition("\n\n")[0])
    return [
        option
        for option in options
        if re.match(r"(-\w, )?--[\w-]+ [A-Z{\[]", option) and not re.search(r"default|required", option)
    ]


def test_the_texts_name_commands() -> None:
    found = commands()
    assert {"vega3d-bringup", "vega3d-policy-node", "-m policies.compose", "sim/run_libero.py", "-m benchmarks.control",
            "-m policies.world_simulator export-prompt"} <= set(found)  # fmt: skip


def test_what_the_texts_publish_is_yaml_that_its_message_takes() -> None:
    said = [re.findall(r"ros2 topic pub [^\n']*?(\w+)/msg/(\w+) '([^'\n]*)'", path.read_text()) for path in TEXTS]
    found = [one for of_text in said for one in of_text]
    assert found
    for package, name, text in found:
        message = getattr(importlib.import_module(f"{package}.msg"), name)
        assert message(**yaml.safe_load(text))


@pytest.mark.parametrize("command", commands())
def test_help_is_answered_at_once_with_defaults(command: str, tmp_path: Path) -> None:
    words = command.split()
    if words[0].startswith("vega3d-"):
        words[0] = str(BIN / words[0])
        assert Path(words[0]).is_file(), f"{command} is no command that setup.py installs"
    elif "/" in words[0]:
        words[0] = str(ROOT / words[0])
    run = subprocess.run(
        [sys.executable, "-X", "importtime", *words, "--help"],
        cwd=tmp_path, capture_output=True, text=True, timeout=DEADLINE_S,
    )  # fmt: skip
    complaints = [line for line in run.stderr.splitlines() if not line.startswith("import time:")]
    assert run.returncode == 0 and not complaints, "\n".join(complaints)
    assert run.stdout.startswith("usage: ") and len(run.stdout.splitlines()) > 3
    assert not without_default(run.stdout)
    if "parameters:" in run.stdout:
        assert run.stdout.count("(default: ") > 1
    imported = {line.rpartition("|")[2].strip() for line in run.stderr.splitlines()}
    assert not {"mujoco", "robosuite"} & imported or words[-1] in SIMULATOR_IS_THEIR_SUBJECT
    assert "torch" not in imported or words[-1] in TORCH_IS_THEIR_SUBJECT
    assert not any(tmp_path.iterdir())


def test_the_defaults_that_are_told_are_those_that_count(capsys: pytest.CaptureFixture[str]) -> None:
    """Where a value of None stands for another, which the command or the guard puts in its place, that one is told."""
    with pytest.raises(SystemExit):
        run_libero.main(["--help"])
    told = re.sub(r"\s+", " ", capsys.readouterr().out)
    assert f"initial states per task (default: {run_libero.TRIALS}; of LIBERO-plus its one)" in told
    assert answer_help("policy_node", "", node_parameters.declare, ["policy_node", "-h"])
    told = re.sub(r"\s+", " ", capsys.readouterr().out)
    arm = SimpleNamespace(
        n=1, joint_names=("joint",), lower=-np.ones(1), upper=np.ones(1), velocity_limits=np.ones(1)
    )  # fmt: skip
    limits = combine_limits(arm, {"acceleration": [1.0]})  # type: ignore[arg-type]
    counting = {
        "position_margin": 1.0 - limits.upper[0], "velocity_scale": limits.velocity[0],
        "acceleration_scale": limits.acceleration[0], "min_interval_s": limits.min_interval_s,
        "tracking_tolerance": np.max(limits.tolerance), "max_rejections": limits.max_rejections,
    }  # fmt: skip
    for name, value in counting.items():
        described = told.partition(f" safety.{name} ")[2].partition(" safety.")[0]
        assert re.findall(r"\(default: (.*?)\)", described)[0] == f"{value:g}", name


@pytest.mark.parametrize(
    ("module", "option", "value", "reason"),
    [
        *((module, "--threads", "0", "is out of range: give a whole number from 1 to 256") for module in THREADED),
        *((module, "--seed", "-1", "is out of range: give a whole number from 0 to 4294967295") for module in SEEDED),
        ("policies.training.study.__main__", "--seeds", "-1", "is out of range: give a whole number from 0"),
        ("sim.run_libero", "--threads", "99999", "is out of range: give a whole number from 1"),
        ("policies.compose", "--seed", "1.5", "is no whole number: give one from 0"),
    ],
)
def test_threads_and_seeds_that_cannot_be_are_refused_by_every_command_before_anything_starts(
    module: str, option: str, value: str, reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert importlib.import_module(module).main([option, value]) == 2
    out, error = capsys.readouterr()
    assert not out and error.startswith(f"error: {option} {value} {reason}") and error.count("\n") == 1
