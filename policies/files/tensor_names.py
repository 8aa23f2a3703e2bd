"""Tensors under the names that a model is read by, whatever wrapped it when it was saved.

`torch.compile`, data parallelism, FSDP, checkpointing and PEFT each leave a part of their own in every name; families
of models change their layout with the versions of the libraries.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import torch

from policies.files.tensor_sources import TensorSource
from policies.types import VegaError

# torch.compile; FSDP; activation checkpointing; DistributedDataParallel and DataParallel.
_WRAPPERS = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "module")
_PEFT = ["base_model", "model"]

Layout = Callable[[Iterable[str]], Mapping[str, str]]


def without_wrappers(name: str) -> str:
    """The name as the bare model has it: `module._orig_mod.base_model.model.projector.bias` -> `projector.bias`."""
    parts = [part for part in name.split(".") if part not in _WRAPPERS]
    while parts[:2] == _PEFT:
        parts = parts[2:]
    return ".".join(parts)


def by_prefix(change: Callable[[str], str]) -> Layout:
    """A layout that changes every name by itself."""
    return lambda names: {name: change(name) for name in names}


class Renamed:
    """A source without the marks of wrappers, its names turned to one layout.

    layout: the bare names of a file -> for each the name that this package reads.
    """

    def __init__(self, source: TensorSource, layout: Layout):
        self.name = source.name
        self._source = source
        bare: dict[str, str] = {}
        for name in source.names():
            other = bare.setdefault(without_wrappers(name), name)
            if other != name:
                raise VegaError(f"'{self.name}' holds one tensor twice, as '{other}' and '{name}': keep one of them.")
        self._stored: dict[str, str] = {}
        for plain, name in layout(bare).items():
            if name in self._stored:
                raise VegaError(f"'{self.name}' holds tensor '{name}' twice, in two layouts: keep one of them.")
            self._stored[name] = bare[plain]
        self._names = {stored: name for name, stored in self._stored.items()}

    def names(self) -> Iterable[str]:
        return self._stored.keys()

    def stored(self, key: str) -> str:
        """The bare name under which the file has it."""
        return without_wrappers(self._stored[key])

    def shape(self, key: str) -> tuple[int, ...]:
        return self._source.shape(self._stored[key])

    def dtype(self, key: str) -> torch.dtype | None:
        return self._source.dtype(self._stored[key])

    def read(self, key: str, rows: slice | None = None) -> torch.Tensor:
        return self._source.read(self._stored[key], rows)

    def unread(self) -> list[str]:
        return [self._names[stored] for stored in self._source.unread()]
