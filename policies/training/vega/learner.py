"""What learns: fusion, projectors and action head whole, language model and vision towers by LoRA or not at all.

The world simulator is frozen, its tokens come from the batch.  L1 on whole chunks, as OpenVLA-OFT.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping

import torch
import torch.nn.functional as F
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import Linear as LoraLinear
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from policies.openvla.acceleration import blocks
from policies.openvla.policy import VegaOpenVLA
from policies.openvla.vision import FiLM
from policies.training.vega.batches import Batch
from policies.types import VegaError

ADAPTER = "default"
GRADIENT_FLOOR = 0.1  # of the fusion's residual, which starts at 0


class VegaLearner(nn.Module):
    """A policy in training.  forward: a batch -> L1 of the normalised actions, a mean over all numbers."""

    def __init__(self, policy: VegaOpenVLA, rank: int, checkpointing: bool = False) -> None:
        """rank: of LoRA in the language model and the vision towers, 0 to leave them frozen."""
        super().__init__()
        if any(isinstance(module, FiLM) for module in policy.model.modules()):
            raise VegaError("A checkpoint with FiLM cannot be trained here: give one without.")
        self.model, self.fusion = policy.model, None if policy.world is None else policy.world.fusion
        self._policy = (policy,)  # no second way to the same parameters
        self.requires_grad_(False)
        if rank:
            self._adapt(rank)
        for part in (self.model.projector, self.model.proprio_projector, self.model.head, self.fusion):
            if part is not None:
                part.float().requires_grad_(True)
        if self.fusion is not None:
            self.fusion.gradient_floor = GRADIENT_FLOOR
        if checkpointing:
            for block in blocks(self.model, None):
                block.forward = functools.partial(checkpoint, block.forward, use_reentrant=False)  # type: ignore[method-assign]

    def _adapt(self, rank: int) -> None:
        """LoRA with OpenVLA-OFT's settings beside every linear layer of the blocks."""
        for part in (self.model.layers, *(tower.get_submodule("blocks") for tower in self.model.towers)):
            names = [name for name, layer in part.named_modules() if isinstance(layer, nn.Linear)]
            config = LoraConfig(
                r=rank, lora_alpha=min(rank, 16), lora_dropout=0.0, init_lora_weights="gaussian", target_modules=names
            )
            inject_adapter_in_model(config, part, ADAPTER)
            for layer in part.modules():
                if isinstance(layer, LoraLinear):
                    # peft gives them the layer's dtype here; in bfloat16 what a step changes would be rounded off.
                    layer.lora_A[ADAPTER].float()
                    layer.lora_B[ADAPTER].float()

    def blocks(self) -> Iterator[nn.Module]:
        """The repeated blocks of the language model and the towers."""
        return blocks(self.model, None)

    def learning(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Names and parameters that learn."""
        return ((name, parameter) for name, parameter in self.named_parameters() if parameter.requires_grad)

    def forward(self, batch: Batch) -> Tensor:
        model, cameras = self.model, self._policy[0].config.cameras
        device = model.device
        f_sem = model.project(model.vision_tokens(batch.pixels, batch.input_ids))
        if self.fusion is not None:
            world = torch.cat([batch.f_gen[camera].to(device) for camera in cameras], dim=1)
            f_sem = self.fusion(f_sem, world)[0]
        said = model.head(model.action_hidden(batch.input_ids, f_sem, batch.proprio))
        return F.l1_loss(said.float(), batch.actions.to(device))

    @torch.no_grad()
    def merged(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The model's state under its names without adapters, LoRA added in; `state` stays as it is."""
        plain = {n.replace(".base_layer.", "."): value for n, value in state.items() if ".lora_" not in n}
        for name, layer in self.model.named_modules():
            if isinstance(layer, LoraLinear):
                down, up = (state[f"{name}.lora_{side}.{ADAPTER}.weight"].float() for side in "AB")
                weight = plain[f"{name}.weight"]
                plain[f"{name}.weight"] = (weight.float() + layer.scaling[ADAPTER] * (up @ down)).to(weight.dtype)
        return plain
