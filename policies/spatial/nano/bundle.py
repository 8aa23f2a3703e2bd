"""Cameras and things that agree best with all sightings: a small bundle adjustment.  NumPy only.

Every frame says where its camera may be and how sure it is, and where it sees things; things stand on the surface, so
that a thing has two unknowns.  Huber's weights (Gauss-Newton, damped), since some sightings are wrong.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from policies.types import FloatArray

CAMERA = 5  # right, forward, height, heading, pitch
PIXELS, DEPTH, PLACE_M = 2.0, 0.08, 0.3  # expected errors of a sighting, and how far things stand from the middle
SURE = np.array([0.01, 0.01, 0.005, 0.01, 0.005])  # no camera is known better, m and rad
HUBER, ITERATIONS, DAMPING = 2.0, 8, 1e-3
STEP = 1e-5


@dataclass(frozen=True, eq=False)
class Observed:
    """n sightings: by which frame, of which thing, at uv (n, 2) px from the middle, at a depth (n,) m; score (n,)."""

    frame: NDArray[np.int64]
    thing: NDArray[np.int64]
    uv: FloatArray
    depth: FloatArray
    score: FloatArray


def towards(cameras: FloatArray, points: FloatArray) -> FloatArray:
    """(..., 5) cameras, (..., 3) points over the surface -> (..., 3) in the optical frame: right, down, ahead, m."""
    right, forward, height, heading, pitch = np.moveaxis(cameras, -1, 0)
    cosine, sine = np.cos(heading), np.sin(heading)
    x = right + points[..., 0] * sine - points[..., 1] * cosine
    level = forward + points[..., 0] * cosine + points[..., 1] * sine
    up = points[..., 2] - height
    ahead, down = level * np.cos(pitch) + up * np.sin(pitch), level * np.sin(pitch) - up * np.cos(pitch)
    return np.stack([x, down, ahead], axis=-1)


def onto_surface(cameras: FloatArray, uv: FloatArray, depth: FloatArray, focal: float) -> FloatArray:
    """Where (n,) sightings of cameras (n, 5) lie, seen from above: (n, 2) m."""
    right, forward, _, heading, pitch = cameras.T
    x, down = uv[:, 0] * depth / focal, uv[:, 1] * depth / focal
    level = depth * np.cos(pitch) + down * np.sin(pitch)
    across, along = x - right, level - forward
    cosine, sine = np.cos(heading), np.sin(heading)
    return np.stack([across * sine + along * cosine, along * sine - across * cosine], axis=-1)


def adjust(
    cameras: FloatArray, spreads: FloatArray, places: FloatArray, middles: FloatArray, seen: Observed, focal: float
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Better cameras (T, 5) and places (M, 2), and the covariance (2M, 2M) of the places, m^2.

    cameras, spreads: as the frames tell them.  places: of things, a first guess.  middles: (M,) height of their centres
    over the surface, m.
    """
    count, things = cameras.shape[0], len(places)
    scale = np.maximum(1.4 * spreads, SURE)
    weight = np.sqrt(np.clip(seen.score, 0.05, 1.0))

    def residuals(states: FloatArray) -> FloatArray:
        """(S, P) -> (S, R), in expected errors."""
        own = states[:, : CAMERA * count].reshape(-1, count, CAMERA)
        where = states[:, CAMERA * count :].reshape(-1, things, 2)
        points = np.concatenate([where, np.broadcast_to(middles[:, None], (*where.shape[:2], 1))], axis=-1)
        local = towards(own[:, seen.frame], points[:, seen.thing])
        ahead = np.maximum(local[..., 2], 0.05)
        off = (focal * local[..., :2] / ahead[..., None] - seen.uv) * weight[:, None] / PIXELS
        far = np.log(ahead / seen.depth) * weight / DEPTH
        drift = own - cameras
        drift[..., 3] = np.arctan2(np.sin(drift[..., 3]), np.cos(drift[..., 3]))
        parts = [off, far, drift / scale, where / PLACE_M]
        return np.concatenate([part.reshape(len(states), -1) for part in parts], axis=1)

    state = np.concatenate([cameras.ravel(), places.ravel()])
    nudges = STEP * np.eye(len(state))
    normal = np.eye(len(state))
    for _ in range(ITERATIONS):
        every = residuals(np.concatenate([state[None], state + nudges]))
        now, slope = every[0], (every[1:] - every[0]) / STEP
        robust = np.minimum(1.0, HUBER / np.maximum(np.abs(now), 1e-9))
        normal = (slope * robust) @ slope.T
        state = state - np.linalg.solve(normal + DAMPING * np.diag(np.diag(normal)), slope @ (robust * now))
    spread = np.asarray(np.linalg.inv(normal)[CAMERA * count :, CAMERA * count :], dtype=np.float64)
    cameras, places = np.asarray(state[: CAMERA * count]), np.asarray(state[CAMERA * count :])
    return cameras.reshape(-1, CAMERA), places.reshape(-1, 2), spread
