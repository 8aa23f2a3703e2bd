"""Chunks must line up with the motion whatever the latency, and nothing computed before a stop may be executed."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from policies.types import ActionChunk, ActionSpace, PolicySpec, VegaError
from vega3d_ros.control.chunk_scheduler import ENSEMBLE_DECAY, MERGE_MODES, ChunkScheduler, LatencyMeter, LockstepQueue

PERIOD = 0.05


def make_spec(length: int = 8, kind: str = "eef_delta", horizon: int | None = None) -> PolicySpec:
    return PolicySpec(
        "test",
        (),
        ActionSpace(kind, dim=3),
        chunk_length=length,
        open_loop_horizon=horizon or length,  # type: ignore[arg-type]
    )


def chunk(actions, stamp: int = 0, instruction: str = "go") -> ActionChunk:
    return ActionChunk(np.asarray(actions, dtype=float), stamp, instruction)


def steady(value: float, gripper: float = 1.0, length: int = 8) -> np.ndarray:
    return np.column_stack([np.full((length, 2), value), np.full(length, gripper)])


def primed(merge: str = "latest", latency_s: float = 0.1, length: int = 8, **more) -> ChunkScheduler:
    scheduler = ChunkScheduler(make_spec(length), merge, warm_up=0, **more)  # type: ignore[arg-type]
    scheduler.record_latency(latency_s)
    return scheduler


# ---- lockstep ----


@given(
    horizon=st.integers(1, 8),
    chunks=st.lists(hnp.arrays(np.float64, (8, 3), elements=st.floats(-1, 1)), min_size=1, max_size=6),
)
def test_lockstep_hands_out_the_first_actions_of_each_chunk_in_order(horizon, chunks) -> None:
    queue = LockstepQueue(make_spec(horizon=horizon))
    seen = []
    for number, actions in enumerate(chunks):
        assert queue.empty
        queue.submit(chunk(actions, stamp=number, instruction=f"task {number}"))
        for i in range(horizon):
            item = queue.pop()
            np.testing.assert_array_equal(item.action, actions[i])
            assert (item.stamp_ns, item.chunk_id, item.instruction) == (number, number, f"task {number}")
            seen.append(item.step)
    assert seen == list(range(horizon * len(chunks)))
    queue.submit(chunk(chunks[0]))
    queue.discard()
    assert queue.empty
    queue.reset()
    assert queue.step == 0


@pytest.mark.parametrize("bad", [np.zeros((7, 3)), np.zeros((8, 4)), np.zeros(24), np.full((8, 3), np.nan)])
def test_a_malformed_chunk_leaves_nothing_to_execute(bad) -> None:
    queue = LockstepQueue(make_spec())
    queue.submit(chunk(steady(0.5)))
    with pytest.raises(VegaError):
        queue.submit(chunk(bad))
    assert queue.empty
    scheduler = primed()
    query = scheduler.begin_query()
    with pytest.raises(VegaError):
        scheduler.submit(chunk(bad), query)
    assert scheduler.remaining == 0 and scheduler.should_query()


def test_a_bare_array_is_no_chunk() -> None:
    with pytest.raises(VegaError, match=r"gave a ndarray: its act\(\) must return an ActionChunk"):
        LockstepQueue(make_spec()).submit(steady(0.5))


def test_a_horizon_longer_than_the_chunk_is_refused() -> None:
    with pytest.raises(VegaError, match="open_loop_horizon"):
        LockstepQueue(make_spec(length=4, horizon=8))


# ---- asynchronous: what is executed when ----


def simulate(scheduler: ChunkScheduler, delays: list[int], truth, starving: list[bool]) -> list:
    """Run the control timer with each answer arriving `delay` ticks after its question; truth(step) is the action."""
    executed, pending = [], None
    delays = list(delays)
    for tick in range(60):
        if pending is not None and tick >= pending[0]:
            _, query, answer = pending
            pending = None
            scheduler.submit(answer, query)
        if pending is None and scheduler.should_query():
            query = scheduler.begin_query()
            answer = chunk([truth(query.step + i) for i in range(scheduler._spec.chunk_length)], stamp=tick)
            pending = (tick + delays[len(executed) % len(delays)], query, answer)
        item = scheduler.pop()
        starving.append(item is None)
        executed.append(item)
    return [item for item in executed if item is not None]


@settings(max_examples=60)
@given(delays=st.lists(st.integers(0, 12), min_size=1, max_size=9), merge=st.sampled_from(MERGE_MODES))
def test_every_step_is_executed_once_with_the_action_meant_for_it(delays, merge) -> None:
    """A policy that always predicts the same path: whatever the delays, that path comes out."""

    def truth(step: int) -> list[float]:
        return [np.sin(step / 3), step / 1000, (-1.0) ** step]

    scheduler = ChunkScheduler(make_spec(), merge, warm_up=0)
    starving: list[bool] = []
    items = simulate(scheduler, delays, truth, starving)
    assert [item.step for item in items] == list(range(len(items)))
    for item in items:
        np.testing.assert_allclose(item.action, truth(item.step), atol=1e-9)
    assert len(items) + scheduler.counts["starved"] == 60
    if max(delays) <= 4:
        first = starving.index(False)
        assert not any(starving[first:]), "a delay of up to half a chunk must be hidden"


def test_steps_already_consumed_are_dropped_by_count() -> None:
    scheduler = primed("latest")
    scheduler.submit(chunk(steady(0.1)), scheduler.begin_query())
    query = scheduler.begin_query()
    for _ in range(3):
        scheduler.pop()
    scheduler.submit(chunk(np.column_stack([np.arange(8) / 10] * 2 + [np.ones(8)]), stamp=9, instruction="new"), query)
    item = scheduler.pop()
    assert item is not None and item.step == 3
    np.testing.assert_allclose(item.action[:2], 0.3)
    assert (item.stamp_ns, item.instruction, item.chunk_id) == (9, "new", 1)
    assert scheduler.counts["steps_dropped"] == 3
    assert scheduler.remaining == 4


def test_a_pause_of_the_arm_consumes_nothing() -> None:
    scheduler = primed("latest")
    query = scheduler.begin_query()
    for _ in range(5):
        assert scheduler.pop() is None
    assert scheduler.starved_s == pytest.approx(5 * PERIOD)
    scheduler.submit(chunk(steady(0.2)), query)
    item = scheduler.pop()
    assert item is not None and item.step == 0 and scheduler.starved_s == 0
    assert scheduler.counts["steps_dropped"] == 0


def test_a_chunk_that_comes_after_all_its_steps_is_of_no_use() -> None:
    scheduler = primed("latest")
    scheduler.submit(chunk(steady(0.1)), scheduler.begin_query())
    query = scheduler.begin_query()
    while scheduler.remaining:
        scheduler.pop()
    assert scheduler.submit(chunk(steady(0.5)), query) is False
    assert scheduler.counts["chunks_late"] == 1 and scheduler.pop() is None


@given(when=st.sampled_from(["queued", "flying", "both"]), how=st.sampled_from(["discard", "reset"]))
def test_nothing_computed_before_a_stop_is_executed(when, how) -> None:
    scheduler = primed("align")
    if when != "flying":
        scheduler.submit(chunk(steady(0.9)), scheduler.begin_query())
        scheduler.pop()
    query = scheduler.begin_query()
    getattr(scheduler, how)()
    assert scheduler.pop() is None
    assert scheduler.submit(chunk(steady(0.9)), query) is False
    assert scheduler.counts["chunks_stale"] == 1
    assert scheduler.pop() is None
    assert scheduler.should_query()
    after = scheduler.begin_query()
    assert after.epoch == query.epoch + 1
    assert scheduler.submit(chunk(steady(-0.2), instruction="new"), after)
    item = scheduler.pop()
    assert item is not None and item.instruction == "new"
    np.testing.assert_allclose(item.action[:2], -0.2)


def test_the_answer_to_an_abandoned_question_does_not_count() -> None:
    scheduler = primed()
    query = scheduler.begin_query()
    assert not scheduler.should_query()
    scheduler.abandon(query)
    assert scheduler.should_query()
    assert scheduler.submit(chunk(steady(0.9)), query) is False
    assert scheduler.remaining == 0


# ---- latency ----


def test_latency_leaves_the_warm_up_out_and_forgets_what_is_old() -> None:
    meter = LatencyMeter(PERIOD, warm_up=2, window=20)
    for slow in (9.0, 9.0):
        meter.record(slow)
        assert not meter.known
    for _ in range(20):
        meter.record(0.1)
    assert meter.seconds == pytest.approx(0.1) and meter.periods == 2
    meter.record(0.12)
    meter.record(0.12)
    assert meter.periods == 3
    for _ in range(20):
        meter.record(0.04)
    assert meter.periods == 1


@given(st.lists(st.floats(0, 2), min_size=1, max_size=50))
def test_the_percentile_covers_95_of_100(samples) -> None:
    meter = LatencyMeter(PERIOD, warm_up=0)
    for sample in samples:
        meter.record(sample)
    assert np.mean(np.asarray(samples) <= meter.seconds) >= 0.95
    assert meter.periods * PERIOD >= meter.seconds - 1e-6


@pytest.mark.parametrize(("latency_s", "asks_at"), [(0.02, 2), (0.1, 3), (0.2, 5)])
def test_the_next_question_comes_when_what_is_left_just_covers_the_latency(latency_s, asks_at) -> None:
    scheduler = primed(latency_s=latency_s)
    scheduler.submit(chunk(steady(0.1)), scheduler.begin_query())
    while not scheduler.should_query():
        scheduler.pop()
    assert scheduler.remaining == asks_at


def test_a_latency_that_cannot_be_hidden_is_said_as_long_as_it_is_so_and_execution_alternates() -> None:
    scheduler = primed(latency_s=0.1)
    assert scheduler.notice is None and not scheduler.synchronous
    for _ in range(10):
        scheduler.record_latency(0.3)
    assert scheduler.synchronous
    assert scheduler.notice is not None
    for number in ("300 ms", "6 periods of 50 ms", "chunk of 8"):
        assert number in scheduler.notice
    scheduler.submit(chunk(steady(0.1)), scheduler.begin_query())
    while scheduler.remaining:
        assert not scheduler.should_query()
        scheduler.pop()
    assert scheduler.should_query()
    for _ in range(50):
        scheduler.record_latency(0.1)
    assert not scheduler.synchronous and scheduler.notice is None


# ---- merging ----


def lead_over(merge: str, consumed: int, old: float = 1.0, new: float = 0.0, length: int = 25) -> np.ndarray:
    """Motion (consumed + length - consumed, 2) of a steady chunk followed by another that arrives `consumed` late."""
    scheduler = primed(merge, latency_s=0.05, length=length, blend_steps=16)
    scheduler.submit(chunk(steady(old, gripper=-1.0, length=length)), scheduler.begin_query())
    for _ in range(5):
        scheduler.pop()
    query = scheduler.begin_query()
    motion = [scheduler.pop().action for _ in range(consumed)]  # type: ignore[union-attr]
    scheduler.submit(chunk(steady(new, gripper=1.0, length=length)), query)
    while scheduler.remaining:
        motion.append(scheduler.pop().action)  # type: ignore[union-attr]
    return np.array(motion)


@pytest.mark.parametrize("consumed", [1, 2, 4])
def test_align_has_a_smaller_seam_than_latest(consumed) -> None:
    jumps = {merge: np.abs(np.diff(lead_over(merge, consumed)[:, 0])).max() for merge in ("latest", "align")}
    assert jumps["latest"] == pytest.approx(1.0)
    assert jumps["align"] < jumps["latest"] / 3


@given(
    old=hnp.arrays(np.float64, (8, 3), elements=st.floats(-0.5, 0.5)),
    new=hnp.arrays(np.float64, (8, 3), elements=st.floats(-0.5, 0.5)),
    consumed=st.integers(1, 6),
    kind=st.sampled_from(["eef_delta", "joint_position"]),
)
def test_at_the_seam_align_does_what_the_chunk_under_way_had_planned(old, new, consumed, kind) -> None:
    """The first step after the seam keeps at most an eighth of the difference between the two plans' motions."""
    scheduler = ChunkScheduler(make_spec(kind=kind), "align", warm_up=0)
    scheduler.submit(chunk(old), scheduler.begin_query())
    scheduler.pop()
    query = scheduler.begin_query()
    for _ in range(consumed):
        last = scheduler.pop()
    planned = scheduler.planned
    scheduler.submit(chunk(new), query)
    item = scheduler.pop()
    assert last is not None and planned is not None and item is not None
    if kind == "eef_delta":
        motions = [planned.action[:2], new[consumed, :2], item.action[:2]]
        offset = old[1 : consumed + 1, :2].sum(axis=0) - new[:consumed, :2].sum(axis=0)
    else:
        motions = [a - last.action[:2] for a in (planned.action[:2], item.action[:2])]
        motions.insert(1, new[consumed, :2] - new[consumed - 1, :2])
        offset = last.action[:2] - new[consumed - 1, :2]
    allowed = np.abs(motions[1] - motions[0]) / 8 + 0.012 * np.abs(offset)
    assert np.all(np.abs(motions[2] - motions[0]) <= allowed + 1e-12)


@pytest.mark.parametrize("consumed", [1, 2, 4])
def test_align_ends_where_the_new_chunk_wanted_to(consumed) -> None:
    """The steps dropped from the new chunk are made up for: the path ends on the chunk's own absolute target."""
    assert lead_over("align", consumed, old=0.4, new=0.1)[:, 0].sum() == pytest.approx(25 * 0.1)
    assert lead_over("latest", consumed, old=0.4, new=0.1)[:, 0].sum() == pytest.approx(25 * 0.1 + consumed * 0.3)


@given(
    old=hnp.arrays(np.float64, (8, 3), elements=st.floats(-1, 1)),
    new=hnp.arrays(np.float64, (8, 3), elements=st.floats(-1, 1)),
    executed=st.integers(1, 4),
    consumed=st.integers(0, 4),
    merge=st.sampled_from(MERGE_MODES),
    kind=st.sampled_from(["eef_delta", "joint_position"]),
)
def test_merged_actions_are_finite_in_range_and_the_gripper_is_the_newest(old, new, executed, consumed, merge, kind):
    scheduler = ChunkScheduler(make_spec(kind=kind), merge, warm_up=0)
    scheduler.submit(chunk(old), scheduler.begin_query())
    for _ in range(executed):
        scheduler.pop()
    query = scheduler.begin_query()
    for _ in range(consumed):
        scheduler.pop()
    scheduler.submit(chunk(new), query)
    for i in range(consumed, 8):
        item = scheduler.pop()
        assert item is not None and item.step == executed + i
        assert np.isfinite(item.action).all()
        assert item.action[-1] == new[i, -1]
        if kind == "eef_delta" or merge != "align":
            assert np.abs(item.action[:-1]).max() <= 1.0 + 1e-12
    assert scheduler.pop() is None


def test_align_joins_absolute_targets_without_a_step() -> None:
    ramp = np.column_stack([np.arange(8) / 10, np.arange(8) / 10, np.ones(8)])
    scheduler = ChunkScheduler(make_spec(kind="joint_position"), "align", warm_up=0, blend_steps=8)
    scheduler.submit(chunk(ramp), scheduler.begin_query())
    seen = [scheduler.pop().action[0] for _ in range(3)]  # type: ignore[union-attr]
    query = scheduler.begin_query()
    seen.append(scheduler.pop().action[0])  # type: ignore[union-attr]
    # The new chunk is the same ramp, shifted by 5: it is reached in the end, and not in one leap.
    later = ramp + np.array([5.3, 5.3, 0.0])
    scheduler.submit(chunk(later), query)
    while scheduler.remaining:
        seen.append(scheduler.pop().action[0])  # type: ignore[union-attr]
    assert np.abs(np.diff(seen)).max() < 1.5
    assert seen[4] < 1.0 and seen[-1] == pytest.approx(later[-1, 0], abs=0.3)


def test_ensemble_is_the_weighted_mean_of_all_that_predict_a_step() -> None:
    scheduler = primed("ensemble")
    for value in (0.1, 0.4, 0.7):
        scheduler.submit(chunk(steady(value, gripper=value)), scheduler.begin_query())
        item = scheduler.pop()
    weights = np.exp(-ENSEMBLE_DECAY * np.arange(3))
    assert item is not None
    np.testing.assert_allclose(item.action[:2], weights @ [0.1, 0.4, 0.7] / weights.sum())
    assert item.action[2] == 0.7
    last = [scheduler.pop() for _ in range(7)][-1]
    np.testing.assert_allclose(last.action[:2], 0.7)  # type: ignore[union-attr]


def test_motion_from_rest_starts_as_the_policy_says() -> None:
    for merge in MERGE_MODES:
        scheduler = primed(merge)
        scheduler.submit(chunk(steady(0.8)), scheduler.begin_query())
        while scheduler.remaining:
            scheduler.pop()
        scheduler.pop()
        scheduler.submit(chunk(steady(-0.8)), scheduler.begin_query())
        np.testing.assert_allclose(scheduler.pop().action[:2], -0.8)  # type: ignore[union-attr]


def test_an_unknown_merge_mode_is_refused_with_those_that_exist() -> None:
    with pytest.raises(VegaError, match=r"'mean'.*align, ensemble, latest"):
        ChunkScheduler(make_spec(), "mean")  # type: ignore[arg-type]
