"""What a training costs, told before it is paid: counted on tensors without memory, at full size.

Counted: weights, gradients and the optimiser's state by their sizes; operations of forward and backward by torch's
FlopCounterMode; activations as the memory that a forward pass has left backward, weights and second views of the same
left out; the world simulator's tokens, which are computed once, by frame.  Assumed: how many operations a GPU does a
second.  Not counted: NOT_COUNTED.
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
    "validation, reading and augmenting pictures, gradients on their way between GPUs, bf16 copies of what learns in "
    "float32, what the allocator adds, and with --checkpointing one block's activations while they are computed again"
)


@dataclass(frozen=True)
class Plan:
    """Bytes of one GPU, and operations of one sample's forward and backward pass; of one frame's tokens both.

    gathered: of weights that are spread over the GPUs, what one has whole at a time.
    """

    weights: int
    gathered: int
    gradients_and_optimizer: int
    activations: int
    operations_per_sample: float
    learning: int
    operations_per_frame: float
    bytes_per_frame: int

    @property
    def gigabytes(self) -> float:
        return (self.weights + self.gathered + self.gradients_and_optimizer + self.activations) / 1e9


def make_plan(
    rank: int, micro: int, checkpointing: bool, sizes: Sizes = FULL, dtype: torch.dtype = torch.bfloat16, among: int = 1
) -> Plan:
    """Of a policy of these sizes with two cameras.

    dtype: products are computed in; with float32 all weights are, too.  among: GPUs that the policy's weights,
    gradients and optimiser's state are spread over (`engine.shard`).
    """
    query = on_meta(sizes, dtype)
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
    learned = [parameter for _, parameter in learner.learning()]
    simulator = query.world.simulator  # frozen, and whole on every device all the same
    frozen = sum(part.nbytes for part in (*simulator.parameters(), *simulator.buffers()))
    weights = frozen + sum(_share(parameter, among) for parameter in learner.parameters())
    # A gradient and AdamW's two moments, each as what learns is kept.
    gradients_and_optimizer = 3 * sum(_share(parameter, among) for parameter in learned)
    gathered = _gathered(learner) if among > 1 else 0
    learner.to(device=META, dtype=dtype)  # as what learns in float32 is computed in
    own = {_storage(parameter) for parameter in learner.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: Tensor) -> Tensor:
        if (number := _storage(tensor)) not in own:  # views of weights are the weights
            kept[number] = tensor.untyped_storage()  # held, so that no other gets its number
        return tensor

    with FlopCounterMode(display=False) as counter:
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            loss = learner(batch)
        activations = sum(storage.nbytes() for storage in kept.values())
        loss.backward()
    frame = torch.empty(1, 1, *FRAME_SIZE, 3, dtype=torch.uint8, device=META)
    cells = (sizes.canvas // simulator.token_px) ** 2
    return Plan(
        weights=weights,
        gathered=gathered,
        gradients_and_optimizer=gradients_and_optimizer,
        activations=activations,
        operations_per_sample=counter.get_total_flops() / micro,
        learning=sum(parameter.numel() for parameter in learned),
        operations_per_frame=operations(lambda: simulator(frame)),
        bytes_per_frame=2 * cells * gen,  # float16, as `tokens` keeps them
    )


def _storage(tensor: Tensor) -> int:
    """Tells the memory of one tensor from another's, which its views share."""
    return int(tensor.untyped_storage()._cdata)


def _share(parameter: Tensor, among: int) -> int:
    """Bytes of it on the fullest of so many GPUs: rows are spread, and single numbers are everywhere."""
    return int((parameter.chunk(among)[0] if parameter.ndim else parameter).nbytes)


def _gathered(learner: VegaLearner) -> int:
    """Bytes that one GPU has whole at a time: what is in no block, always, one block, and the one that follows."""
    sizes = [sum(parameter.nbytes for parameter in block.parameters()) for block in learner.blocks()]
    every = sum(parameter.nbytes for parameter in learner.parameters() if parameter.ndim)
    return int(every - sum(sizes) + sum(sorted(sizes)[-2:]))
