"""Numbers that options cannot have are one sentence, before anything is read or built."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest


@pytest.mark.parametrize("value", ["nan", "inf", "0", "-1", "much"])
@pytest.mark.parametrize(
    ("program", "option", "words"),
    [
        ("policies.training.train_nano", "--lr", ["--data", "nowhere"]),
        ("policies.training.distil", "--lr", ["--data", "nowhere", "--policy", "vega-nano"]),
        ("policies.training.train_spatial", "--lr", ["--data", "nowhere"]),
        ("policies.training.train_world_simulator", "--lr", ["--data", "nowhere"]),
        ("policies.training.study", "--lr", ["--data", "nowhere", "--world-simulator", "nowhere"]),
        ("policies.training.train_vega", "--lr", ["--data", "nowhere", "--policy", "vega-nano"]),
        ("policies.training.train_vega", "--gpu-tflops", ["--plan"]),
        ("policies.correspondence", "--voxel", ["nowhere"]),
    ],
)
def test_a_number_that_has_to_be_above_0_and_finite_is(
    program: str, option: str, words: list[str], value: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    package = program.endswith(("study", "correspondence"))
    module = importlib.import_module(f"{program}.__main__" if package else program)
    output = tmp_path / "out"
    assert module.main([*words, "--output", str(output), option, value]) == 2
    assert f"error: {option} {value} is" in capsys.readouterr().err
    assert not output.exists()


def test_where_a_training_stops_and_its_encoders_size_count_something(capsys: pytest.CaptureFixture[str]) -> None:
    main = importlib.import_module("policies.training.train_nano").main
    for option, value in (("--until", "-1"), ("--until", "0"), ("--encoder-blocks", "-2")):
        assert main(["--data", "nowhere", "--output", "/proc/x", option, value]) == 2
        assert option in capsys.readouterr().err
