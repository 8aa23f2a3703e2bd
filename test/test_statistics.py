"""Which data set's statistics a policy uses: its robot's and its suite's, told, and never another's."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import tiny_checkpoints as tiny

from policies.checkpoints import checkpoint_sha256, for_suite, load_policy, statistics_key
from policies.openvla.statistics import choose
from policies.types import VegaError
from sim.evaluation.settings import EpisodeSettings
from vega3d_ros.bringup.bringup import ARGUMENTS, node_table
from vega3d_ros.bringup.entries import parse_arguments

SUITES = ("libero_spatial_no_noops", "libero_object_no_noops", "libero_goal_no_noops", "libero_10_no_noops")


def numbered(*keys: str) -> dict[str, dict]:
    return {key: {"number": number} for number, key in enumerate(keys)}


@pytest.mark.parametrize(
    ("keys", "suite", "expected"),
    [
        (SUITES, "libero_goal", "libero_goal_no_noops"),
        (SUITES, "libero_10", "libero_10_no_noops"),
        (SUITES, "libero_long", "libero_10_no_noops"),
        (SUITES, "libero_object_swap", "libero_object_no_noops"),
        (SUITES, "libero_object_temp_x0.1", "libero_object_no_noops"),
        (SUITES, "libero_plus_spatial", "libero_spatial_no_noops"),
        (SUITES, "libero_10_lan", "libero_10_no_noops"),
        (SUITES, "libero_goal_no_noops", "libero_goal_no_noops"),
        (("libero_object", "libero_goal"), "libero_goal_task", "libero_goal"),
        (("libero_4_task_suites_no_noops",), "libero_goal", "libero_4_task_suites_no_noops"),
        (("libero_spatial_object_goal_10",), "libero_goal", "libero_spatial_object_goal_10"),
        (("libero_goal_no_noops_v2", "libero_object_no_noops_v2"), "libero_goal_lan", "libero_goal_no_noops_v2"),
        (("bridge_orig", "libero_10_no_noops", "fractal20220817_data"), None, "libero_10_no_noops"),
        (("bridge_orig", "libero_10_no_noops"), "libero_10", "libero_10_no_noops"),
    ],
)
def test_the_key_follows_the_suite(keys: tuple[str, ...], suite: str | None, expected: str) -> None:
    choice = choose(numbered(*keys), "libero", "oft", suite=suite)
    assert choice.key == expected and choice.statistics == {"number": keys.index(expected)}


@pytest.mark.parametrize(
    ("keys", "key", "suite", "named"),
    [
        (("bridge_orig",), None, None, r"\['bridge_orig'\].*robot 'libero'"),
        (("bridge_orig",), None, "libero_goal", r"\['bridge_orig'\].*robot 'libero'"),
        (("bridge_orig",), "bridge_orig", None, "another robot"),
        (("aloha1_fold_shirt",), "aloha1_fold_shirt", None, "another robot"),
        (("my_own_arm",), None, None, r"\['my_own_arm'\].*--statistics"),
        (("asu_table_top", "libero_10_no_noops"), None, "asu_table_top", "another robot"),
        (("libero_object_no_noops_v2",), None, "libero_goal", "none of suite 'libero_goal'"),
        (("libero_lm_90",), None, "libero_10", "none of suite 'libero_10'"),
        (SUITES, None, None, "several|choose one with '#'"),
        (("libero_spatial_no_noops",), None, "libero_goal", "none of suite 'libero_goal'"),
        (SUITES[:2], None, "libero_90", "none of suite 'libero_90'"),
        (SUITES, None, "libero_goad", "none of suite 'libero_goad'"),
        (SUITES, "libero_10_no_noops", "libero_object_swap", "has 'libero_object_no_noops' for suite"),
        (SUITES, "libero_spatial", None, r"no statistics 'libero_spatial'.*libero_10_no_noops"),
        (("my_kitchen", "my_garage"), "my_garage", "my_kitchen", "by 'my_garage' alone.*leave '#my_kitchen' out"),
        ((*SUITES, "my_kitchen"), "libero_10_no_noops", "my_kitchen", "leave '#my_kitchen' out"),
        (("my_garage",), "my_garage", "my_kitchn", "leave '#my_kitchn' out"),
    ],
)
def test_a_mismatch_is_refused(keys: tuple[str, ...], key: str | None, suite: str | None, named: str) -> None:
    with pytest.raises(VegaError, match=named):
        choose(numbered(*keys), "libero", "oft", key, suite)


def test_of_other_robots_too_no_other_statistics_are_taken_than_those_asked_for() -> None:
    with pytest.raises(VegaError, match="leave '#cup_300_demos' out"):
        choose(numbered("fold_300_demos", "cup_300_demos"), "aloha", "oft", "fold_300_demos", "cup_300_demos")


def test_what_a_user_says_is_his_robots_is_taken() -> None:
    assert choose(numbered("my_own_arm"), "libero", "oft", "my_own_arm").statistics == {"number": 0}
    assert choose(numbered("my_own_arm"), "libero", "oft", "my_own_arm", "libero_goal").key == "my_own_arm"
    assert choose(numbered("fold_300_demos"), "aloha", "oft").key == "fold_300_demos"
    assert choose(numbered("my_own_arm", "other"), "libero", "oft", "my_own_arm", "my_own_arm").key == "my_own_arm"
    both = numbered("libero_goal", "libero_goal_no_noops")  # '#libero_goal' is the suite, whatever its data are called
    assert choose(both, "libero", "oft", "libero_goal_no_noops", "libero_goal").key == "libero_goal_no_noops"


@pytest.fixture(scope="module")
def combined(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One checkpoint for four suites, whose actions are of different sizes."""
    folder = tiny.openvla_folder(tmp_path_factory.mktemp("statistics") / "combined")
    path = folder / "dataset_statistics.json"
    entry = next(iter(json.loads(path.read_text()).values()))
    scaled = {}
    for number, suite in enumerate(SUITES, 1):
        scaled[suite] = json.loads(json.dumps(entry))
        for bound in ("q01", "q99"):
            scaled[suite]["action"][bound] = [number * value for value in entry["action"][bound]]
    path.write_text(json.dumps(scaled))
    return folder


def test_one_checkpoint_serves_the_suite_that_is_evaluated(combined: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(VegaError, match=r"libero_spatial_no_noops'\].*#libero_10_no_noops"):
        load_policy(str(combined))
    actions = {}
    for suite in ("libero_spatial", "libero_object_swap"):
        policy = load_policy(str(combined), suite=suite)
        actions[suite] = policy.act(tiny.observation()).actions[:, :6]
        assert f"statistics '{policy.statistics_key}', chosen by suite {suite}" in capsys.readouterr().err
        named = load_policy(f"{combined}#{policy.statistics_key}")
        np.testing.assert_array_equal(named.act(tiny.observation()).actions[:, :6], actions[suite])
    np.testing.assert_allclose(actions["libero_object_swap"], 2 * actions["libero_spatial"], rtol=1e-6)
    with pytest.raises(VegaError, match="none of suite 'libero_90'"):
        load_policy(str(combined), suite="libero_90")


def test_a_policy_that_drives_acts_in_the_numbers_of_the_suite(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether it drives on layouts for tuning, or first in a demonstration."""
    from sim.demonstrations import collect_skills, try_layouts

    golden, named = tiny.openvla_folder(tmp_path / "golden"), list[str]()

    def load(name: str) -> None:
        named.append(name)
        raise VegaError("that is all")

    for module in (try_layouts, collect_skills):
        monkeypatch.setattr(module, "load_policy", load)
    with pytest.raises(VegaError, match="that is all"):
        try_layouts.try_task(str(golden), "libero_spatial", 0, 1, 0)
    with pytest.raises(VegaError, match="that is all"):
        collect_skills.collect_task("libero_spatial", 0, 1, 0, 1, tmp_path, str(golden))
    assert named == [f"{golden}#libero_spatial"] * 2
    for main, more in ((try_layouts.main, []), (collect_skills.main, ["--output", str(tmp_path / "out")])):
        assert main(["--suite", "libero_goal", "--tasks", "7", "--policy", str(golden), *more]) == 2
        assert "none of suite 'libero_goal'" in capsys.readouterr().err
    assert len(named) == 2 and not (tmp_path / "out").exists()


def test_a_checkpoint_that_lost_its_robot_state_says_so(
    combined: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = shutil.copytree(combined, tmp_path / "blind")
    (folder / tiny.PROPRIO).unlink()
    assert load_policy(str(folder), suite="libero_goal").spec.cameras == ("agentview",)
    assert "it has no proprio_projector, so it acts without robot state" in capsys.readouterr().err


def test_the_evaluation_names_the_suite_and_writes_the_key_down(combined: Path) -> None:
    from sim.evaluation.evaluate import header

    settings = EpisodeSettings("libero_goal_lan", str(combined))
    assert settings.policy_for_suite == f"{combined}#libero_goal_lan"
    summary = header(settings, "protocol")
    assert summary["statistics_key"] == "libero_goal_no_noops" and summary["policy"] == str(combined)
    assert checkpoint_sha256(settings.policy_for_suite) == checkpoint_sha256(str(combined)) != ""
    assert EpisodeSettings("libero_goal", "vega-nano").policy_for_suite == "vega-nano"
    assert for_suite("module:Class", "libero_goal") == "module:Class"
    assert for_suite("ws://host:80", "libero_goal") == "ws://host:80"
    assert for_suite(str(combined), "robosuite") == str(combined)
    assert statistics_key("vega-nano") is None and "statistics_key" not in header(
        EpisodeSettings("libero_goal", "vega-nano"), "protocol"
    )
    with pytest.raises(VegaError, match="leave '#libero_goal' out"):
        load_policy("vega-nano#libero_goal")


def test_a_wrong_suite_is_refused_before_anything_is_built(
    combined: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from sim.run_libero import main

    folder = shutil.copytree(combined, tmp_path / "spatial")
    entry = json.loads((folder / "dataset_statistics.json").read_text())["libero_spatial_no_noops"]
    (folder / "dataset_statistics.json").write_text(json.dumps({"bridge_orig": entry}))
    assert main(["--suite", "libero_goal", "--policy", str(folder), "--output", str(tmp_path / "run")]) == 2
    assert "['bridge_orig']" in capsys.readouterr().err and not (tmp_path / "run").exists()


def test_the_simulated_robot_is_given_the_suites_statistics_before_anything_starts(combined: Path) -> None:
    def table(*words: str) -> str:
        entries = node_table(parse_arguments([f"policy:={combined}", *words], ARGUMENTS))
        return str(next(entry for entry in entries if entry.name == "policy_node").parameters["policy"])

    assert table("suite:=libero_goal") == f"{combined}#libero_goal"
    assert table(f"policy:={combined}#libero_10", "suite:=libero_10") == f"{combined}#libero_10"
    with pytest.raises(VegaError, match="none of suite 'libero_90'"):
        table("suite:=libero_90")
    with pytest.raises(VegaError, match="none of suite 'libero_9'"):
        table(f"policy:={combined}#libero_9")
