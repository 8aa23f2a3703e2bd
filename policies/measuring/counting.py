"""Counting what a model would compute and hold, without computing or holding it: tensors on the meta device.

Attention is counted as the fused kernel of a GPU does it, which never holds the scores; on the meta device torch would
take the other way, whose memory grows with the square of the length.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode


class LiveMemory(TorchDispatchMode):
    """Bytes of all tensors made within it that are alive, and the most there were at once."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = self.peak = 0
        self._known: weakref.WeakSet[Any] = weakref.WeakSet()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        made = func(*args, **(kwargs or {}))
        given = {leaf.untyped_storage() for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)}
        for leaf in tree_leaves(made):
            if isinstance(leaf, torch.Tensor):
                storage = leaf.untyped_storage()
                if storage not in given and storage not in self._known:
                    self._add(storage)
        return made

    def _add(self, storage: Any) -> None:
        size = storage.nbytes()
        self._known.add(storage)
        self.bytes += size
        self.peak = max(self.peak, self.bytes)
        weakref.finalize(storage, self._remove, size)

    def _remove(self, size: int) -> None:
        self.bytes -= size


@dataclass(frozen=True)
class Counted:
    """Floating-point operations (a multiplication with an addition is two), and GB: at most, and left at the end."""

    flops: int
    peak_gb: float
    kept_gb: float


def count(run: Callable[[], object]) -> Counted:
    """What `run` does; what it returns is kept until it has been counted."""
    memory, flops = LiveMemory(), FlopCounterMode(display=False)
    with torch.no_grad(), fused_attention(), memory, flops:
        kept = run()
    counted = Counted(flops.get_total_flops(), memory.peak / 1e9, memory.bytes / 1e9)
    del kept
    return counted


@contextmanager
def fused_attention() -> Iterator[None]:
    """Every attention is the memory-efficient kernel's."""
    usual = functional.scaled_dot_product_attention

    def attention(
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attn_mask: torch.Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> torch.Tensor:
        groups = query.shape[1] // key.shape[1]
        if groups > 1:
            key, value = (tensor.repeat_interleave(groups, dim=1) for tensor in (key, value))
        return torch.ops.aten._scaled_dot_product_efficient_attention(
            query, key, value, None, False, dropout_p, is_causal, scale=scale
        )[0]

    functional.scaled_dot_product_attention = attention
    try:
        yield
    finally:
        functional.scaled_dot_product_attention = usual
