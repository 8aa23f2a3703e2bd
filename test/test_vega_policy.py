"""The small policy: what goes in and out, that it is kept whole on disk, and what it refuses."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from scipy.spatial.transform import Rotation

from policies.checkpoints import find_checkpoint, load_policy
from policies.fusion.fused_policy import StageClock
from policies.nano.config import VegaConfig
from policies.nano.policy import VegaPolicy, load_vega_policy, proprioception
from policies.nano.vocabulary import Vocabulary
from policies.types import Observation, RobotState, SpeedOptions, VegaError

MILK = "pick up the milk and place it in the basket"


def observation(instruction: str = MILK, seed: int = 0) -> Observation:
    rng = np.random.default_rng(seed)
    images = {camera: rng.integers(0, 255, (1, 256, 256, 3), dtype=np.uint8) for camera in ("agentview", "wrist")}
    state = RobotState(
        5,
        (),
        np.zeros(7),
        np.zeros(7),
        np.array([0.04, 0.04]),
        np.array([0.45, 0.0, 0.26]),
        np.array([1.0, 0.0, 0.0, 0.0]),
    )
    return Observation(images, state, instruction, 5)


@pytest.fixture(scope="module")
def nano() -> VegaPolicy:
    policy = load_policy("vega-nano")
    assert isinstance(policy, VegaPolicy)
    return policy


@pytest.mark.parametrize("name", ["vega-nano-suites", "vega-nano-plain"])
def test_compiled_it_decides_the_same_and_tells_nobody(name: str) -> None:
    plain, fast = load_policy(name), load_policy(name, speed=SpeedOptions(compiled=True))
    assert sys.modules["openvino_telemetry"] is None
    for seed in (0, 1, 2):  # what it remembers goes on from one to the next
        seen = observation(seed=seed)
        expected, found = plain.act(seen), fast.act(seen)
        np.testing.assert_allclose(found.actions, expected.actions, atol=1e-4)
        assert found.gates.keys() == expected.gates.keys() and found.timings_ms.keys() == expected.timings_ms.keys()
        for camera, gate in expected.gates.items():
            np.testing.assert_allclose(found.gates[camera], gate, atol=1e-4)
    if expected.gates:  # what stands in for the tokens does so in a compiled policy too
        plain, fast = (load_policy(name, speed=SpeedOptions(compiled=c), world_simulator="noise") for c in (None, True))
        noisy = fast.act(observation()).actions
        np.testing.assert_allclose(noisy, plain.act(observation()).actions, atol=1e-4)
        assert np.abs(noisy - load_policy(name).act(observation()).actions).max() > 1e-3


def test_without_openvino_compiled_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(VegaError, match="OpenVINO, which is not installed"):
        load_policy("vega-nano-plain", speed=SpeedOptions(compiled=True))


def test_a_world_simulator_that_looks_at_windows_is_not_compiled() -> None:
    policy = load_policy("vega-nano-suites")
    simulator = policy.world.simulator_of("wrist")
    simulator.config = replace(simulator.config, mode="window", window=5)
    with pytest.raises(VegaError, match="single frames can be compiled: leave compiled"):
        policy.compile_for_cpu()


def test_a_chunk_is_finite_bounded_and_repeatable(nano: VegaPolicy) -> None:
    first = nano.act(observation())
    nano.reset()
    second = nano.act(observation())
    assert first.actions.shape == (8, 7)
    assert np.abs(first.actions).max() <= 1.0
    assert set(np.unique(first.actions[:, 6])) <= {-1.0, 1.0}
    assert first.actions.tobytes() == second.actions.tobytes()
    assert first.stamp_ns == 5
    assert first.instruction == MILK


def test_it_looks_listens_and_feels(nano: VegaPolicy) -> None:
    base = observation()
    here = nano.act(base).actions
    assert not np.array_equal(here, nano.act(observation("pick up the butter and place it in the basket")).actions)
    for camera in base.images:
        darker = {**base.images, camera: base.images[camera] // 2}
        assert not np.array_equal(here, nano.act(replace(base, images=darker)).actions)
    elsewhere = replace(base.state, eef_position=np.array([0.5, 0.1, 0.1]))
    assert not np.array_equal(here, nano.act(replace(base, state=elsewhere)).actions)


def test_saving_and_loading_changes_nothing(nano: VegaPolicy, tmp_path: Path) -> None:
    nano.save_pretrained(tmp_path)
    again = load_vega_policy(tmp_path)
    assert again.config == nano.config
    assert again.act(observation()).actions.tobytes() == nano.act(observation()).actions.tobytes()


SHIPPED = ["vega-nano", "vega-nano-plain", "vega-nano-prior", "vega-nano-suites"]


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_checkpoint_is_small(name: str) -> None:
    assert sum(p.stat().st_size for p in find_checkpoint(name).rglob("*")) <= 25e6


@pytest.mark.parametrize("name", SHIPPED)
def test_configurations_are_written_as_the_shipped_ones_are(name: str, tmp_path: Path) -> None:
    load_policy(name).save_pretrained(tmp_path)  # type: ignore[attr-defined]
    written = {path.relative_to(tmp_path): path.read_bytes() for path in tmp_path.rglob("*.json")}
    assert written and written == {path: (find_checkpoint(name) / path).read_bytes() for path in written}


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"chunk_lenght": 8}, "'chunk_lenght'.*unknown"),
        ({"chunk_length": "8"}, "'chunk_length'.*'8': give int"),
        ({"chunk_length": True}, "'chunk_length'.*True: give int"),
        ({"action_space": {"kind": "eef_deltas"}}, "'kind'.*eef_deltas.*eef_delta"),
        ({"action_space": {"kind": "eef_delta", "kd": 3}}, "'kd'.*unknown"),
        ({"cameras": {"agentview": {"image_size": [256]}}}, "'image_size'.*give tuple"),
        ({"cameras": {"agentview": {}}}, "lacks 'image_size'"),
        ({"proprio_mean": [0, "x"]}, "'proprio_mean'.*give tuple"),
        ({"proprio_mean": []}, "0 numbers as 'proprio_mean'"),
        ({"proprio_std": []}, "'proprio_std'.*above 0"),
        ({"proprio_std": [1.0]}, "1 numbers as 'proprio_std'"),
        ({"open_loop_horizon": 9}, "horizon of 9 in chunks of 8"),
        ({"channels": 60}, "multiple of 8"),
        *(
            ({name: -1}, f"'{name}'.*above 0")
            for name in ("chunk_length", "open_loop_horizon", "text_dim", "channels", "trunk_width")
        ),
        *(
            ({"action_space": {"kind": "eef_delta", name: value}}, f"'{name}'.*above 0")
            for name in ("rate_hz", "position_scale", "rotation_scale", "kp")
            for value in (0.0, -1.0)
        ),
        ({"action_space": {"kind": "eef_delta", "kp_null": -1.0}}, "kp_null.*-1.0"),
        ({"action_space": {"kind": "eef_delta", "dim": 6}}, "'eef_delta' of 6 numbers"),
        ({"action_space": {"kind": "joint_position", "dim": 0}}, "'dim'.*above 0"),
        ({"encoder_blocks": -1}, "encoder_blocks.*-1"),
        ({"trunk_layers": -1}, "trunk_layers.*-1"),
        ({"cameras": {}}, "no camera"),
        *(
            ({"cameras": {"wrist": {"image_size": [256, 256], "crop": crop}}}, rf"crop.*\({crop[0]}, {crop[1]}")
            for crop in ([204, 32, 60, 248], [60, 248, 204, 32], [60, 32, 60, 248], [-60, 32, 204, 248],
                         [60, 32, 304, 248], [60, 32, 204, 257])
        ),
        ({"cameras": {"wrist": {"image_size": [256, 256], "crop": [60, 32, 203, 247]}}}, "143x215"),
        ({"cameras": {"wrist": {"image_size": [256, 256], "resize": [4, 96]}}}, "4x96"),
        *(
            ({"cameras": {name: {"image_size": [256, 256]}}}, f"Camera '{name}'")
            for name in ("a.b", "", "type", "training")
        ),
        *(
            ({"world_simulator": {"source": "world_simulator", "canvas": {}, **wrong}}, sentence)
            for wrong, sentence in (
                ({"stride": 0}, "'stride'.*above 0"), ({"stride": -3}, "'stride'.*above 0"),
                ({"refresh_every": 0}, "'refresh_every'.*above 0"),
                ({"canvas": {"wrist": [0, 96]}}, "'canvas'.*above 0"),
            )
        ),
        ({"world_simulator": [1]}, "'world_simulator'.*give an object"),
        ({"world_simulator": {"source": "w", "canvas": {"wrist": [96, 96, 3]}}}, "'canvas'"),
        (
            {"world_simulator": {"source": "world_simulator", "canvas": {"wrist": [96, 96]}}},
            "no canvas for 'agentview'",
        ),
    ],
)
def test_a_configuration_is_read_strictly_however_deep(change: dict, named: str, tmp_path: Path) -> None:
    folder = shutil.copytree(find_checkpoint("vega-nano"), tmp_path / "nano")
    config = json.loads((folder / "config.json").read_text()) | change
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(VegaError, match=rf"^[^\n]*{named}[^\n]*\.$"):
        VegaConfig.load(folder)
        load_policy(str(folder))


def test_weights_in_other_dress_are_the_same_or_refused_by_name(nano: VegaPolicy, tmp_path: Path) -> None:
    folder = shutil.copytree(find_checkpoint("vega-nano"), tmp_path / "nano")
    weights = load_file(folder / "model.safetensors")
    save_file({f"module._orig_mod.{name}": value for name, value in weights.items()}, folder / "model.safetensors")
    assert load_policy(str(folder)).act(observation()).actions.tobytes() == nano.act(observation()).actions.tobytes()
    one = "head.mlp.0.weight"
    for changed, named in (
        ({one: weights[one].to(torch.float8_e4m3fn)}, f"'{one}'.*no scale"),
        ({"head.mlp.9.weight": torch.ones(2)}, r"head\.mlp\.9\.weight"),
    ):
        save_file(weights | changed, folder / "model.safetensors")
        with pytest.raises(VegaError, match=named):
            load_policy(str(folder))


@pytest.mark.parametrize("synchronise", [True, False])
def test_stages_are_waited_for_on_a_gpu_only_where_that_is_wanted(
    synchronise: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    waited: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "synchronize", waited.append)
    clock = StageClock(torch.device("cuda"), synchronise)
    clock.lap("one")
    assert set(clock.laps) == {"one"} and len(waited) == synchronise
    StageClock(torch.device("cpu"), synchronise).lap("one")
    assert len(waited) == synchronise


@pytest.mark.parametrize("text", ["", "   ", "do something", "x" * 10_000, "nimm die Gurke"])
def test_instructions_that_name_nothing_known_are_refused(nano: VegaPolicy, text: str) -> None:
    with pytest.raises(VegaError):
        nano.act(observation(text))


def test_cameras_that_do_not_fit_are_refused(nano: VegaPolicy) -> None:
    base = observation()
    for wrong in (
        base.images["wrist"][:, :200],
        base.images["wrist"].astype(np.float32),
        base.images["wrist"][..., :1],
    ):
        with pytest.raises(VegaError, match="wrist"):
            nano.act(replace(base, images={**base.images, "wrist": wrong}))
    with pytest.raises(VegaError, match="wrist"):
        nano.act(replace(base, images={"agentview": base.images["agentview"]}))


@pytest.mark.parametrize("openings", [0, 1, 3])
def test_a_hand_with_other_fingers_is_refused(openings: int, nano: VegaPolicy) -> None:
    state = replace(observation().state, gripper_positions=np.full(openings, 0.04))
    with pytest.raises(VegaError, match=rf"^The gripper reports {openings} fingers: .* 2.*gripper\.joints.*\.$"):
        nano.act(replace(observation(), state=state))


def test_a_batch_is_of_observations_that_fit_together(nano: VegaPolicy) -> None:
    small = {camera: image[:, :128] for camera, image in observation().images.items()}
    with pytest.raises(VegaError, match=r"^Camera 'agentview' gives 256x128 pixels: .*256x256.*\.$"):
        nano.act_batch([observation(), replace(observation(), images=small)])
    with pytest.raises(VegaError, match=r"^The batch holds no observation: .*\.$"):
        nano.act_batch([])


def test_frames_without_pixels_are_refused(nano: VegaPolicy) -> None:
    empty = observation().images | {"wrist": np.zeros((1, 0, 256, 3), np.uint8)}
    with pytest.raises(VegaError, match=r"^Camera 'wrist' gave uint8 \(1, 0, 256, 3\).*\.$"):
        nano.act(replace(observation(), images=empty))


def test_a_device_that_gives_no_numbers_back_is_none() -> None:
    with pytest.raises(VegaError, match=r"^The device 'meta' cannot be used \([^\n]*\): set device to cpu"):
        load_policy("vega-nano", "meta")


@given(st.lists(st.sampled_from(["grab", "the", "milk", "Butter!", "?", "gently"]), max_size=8))
def test_words_that_name_nothing_do_not_change_the_ids(parts: list[str]) -> None:
    vocabulary = Vocabulary(("butter", "milk", "the"), ("milk", "butter"))
    known = [p for p in parts if p in ("the", "milk", "Butter!")]
    if any(p in ("milk", "Butter!") for p in parts):
        assert vocabulary.encode(" ".join(parts)) == vocabulary.encode(" ".join(known))
    else:
        with pytest.raises(VegaError):
            vocabulary.encode(" ".join(parts))
    for named in ("banana", "zzz"):
        with pytest.raises(VegaError, match=f"'{named}', which this policy does not know: use one of milk, butter"):
            vocabulary.encode(" ".join([*parts, named]))


@given(st.integers(0, 2**31))
def test_proprioception_holds_the_rotation_whatever_the_sign_of_the_quaternion(seed: int) -> None:
    rotation = Rotation.random(random_state=seed)
    quaternion = rotation.as_quat()
    values = proprioception(np.zeros(3), quaternion, np.zeros(2))
    assert values[3:9] == pytest.approx(rotation.as_matrix()[:, :2].T.ravel(), abs=1e-9)
    assert values == pytest.approx(proprioception(np.zeros(3), -quaternion, np.zeros(2)), abs=1e-12)


def test_training_targets_put_the_soft_argmax_on_the_pixel() -> None:
    from policies.nano.layers import soft_argmax
    from policies.training.nano.learner import token_targets

    points = torch.tensor([[20.0, 33.0], [71.5, 100.25], [float("nan"), 3.0]])
    labels, valid = token_targets(points, (144, 216))
    assert valid.tolist() == [1.0, 1.0, 0.0]
    found, _ = soft_argmax((labels[:2] + 1e-12).log().reshape(2, 1, 18, 27))
    cell = (found[:, 0] + 1) / 2 * torch.tensor([17.0, 26.0])
    assert torch.allclose((cell + 0.5) * 8 - 0.5, points[:2], atol=1e-2)
