"""`sim/compare_answers.py`: paired differences of two arms against what normal theory and plain means say."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest

from policies.types import FloatArray, VegaError
from sim.compare_answers import main
from sim.results.spatial.paired import Difference, compare

FILMS, QUESTIONS = 60, 4
KIND = "object_abs_distance"


def run(folder: Path, scores: FloatArray, **more: object) -> Path:
    """scores: (films, questions), nan where the model refused."""
    answers = [
        {
            "task": task, "trial": trial, "kind": KIND, "answer": "", "boxes": [], "error": "",
            "scores": {"score": float(scores[task, trial])}, "corrected": {},
            **({"error": "No.", "scores": {}} if np.isnan(scores[task, trial]) else {}),
        }
        for task in range(len(scores)) for trial in range(scores.shape[1])
    ]  # fmt: skip
    folder.mkdir()
    header = {"benchmark": "libero_space", "split": "layouts", "questions": scores.size, **more}
    (folder / "summary.json").write_text(json.dumps({**header, "answers": answers}))
    return folder


def differences(first: Sequence[Path], second: Sequence[Path]) -> Mapping[str, Difference]:
    return compare(first, second).tasks


def test_the_interval_of_one_seed_is_that_of_paired_means(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(0)
    hard = rng.normal(0, 0.2, (FILMS, 1))  # films that are hard for both: pairing takes it away
    plain = 0.5 + hard + rng.normal(0, 0.05, (FILMS, QUESTIONS))
    better = plain + 0.03 + rng.normal(0, 0.05, (FILMS, 1))
    first, second = run(tmp_path / "a", plain), run(tmp_path / "b", better)
    found = differences([first], [second])[KIND]
    gains = 100 * (better - plain).mean(axis=1)
    half = 1.96 * gains.std(ddof=1) / FILMS**0.5
    assert found.difference == pytest.approx(gains.mean()) == pytest.approx(found.seeds[0])
    assert found.interval_95 == pytest.approx((gains.mean() - half, gains.mean() + half), abs=0.25 * half)
    assert main(["--first", str(first), "--second", str(second)]) == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith(KIND))
    assert f"{gains.mean():+.1f}" in line.split()


def test_seeds_that_disagree_widen_the_interval(tmp_path: Path) -> None:
    flat = np.full((FILMS, QUESTIONS), 0.5)
    first = [run(tmp_path / f"a{seed}", flat) for seed in range(3)]
    second = [run(tmp_path / f"b{seed}", flat + gain) for seed, gain in enumerate((-0.1, 0.0, 0.1))]
    found = differences(first, second)[KIND]
    # No film differs from another: all that is left is which seeds were drawn.
    assert found.seeds == pytest.approx((-10, 0, 10)) and found.difference == pytest.approx(0)
    assert found.interval_95 == pytest.approx((-10, 10), abs=3.5)
    assert differences(first, first)[KIND].interval_95 == (0.0, 0.0)


def test_of_one_film_nothing_is_known_of_others(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Drawn again it is always the same: an interval without any width, far from zero."""
    first, second = run(tmp_path / "a", np.zeros((1, QUESTIONS))), run(tmp_path / "b", np.full((1, QUESTIONS), 0.5))
    found = differences([first], [second])
    assert {(each.difference, each.interval_95) for each in found.values()} == {(50.0, (-100.0, 100.0))}
    assert main(["--first", str(first), "--second", str(second)]) == 0
    assert "-100.0 to +100.0" in capsys.readouterr().out


def test_runs_of_other_questions_are_not_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flat = np.full((FILMS, QUESTIONS), 0.5)
    first = run(tmp_path / "a", flat)
    with pytest.raises(VegaError, match="another split"):
        differences([first], [run(tmp_path / "b", flat, split="test")])
    with pytest.raises(VegaError, match="Not all runs"):
        differences([first], [run(tmp_path / "c", flat[1:], questions=flat.size)])
    assert main(["--first", str(first), str(first), "--second", str(first)]) == 2
    assert "give as many of each" in capsys.readouterr().err
    assert main(["--first", str(tmp_path), "--second", str(first)]) == 2
    assert "has no finished run" in capsys.readouterr().err


def test_runs_about_other_data_are_not_compared_and_those_of_older_versions_are(tmp_path: Path) -> None:
    flat = np.full((FILMS, QUESTIONS), 0.5)
    first, same = run(tmp_path / "a", flat, questions_sha256="a"), run(tmp_path / "b", flat, questions_sha256="a")
    other, older = run(tmp_path / "c", flat, questions_sha256="c"), run(tmp_path / "d", flat)
    unnamed = run(tmp_path / "e", flat, benchmark="vsi_bench", split="")
    named = run(tmp_path / "f", flat, benchmark="vsi_bench", split="test", questions_sha256="a")
    assert differences([first], [same])[KIND].difference == 0
    assert differences([first], [older])[KIND].difference == differences([older], [other])[KIND].difference == 0
    assert differences([unnamed], [named])[KIND].difference == 0
    with pytest.raises(VegaError, match=r"c' has other questions or answers than .*a'"):
        differences([first], [other])
    with pytest.raises(VegaError, match=r"c' has other questions or answers than .*a'"):
        differences([older, first], [same, other])


def test_arms_are_scored_on_what_all_runs_answered(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scores = np.tile([1.0, 1.0, 0.2, 0.2], (FILMS, 1))
    refusing = scores.copy()
    refusing[:, 2:] = np.nan  # the hard half
    refusing[0] = np.nan  # of a film nothing is left
    first, second, again = (run(tmp_path / name, s) for name, s in zip("abd", (scores, refusing, scores), strict=True))
    for arms in ([first], [second]), ([second], [first]), ([first, again], [first, second]):
        found = differences(*arms)[KIND]
        assert (found.first, found.difference, found.interval_95) == (100, 0, (0, 0))
    assert main(["--first", str(first), "--second", str(second)]) == 0
    left_out, of = 4 + 2 * (FILMS - 1), FILMS * QUESTIONS
    said = capsys.readouterr().out
    assert f"{of - left_out} of {of} questions, which all runs answered" in said
    assert f"refused: first 0, second {left_out}" in said
    with pytest.raises(VegaError, match="no question that all runs answered"):
        differences([run(tmp_path / "c", np.where(np.isnan(refusing), 1.0, np.nan))], [second])


def test_an_answer_to_another_question_is_not_paired(tmp_path: Path) -> None:
    first = run(tmp_path / "a", np.full((FILMS, QUESTIONS), 0.5))
    other = json.loads((first / "summary.json").read_text())
    other["answers"][0]["kind"] = "object_counting"
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "summary.json").write_text(json.dumps(other))
    with pytest.raises(VegaError, match="Not all runs were asked the same"):
        differences([first], [tmp_path / "b"])


@pytest.mark.parametrize(
    ("answers", "part"),
    [
        ([], "has no answer with a score"),
        ([{"error": "", "task": 0}], "cannot be read"),
        ([{"task": 0}], "cannot be read .'error'."),
        (None, "cannot be read"),
    ],
)
def test_a_run_without_answers_is_one_sentence_without_a_table(
    answers: object, part: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "summary.json").write_text(json.dumps({"benchmark": "libero_space", "answers": answers}))
    assert main(["--first", str(tmp_path), "--second", str(tmp_path)]) == 2
    out, error = capsys.readouterr()
    assert not out and re.search(part, error) and error.count("\n") == 1


def test_a_run_named_twice_is_no_second_seed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It would make the interval narrower; the same run in both arms is a comparison with itself, and says 0."""
    flat = np.full((FILMS, QUESTIONS), 0.5)
    first, second = run(tmp_path / "a", flat), run(tmp_path / "b", flat)
    again = tmp_path / "b" / ".." / "b"
    assert main(["--first", str(first), str(first), "--second", str(second), str(again)]) == 2
    assert f"Run '{first}' is named twice: name each once" in capsys.readouterr().err
    with pytest.raises(VegaError, match="is named twice"):
        compare([first, second], [second, again])
