"""An option that names a file or a folder is given one: an empty string would be the current folder."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

PROGRAMS = [
    ("policies.training.train_nano", "--output", ["--data", "nowhere"]),
    ("policies.training.train_nano", "--data", []),
    ("policies.training.train_vega", "--tokens", ["--plan"]),
    ("policies.training.study.__main__", "--world-simulator", ["--data", "nowhere"]),
    ("policies.compose", "--output", ["--openvla", "nowhere"]),
    ("policies.world_simulator.__main__", "--output", ["export-prompt", "nowhere"]),
    ("policies.correspondence.__main__", "--wan", ["nowhere"]),
    ("sim.run_libero", "--output", []),
    ("sim.run_libero", "--record", []),
    ("sim.run_robosuite", "--output", []),
    ("sim.run_spatial", "--data", []),
    ("sim.compare", "--output", ["nowhere"]),
    ("sim.demo", "--output", []),
    ("sim.ask", "--output", []),
    ("sim.render_views", "--output", []),
    ("sim.space.collect", "--output", []),
    ("sim.demonstrations.collect_skills", "--output", []),
    ("sim.worlds.export_urdf", "output", []),
    ("vega3d_ros.recording.replay", "bag", []),
    ("benchmarks.closed_loop", "--output", []),
    ("benchmarks.prior.__main__", "--record", []),
]


@pytest.mark.parametrize("value", ["", " "])
@pytest.mark.parametrize(("program", "option", "words"), PROGRAMS)
def test_an_empty_string_is_no_path(
    program: str, option: str, words: list[str], value: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    main = importlib.import_module(program).main
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        main([*words, *([option] if option.startswith("-") else []), value])
    last = capsys.readouterr().err.splitlines()[-1]
    assert ended.value.code == 2
    assert f"error: argument {option}: '{value}' names no file or folder: give its path" in last
    assert not list(tmp_path.iterdir())
