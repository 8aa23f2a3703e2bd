"""A recording that goes on through a cleanup: what is configured anew knows nothing of before, in a replay neither."""

from __future__ import annotations

from dataclasses import replace as changed

import numpy as np
from ros_harness import CAMERAS, HOME, Pace, image_of, now_ns, policy_node
from test_recording import all_recorded, bring_up, recorder

from vega3d_ros.recording import replay
from vega3d_ros.recording.replay_bag import Bag

ASIDE = 0.03  # rad, within the tolerance: a node that remembers its path would begin at the end of that


def test_a_recording_through_a_cleanup_comes_out_again(tmp_path, capsys):
    bag, settings = tmp_path / "twice", {"clock_mode": "realtime", "max_age_s": 5.0, "max_skew_s": 1.0}
    with policy_node(**settings, committed=True) as (robot, _):
        assert robot.change("configure"), robot.log_text()

        def tick() -> None:
            stamp = now_ns()
            for camera in CAMERAS:
                robot.send_image(camera, image_of(0), stamp)
            robot.send_joints(changed(robot.sample_now(), stamp_ns=stamp))

        def episode() -> None:
            robot.client.trigger("policy_node/start")
            before = len(robot.commands)
            assert robot.until(lambda: len(robot.commands) > before + 10), robot.sentence()
            robot.client.trigger("policy_node/stop")

        with recorder(robot, bag):
            bring_up(robot)
            all_recorded(robot)
            with Pace(robot, 0.05, tick):
                episode()
                assert robot.change("deactivate")
                assert robot.change("cleanup")
                robot.put(np.array(robot.commands[-1].points[-1].positions[: len(HOME)]) + ASIDE)
                assert robot.change("configure")
                bring_up(robot)
                all_recorded(robot)
                episode()
    status = replay.main([str(bag)])
    printed = capsys.readouterr()
    assert status == 0, printed.err
    assert "in 2 episode(s)" in printed.out and "The same commands came out." in printed.out
    with Bag(bag) as read:
        assert [decided.event["event"] for decided in read.decisions].count("configure") == 2
