"""What `python -m benchmarks.house` counts is there, and is noticed when it is not."""

from __future__ import annotations

from pathlib import Path

from benchmarks.house import repeated_blocks


def write(path: Path, lines: list[str]) -> Path:
    path.write_text("\n".join(lines) + "\n")
    return path


def test_a_block_in_two_places_is_one_pair_whatever_its_length_and_indent(tmp_path: Path) -> None:
    block = [f"line {n}" for n in range(14)]
    one = write(tmp_path / "one.py", ["first", *block, "last"])
    other = write(tmp_path / "other.py", ["", *(f"    {line}" for line in block[:7]), "", *block[7:], "end"])
    assert repeated_blocks([one, other]) == [(f"{one}:2", f"{other}:2")]
    third = write(tmp_path / "third.py", [*block[:9], "other", *block[9:]])
    assert repeated_blocks([one, third]) == []


def test_a_file_that_repeats_itself_is_noticed(tmp_path: Path) -> None:
    block = [f"line {n}" for n in range(10)]
    path = write(tmp_path / "one.py", [*block, "between", *block])
    assert repeated_blocks([path]) == [(f"{path}:1", f"{path}:12")]
