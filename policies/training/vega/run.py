"""A training run: steps, validation, states that survive being killed, and the folder that comes out."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from policies.openvla.policy import VegaOpenVLA
from policies.training.curves import add_line, cut_log
from policies.training.optimisation import check_finite, going_on, save_state
from policies.training.vega.batches import Batch, Batches
from policies.training.vega.engine import (
    collected,
    mean_over_processes,
    rounded_time,
    settle,
    shard,
    spread,
    spread_like,
    whole,
)
from policies.training.vega.learner import VegaLearner
from policies.training.vega.publishing import publish
from policies.types import VegaError

CLIP = 1.0  # norm of a step's gradient
STATE_FILE, LOG_FILE, POLICY_FOLDER = "training_state.pt", "log.jsonl", "policy"


@dataclass(frozen=True)
class Course:
    """steps in all; batch: samples a step over all processes; micro: of them at once in one process.

    rate: of learning, a tenth of it from `decay_step` on.  validate_every, save_every: steps.  publish_every: steps,
    0 for the last alone.
    """

    steps: int
    batch: int
    micro: int
    rate: float
    decay_step: int
    warm_up: int
    validate_every: int
    save_every: int
    publish_every: int = 0

    def accumulation(self, processes: int) -> int:
        """Turns of every process a step.  VegaError where they do not come out even."""
        if self.batch % (self.micro * processes):
            raise VegaError(
                f"A batch of {self.batch} does not divide among {processes} processes with {self.micro} samples at "
                "once: change --batch or --micro."
            )
        return self.batch // (self.micro * processes)

    def rate_at(self, step: int) -> float:
        """OpenVLA-OFT's: a warm-up from a tenth, then two levels."""
        warm = 0.1 + 0.9 * min(1.0, (step + 1) / self.warm_up) if self.warm_up > 0 else 1.0
        return self.rate * warm * (0.1 if step >= self.decay_step else 1.0)


class Run:
    """Everything between the first step and the last; used once in each process."""

    def __init__(
        self,
        engine: Accelerator,
        policy: VegaOpenVLA,
        learner: VegaLearner,
        batches: Batches,
        validation: Sequence[Batch],
        output: Path,
        base: str,
        decides: Mapping[str, Any],
        held_out: bool,
        sharded: bool = False,
    ) -> None:
        """base: hash of the policy from which it learns: of equal shapes, another would go unnoticed.  decides: see
        `save_state`.  held_out: nothing is learned from what `validation` has.
        sharded: weights are spread over the processes, not the batch alone.
        """
        self._decides, self._measured = decides, "validation_l1" if held_out else "learned_l1"
        self._engine, self._policy, self._learner, self._batches = engine, policy, learner, batches
        self._validation, self._output, self._base = validation, output, base
        self._shared: nn.Module = shard(engine, learner, learner.blocks()) if sharded else spread(engine, learner)
        parameters = [parameter for _, parameter in learner.learning()]
        # In one call it takes no mixture of parameters that are spread and such that are not.
        self._sharded, self._at_once = sharded, False if sharded else None
        self._optimizer = torch.optim.AdamW(parameters, lr=0.0, weight_decay=0.01, foreach=self._at_once)

    def go(self, course: Course) -> None:
        """Train from where the output folder's state is to the last step, and publish the policy."""
        engine, first = self._engine, self._resume()
        turns = course.accumulation(engine.num_processes)
        if engine.is_main_process:
            cut_log(self._output / LOG_FILE, first or -1)  # without steps that are done again, or a run before
        if first == 0:
            self._say({"step": 0, self._measured: self._validate(0)})
        folder, every = self._output / POLICY_FOLDER, course.publish_every
        if first < course.steps and folder.exists() and engine.is_main_process:
            following = min(course.steps, (first // every + 1) * every) if every else course.steps
            print(f"{folder} is of an earlier step until step {following}", flush=True)
        begun = time.monotonic()
        for step in range(first, course.steps):
            loss = self._step(course, step, turns)
            done = step + 1
            line: dict[str, float] = {"step": done, "l1": loss}
            if done % course.validate_every == 0 or done == course.steps:
                line[self._measured] = self._validate(done)
            left = (time.monotonic() - begun) / (done - first) * (course.steps - done)
            self._say(line, f", {rounded_time(left)} left")
            if done % course.save_every == 0 or done == course.steps:
                self._keep(done)
            if every and done % every == 0 and done < course.steps:
                self._publish(done)
        if first >= course.steps and engine.is_main_process:
            print(f"{first} steps are done already: give more --steps, or another --output.", flush=True)
        self._publish(max(first, course.steps))

    def _publish(self, done: int) -> None:
        """The policy after `done` steps, as a folder."""
        engine, learner = self._engine, self._learner
        model = collected(engine, learner.model.state_dict())
        fusion = None if learner.fusion is None else collected(engine, learner.fusion.state_dict())
        if engine.is_main_process:
            merged, folder = learner.merged(model), self._output / POLICY_FOLDER
            publish(self._policy, merged, fusion, done, folder)
            print(folder, flush=True)
        engine.wait_for_everyone()

    def _step(self, course: Course, step: int, turns: int) -> float:
        """One step of the optimiser; the batch's L1."""
        engine = self._engine
        for group in self._optimizer.param_groups:
            group["lr"] = course.rate_at(step)
        self._optimizer.zero_grad(set_to_none=True)
        total = torch.zeros((), device=engine.device)
        for turn in range(turns):
            begin = (turn * engine.num_processes + engine.process_index) * course.micro
            batch = self._batches.drawn(step, range(begin, begin + course.micro))
            torch.manual_seed(self._batches.seed(step, begin))  # of dropout, which cross-attention has
            # Gradients meet once a step, in its last turn.
            with engine.no_sync(self._shared) if turn < turns - 1 else contextlib.nullcontext(), engine.autocast():
                loss = self._shared(batch)
                engine.backward(loss * (engine.gradient_accumulation_steps / turns))
            total += loss.detach() / turns
        parameters = [parameter for _, parameter in self._learner.learning()]
        norm = settle(engine, parameters, CLIP) if self._sharded else float(nn.utils.clip_grad_norm_(parameters, CLIP))
        loss = mean_over_processes(engine, total)
        check_finite(step + 1, loss, norm)  # the same in every process
        self._optimizer.step()
        return loss

    @torch.no_grad()
    def _validate(self, done: int) -> float:
        """L1 over the validation's samples after `done` steps, each process a part of them."""
        engine = self._engine
        self._learner.eval()
        sums = torch.zeros(2, dtype=torch.float64, device=engine.device)
        for first in range(0, len(self._validation), engine.num_processes):
            number = first + engine.process_index
            # Processes that share weights can only run together, so one without a batch runs the last and forgets it.
            batch = self._validation[min(number, len(self._validation) - 1)]
            with engine.autocast():
                loss = self._learner(batch)
            if number < len(self._validation):
                sums += torch.tensor([float(loss) * len(batch.actions), len(batch.actions)]).to(sums)
        sums = engine.reduce(sums, reduction="sum")
        self._learner.train()
        found = float(sums[0] / sums[1])  # of one sample at least
        check_finite(done, found)
        return found

    def _keep(self, done: int) -> None:
        """The state after `done` steps, whole, so that any number of processes can go on."""
        state = whole(dict(self._learner.learning()))
        optimizer = whole(self._optimizer.state_dict())
        if self._engine.is_main_process:
            kept = {"step": done, "learning": state, "optimizer": optimizer, "policy_sha256": self._base}
            save_state(self._output / STATE_FILE, kept, self._decides)
        self._engine.wait_for_everyone()

    def _resume(self) -> int:
        """Steps that have been done.  Raises VegaError for a state of another policy or of other settings."""
        path = self._output / STATE_FILE
        if not path.is_file():
            return 0
        mine = dict(self._learner.learning())
        with going_on(path, "learning", "optimizer", decides=self._decides) as state:
            return self._taken_over(state, mine, path)

    def _taken_over(self, state: Mapping[str, Any], mine: Mapping[str, nn.Parameter], path: Path) -> int:
        """Steps that have been done."""
        if state.get("policy_sha256", self._base) != self._base:  # older states do not say it
            raise VegaError(
                f"The state in '{path}' has learned from another --policy, or that has been written anew since: give "
                "the same again, or name a new --output."
            )
        if {n: p.shape for n, p in mine.items()} != {n: t.shape for n, t in state["learning"].items()}:
            raise VegaError(f"The state in '{path}' is of other settings: use them again, or name a new --output.")
        with torch.no_grad():
            for name, parameter in mine.items():
                parameter.copy_(spread_like(state["learning"][name], parameter))
        for number, parameter in enumerate(mine.values()):
            kept = state["optimizer"]["state"].get(number, {})
            kept |= {key: spread_like(value, parameter) for key, value in kept.items() if value.ndim}
        self._optimizer.load_state_dict(state["optimizer"])
        for group in self._optimizer.param_groups:
            group["foreach"] = self._at_once
        return int(state["step"])

    def _say(self, line: Mapping[str, float], more: str = "") -> None:
        if not self._engine.is_main_process:
            return
        print(" ".join(f"{name} {value:g}" for name, value in line.items()) + more, flush=True)
        add_line(self._output / LOG_FILE, line)
