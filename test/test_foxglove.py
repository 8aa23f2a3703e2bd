"""config/foxglove/vega3d.json: every panel shows something that the live graph has."""

from __future__ import annotations

import importlib
import json
import re
import shutil
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ros_harness import ROOT, policy_node

LAYOUT = json.loads((ROOT / "config" / "foxglove" / "vega3d.json").read_text())
PANELS: dict[str, dict[str, Any]] = LAYOUT["configById"]


def leaves(tree: Any) -> Iterator[str]:
    if isinstance(tree, str):
        yield tree
    else:
        assert tree["direction"] in ("row", "column")
        yield from leaves(tree["first"])
        yield from leaves(tree["second"])


def shown() -> Iterator[tuple[str, str, str]]:
    """(panel, topic, path of a field below it) of everything the layout shows."""
    for panel, config in PANELS.items():
        if panel.startswith("Image!"):
            yield panel, config["imageMode"]["imageTopic"], ""
        elif panel.startswith("Plot!"):
            for line in config["paths"]:
                topic, _, path = line["value"].partition(".")
                yield panel, topic, path
        elif panel.startswith("Diagnostic"):
            yield panel, config["topicToRender"], ""
        else:
            yield panel, config["topicPath"], ""


def test_the_layout_places_every_panel_once():
    assert sorted(leaves(LAYOUT["layout"])) == sorted(PANELS)


def test_every_panel_finds_its_topic_type_and_field_in_the_live_graph():
    with policy_node() as (robot, _):
        robot.bring_up()
        robot.send_instruction()
        robot.client.trigger("policy_node/start")
        command = robot.ask(1)

        def graph() -> dict[str, list[str]]:
            return dict(robot.node.get_topic_names_and_types())

        topics = {topic for _, topic, _ in shown()}
        assert robot.until(lambda: topics <= set(graph())), topics - set(graph())
        for panel, topic, path in shown():
            (kind,) = graph()[topic]
            if panel.startswith("Image!"):
                assert kind == "sensor_msgs/msg/Image", panel
            elif panel.startswith("Diagnostic"):
                assert kind == "diagnostic_msgs/msg/DiagnosticArray", panel
            package, _, name = kind.split("/")
            value: Any = getattr(importlib.import_module(f"{package}.msg"), name)()
            for field, index in re.findall(r"(\w+)(?:\[(\d+)\])?", path):
                # A message just made has empty lists: those of a real command are looked at.
                value = command if (field, kind) == ("points", "trajectory_msgs/msg/JointTrajectory") else value
                value = getattr(value, field)
                if index and len(value):
                    assert int(index) < len(value), f"{panel}: {topic}.{path}"
                    value = value[int(index)]
        assert robot.until(lambda: robot.status("latency") is not None)
        statuses = {(status.hardware_id, status.name) for array in robot.diagnostics for status in array.status}
        # Both, or the panel stays empty: Foxglove looks the name up below the hardware id.
        shown_statuses = [
            (config["selectedHardwareId"], config["selectedName"])
            for panel, config in PANELS.items()
            if panel.startswith("DiagnosticStatusPanel!")
        ]
        assert len(shown_statuses) == 2 and set(shown_statuses) <= statuses


# Panel of the layout -> its folder in Foxglove's own code.
FOLDERS = {
    "Image": "ThreeDeeRender",
    "Plot": "Plot",
    "DiagnosticStatusPanel": "diagnostics",
    "DiagnosticSummary": "diagnostics",
    "RawMessages": "RawMessages",
}


@pytest.fixture(scope="module")
def foxglove(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The panels of Foxglove's last public release, from npm."""
    if shutil.which("npm") is None:
        pytest.skip("needs npm")
    folder = tmp_path_factory.mktemp("foxglove")
    try:
        pack = ["npm", "pack", "--silent", "@foxglove/studio-base@1.48.0"]
        subprocess.run(pack, cwd=folder, check=True, capture_output=True, timeout=120)
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired):
        pytest.skip("the npm registry is out of reach")
    with tarfile.open(next(folder.glob("*.tgz"))) as archive:
        for member in archive:
            parts = Path(member.name).parts
            if member.isfile() and parts[1:3] == ("src", "panels") and parts[-1].endswith((".js", ".d.ts")):
                data = archive.extractfile(member)
                assert data is not None and ".." not in parts
                target = folder / "panels" / Path(*parts[3:])
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(data.read())
    return folder / "panels"


def fields(config: dict[str, Any]) -> Iterator[str]:
    """Names of all settings of a panel, nested ones too."""
    for key, value in config.items():
        yield key
        for item in value if isinstance(value, list) else [value]:
            if isinstance(item, dict):
                yield from fields(item)


def test_foxgloves_own_code_knows_every_field_and_misses_none(foxglove: Path) -> None:
    for panel, config in PANELS.items():
        folder = foxglove / FOLDERS[panel.partition("!")[0]]
        words = set(re.findall(r"\w+", " ".join(path.read_text() for path in folder.rglob("*.*") if path.is_file())))
        unknown = set(fields(config)) - words
        assert not unknown, f"{panel}: {unknown}"
    source = (foxglove / "diagnostics" / "DiagnosticStatusPanel.js").read_text()
    read = re.search(r"const \{([^}]*)\} = config;", source)
    assert read is not None
    selecting = {name.strip() for name in read.group(1).split(",") if "selected" in name or "topic" in name}
    assert selecting == {"selectedHardwareId", "selectedName", "topicToRender"}
    for panel in ("DiagnosticStatusPanel!command", "DiagnosticStatusPanel!latency"):
        assert selecting <= set(PANELS[panel])


def test_the_tables_name_every_topic_that_is_shown():
    table = (ROOT / "docs" / "interfaces.md").read_text()
    for _, topic, _ in shown():
        node, _, own = topic.strip("/").partition("/")
        names = {topic, topic.strip("/"), f"~/{own}", f"<camera>/{own}", f"<controller>/{own}"}
        names |= {f"~/{own.rpartition('/')[0]}/<camera>"} if node == "policy_node" else set()
        assert any(f"`{name}`" in table for name in names), topic
