"""Which of two transformers sees a noise level: Wan2.2-A14B has one for high noise and one for low.

As diffusers' WanPipeline chooses: `transformer` from the timestep `boundary_ratio` x 1000 of `model_index.json` on,
`transformer_2` below it.  All other Wans have one.
"""

from __future__ import annotations

from pathlib import Path

from policies.files.json_config import read_json
from policies.types import VegaError

INDEX_FILE = "model_index.json"
TRAINED_STEPS = 1000
HIGH, LOW = "transformer", "transformer_2"


def transformer_folder(folder: Path, timestep: int) -> Path:
    """The transformer in a Wan folder that denoises at this timestep.  Raises VegaError where that cannot be told."""
    index = folder / INDEX_FILE
    ratio = read_json(index).get("boundary_ratio") if index.is_file() else None
    second = (folder / LOW).is_dir()
    if ratio is None and not second:
        return folder / HIGH
    if not isinstance(ratio, float) or not 0.0 < ratio < 1.0:
        raise VegaError(
            f"'{folder}' holds two transformers and {INDEX_FILE} gives no boundary_ratio from 0 to 1 between them: "
            "download the whole folder again."
        )
    chosen = folder / (HIGH if timestep >= ratio * TRAINED_STEPS else LOW)
    if not chosen.is_dir():
        raise VegaError(
            f"'{folder}' has two transformers, of which '{chosen.name}' sees timestep {timestep}, and it is not there: "
            "download it too."
        )
    return chosen
