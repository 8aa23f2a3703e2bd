"""Demonstrations whose gripper is not LIBERO's, -1 open and 1 closed: learned as they are it would do the opposite."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import h5py
import numpy as np
import pytest
from recorded import make_dataset

from policies.training.recordings import Recording
from policies.training.vega.readers import read_demonstrations
from policies.types import VegaError

CAMERAS = ("agentview", "wrist")
STEPS = 12
OPEN = np.arange(STEPS) < 5  # at first, as ever
REFUSED = r"gripper's commands in .*{}.* lie from 0 to 1 and LIBERO's are -1 \(open\) and 1 \(closed\): "
# What a reader makes of both, 1 being open, where they are LIBERO's; None: refused.
UNITS = {"libero": (np.where(OPEN, -1.0, 1.0), OPEN), "openvla": (1.0 * OPEN, None), "droid": (1.0 - OPEN, None)}


def hdf5(folder: Path, gripper: np.ndarray) -> Path:
    with h5py.File(folder / "pick_up_the_milk_demo.hdf5", "w") as file:
        group = file.create_group("data/demo_0")
        group["actions"] = np.column_stack([np.ones((STEPS, 6)), gripper])
        group["obs/ee_states"], group["obs/gripper_states"] = np.zeros((STEPS, 6)), np.zeros((STEPS, 2))
        group["obs/agentview_rgb"] = group["obs/eye_in_hand_rgb"] = np.zeros((STEPS, 8, 8, 3), np.uint8)
    return folder


def lerobot(folder: Path, gripper: np.ndarray) -> Path:
    import pyarrow as pa
    import pyarrow.parquet as pq

    found = make_dataset(folder, episodes=1, steps=STEPS, labelled=False, every=1, placed=False)
    path = next((found / "data").rglob("*.parquet"))
    table = pq.read_table(path)
    actions = np.array(table["action"].to_pylist(), np.float32)
    actions[:, 6] = gripper
    column = pa.FixedSizeListArray.from_arrays(pa.array(actions.ravel()), 7)
    pq.write_table(table.set_column(table.column_names.index("action"), "action", column), path)
    return found


def rlds(folder: Path, gripper: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> Path:
    picture = np.zeros((8, 8, 3), np.uint8)
    seen = {"state": np.zeros(8, np.float32), "image": picture, "wrist_image": picture}
    steps: list[dict[str, Any]] = [
        {"action": np.append(np.ones(6), value), "observation": seen, "language_instruction": b"fold"}
        for value in gripper
    ]
    episode = {"steps": SimpleNamespace(as_numpy_iterator=lambda: iter(steps))}
    library = SimpleNamespace(builder_from_directory=lambda _: SimpleNamespace(as_dataset=lambda _: [episode]))
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", library)  # type: ignore[arg-type]
    (folder / "features.json").write_text("{}")
    return folder


@pytest.mark.parametrize("units", UNITS)
@pytest.mark.parametrize("kind", ["hdf5", "lerobot", "rlds"])
def test_a_gripper_in_other_units_than_liberos_is_refused(
    kind: str, units: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gripper, learned = UNITS[units]
    if kind == "rlds":
        folder = rlds(tmp_path, gripper, monkeypatch)
    else:
        folder = {"hdf5": hdf5, "lerobot": lerobot}[kind](tmp_path, gripper)
    if learned is not None:
        (demo,) = read_demonstrations(folder, CAMERAS, lambda text: None)
        assert np.array_equal(demo.actions[:, 6], learned)
        return
    with pytest.raises(VegaError, match=REFUSED.format(tmp_path.name)):
        read_demonstrations(folder, CAMERAS, lambda text: None)
    if kind == "lerobot":  # small policies learn from it too
        with pytest.raises(VegaError, match=REFUSED.format(tmp_path.name)):
            Recording(folder).actions(7, 20.0)


def test_a_gripper_that_stays_as_it_is_has_no_units(tmp_path: Path) -> None:
    """Closed all the time, as where something is pushed."""
    (demo,) = read_demonstrations(hdf5(tmp_path, np.ones(STEPS)), CAMERAS)
    assert not demo.actions[:, 6].any()
