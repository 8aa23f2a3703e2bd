"""The demonstration's page and video: right, self-contained, and whole or absent."""

import base64
import contextlib
import re
import resource
from html.parser import HTMLParser

import cv2
import imageio_ffmpeg
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from policies.types import VegaError
from sim.results.charts import HEIGHT, WIDTH, Series, bar_chart, line_chart, ticks
from sim.results.report import Recording, Stage, _gate_range, _overlay, page, side_by_side, write_page
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


def jpeg(url):
    return cv2.imdecode(np.frombuffer(base64.b64decode(url.partition("base64,")[2]), np.uint8), cv2.IMREAD_COLOR)


def test_the_colours_of_the_gate_are_those_that_the_scale_beside_it_explains():
    gate = np.full((64, 64), 255, np.uint8)
    gate[:32, :32], gate[:32, 32:] = 100, 160  # the lowest and the highest share that occur
    text = page(recording(gates={"agentview": [(0.0, gate)]}), b"film")
    assert "0.39 more geometry" in text and "0.63 more semantics" in text
    bar = [tuple(map(int, colour)) for colour in re.findall(r"rgb\((\d+) (\d+) (\d+)\)", text)]
    assert len(bar) == 9
    black = np.zeros((64, 64, 3), np.uint8)
    seen = _overlay(black, gate, 100, 160)
    assert np.abs(seen[5, 5] - 0.7 * np.array(bar[0])).max() <= 1  # violet at the low end
    assert np.abs(seen[5, 60] - 0.7 * np.array(bar[-1])).max() <= 1  # yellow at the high end
    assert not seen[40].any()


@given(arrays(np.uint8, (3, 3)))
@example(np.full((3, 3), 242, np.uint8))
def test_the_scale_spans_what_occurs_and_never_exaggerates(gate):
    low, high = _gate_range([gate])
    looked = gate[gate < 255]
    assert 0 <= low < high <= 254 and high - low >= 26
    assert not looked.size or (low <= looked.min() and looked.max() <= high)


def test_commanded_minus_measured_is_plotted_with_its_sign():
    # Commands are for the time at which they shall be reached: 2 mrad above the arm, once 5 below.
    measured = np.zeros((20, 7))
    commanded = np.full((19, 7), 0.002)
    commanded[9] = -0.005
    text = page(recording(measured=measured, commanded=commanded), None)
    paths = re.findall(r'<path class="difference" d="([^"]+)"', text)
    assert len(paths) == 7 and text.count("at most 5.0 mrad apart") == 7
    heights = [float(y) for y in re.findall(r"[ML][\d.]+ ([\d.]+)", paths[0])]
    assert len(heights) == 19 and heights.index(max(heights)) == 9 and len(set(heights)) == 2


def test_the_video_has_a_poster_of_a_moment_in_the_middle():
    record = recording()
    text = page(record, b"film")
    poster = jpeg(re.search(r'poster="([^"]+)"', text).group(1))
    middle = side_by_side(record.frames)[10][:, :, ::-1]
    assert poster.shape == middle.shape == (64, 128, 3)
    # JPEG of noise: nearer to its own frame than to any other.
    frames = [frame[:, :, ::-1].astype(int) for frame in side_by_side(record.frames)]
    assert np.argmin([np.abs(poster - frame).mean() for frame in frames]) == 10


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
    assert outline.counts["svg"] == 7 + 1 + 7 + 1, "angles, finger, differences, latency"
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
