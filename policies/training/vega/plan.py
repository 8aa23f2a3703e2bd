"""What a training costs, told before it is paid: counted on tensors without memory, at full size.

Counted: weights, gradients and the optimiser's state by their sizes; operations of forward and backward by torch's
FlopCounterMode; activations as the bytes that backward has been left by a forward pass; the world simulator's tokens,
which are computed once, by frame.  Assumed: how many operations a GPU does a second.  Not counted: NOT_COUNTED.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from policies.measuring.benchmark_models import FULL, Sizes
from policies.measuring.counted import CAMERAS, META, on_meta, operations
from policies.measuring.latencies import FRAME_SIZE
from policies.openvla.config import VegaOpenVLAConfig
from policies.openvla.policy import VegaOpenVLA
from policies.training.vega.batches import Batch
from policies.training.vega.learner import VegaLearner

PROMPT = list(range(1, 36))
NOT_COUNTED = (
    "validation, reading and augmenting pictures, gradients on their way between GPUs, what the allocator adds, and "
    "with --checkpointing one block's activations while they are computed again"
)


@dataclass(frozen=True)
class Plan:
    """Bytes of one GPU, and operations of one sample's forward and backward pass; of one frame's tokens both."""

    weights: int
    gradients_and_optimizer: int
    activations: int
    operations_per_sample: float
    learning: int
    operations_per_frame: float
    bytes_per_frame: int

    @property
    def gigabytes(self) -> float:
        return (self.weights + self.gradients_and_optimizer + self.activations) / 1e9


def make_plan(rank: int, micro: int, checkpointing: bool, sizes: Sizes = FULL) -> Plan:
    """Of a policy of these sizes with two cameras."""
    query = on_meta(sizes)
    config = VegaOpenVLAConfig("plan", ".", "libero", tuple(query.world.cameras))
    policy = VegaOpenVLA.__new__(VegaOpenVLA)
    torch.nn.Module.__init__(policy)
    policy.config, policy.model, policy.world = config, query.policy, query.world
    learner = VegaLearner(policy, rank, checkpointing).train()
    info, gen = query.policy.info, query.world.simulator.dim
    batch = Batch(
        torch.empty(micro, 6 * CAMERAS, info.image_size, info.image_size, device=META),
        [PROMPT] * micro,
        torch.empty(micro, info.proprio_dim, device=META),
        torch.empty(micro, info.chunk_length, info.action_dim, device=META),
        {camera: torch.empty(micro, info.patches, gen, device=META) for camera in query.world.cameras},
    )
    numbers = {name: parameter.numel() for name, parameter in learner.learning()}
    every = sum(parameter.numel() for parameter in learner.parameters())
    learned = sum(numbers.values())
    simulator = query.world.simulator  # frozen, and on the device all the same
    every += sum(part.numel() for part in (*simulator.parameters(), *simulator.buffers()))
    # What learns is kept in float32 and computed in bf16, as all else is.
    learner.to(device=META, dtype=torch.bfloat16)
    own = {id(parameter) for parameter in learner.parameters()}
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        if id(tensor) not in own:
            kept[id(tensor)] = tensor  # held, so that no other gets its number
        return tensor

    with FlopCounterMode(display=False) as counter:
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            loss = learner(batch)
        activations = sum(tensor.numel() * tensor.element_size() for tensor in kept.values())
        loss.backward()
    frame = torch.empty(1, 1, *FRAME_SIZE, 3, dtype=torch.uint8, device=META)
    cells = (sizes.canvas // simulator.token_px) ** 2
    return Plan(
        weights=2 * (every - learned) + 4 * learned,
        gradients_and_optimizer=12 * learned,  # a gradient and AdamW's two moments, float32
        activations=activations,
        operations_per_sample=counter.get_total_flops() / micro,
        learning=learned,
        operations_per_frame=operations(lambda: simulator(frame)),
        bytes_per_frame=2 * cells * gen,  # float16, as `tokens` keeps them
    )
