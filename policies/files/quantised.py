"""Weights stored as codes of eight bits, as numbers again: where the format is documented exactly, else not at all.

| who | weight | beside it | number |
|---|---|---|---|
| compressed-tensors, vLLM, ModelOpt | float8 | `weight_scale`: one, or one per row | w * scale |
| ComfyUI | float8 | `scale_weight` or `weight_scale`: one | w * scale |
| transformers' fine-grained fp8 | float8 | `weight_scale_inv`: one per block of 128 x 128 | w * scale |
| compressed-tensors | int8 | `weight_scale`: one, or one per row; `weight_zero_point` perhaps | (w - zero) * scale |
| bitsandbytes LLM.int8 | int8 | `SCB`: one per row; `weight_format` 0 | w * SCB / 127 |

Scales of activations (`input_scale`, `scale_input`, `activation_scale`) are for products in eight bits, which are not
computed here.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass

import torch

from policies.files.tensor_sources import PLAIN_DTYPES, TensorSource
from policies.types import VegaError

_FLOAT8 = (torch.float8_e4m3fn, torch.float8_e5m2)
_SCALES = {
    **dict.fromkeys(_FLOAT8, ("weight_scale", "scale_weight", "weight_scale_inv")),
    torch.int8: ("SCB", "weight_scale"),
}
_ACTIVATION_SCALES = ("input_scale", "scale_input", "activation_scale")
_MARK = "scaled_fp8"  # ComfyUI's, an empty tensor at the root
_BLOCK = 128
_FOREIGN = {
    "GPTQ or AWQ": r"\.(qweight|qzeros|scales|g_idx)$",
    "bitsandbytes in 4 bits": r"\.(absmax|nested_absmax|quant_map|nested_quant_map|quant_state\..*)$",
    "compressed-tensors, packed": r"\.(weight_packed|weight_shape|weight_g_idx|weight_global_scale)$",
    "ModelOpt in 4 bits": r"\.weight_scale_2$",
    "quanto": r"\.weight\._(data|scale|shift)$",
    "HQQ": r"\.W_q$",
}


@dataclass(frozen=True)
class _Code:
    """How a weight is stored: which tensor has its scales, of which kind, and which its zero points."""

    scale: str
    kind: str
    zero: str | None = None


class Dequantised:
    """A source whose codes are read as numbers, float32; everything else as it is.

    Raises VegaError that names the tensor where codes have no scale, or one that no documented format has.
    """

    def __init__(self, source: TensorSource):
        self.name = source.name
        self._source = source
        names = set(source.names())
        for method, pattern in _FOREIGN.items():
            if found := sorted(name for name in names if re.search(pattern, name)):
                raise VegaError(
                    f"'{self.name}' holds weights quantised by {method} ('{found[0]}'), which this package does not "
                    "read: give the original weights."
                )
        self._codes = {name: code for name in sorted(names) if (code := self._code(name, names)) is not None}
        self._aside = {aside for name in self._codes for aside in self._beside(name, names)} | (names & {_MARK})

    def _code(self, name: str, names: set[str]) -> _Code | None:
        kinds = _SCALES.get(self._source.dtype(name)) if name.endswith(".weight") else None  # type: ignore[arg-type]
        if kinds is None:
            return None
        stem = name.removesuffix("weight")
        found = [kind for kind in kinds if stem + kind in names]
        if len(found) != 1:
            wrong = "two scales" if found else "no scale that says what they stand for"
            raise VegaError(f"Weights '{name}' in '{self.name}' are codes of eight bits with {wrong}: give others.")
        zero = f"{stem}weight_zero_point"
        if zero not in names:
            return _Code(stem + found[0], found[0])
        if (self._source.dtype(name), found[0]) != (torch.int8, "weight_scale"):
            raise VegaError(f"Tensor '{zero}' in '{self.name}' is of no documented format: give the original weights.")
        return _Code(stem + found[0], found[0], zero)

    def _beside(self, name: str, names: set[str]) -> Iterable[str]:
        stem, code = name.removesuffix("weight"), self._codes[name]
        beside = {code.scale, code.zero, *(stem + scale for scale in _ACTIVATION_SCALES)}
        if code.kind == "SCB":
            beside.add(f"{stem}weight_format")
        return [other for other in beside if other in names]

    def names(self) -> Iterable[str]:
        return [name for name in self._source.names() if name not in self._aside]

    def shape(self, key: str) -> tuple[int, ...]:
        return self._source.shape(key)

    def dtype(self, key: str) -> torch.dtype | None:
        return torch.float32 if key in self._codes else self._source.dtype(key)

    def read(self, key: str, rows: slice | None = None) -> torch.Tensor:
        if key not in self._codes:
            if self._source.dtype(key) not in PLAIN_DTYPES:
                raise VegaError(
                    f"Tensor '{key}' in '{self.name}' is stored as {self._source.dtype(key) or 'something unknown'}, "
                    "which no documented format reads as weights: give the original ones."
                )
            return self._source.read(key, rows)
        code, shape = self._codes[key], self._source.shape(key)
        if code.kind == "SCB":
            self._check_row_format(key.removesuffix("weight") + "weight_format")
        numbers = self._source.read(key, rows).float()
        if code.zero is not None:
            numbers = numbers - self._spread(key, code.zero, shape, rows, code.kind)
        scales = self._spread(key, code.scale, shape, rows, code.kind)
        if (scales < 0).any() or not torch.isfinite(numbers).all():
            raise VegaError(
                f"Weights '{key}' in '{self.name}' hold codes that are no number, or scales below 0: get it again."
            )
        return numbers * scales / 127.0 if code.kind == "SCB" else numbers * scales

    def _check_row_format(self, name: str) -> None:
        if name in self._aside and self._source.read(name).sum() != 0:
            raise VegaError(
                f"Tensor '{name}' in '{self.name}' says that the int8 weights are stored in tiles of a GPU: save the "
                "model again with a current bitsandbytes."
            )

    def _spread(self, key: str, name: str, shape: tuple[int, ...], rows: slice | None, kind: str) -> torch.Tensor:
        """The scales (or zero points) in `name` so that they broadcast over those rows of the weight."""
        scale, height = self._source.read(name).float(), shape[0]
        if not torch.isfinite(scale).all():
            raise VegaError(f"Tensor '{name}' in '{self.name}' holds a number that is none: download it again.")
        per_row = scale.shape[0] == height and scale.numel() == height if scale.ndim else False
        if kind == "weight_scale_inv" and len(shape) == 2 and scale.shape == _blocks(shape):
            spread = scale.repeat_interleave(_BLOCK, 0)[:height].repeat_interleave(_BLOCK, 1)[:, : shape[1]]
            return spread if rows is None else spread[rows]
        if kind in ("SCB", "weight_scale") and per_row:
            spread = scale.reshape(height, *[1] * (len(shape) - 1))
            return spread if rows is None else spread[rows]
        if kind != "SCB" and scale.numel() == 1:
            return scale.reshape(())
        raise VegaError(
            f"Tensor '{name}' in '{self.name}' has shape {tuple(scale.shape)}, which is no documented way to scale "
            f"weights {shape} ('{key}'): give the original weights."
        )

    def unread(self) -> list[str]:
        mute = {_MARK} | {name for name in self._aside if name.endswith(_ACTIVATION_SCALES)}
        return [name for name in self._source.unread() if name not in mute]


def _blocks(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(math.ceil(side / _BLOCK) for side in shape)
