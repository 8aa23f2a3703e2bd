"""config/foxglove/vega3d.json: every panel shows something that the live graph has."""

from __future__ import annotations

import importlib
import json
import re
from collections.abc import Iterator
from typing import Any

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
        names = {status.name for array in robot.diagnostics for status in array.status}
        assert {c["selectedName"] for c in PANELS.values() if "selectedName" in c} <= names


def test_the_tables_name_every_topic_that_is_shown():
    table = (ROOT / "docs" / "interfaces.md").read_text()
    for _, topic, _ in shown():
        node, _, own = topic.strip("/").partition("/")
        names = {topic, topic.strip("/"), f"~/{own}", f"<camera>/{own}", f"<controller>/{own}"}
        names |= {f"~/{own.rpartition('/')[0]}/<camera>"} if node == "policy_node" else set()
        assert any(f"`{name}`" in table for name in names), topic
