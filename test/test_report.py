"""The demonstration's page and video: right, self-contained, and whole or absent."""

import contextlib
import re
import resource
from html.parser import HTMLParser

import imageio_ffmpeg
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from policies.types import VegaError
from sim.results.charts import HEIGHT, WIDTH, Series, bar_chart, line_chart, ticks
from sim.results.report import Recording, Stage, page, side_by_side, write_page
from sim.results.video import write_video

finite = st.floats(-1e4, 1e4, allow_nan=False)


def recording(**changes):
    times = np.arange(20) * 0.05
    rng = np.random.default_rng(0)
    frames = {
        camera: [(time, rng.integers(0, 255, (64, 64, 3), dtype=np.uint8)) for time in times]
        for camera in ("agentview", "wrist")
    }
    values = {
        "suite": "libero_object",
        "task": 3,
        "trial": 0,
        "policy": "vega-nano",
        "instruction": "pick up the milk",
        "success": True,
        "steps": 19,
        "max_steps": 280,
        "last_measured": "97.0 % of 100 episodes",
        "measured_times": times,
        "measured": np.linspace(0, 1, 140).reshape(20, 7),
        "finger_opening": np.full(20, 0.04),
        "commanded_times": times[1:],
        "commanded": np.linspace(0, 1, 140).reshape(20, 7)[1:] + 0.002,
        "gripper_command": np.full(19, 0.04),
        "frames": frames,
        "gates": {"agentview": [(0.0, np.arange(4, dtype=np.uint8).reshape(2, 2))]},
        "stages": [Stage("policy, one query", 28.0, 31.5, 40.25, 3)],
        "versions": {"mujoco": "3.3.2"},
    }
    return Recording(**{**values, **changes})


class Outline(HTMLParser):
    """Collects what a page shows and refers to; fails on tags that do not close."""

    VOID = frozenset({"meta", "img", "line", "rect", "path"})

    def __init__(self, text):
        super().__init__()
        self.open, self.text, self.sources, self.counts = [], "", [], {}
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.counts[tag] = self.counts.get(tag, 0) + 1
        self.sources += [value for name, value in attributes if name in ("src", "href")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.counts[tag] = self.counts.get(tag, 0) + 1

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


@given(low=finite, span=st.floats(1e-6, 1e4), count=st.integers(1, 10))
def test_ticks_are_round_and_inside(low, span, count):
    values = ticks(low, low + span, count)
    slack = 1e-6 * max(1.0, abs(low)) + 1e-6 * span
    assert all(low - slack <= value <= low + span + slack for value in values)
    assert len(values) <= count + 1
    if len(values) > 1:
        step = np.diff(values).mean()
        assert f"{step:.0e}"[0] in "125"


@given(y=arrays(np.float64, st.integers(1, 30), elements=finite), steps=st.booleans())
def test_a_line_stays_inside_its_chart(y, steps):
    svg = line_chart([Series(np.arange(y.size) * 0.05, y, "measured", steps)], "label")
    path = re.search(r' d="([^"]+)"', svg).group(1)
    for command, numbers in re.findall(r"([MLHV])([-\d. ]+)", path):
        values = [float(n) for n in numbers.split()]
        xs = values if command == "H" else [] if command == "V" else values[:1]
        ys = values if command == "V" else [] if command == "H" else values[1:]
        assert all(0 <= x <= WIDTH for x in xs) and all(0 <= v <= HEIGHT for v in ys)


def test_bars_grow_with_the_values():
    svg = bar_chart([("a", (1.0, 2.0, 4.0)), ("b", (10.0, 20.0, 40.0))], ("p50", "p95", "p99"), "label", "ms")
    widths = {}
    for style, width in re.findall(r'<rect class="(p\d\d)"[^>]* width="([\d.]+)"', svg):
        widths.setdefault(style, []).append(float(width))
    for a, b in widths.values():
        assert a < b
    assert widths["p50"][0] < widths["p95"][0] < widths["p99"][0]


def test_the_page_shows_everything_and_needs_nothing_else():
    outline = Outline(page(recording(), b"video"))
    for words in ("pick up the milk", "Solved in 19 steps", "97.0 %", "40.25", "joint 7", "2.0 mrad", "3.3.2"):
        assert words in outline.text, words
    assert outline.counts["video"] == 1
    assert outline.counts["img"] == 8 + 8 + 1, "two filmstrips and one gate map"
    assert outline.counts["svg"] == 8 + 1
    assert all(source.startswith("data:") for source in outline.sources)


def test_text_of_others_cannot_become_markup():
    text = page(recording(instruction="<script>alert(1)</script>", error='"><b>broken'), None)
    outline = Outline(text)
    assert "script" not in outline.counts and "b" not in outline.counts
    assert "<script>alert(1)</script>" in outline.text


def test_an_episode_that_never_began_still_gives_a_page():
    outline = Outline(page(Recording("libero_object", 0, 0, "vega-nano", error="sim_node ended"), None))
    assert "Ended with an error after 0 steps: sim_node ended" in outline.text


def test_pictures_beside_each_other_are_of_the_same_moment():
    first, second = np.zeros((2, 2, 3), np.uint8), np.full((2, 2, 3), 9, np.uint8)
    frames = {"a": [(0.0, first), (0.1, second)], "b": [(0.0, second), (0.1, first)]}
    left, right = side_by_side(frames)
    assert left[0, 0, 0] == 0 and left[0, 2, 0] == 9 and right[0, 0, 0] == 9 and right[0, 2, 0] == 0


def test_the_video_has_every_frame(tmp_path):
    path = tmp_path / "a.mp4"
    write_video(path, side_by_side(recording().frames), 20.0)
    assert imageio_ffmpeg.count_frames_and_secs(str(path)) == (20, pytest.approx(1.0))
    reader = imageio_ffmpeg.read_frames(str(path))
    assert next(reader)["size"] == (128, 64)
    reader.close()


@contextlib.contextmanager
def full_disk():
    """The system refuses to let any file grow beyond 2 kB, as a full disk would; pytest's own log included."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2048, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_is_one_sentence_and_leaves_what_was_there(tmp_path):
    old = tmp_path / "a.html"
    old.write_text("old")
    with full_disk(), pytest.raises(VegaError, match=r"could not be written .*make room"):
        write_page(recording(), old, None)
    with full_disk(), pytest.raises(VegaError, match=r"could not be written .*make room"):
        write_video(tmp_path / "a.mp4", side_by_side(recording().frames), 20.0)
    assert [path.name for path in tmp_path.iterdir()] == ["a.html"] and old.read_text() == "old"
