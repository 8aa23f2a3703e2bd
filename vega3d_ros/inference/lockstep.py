"""One command for every joint state, while the world waits.  NumPy only, one thread.

The decision itself is `ControlLoop`, the same object that an evaluation without ROS uses; this adds
only the waiting for frames that belong to the joint state.
"""

from __future__ import annotations

import time

from vega3d_ros.control.control_loop import ControlLoop, JointCommand, JointSample
from vega3d_ros.control.frame_buffer import FrameBuffer
from vega3d_ros.control.journal import Journal, no_journal, query_fields, tick_fields
from vega3d_ros.inference.failures import begin_episode


class Lockstep:
    """Answers joint states in order.

    Frames must lie within half a control period of the joint state they are used with: a world
    that waits sends them with (nearly) the same stamp, perhaps later than the joint state, and the
    frame of the step before must never take their place.  Of a policy with a window of frames the first
    decision sees the first frame repeated, as `sim.worlds.frames.FrameWindow` has it.
    """

    told = True  # see `Realtime`; the world itself knows where the arm is

    def __init__(self, loop: ControlLoop, buffer: FrameBuffer, period_ns: int) -> None:
        self.loop = loop
        self.pending: JointSample | None = None
        self.offered_s = 0.0  # time.monotonic() of the first offer of `pending`
        self.queried_frames_ns: int | None = None
        self.journal: Journal = no_journal
        self._buffer = buffer
        self._tolerance_ns = period_ns // 2

    def reset(self) -> None:
        """Forget the queue, the policy's memory and the joint state that waits.  Raises VegaError where the policy
        cannot begin."""
        self.pending = None
        self.queried_frames_ns = None
        begin_episode(self.loop.reset)
        self.journal("start")

    def discard(self) -> None:
        """Drop what is queued, so that the next answer asks the policy."""
        self.loop.discard()
        self.journal("discard")

    def offer(self, sample: JointSample) -> None:
        """The newest joint state; an older one that still waits is no longer worth an answer."""
        if self.pending is None or self.pending.stamp_ns != sample.stamp_ns:
            self.offered_s = time.monotonic()
        self.pending = sample

    def answer(self, instruction: str) -> JointCommand | None:
        """The command for the pending joint state, None while there is none or frames are missing.

        Sets `queried_frames_ns` to the newest frame's stamp if the policy was asked, else to None.
        Raises VegaError, or whatever the policy raises; the joint state then stays unanswered.
        """
        sample, images = self.pending, None
        if sample is None:
            return None
        self.queried_frames_ns = None
        if self.loop.needs_images:
            frames = self._buffer.sample(sample.stamp_ns, self._tolerance_ns, from_rest=True)
            if frames is None:
                return None
            images = frames.images
            self.queried_frames_ns = max(int(stamps[-1]) for stamps in frames.stamps_ns.values())
            self.journal("query", query=0, **query_fields(self.loop, sample.stamp_ns, frames, instruction))
        self.pending = None
        command = self.loop.step(sample, images, instruction)
        if images is not None and self.loop.last_chunk is not None:
            self.journal("chunk", query=0, latency_s=0.0, actions=self.loop.last_chunk.actions, error="")
        self.journal("tick", **tick_fields(sample, command, sample.stamp_ns))
        return command
