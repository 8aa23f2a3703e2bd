"""The demonstration, from command line to page, with a real simulator and two processes over DDS."""

import json
import os
import subprocess
import sys
from pathlib import Path

import imageio_ffmpeg
import pytest

pytest.importorskip("rclpy")

from sim import demo
from sim.robot.recorder import stages

ROOT = Path(__file__).resolve().parent.parent
DEADLINE_S = 900.0


def test_an_episode_ends_in_an_outcome_a_video_and_a_page(tmp_path):
    # A policy that waves its arm suffices: what is tested is everything around it.
    process = subprocess.run(
        [
            *(sys.executable, "-m", "sim.demo", "--suite", "libero_object", "--task", "3", "--trial", "1"),
            *("--policy", "tiny_policy:TinyPolicy", "--camera-every", "4", "--output", str(tmp_path)),
        ],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'test'}"},
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
    )
    assert process.returncode == 0, process.stdout + process.stderr
    stem = tmp_path / "libero_object_task3_trial1"
    for words in ("bbq sauce", "not solved within 280 steps", "none was measured", f"{stem}.mp4", f"{stem}.html"):
        assert words in process.stdout, words
    frames, seconds = imageio_ffmpeg.count_frames_and_secs(f"{stem}.mp4")
    assert frames >= 71 and seconds == pytest.approx(frames / 5.0, rel=0.05)
    text = Path(f"{stem}.html").read_text()
    assert "data:video/mp4" in text and "The fusion gate" in text and text.count("mrad apart") == 7
    for stage in ("policy, one query", "kinematics and safety guard, one step", "thinking", "on the wire"):
        assert stage in text, stage


def test_nothing_is_started_where_nothing_can_be_written(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert demo.main(["--output", str(tmp_path / "file" / "folder")]) == 1
    captured = capsys.readouterr()
    assert "--output" in captured.err and captured.err.count("\n") == 1 and captured.out == ""


@pytest.mark.parametrize(
    ("wrong", "part"),
    [
        (["--suite", "libero_objekt"], "choose one such as"),
        (["--task", "10"], "has tasks 0 to 9: task 10 does not exist"),
        (["--trial", "-1"], "has initial states 0 to 49: --trial -1 does not exist"),
        (["--trial", "50"], "has initial states 0 to 49: --trial 50 does not exist"),
        (["--camera-every", "0"], "--camera-every 0 is none"),
    ],
)
def test_nothing_is_started_for_what_does_not_exist(wrong, part, tmp_path, capsys):
    assert demo.main([*wrong, "--output", str(tmp_path / "demo")]) == 1
    output = capsys.readouterr()
    assert part in output.err and output.out == ""


def test_the_success_rate_is_the_one_last_measured(tmp_path, monkeypatch):
    results = {"libero_object": {"success_rate": 0.97, "wilson_95": [0.915, 0.9897], "episodes": 100, "command": "x"}}
    (tmp_path / "results.json").write_text(json.dumps(results))
    monkeypatch.setattr(demo, "shipped_policies", lambda: {"vega-nano": tmp_path})
    expected = "97.0 % of 100 episodes of libero_object (95 % interval 91.5 to 99.0 %)"
    assert demo.last_measured("vega-nano", "libero_object") == expected
    assert "none was measured" in demo.last_measured("vega-nano", "libero_goal")
    assert "none was measured" in demo.last_measured("/some/folder", "libero_object")


def test_progress_is_one_rewritten_line_on_a_terminal_and_rare_lines_in_a_log():
    written = {}
    for rewrites in (True, False):
        parts = []
        terminal = demo.Terminal(parts.append, rewrites)
        for step in range(1, 101):
            terminal.step(step, 280, 2.5)
        terminal.phase("done")
        written[rewrites] = "".join(parts)
    assert written[True].count("\n") == 2 and written[True].count("\r") == 100
    assert written[False].count("\n") == 3 and "step  80/280" in written[False]


def test_stages_are_read_from_diagnostics():
    values = {"policy_ms_p50": "28.0", "policy_ms_p95": "30", "policy_ms_p99": "41.5", "policy_count": "7", "else": "x"}
    (stage,) = stages(values)
    assert (stage.p50, stage.p95, stage.p99, stage.count) == (28.0, 30.0, 41.5, 7) and "policy" in stage.name
