"""The full-size policy on small checkpoints in the published layouts: observation to actions, and what it refuses."""

from __future__ import annotations

import itertools
import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import tiny_checkpoints as tiny
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation
from tiny_checkpoints import MILK, composed, observation, robot_state

from policies.checkpoints import load_policy
from policies.files import weight_files
from policies.files.tensor_sources import SafetensorsSource, stored_count
from policies.openvla.acceleration import PackedLinear
from policies.openvla.preprocessing import axis_angle
from policies.openvla.robots import libero_proprio
from policies.parity.golden import read_cases
from policies.types import ActionSpace, Observation, Policy, SpeedOptions, VegaError


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def openvla(tmp_path_factory):
    return tiny.openvla_folder(tmp_path_factory.mktemp("openvla") / "checkpoint")


@pytest.fixture(scope="module")
def wan(tmp_path_factory):
    return tiny.wan_folder(tmp_path_factory.mktemp("wan"))


@pytest.fixture(scope="module")
def plain(openvla, tmp_path_factory):
    return load_policy(str(composed(tmp_path_factory.mktemp("plain") / "policy", openvla)))


@pytest.fixture
def vega(openvla, wan, tmp_path):
    return load_policy(str(composed(tmp_path / "vega", openvla, wan)))


@pytest.mark.parametrize("case", ["case0", "case1"])
def test_it_acts_as_the_reference_did(case, plain, monkeypatch):
    """From the simulator's raw output to the simulator's action, as the golden vectors hold it."""
    golden = read_cases(tiny.GOLDEN / "libero_observation.npz")[case]
    monkeypatch.setattr(plain.model, "encode_prompt", lambda instruction: golden["input_ids"].tolist())
    position, quaternion = golden["robot0_eef_pos"], golden["robot0_eef_quat"]
    base, turn = np.array([-0.66, 0.1, 0.912]), Rotation.from_rotvec([0.0, 0.0, 0.4])
    state = replace(
        robot_state(),
        gripper_positions=np.abs(golden["robot0_gripper_qpos"]),
        eef_position=turn.inv().apply(position - base),
        eef_quaternion=(turn.inv() * Rotation.from_quat(quaternion)).as_quat(),
    )
    images = {"agentview": golden["agentview_image"], "wrist": golden["robot0_eye_in_hand_image"]}
    upright = {camera: np.ascontiguousarray(image[::-1])[None] for camera, image in images.items()}
    chunk = plain.act(Observation(upright, state, MILK, 5, base, turn.as_quat()))
    statistics = plain.model.info.statistics["libero_spatial_no_noops"]["action"]
    span = np.array(statistics["q99"]) - np.array(statistics["q01"])
    error = np.abs(chunk.actions - golden["env_actions"]) / np.where(np.arange(7) < 6, span, 1.0)
    assert error.max() < 1e-2
    assert (chunk.actions[:, 6] == golden["env_actions"][:, 6]).all()


def test_a_published_folder_is_a_policy(openvla, plain):
    policy = load_policy(str(openvla))
    assert isinstance(policy, Policy) and policy.spec.cameras == ("agentview", "wrist")
    assert policy.spec.action_space == ActionSpace("eef_delta") and policy.spec.chunk_length == 8
    chunk = policy.act(observation())
    assert chunk.actions.shape == (8, 7) and np.isfinite(chunk.actions).all() and not chunk.gates
    exact = plain.act(observation()).actions
    assert np.abs(chunk.actions - exact)[:, :6].max() < 0.1 and not np.array_equal(chunk.actions, exact)  # bfloat16


def test_it_looks_listens_and_feels(plain):
    usual = plain.act(observation()).actions
    for other in (
        observation(1),
        observation(instruction="pick up the soup"),
        observation(base_position=np.zeros(3)),
    ):
        assert not np.array_equal(plain.act(other).actions, usual)
    assert np.array_equal(plain.act(observation()).actions, usual)


def test_an_untrained_fusion_changes_nothing_bit_for_bit(plain, vega):
    chunk = vega.act(observation())
    assert np.array_equal(chunk.actions, plain.act(observation()).actions)
    assert {camera: gate.shape for camera, gate in chunk.gates.items()} == {
        "agentview": (256, 256),
        "wrist": (256, 256),
    }
    assert all(gate[7:249, 7:249].min() > 0 and gate[7:249, 7:249].max() < 1 for gate in chunk.gates.values())
    assert all((gate[:6] == 1).all() and (gate[:, -6:] == 1).all() for gate in chunk.gates.values())  # the crop's rim
    assert set(chunk.timings_ms) == {"preprocess", "semantic_encoder", "world_simulator", "fusion", "trunk_and_head"}
    with torch.no_grad():
        vega.world.fusion.residual.fill_(0.5)
    assert not np.array_equal(vega.act(observation()).actions, chunk.actions)


def test_the_gate_map_lies_over_the_upright_picture(vega):
    """What changes in one place of a camera's picture changes the gate there, in that camera."""
    before = vega.act(observation()).gates
    seen = observation()
    seen.images["wrist"][:, 96:128, 32:64] = 255 - seen.images["wrist"][:, 96:128, 32:64]
    change = {camera: np.abs(gate - before[camera]) for camera, gate in vega.act(seen).gates.items()}
    row, column = np.unravel_index(change["wrist"].argmax(), (256, 256))
    assert 80 <= row < 144 and 16 <= column < 80
    assert change["agentview"].max() < 1e-6


def test_a_batch_decides_as_each_alone_up_to_rounding(vega, openvla, wan, tmp_path):
    seen = [observation(seed, instruction=text) for seed, text in enumerate(("pick up the soup", MILK, "milk"))]
    for one, chunk in zip(seen, vega.act_batch(seen), strict=True):
        alone = vega.act(one)
        np.testing.assert_allclose(chunk.actions, alone.actions, atol=1e-4)
        np.testing.assert_allclose(chunk.gates["wrist"], alone.gates["wrist"], atol=1e-4)
        assert chunk.instruction == one.instruction
    lasting = load_policy(str(composed(tmp_path / "lasting", openvla, wan, {"refresh_every": 2})))
    with pytest.raises(VegaError, match="one at a time"):
        lasting.act_batch(seen)


def test_tokens_are_reused_and_their_age_is_told(openvla, wan, tmp_path):
    policy = load_policy(str(composed(tmp_path / "vega", openvla, wan, {"refresh_every": 3})))
    chunks = [policy.act(observation(seed)) for seed in range(4)]
    assert [chunk.world_age for chunk in chunks] == [0, 1, 2, 0]
    policy.reset()
    again = policy.act(observation(1))
    assert again.world_age == 0 and not np.array_equal(again.gates["wrist"], chunks[1].gates["wrist"])


def test_a_window_of_frames(openvla, wan, tmp_path):
    world = {"mode": "window", "window": 5, "stride": 2, "unchanged_start": False, "fusion": "token_gate_residual"}
    with pytest.raises(VegaError, match=r"model\.safetensors.*residual"):  # made for an unchanged token_gate
        load_policy(str(composed(tmp_path / "other", openvla, wan, world | {"fusion": "token_gate"})))
    policy = load_policy(str(composed(tmp_path / "vega", openvla, wan, world)))
    assert (policy.spec.window, policy.spec.stride) == (5, 2)
    seen = observation(window=5)
    usual = policy.act(seen)
    seen.images["wrist"][0] = 255 - seen.images["wrist"][0]  # the oldest frame, which OpenVLA-OFT does not see
    assert not np.array_equal(policy.act(seen).gates["wrist"], usual.gates["wrist"])
    with pytest.raises(VegaError, match=r"\(5, height, width, 3\)"):
        policy.act(observation())


@pytest.mark.parametrize("stream", ["joint", "causal"])
def test_windows_come_through_a_stream(stream, openvla, wan, tmp_path):
    """The first window as encoded whole; every new frame is seen; a batch of episodes is refused."""
    world = {"mode": "window", "window": 5, "unchanged_start": True}
    folder = composed(tmp_path / "vega", openvla, wan, world | {"stream": stream})
    policy, whole = load_policy(str(folder)), load_policy(str(folder), speed=SpeedOptions(stream="off"))
    video = observation(window=12).images
    seen = [observation(window=5)] * 5
    for i in range(5):
        seen[i] = replace(seen[i], images={camera: shots[i : i + 5] for camera, shots in video.items()})
    chunks = [policy.act(one) for one in seen]
    assert [chunk.world_age for chunk in chunks] == [0] * 5 and policy.act(seen[4]).world_age == 1
    np.testing.assert_allclose(chunks[0].gates["wrist"], whole.act(seen[0]).gates["wrist"], atol=1e-5)
    gates = [chunk.gates["wrist"] for chunk in chunks]
    assert not any(np.array_equal(now, before) for before, now in itertools.pairwise(gates))
    policy.reset()
    assert policy.act(seen[4]).world_age == 0
    np.testing.assert_allclose(policy.act(seen[4]).gates["wrist"], whole.act(seen[4]).gates["wrist"], atol=1e-5)
    with pytest.raises(VegaError, match="stream to off"):
        policy.act_batch(seen[:2])


def test_options_for_speed_replace_what_the_configuration_says(openvla, wan, vega, plain, tmp_path):
    folder = composed(tmp_path / "other", openvla, wan)
    usual = vega.act(observation()).actions
    fast = load_policy(str(folder), speed=SpeedOptions(compiled=True, refresh_every=2, refresh_change=5.0))
    assert fast.config.compiled and fast.config.world_simulator.refresh_every == 2
    assert sum(isinstance(module, PackedLinear) for module in fast.model.modules()) > 20
    np.testing.assert_allclose(fast.act(observation()).actions, usual, atol=1e-4)
    assert [fast.act(observation(seed)).world_age for seed in (0, 1)] == [1, 0]
    small = load_policy(str(folder), speed=SpeedOptions(weights="int8"))
    other = small.act(observation()).actions
    assert not np.array_equal(other, usual) and np.abs(other - usual)[:, :6].max() < 0.2
    with pytest.raises(VegaError, match="no world simulator"):
        load_policy(str(openvla), speed=SpeedOptions(refresh_every=2))
    with pytest.raises(VegaError, match="small one"):
        load_policy("vega-nano", speed=SpeedOptions(weights="int8"))
    with pytest.raises(VegaError, match="no options for speed"):
        load_policy("tiny_policy:TinyPolicy", speed=SpeedOptions(compiled=True))
    with pytest.raises(VegaError, match="Weights 'int4' are unknown"):
        load_policy(str(folder), speed=SpeedOptions(weights="int4"))
    with pytest.raises(VegaError, match="0 control periods apart"):
        load_policy(str(composed(tmp_path / "still", openvla, wan, {"stride": 0})))


def test_stages_may_overlap_where_the_configuration_says_so(vega, openvla, tmp_path):
    assert vega.synchronise_stages
    assert not load_policy(str(composed(tmp_path / "policy", openvla, synchronise_stages=False))).synchronise_stages


def test_saving_and_loading_changes_nothing(vega, tmp_path):
    with torch.no_grad():
        vega.world.fusion.residual.fill_(0.5)
    vega.save_pretrained(tmp_path / "a" / "copy")
    assert sorted(path.name for path in (tmp_path / "a" / "copy").iterdir()) == ["config.json", "model.safetensors"]
    again = load_policy(str(tmp_path / "a" / "copy"))
    assert np.array_equal(again.act(observation()).actions, vega.act(observation()).actions)


def test_parts_may_lie_beside_the_config(openvla, wan, tmp_path, plain):
    folder = composed(tmp_path / "vega", openvla, wan)
    shutil.copytree(openvla, folder / "oft")
    shutil.copytree(wan, folder / "wan")
    config = json.loads((folder / "config.json").read_text())
    config["openvla"], config["world_simulator"]["source"] = "oft", "wan"
    (folder / "config.json").write_text(json.dumps(config))
    moved = shutil.move(folder, tmp_path / "elsewhere")
    assert np.array_equal(load_policy(str(moved)).act(observation()).actions, plain.act(observation()).actions)


def test_one_image_without_robot_state(openvla, tmp_path):
    folder = shutil.copytree(openvla, tmp_path / "single")
    (folder / tiny.PROPRIO).unlink()
    policy = load_policy(str(folder))
    assert policy.spec.cameras == ("agentview",)
    usual = policy.act(observation()).actions
    assert np.array_equal(policy.act(observation(state=replace(robot_state(), eef_position=np.ones(3)))).actions, usual)


def test_the_joint_space_kind(openvla, tmp_path):
    folder = shutil.copytree(openvla, tmp_path / "aloha")
    tiny.make_joint_space(folder)
    bounds = {"min": [-1.0] * 14, "max": [2.0] * 14, "q01": [0.0] * 14, "q99": [1.0] * 14}
    (folder / "dataset_statistics.json").write_text(json.dumps({"fold": {"action": bounds, "proprio": bounds}}))
    policy = load_policy(str(folder))
    cameras = ("high", "left_wrist", "right_wrist")
    assert policy.spec.cameras == cameras and policy.spec.open_loop_horizon == 25
    assert policy.spec.action_space.kind == "joint_position" and policy.spec.action_space.rate_hz == 25
    chunk = policy.act(observation(cameras=cameras, state=robot_state(14)))
    assert chunk.actions.shape == (25, 14)
    with pytest.raises(VegaError, match="7 joints"):
        policy.act(observation(cameras=cameras))


def test_of_several_statistics_one_is_chosen_by_name(openvla, tmp_path, plain):
    folder = shutil.copytree(openvla, tmp_path / "combined")
    one = json.loads((folder / "dataset_statistics.json").read_text())["libero_spatial_no_noops"]
    wide = json.loads(json.dumps(one))
    wide["action"]["q99"] = [10.0] * 7
    (folder / "dataset_statistics.json").write_text(json.dumps({"libero_object_no_noops": wide, "libero_10": one}))
    with pytest.raises(VegaError, match=r"\['libero_10', 'libero_object_no_noops'\].*--statistics"):
        load_policy(str(folder))
    policy = load_policy(str(composed(tmp_path / "a", folder, statistics_key="libero_10")))
    assert np.array_equal(policy.act(observation()).actions, plain.act(observation()).actions)
    policy = load_policy(str(composed(tmp_path / "b", folder, statistics_key="libero_object_no_noops")))
    assert np.abs(policy.act(observation()).actions - plain.act(observation()).actions).max() > 1


unit = st.lists(st.floats(-1, 1), min_size=4, max_size=4).filter(lambda q: np.linalg.norm(q) > 0.1).map(np.array)


@given(unit, unit)
def test_proprio_is_in_the_world_and_of_one_sign(hand, base):
    hand, base = hand / np.linalg.norm(hand), base / np.linalg.norm(base)
    state = replace(robot_state(), eef_quaternion=hand)
    found = libero_proprio(observation(state=state, base_quaternion=base, base_position=np.array([1.0, 2.0, 3.0])))
    turned = Rotation.from_quat(base) * Rotation.from_quat(hand)
    assume(abs(turned.as_quat()[3]) < 0.99)  # near no rotation at all the reference's formula is coarse
    position = Rotation.from_quat(base).apply(state.eef_position) + np.array([1.0, 2.0, 3.0])
    np.testing.assert_allclose(found[:3], position, atol=1e-9)
    assert (Rotation.from_rotvec(found[3:6]).inv() * turned).magnitude() < 1e-3
    other = libero_proprio(observation(state=replace(state, eef_quaternion=-hand), base_quaternion=base))
    if abs(turned.as_quat()[0]) > 1e-9:
        np.testing.assert_allclose(other[3:6], found[3:6], atol=1e-9)
    np.testing.assert_allclose(found[6:], [0.03, -0.02])


def test_proprio_is_that_of_the_stock_environment():
    """The training data's rotation vectors follow the sign that MuJoCo gives the hand's quaternion."""
    from sim.worlds.libero_env import LiberoEnvironment

    environment = LiberoEnvironment("libero_object", 0)
    environment.reset(0)
    for turn in (0.0, 0.6, -0.6):
        for _ in range(8):
            environment.step_eef(np.array([0.1, 0.1, 0, turn, turn, 0, 1]))
        simulator, robot = environment.env.sim, environment.env.robots[0]
        quaternion = np.roll(simulator.data.get_body_xquat("robot0_right_hand"), -1)
        seen = Observation({}, environment.state(), MILK, 0, environment.base_position, environment.base_quaternion)
        expected = np.concatenate(
            [
                simulator.data.site_xpos[robot.eef_site_id],
                axis_angle(quaternion),
                simulator.data.qpos[robot._ref_gripper_joint_pos_indexes],
            ]
        )
        np.testing.assert_allclose(libero_proprio(seen), expected, atol=1e-6)
    environment.close()


def test_hub_ids_are_downloaded_in_parts(openvla, wan, tmp_path, plain, monkeypatch):
    import huggingface_hub

    asked = []

    def download(repository, allow_patterns=None):
        asked.append((repository, allow_patterns))
        return str({"moojink/oft": openvla, "Wan-AI/tiny": wan}[repository])

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    monkeypatch.chdir(tmp_path)
    folder = composed(tmp_path / "vega", openvla, wan, {"source": "Wan-AI/tiny"}, openvla="moojink/oft")
    assert np.array_equal(load_policy(str(folder)).act(observation()).actions, plain.act(observation()).actions)
    assert load_policy("moojink/oft").spec.name == "oft"
    patterns = dict(asked)
    assert "text_encoder" not in str(patterns["Wan-AI/tiny"]) and "*.safetensors" in patterns["moojink/oft"]
    with pytest.raises(VegaError, match="neither a folder here nor could it be downloaded"):
        load_policy("nobody/nothing")


def test_too_little_memory_is_said_before_anything_is_loaded(openvla, wan, tmp_path, monkeypatch):
    folder = composed(tmp_path / "vega", openvla, wan)
    monkeypatch.setattr(weight_files, "assign", lambda *_: pytest.fail("something was loaded"))
    monkeypatch.setattr(weight_files, "available_bytes", lambda device: 1_000_000)
    with pytest.raises(VegaError, match=r"Policy .* needs 0\.0 GB on cpu but 0\.0 GB are free"):
        load_policy(str(folder))


def test_needed_memory_is_what_is_loaded(vega, openvla, wan, tmp_path):
    from policies.openvla.config import read_policy_config
    from policies.openvla.policy import memory_needed

    folder = composed(tmp_path / "other", openvla, wan)
    modules = [vega.model, vega.world, vega.world.simulator.encoder]
    loaded = sum(p.numel() * p.element_size() for module in modules for p in module.parameters())
    transformer = SafetensorsSource(wan / "transformer")
    stored = 4 * stored_count(transformer, transformer.names())
    assert memory_needed(folder, read_policy_config(folder)) == loaded + stored
