"""What a full-size training knows of episodes that are held out, and of tokens that another precision computed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from test_train_vega import CAMERAS
from test_train_vega_options import _an_engine_of_their_own as _an_engine_of_their_own
from test_train_vega_options import changed, words
from test_train_vega_options import room as room

from policies.checkpoints import load_policy
from policies.openvla.policy import VegaOpenVLA
from policies.training.train_vega import main
from policies.training.vega.demonstrations import Demonstration, Samples, held_out, statistics
from policies.training.vega.readers import read_demonstrations
from policies.training.vega.run import STATE_FILE, Run
from policies.training.vega.tokens import TokenCache
from policies.types import VegaError

NEW = ("--dataset", "my_kitchen", "--holdout", "0.4")
RULE = "--dataset (statistics of which episodes)"


def begun(room: Path, output: Path, steps: int, monkeypatch: pytest.MonkeyPatch) -> VegaOpenVLA:
    """The policy of a run that has come to its first step, and ends there."""
    seen: list[VegaOpenVLA] = []
    with monkeypatch.context() as patch:
        patch.setattr(Run, "go", lambda run, _: seen.append(run._policy))
        assert main(words(room, room / "policy", output, steps, *NEW)) == 0
    return seen[0]


def test_a_new_data_sets_statistics_are_of_what_is_learned(
    room: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of all would tell the policy between which actions lies what it is judged by."""
    demonstrations = read_demonstrations(room / "data", CAMERAS)
    learned, kept = held_out(demonstrations, 0.4)
    assert learned and kept and statistics(learned) != statistics(demonstrations)
    assert begun(room, tmp_path, 1, monkeypatch).statistics == statistics(learned)


def test_a_training_goes_on_by_the_statistics_that_it_began_with(
    room: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of all episodes, where its state is from before they were of what is learned alone."""
    demonstrations = read_demonstrations(room / "data", CAMERAS)
    assert main(words(room, room / "policy", tmp_path, 1, *NEW)) == 0
    assert begun(room, tmp_path, 2, monkeypatch).statistics == statistics(held_out(demonstrations, 0.4)[0])
    state = torch.load(tmp_path / STATE_FILE, weights_only=True)
    del state["decides"][RULE]
    torch.save(state, tmp_path / STATE_FILE)
    assert begun(room, tmp_path, 2, monkeypatch).statistics == statistics(demonstrations)
    assert main(words(room, room / "policy", tmp_path, 2, *NEW)) == 0
    assert begun(room, tmp_path, 3, monkeypatch).statistics == statistics(demonstrations), "forgotten on the way"


def test_episodes_in_which_nothing_is_learned_have_no_statistics() -> None:
    idle = Demonstration("wait", np.zeros((0, 7)), np.zeros((0, 8)), lambda camera, step: np.zeros((1, 1, 3), np.uint8))
    with pytest.raises(VegaError, match="has a step"):
        statistics([idle])


def test_tokens_of_another_precision_are_not_taken(room: Path, tmp_path: Path) -> None:
    """--tokens may be shared by a run in bfloat16 and one in float32, whose tokens differ from the third digit on."""
    samples, computed = Samples(read_demonstrations(room / "data", CAMERAS), 8), []
    for number, dtype in enumerate(("float32", "bfloat16", "bfloat16", "float32")):
        policy = load_policy(str(changed(room, tmp_path / str(number), dtype=dtype)))
        computed.append(TokenCache(policy.world, samples, tmp_path / "tokens").compute())  # type: ignore[attr-defined]
    assert computed == [2, 2, 0, 0]
