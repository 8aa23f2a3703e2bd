"""What stands in for the world simulator's tokens keeps statistics and loses content, the same every time."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from policies.checkpoints import load_policy
from policies.fusion.controls import WorldControl, like
from policies.fusion.fused_policy import FusedPolicy
from policies.fusion.gated_fusion import build_fusion
from policies.fusion.untrained import UntrainedSimulator
from policies.types import WORLD_CONTROLS, Observation, RobotState, VegaError

INSTRUCTION = "pick up the milk and place it in the basket"


def observation(policy: FusedPolicy, seed: int) -> Observation:
    rng = np.random.default_rng(seed)
    state = RobotState(
        0, tuple(f"j{i}" for i in range(7)), np.zeros(7), np.zeros(7), np.array([0.04, 0.04]),
        np.array([0.4, 0.0, 0.3]), np.array([1.0, 0.0, 0.0, 0.0]),
    )  # fmt: skip
    images = {camera: rng.integers(0, 256, (1, 256, 256, 3), dtype=np.uint8) for camera in policy.spec.cameras}
    return Observation(images, state, INSTRUCTION, 0)


@pytest.fixture(scope="module")
def shipped() -> dict[str, FusedPolicy]:
    return {name: load_policy("vega-nano", world_simulator=name) for name in WORLD_CONTROLS}  # type: ignore[misc]


@pytest.mark.parametrize("name", WORLD_CONTROLS)
def test_a_control_decides_otherwise_but_always_alike(name: str, shipped: dict[str, FusedPolicy]) -> None:
    policy = shipped[name]
    seen, other = observation(policy, 1), observation(policy, 2)
    first = policy.act(seen).actions
    policy.act(other)
    policy.reset()
    assert np.array_equal(policy.act(seen).actions, first)
    same = np.array_equal(first, shipped["on"].act(seen).actions)
    assert same == (name == "on")


@pytest.mark.parametrize("name", ["noise", "untrained", "vae"])
def test_statistics_stay_and_content_goes(name: str, shipped: dict[str, FusedPolicy]) -> None:
    policy = shipped[name]
    assert policy.world is not None
    simulator = policy.world.simulator
    camera = next(iter(policy.world.cameras))
    frames = torch.from_numpy(observation(policy, 3).images[camera])[None]
    tokens = simulator(frames)
    stand_in = WorldControl(name, policy.world.fusion).look(simulator, frames)
    assert torch.allclose(stand_in.mean(1), tokens.mean(1), atol=1e-3)
    assert torch.allclose(stand_in.std(1), tokens.std(1), rtol=2e-2, atol=1e-3)
    alike = torch.nn.functional.cosine_similarity(
        (stand_in - stand_in.mean(1, keepdim=True)).flatten(), (tokens - tokens.mean(1, keepdim=True)).flatten(), dim=0
    )
    assert alike.abs() < (0.1 if name == "noise" else 0.9)


def test_an_untrained_simulator_has_learned_nothing_and_shows_the_picture(shipped: dict[str, FusedPolicy]) -> None:
    world = shipped["on"].world
    assert world is not None
    trained, other = world.simulator, UntrainedSimulator.like(world.simulator)
    drawn = dict([*other.named_parameters(), *other.named_buffers()])
    for name, weight in [*trained.named_parameters(), *trained.named_buffers()]:
        constant = name.startswith("trunk.rope.") or name.endswith("prompt_bias") or weight.unique().numel() == 1
        assert constant or not torch.equal(weight, drawn[name]), name
    squares = np.random.default_rng(5).integers(0, 256, (24, 1, 8, 8, 3), dtype=np.uint8)
    frames = torch.from_numpy(squares.repeat(32, axis=2).repeat(32, axis=3))
    # Of what varies in the tokens, the share that depends on the picture and not on where a token lies.
    shown = [float(t.var(0).mean() / t.flatten(0, 1).var(0).mean()) for t in (trained(frames), other(frames))]
    assert shown[1] > 0.7 * shown[0], shown


def test_shuffled_tokens_are_the_same_tokens_elsewhere(shipped: dict[str, FusedPolicy]) -> None:
    world = shipped["shuffled"].world
    assert world is not None
    frames = torch.from_numpy(observation(shipped["shuffled"], 4).images[next(iter(world.cameras))])[None]
    tokens = world.simulator(frames)[0]
    moved = WorldControl("shuffled", world.fusion).look(world.simulator, frames)[0]
    # Neighbours that lie in one token of the simulator are equal: compared as sets, with how often each occurs.
    here, there = (rows.unique(dim=0, return_counts=True) for rows in (tokens, moved))
    assert torch.equal(here[0], there[0]) and torch.equal(here[1], there[1])
    assert (tokens != moved).any(dim=1).float().mean() > 0.8


def test_a_closed_gate_is_the_gate_at_one(shipped: dict[str, FusedPolicy]) -> None:
    fusion = build_fusion("token_gate", 16, 8)
    with torch.no_grad():
        fusion.gate.weight.zero_()
        fusion.gate.bias.fill_(40.0)
    sem, gen = torch.randn(2, 5, 16), torch.randn(2, 5, 8)
    assert torch.allclose(fusion.closed(sem)[0], fusion(sem, gen)[0])
    gates = shipped["off"].act(observation(shipped["off"], 1)).gates
    assert gates and all((gate == 1).all() for gate in gates.values())


# Both cameras go through the trunk in one pass unless something stands in for what they give.
@pytest.mark.parametrize(("name", "looks", "passes"), [("on", 2, 1), ("noise", 2, 2), ("off", 0, 0)])
def test_where_the_gate_is_closed_no_world_simulator_runs(
    name: str, looks: int, passes: int, shipped: dict[str, FusedPolicy], monkeypatch: pytest.MonkeyPatch
) -> None:
    policy, ran = shipped[name], []
    assert policy.world is not None
    simulator = policy.world.simulator
    frames = type(simulator.encoder).frames
    monkeypatch.setattr(
        type(simulator.encoder), "frames", lambda own, video: (ran.append("encoder"), frames(own, video))[1]
    )
    hook = simulator.trunk.blocks[0].register_forward_pre_hook(lambda *_: ran.append("block"))
    policy.reset()
    policy.act(observation(policy, 5))
    hook.remove()
    assert (ran.count("encoder"), ran.count("block")) == (looks, passes)


def test_without_a_look_it_decides_as_a_gate_at_one_over_all_tokens(shipped: dict[str, FusedPolicy]) -> None:
    saturated = load_policy("vega-nano")
    assert isinstance(saturated, FusedPolicy) and saturated.world is not None
    with torch.no_grad():
        saturated.world.fusion.gate.weight.zero_()
        saturated.world.fusion.gate.bias.fill_(40.0)  # sigmoid(40) is 1 in float32
    seen = observation(saturated, 6)
    assert np.array_equal(saturated.act(seen).actions, shipped["off"].act(seen).actions)


@pytest.mark.parametrize(
    ("policy", "control", "said"),
    [
        ("vega-nano", "silent", "unknown: choose one of on, off"),
        ("vega-nano-plain", "noise", "no world simulator"),
    ],
)
def test_what_cannot_be_controlled_is_one_sentence(policy: str, control: str, said: str) -> None:
    with pytest.raises(VegaError, match=said):
        load_policy(policy, world_simulator=control)


def test_a_fusion_without_a_gate_cannot_be_closed() -> None:
    with pytest.raises(VegaError, match="no gate"):
        WorldControl("off", build_fusion("concat", 16, 8))


def test_tokens_without_variation_stay_finite() -> None:
    assert like(torch.zeros(1, 4, 3), torch.ones(1, 4, 3)).isfinite().all()
