"""Frames drawn for a policy: all that it will look at, and no other."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from policies.types import ActionSpace, PolicySpec
from sim.worlds.frames import FrameWindow
from vega3d_ros.control.frame_buffer import FrameBuffer

PERIOD_NS = 50_000_000
FIRST_NS = 1_000_000_000
SPEC = PolicySpec("p", ("agentview",), ActionSpace("eef_delta"))


def looked_at(horizon: int, window: int, stride: int, steps: int) -> tuple[set[int], set[int]]:
    """(frames drawn, frames that appeared in a decision) of an episode; every frame's pixels are its step."""
    spec = replace(SPEC, open_loop_horizon=horizon, chunk_length=horizon, window=window, stride=stride)
    frames, drawn, seen = FrameWindow(spec), set(), set()
    for step in range(steps):
        if frames.needed(step):
            frames.add(step, {"agentview": np.full((1, 1, 3), step, dtype=np.uint8)})
            drawn.add(step)
        if step % horizon == 0:
            found = frames.images(step)["agentview"][:, 0, 0, 0].astype(int)
            assert found.tolist() == [max(step - age * stride, 0) for age in reversed(range(window))]
            seen.update(found.tolist())
    return drawn, seen


@given(st.integers(1, 12), st.integers(1, 5), st.integers(1, 6))
def test_exactly_what_is_looked_at_is_drawn(horizon: int, window: int, stride: int) -> None:
    steps = 12 * horizon + window * stride + 1
    drawn, seen = looked_at(horizon, window, stride, steps)
    # Frames for decisions after the end cannot have been looked at yet.
    last = (steps - 1) // horizon * horizon - (window - 1) * stride
    assert {step for step in drawn if step <= last} == {step for step in seen if step <= last}


@given(st.integers(1, 8), st.integers(1, 5), st.integers(1, 4))
def test_a_node_in_lockstep_sees_the_same_window(horizon: int, window: int, stride: int) -> None:
    """Decision by decision, whether the frames are drawn here or come as messages to the node."""
    spec = replace(SPEC, open_loop_horizon=horizon, chunk_length=horizon, window=window, stride=stride)
    frames, buffer = FrameWindow(spec), FrameBuffer(spec.cameras, window, stride * PERIOD_NS)
    for step in range(3 * horizon + window * stride):
        image = np.full((1, 1, 3), step, dtype=np.uint8)
        buffer.push("agentview", FIRST_NS + step * PERIOD_NS, image)
        if frames.needed(step):
            frames.add(step, {"agentview": image})
        if step % horizon == 0:
            found = buffer.sample(FIRST_NS + step * PERIOD_NS, PERIOD_NS // 2, from_rest=True)
            assert found is not None, buffer.waiting_for
            np.testing.assert_array_equal(found.images["agentview"], frames.images(step)["agentview"])


def test_one_frame_in_eight_for_a_single_frame_and_eight_actions() -> None:
    assert looked_at(8, 1, 1, 80)[0] == set(range(0, 80, 8))
