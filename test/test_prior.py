"""The rows of `python -m benchmarks.prior` follow from the episodes that are there, and say what is not."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import closed_loop
from benchmarks.closed_loop import run_folder
from benchmarks.prior import __main__ as prior
from benchmarks.prior import repeated
from benchmarks.prior.correspondence import correspondence, read_table
from benchmarks.prior.evaluations import Condition, Evaluations, Trained
from benchmarks.prior.recorded import letters, recorded
from benchmarks.rows import Rows
from policies.checkpoints import checkpoint_sha256, find_checkpoint
from policies.training.study.arms import SEVEN
from policies.types import DEFAULT_POLICY, VegaError
from sim.results.paired import compare_arms

SUITES = ["libero_object", "libero_object_swap", "libero_object:camera"]
RATES = {"semantic": 3, "prior": 6, "noise": 1}  # of ten trials' tasks, how many are solved at first


def checkpoint(folder: Path, text: str) -> str:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"name": text}))
    return checkpoint_sha256(str(folder))


def evaluation(output: Path, policy: Path, suite: str, solved: int, control: str = "on") -> Path:
    """A run of one trial per task, the first `solved` tasks of which are."""
    condition = Condition.read(suite)
    folder = run_folder(output, str(policy), condition.suite, control=control, further=condition.words)
    folder.mkdir(parents=True)
    episodes = [{"task": task, "trial": 0, "success": task < solved, "error": ""} for task in range(10)]
    text = {"checkpoint_sha256": checkpoint_sha256(str(policy)), "episodes": episodes}
    (folder / "summary.json").write_text(json.dumps(text))
    return folder


@pytest.fixture
def study(tmp_path: Path) -> Path:
    """Three arms with three seeds, each evaluated on three suites; the prior is worth something, noise costs it."""
    runs = []
    for arm, solved in RATES.items():
        for seed in range(3):
            folder = tmp_path / "runs" / f"{arm}-{seed}"
            digest = checkpoint(folder, f"{arm} {seed}")
            runs.append({"arm": arm, "seed": seed, "checkpoint_sha256": digest})
            for suite in SUITES:
                evaluation(tmp_path / "evaluations", folder, suite, solved + (seed == 2))
                if arm == "prior":
                    evaluation(tmp_path / "evaluations", folder, suite, 1, "noise")
    (tmp_path / "study.json").write_text(json.dumps({"runs": runs}))
    return tmp_path


def rows(study: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, list[str]]:
    words = ["--study", str(study), "--suites", *SUITES, "--episodes", "30", "--print-only"]
    assert prior.main(words) == 1  # three arms are no seven
    said = capsys.readouterr().out.splitlines()
    return {line.split()[0]: line.split() for line in said if not line.startswith("#")}


def test_rows_follow_from_the_episodes(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = rows(study, capsys)
    assert found["arm_seed_runs_finished_with_checkpoint_hash"][1:] == ["9", ">=21", "FAIL"]
    assert found["episodes_of_each_run"][1:] == ["30", ">=200", "FAIL"]
    assert found["prior_minus_semantic_libero_object_swap_points"][1:] == ["30", "-", "ok"]
    assert found["noise_minus_semantic_libero_object_camera_points"][1] == "-20"
    assert found["prior_minus_noise_libero_object_swap_points"][1] == "50"
    assert found["prior_minus_noise_all_suites_points"][1] == "50"
    assert found["prior_minus_semantic_all_suites_states"][1] == "30"  # ten in each of three
    assert found["noise_all_suites_success_percent"][1] == "13.33"
    assert not any("prior_minus_prior" in name or "semantic_minus_semantic" in name for name in found)
    low = float(found["prior_minus_semantic_libero_object_points_at_least"][1])
    assert 0 <= low < 30
    assert found["prior_libero_object_success_percent"][1] == "63.33"
    assert found["prior_minus_noise_in_its_place_libero_object_swap_points"][1] == "53.33"
    assert found["best_arm_points_lost_to_noise_at_least_where_most"][-1] == "ok"
    assert "prior_minus_noise_in_its_place_libero_object_points" not in found  # nothing is moved there
    assert found["distilled_act_times_faster"][1:4] == ["missing", "-", "FAIL"]
    assert found[repeated.NAME][3] == "FAIL"


def test_studies_are_joined_by_their_records(study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Rows do not change where seeds come from records, though no checkpoint of those is left."""
    whole = rows(study, capsys)
    runs = json.loads((study / "study.json").read_text())["runs"]
    settings = ["--suites", *SUITES, "--episodes", "30", "--print-only"]
    for seed in (0, 1):
        part = json.dumps({"runs": [run for run in runs if run["seed"] == seed]})
        (study / "study.json").write_text(part)
        prior.main(["--study", str(study), "--record", str(tmp_path / f"{seed}.json"), *settings])
        for arm in RATES:
            (study / "runs" / f"{arm}-{seed}" / "config.json").unlink()
    (study / "study.json").write_text(json.dumps({"runs": [run for run in runs if run["seed"] == 2]}))
    records = [str(tmp_path / "0.json"), str(tmp_path / "1.json")]
    capsys.readouterr()
    assert prior.main(["--study", str(study), "--recorded", *records, *settings]) == 1
    said = [line for line in capsys.readouterr().out.splitlines() if not line.startswith("#")]
    assert {line.split()[0]: line.split() for line in said} == whole
    assert prior.main(["--recorded", *records, *settings]) == 1  # and no study at all
    assert "arm_seed_runs_finished_with_checkpoint_hash 6 >=21 FAIL" in " ".join(capsys.readouterr().out.split())
    assert prior.main(["--recorded", records[0], records[0], *settings]) == 1  # the same file is one study
    assert "arm_seed_runs_finished_with_checkpoint_hash 3 >=21 FAIL" in " ".join(capsys.readouterr().out.split())
    assert prior.main(["--recorded", *records, "--record", str(tmp_path / "2.json"), *settings]) == 2
    assert "give its folder as --study" in capsys.readouterr().err
    nowhere = Path(records[0]) / "2.json"  # below a file
    assert prior.main(["--study", str(study), "--record", str(nowhere), *settings]) == 2
    assert "give another --record" in capsys.readouterr().err
    runs[0]["seed"] = 1
    (study / "study.json").write_text(json.dumps({"runs": runs[:1]}))
    assert prior.main(["--study", str(study), "--recorded", *records, *settings]) == 2
    assert "have seed 1 of semantic: give studies of different --seeds" in capsys.readouterr().err
    with pytest.raises(VegaError, match="is no record of a study"):
        (tmp_path / "other.json").write_text(json.dumps({"recorded": [{"arm": "prior"}]}))
        recorded(tmp_path / "other.json")
    with pytest.raises(VegaError, match="is no record of a study"):
        (tmp_path / "other.json").write_text((tmp_path / "0.json").read_text().replace('"0"', '"2"'))
        recorded(tmp_path / "other.json")


@given(st.lists(st.lists(st.sampled_from("01x"), max_size=6), min_size=1, max_size=10))
def test_letters_say_what_each_episode_came_to(table: list[list[str]]) -> None:
    episodes = [
        {"task": task, "trial": trial, "success": letter == "1", "error": "why" if letter == "x" else ""}
        for task, row in enumerate(table)
        for trial, letter in enumerate(row)
    ]
    found = letters(list(reversed(episodes)))
    assert found + [""] * (len(table) - len(found)) == ["".join(row) for row in table]


def test_what_is_missing_or_another_is_not_counted(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (study / "runs" / "prior-1" / "config.json").write_text("{}")  # another checkpoint than the study's
    folder = run_folder(study / "evaluations", str(study / "runs" / "prior-2"), "libero_object_swap", control="noise")
    (folder / "summary.json").unlink()
    found = rows(study, capsys)
    assert found["arm_seed_runs_finished_with_checkpoint_hash"][1] == "8"
    assert found["prior_minus_semantic_libero_object_swap"][1:4] == ["missing", "-", "FAIL"]
    assert found["prior_minus_semantic_libero_object_swap_points"][1] == "30"  # of the two seeds that are left
    assert found["best_arm_points_lost_to_noise"][1] == "missing"


def test_a_noise_run_that_is_missing_is_said(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = run_folder(study / "evaluations", str(study / "runs" / "prior-2"), "libero_object_swap", control="noise")
    (folder / "summary.json").unlink()
    found = rows(study, capsys)
    assert found["best_arm_points_lost_to_noise_libero_object_swap"][1] == "missing"
    assert "best_arm_points_lost_to_noise_at_least_where_most" not in found


@pytest.mark.parametrize(("noisy", "judged"), [(2, "ok"), (9, "FAIL"), (None, "")])
def test_what_the_shipped_default_loses_to_noise_is_told_where_it_was_tried(
    study: Path, capsys: pytest.CaptureFixture[str], noisy: int | None, judged: str
) -> None:
    for suite, (control, solved) in itertools.product(SUITES[1:], {"on": 9, "noise": noisy}.items()):
        if solved is not None:
            evaluation(study / "evaluations", find_checkpoint(DEFAULT_POLICY), suite, solved, control)
    found, name = rows(study, capsys), "shipped_default_points_lost_to_noise"
    if noisy is None:
        assert found[f"{name}_{SUITES[1]}"][3] == "FAIL" and f"{name}_at_least_where_most" not in found
    else:
        assert float(found[f"{name}_{SUITES[1]}_points"][1]) == 10.0 * (9 - noisy)
        assert found[f"{name}_at_least_where_most"][-1] == judged


def test_other_arms_that_were_tried_with_noise_are_told_too(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = json.loads((study / "study.json").read_text())["runs"]
    for arm, seed in itertools.product(("vae", "untrained"), range(3)):
        folder = study / "runs" / f"{arm}-{seed}"
        runs.append({"arm": arm, "seed": seed, "checkpoint_sha256": checkpoint(folder, f"{arm} {seed}")})
        for suite in SUITES:
            evaluation(study / "evaluations", folder, suite, 4)
            if arm == "vae":
                evaluation(study / "evaluations", folder, suite, 2, "noise")
    (study / "study.json").write_text(json.dumps({"runs": runs}))
    found = rows(study, capsys)
    assert found["vae_minus_noise_in_its_place_libero_object_swap_points"][1] == "20"
    assert found["prior_minus_noise_in_its_place_libero_object_swap_points"][1] == "53.33"
    assert not any("untrained_minus_noise_in" in name for name in found), "nobody asked for it"
    assert found["best_arm_points_lost_to_noise_at_least_where_most"][-1] == "ok"


def test_scores_of_encoders_are_told_beside_what_their_arms_solve(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Arms that solve more the better they find places again, and the other way round by the paper's score."""
    solved = {"prior": 2, "untrained": 1, "vae": 3, "imagenet": 6, "semantic": 9}
    found = {}
    for arm, count in solved.items():
        folder = tmp_path / f"{arm}-0"
        (folder / "world_simulator").mkdir(parents=True)
        (folder / "world_simulator" / "world_simulator.json").write_text(json.dumps({"noise_index": 300, "tap": 3}))
        tried = [{"task": task, "trial": 0, "success": task < count, "error": ""} for task in range(10)]
        found[Trained(arm, 0, folder, {})] = {Condition("libero_object"): tried}
    places = [("ws", 300, 3), ("ws, random weights", 300, 3), ("ws", 0, -1)]
    places += [("efficientnet-lite0", None, 10)]
    scored = [
        {"encoder": encoder, "k": k, "block": block, "raw": 90 - own, "gap": own, "retrieval": own}
        for (encoder, k, block), own in zip(places, (6.0, 5.0, 7.0, 23.0), strict=True)
    ]
    (tmp_path / "table.json").write_text(json.dumps({"rows": [*scored, scored[0] | {"k": 700}]}))
    readings = read_table(tmp_path / "table.json", "ws")
    correspondence(Rows(), readings, "ws", found)
    said = dict(line.split()[:2] for line in capsys.readouterr().out.splitlines())
    assert said["correspondence_ws_k700_block3_gap_percent"] == "6"
    assert said["correspondence_readings_of_a_random_network"] == "1"
    assert said["correspondence_rank_correlation_of_retrieval_and_success_of_4_arms"] == "1"
    assert said["correspondence_rank_correlation_of_raw_and_success_of_4_arms"] == "-1"
    alike = {place: dict.fromkeys(of, 5.0) for place, of in readings.items()}
    correspondence(rows := Rows(), alike, "ws", found)
    assert len(rows.failed) == 3 and all("rank_correlation" in name for name in rows.failed)
    correspondence(rows := Rows(), readings, "ws", dict(list(found.items())[:3]))
    assert rows.failed == ["correspondence_rank_correlation"]
    with pytest.raises(VegaError, match="--scored-as"):
        read_table(tmp_path / "table.json", "another")
    (tmp_path / "other.json").write_text(json.dumps({"rows": [{"step": 1}]}))
    with pytest.raises(VegaError, match="is no table of"):
        read_table(tmp_path / "other.json", "ws")


def test_a_run_that_comes_out_otherwise_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The words of a run are those of its training; what they print is compared to the last digit."""
    line = {"step": 2, "seconds": 3.0, "train": {"action": 0.5}, "held_out": {"action": 0.25}}
    folder = tmp_path / "study" / "runs" / "prior-0"
    folder.mkdir(parents=True)
    (folder / "log.jsonl").write_text(json.dumps(line) + "\n")
    # The study has moved since; its data has not.
    words = ["--data", "/data/d", "--cache", "/before/study/cache", "--output", "/before/study/runs/prior-0"]
    run = Trained("prior", 0, folder, {"words": words})
    cache = str(tmp_path / "study" / "cache")
    for factor, verdict in ((1.0, "ok"), (1.0 + 1e-15, "FAIL")):
        program = (
            "import json, sys; at = sys.argv.index('--output') + 1; assert sys.argv[-2:] == ['--until', '2'];"
            f"assert sys.argv[2] == '/data/d' and sys.argv[4] == {cache!r};"
            "older = {'--progress-loss': 'l1', '--normalise': 'all'};"
            "assert all(sys.argv[sys.argv.index(option) + 1] == value for option, value in older.items());"
            f"line = {line!r}; line['seconds'] = 9; line['held_out']['action'] *= {factor!r};"
            "open(sys.argv[at] + '/log.jsonl', 'w').write(json.dumps(line) + chr(10))"
        )
        (tmp_path / "stand_in.py").write_text(program)
        monkeypatch.setattr(repeated, "TRAINING", [str(tmp_path / "stand_in.py")])
        repeated.repeat(Rows(), [run], "prior", run=True)
        assert capsys.readouterr().out.splitlines()[-1].endswith(verdict)


@given(st.lists(st.tuples(st.integers(0, 4), *[st.booleans()] * 4), min_size=1, max_size=30))
def test_two_arms_on_the_same_states(outcomes: list[tuple[int, ...]]) -> None:
    """Two seeds of two arms; the difference is the mean over both, and no interval leaves it out."""
    runs = [
        [{"task": row[0], "trial": i, "success": row[1 + k], "error": ""} for i, row in enumerate(outcomes)]
        for k in range(4)
    ]
    runs[0].append({"task": 0, "trial": 99, "success": False, "error": "the renderer died"})  # says nothing
    for other in runs[1:]:
        other.append({"task": 0, "trial": 99, "success": True, "error": ""})
    found = compare_arms(runs[:2], runs[2:])
    gained = [(row[3] + row[4] - row[1] - row[2]) / 2 for row in outcomes]
    assert found.states == len(outcomes) and found.tasks == len({row[0] for row in outcomes})
    assert found.difference == pytest.approx(100 * sum(gained) / len(gained))
    low, high = found.interval_95
    assert low - 1e-2 <= found.difference <= high + 1e-2
    assert sum(found.seeds) / 2 == pytest.approx(found.difference)
    other = compare_arms(runs[2:], runs[:2])
    assert other.interval_95 == pytest.approx((-high, -low), abs=0.02)


@given(st.lists(st.tuples(*[st.booleans()] * 4), min_size=2, max_size=8), st.integers(2, 6))
def test_states_that_say_the_same_say_no_more_than_one(outcomes: list[tuple[bool, ...]], copies: int) -> None:
    """A suite whose initial states of a task are near-copies of one is as good as one with a state for each task."""
    once, often = (
        [[{"task": t, "trial": i, "success": row[k], "error": ""} for t, row in enumerate(outcomes) for i in range(n)]
         for k in range(4)] for n in (1, copies)
    )  # fmt: skip
    assert compare_arms(often[:2], often[2:]).interval_95 == compare_arms(once[:2], once[2:]).interval_95


def test_one_task_says_nothing_of_others() -> None:
    run = [{"task": 3, "trial": i, "success": True, "error": ""} for i in range(20)]
    assert compare_arms([run], [run]).interval_95 == (-100.0, 100.0)


def test_an_episode_with_an_error_is_tried_again(study: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    policy = study / "runs" / "prior-0"
    folder = run_folder(study / "evaluations", str(policy), "libero_object")
    summary = json.loads((folder / "summary.json").read_text())
    summary["episodes"][3] |= {"error": "the renderer died", "success": False}
    (folder / "summary.json").write_text(json.dumps(summary))
    said = []

    def run(words: list[str]) -> int:
        said.append(words)
        summary["episodes"][3] |= {"error": "", "success": True}
        (folder / "summary.json").write_text(json.dumps(summary))
        return 0

    monkeypatch.setattr(closed_loop.run_libero, "main", run)
    runs = Evaluations(study / "evaluations", 1, 1, run=True)
    for _ in range(2):
        found = runs.episodes(Trained("prior", 0, policy, {}), Condition("libero_object"))
        assert found is not None and found[3]["success"]
    assert len(said) == 1 and "--resume" in said[0]


def test_runs_of_a_sweep_are_no_arms_that_were_asked_for(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert prior.ARMS == SEVEN
    runs = json.loads((study / "study.json").read_text())["runs"]
    for run in runs:
        if run["arm"] == "noise":
            run["arm"] = "k700"
            (study / "runs" / f"noise-{run['seed']}").rename(study / "runs" / f"k700-{run['seed']}")
            for suite in SUITES:
                evaluation(study / "evaluations", study / "runs" / f"k700-{run['seed']}", suite, 1)
    (study / "study.json").write_text(json.dumps({"runs": runs}))
    assert rows(study, capsys)["arm_seed_runs_finished_with_checkpoint_hash"][1] == "6"


def test_where_nothing_was_tried_no_row_is_ok(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (study / "evaluations").rename(study / "elsewhere")
    assert {line[-1 if line[-1] == "ok" else 3] for line in rows(study, capsys).values()} == {"FAIL"}


@pytest.mark.parametrize(("solved", "verdict"), [(0, "missing"), (3, "0")])
def test_an_encoder_of_a_policy_that_solves_nothing_proves_nothing(
    solved: int, verdict: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(prior, "act_medians_ms", lambda folder: (8.0, 4.0))
    condition, folder = Condition("libero_object"), tmp_path / "distilled"
    full = Trained("prior", 0, tmp_path / "prior-0", {"checkpoint_sha256": checkpoint(tmp_path / "prior-0", "it")})
    checkpoint(folder, "small")
    (folder / "distilled.json").write_text(json.dumps({"policy_sha256": full.record["checkpoint_sha256"]}))
    evaluation(tmp_path / "runs", folder, "libero_object", solved)
    evaluation(tmp_path / "runs", full.folder, "libero_object", solved)
    runs = Evaluations(tmp_path / "runs", 1, 1, run=False)
    whole = runs.episodes(full, condition)
    assert whole is not None
    prior.distilled(Rows(), folder, {full: {condition: whole}}, [condition], runs)
    found = {line.split()[0]: line.split() for line in capsys.readouterr().out.splitlines()}
    assert found["distilled_minus_full_chain_points"][1] == verdict


def test_what_is_something_else_is_one_sentence(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--study", str(study), "--suites", *SUITES, "--episodes", "30", "--print-only"]
    checkpoint(study / "other", "other")
    (study / "other" / "distilled.json").write_text("{}")
    assert prior.main([*words, "--distilled", str(study / "other")]) == 2
    assert "says nothing of policy_sha256" in capsys.readouterr().err
    checkpoint(study / "elsewhere" / "prior-0", "named alike")
    assert prior.main([*words, "--distilled", str(study / "elsewhere" / "prior-0")]) == 2
    assert "rename it" in capsys.readouterr().err
    (study / "study.json").write_text("{}")
    assert prior.main(words) == 2
    assert "says nothing of runs" in capsys.readouterr().err


def test_a_picture_shows_what_each_seed_solved(
    study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from matplotlib.axes import Axes

    drawn: list[tuple[str, list[float]]] = []
    plot = Axes.plot

    def seen(axis: Axes, xs: list[float], ys: list[float], *rest: Any, **style: Any) -> Any:
        drawn.append(("hollow" if style["markerfacecolor"] == "none" else "filled", list(ys)))
        return plot(axis, xs, ys, *rest, **style)

    monkeypatch.setattr(Axes, "plot", seen)
    words = ["--study", str(study), "--suites", *SUITES, "--episodes", "30", "--print-only"]
    prior.main([*words, "--picture", str(tmp_path / "arms.png")])
    assert drawn[:4] == [
        ("filled", [30.0, 30.0, 40.0]), ("hollow", []), ("filled", [60.0, 60.0, 70.0]), ("hollow", [10.0, 10.0, 10.0])
    ]  # fmt: skip
    assert (tmp_path / "arms.png").read_bytes().startswith(b"\x89PNG")
    assert prior.main([*words, "--picture", "/proc/nowhere/arms.png"]) == 2
    assert "--picture" in capsys.readouterr().err


@pytest.mark.parametrize(
    "runs",
    [
        [{"arm": "prior", "seed": 0, "episodes": {}}, {"arm": "prior", "seed": 0, "episodes": {}}],
        [{"arm": "prior", "seed": "0", "episodes": {}}],
        [{"arm": "prior", "seed": 0, "episodes": {"on": {"libero_object": "101"}}}],
        [{"arm": "prior", "seed": 0, "episodes": {"on": {"libero_object": ["1?"]}}}],
    ],
)
def test_a_record_that_would_be_counted_otherwise_than_it_was_made_is_refused(runs: list[Any], tmp_path: Path) -> None:
    (tmp_path / "record.json").write_text(json.dumps({"recorded": runs}))
    with pytest.raises(VegaError, match="is no record of a study"):
        recorded(tmp_path / "record.json")
