"""Cameras and things that agree best with all sightings: a small bundle adjustment.  NumPy only.

Every frame says where its camera may be and how sure it is, and where it sees things; things stand on the surface, so
that a thing has two unknowns.  Huber's weights (Gauss-Newton, damped), since some sightings are wrong.

That goes downhill from where a frame says that its camera is, and from half a turn away it goes nowhere.  So every two
things that a frame and the others share propose a camera, and a frame may begin anew where it fits them (`relocated`).
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from policies.types import FloatArray

CAMERA, PLACE = 5, 2  # unknowns: right, forward, height, heading, pitch; x, y
PIXELS, DEPTH, PLACE_M = 2.0, 0.12, 0.3  # expected errors of a sighting, and how far things stand from the middle
SURE = np.array([0.01, 0.01, 0.005, 0.01, 0.005])  # no camera is known better, m and rad
DOUBT = 1.4  # a camera is believed so much less than it says, as the frames of a film are wrong together
SURFACE_M, HALF_HEIGHT = 0.03, 0.15  # expected errors of where the surface lies, and, as a share, of a thing's height
HUBER, ITERATIONS, DAMPING = 1.5, 8, 1e-3
STEP = 1e-5
MISS_M, MOST = 0.06, 3.0  # expected miss of a thing, and how many of them count at most
APART_M = 0.10  # two things that propose a camera stand so far apart
FEWEST = 3  # things that a frame must share with the others
FLAT = [0, 1, 3]  # what of a camera can be seen from above: right, forward, heading
OWN = 0.5  # weight of where the frame says that it is
BETTER = 1.5  # by which a proposal must be better to be taken


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


def positions(cameras: FloatArray) -> FloatArray:
    """(..., 5) cameras -> (..., 3) m, where they are."""
    right, forward, height, heading, _ = np.moveaxis(cameras, -1, 0)
    cosine, sine = np.cos(heading), np.sin(heading)
    return np.stack([-(forward * cosine + right * sine), -(forward * sine - right * cosine), height], axis=-1)


def rays(cameras: FloatArray, uv: FloatArray, focal: float) -> FloatArray:
    """(n, 3) of length 1, along which cameras (n, 5) see pixels (n, 2) from the middle."""
    heading, pitch = cameras[:, 3], cameras[:, 4]
    x, down = uv.T / focal
    level, up = np.cos(pitch) + down * np.sin(pitch), np.sin(pitch) - down * np.cos(pitch)
    cosine, sine = np.cos(heading), np.sin(heading)
    found = np.stack([x * sine + level * cosine, level * sine - x * cosine, up], axis=-1)
    return np.asarray(found / np.linalg.norm(found, axis=-1, keepdims=True))


def surface_rise(cameras: FloatArray, middles: FloatArray, seen: Observed, focal: float) -> float:
    """How much higher the surface lies than cameras (T, 5) say that are known but for it, m.

    Things stand on it: it lies half their height, `middles` (M,), below where the rays of several cameras meet.
    """
    origins, along = positions(cameras[seen.frame]), rays(cameras[seen.frame], seen.uv, focal)
    across = np.eye(3) - along[:, :, None] * along[:, None]
    across *= (seen.score * (focal / (PIXELS * seen.depth)) ** 2)[:, None, None]
    told, doubts = [0.0], [SURFACE_M**2]
    for thing, middle in enumerate(middles):
        mine = seen.thing == thing
        if len(np.unique(seen.frame[mine])) > 1:
            inverse = np.linalg.pinv(across[mine].sum(axis=0), rcond=1e-9)
            meet = inverse @ np.einsum("nij,nj->i", across[mine], origins[mine])
            told.append(float(meet[2] - middle))
            doubts.append(float(inverse[2, 2] + (HALF_HEIGHT * middle) ** 2))
    # The weighted median: some rays are of another thing.
    order = np.argsort(told)
    share = np.cumsum(1.0 / np.array(doubts)[order])
    return float(np.array(told)[order][np.searchsorted(share, 0.5 * share[-1])])


def adjust(
    cameras: FloatArray, spreads: FloatArray, places: FloatArray, middles: FloatArray, seen: Observed, focal: float
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Better cameras (T, 5) and places (M, 2), and the covariance (2M, 2M) of the places, m^2.

    cameras, spreads: as the frames tell them.  places: of things, a first guess.  middles: (M,) height of their centres
    over the surface, m.
    """
    scale = np.maximum(DOUBT * spreads, SURE)
    weight = np.sqrt(np.clip(seen.score, 0.05, 1.0))
    own, where = cameras.copy(), places.copy()
    normal = np.eye(0)
    for _ in range(ITERATIONS):
        now = _misses(own, where, middles, seen, focal) * weight[:, None]
        # What a sighting says depends on one camera and one thing: all are nudged at once.
        slopes = [_misses(own + STEP * nudge, where, middles, seen, focal) for nudge in np.eye(CAMERA)]
        slopes += [_misses(own, where + STEP * nudge, middles, seen, focal) for nudge in np.eye(PLACE)]
        slope = (np.stack(slopes, axis=-1) * weight[:, None, None] - now[..., None]) / STEP
        drift = own - cameras
        drift[:, 3] = np.arctan2(np.sin(drift[:, 3]), np.cos(drift[:, 3]))
        normal, pull = _equations(slope, now, seen, drift / scale, scale, where)
        step = np.linalg.solve(normal + DAMPING * np.diag(np.diag(normal)), pull)
        own = own - step[: own.size].reshape(own.shape)
        where = where - step[own.size :].reshape(where.shape)
    return own, where, np.asarray(np.linalg.inv(normal)[own.size :, own.size :], dtype=np.float64)


def _misses(cameras: FloatArray, places: FloatArray, middles: FloatArray, seen: Observed, focal: float) -> FloatArray:
    """(n, 3) by how much each sighting is missed: column, row and depth, in expected errors."""
    points = np.concatenate([places, middles[:, None]], axis=1)
    local = towards(cameras[seen.frame], points[seen.thing])
    ahead = np.maximum(local[:, 2], 0.05)
    off = (focal * local[:, :2] / ahead[:, None] - seen.uv) / PIXELS
    return np.concatenate([off, (np.log(ahead / seen.depth) / DEPTH)[:, None]], axis=1)


def _equations(
    slope: FloatArray, now: FloatArray, seen: Observed, drift: FloatArray, scale: FloatArray, where: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """Normal matrix (P, P) and right side (P,) of the sightings, the cameras' priors and the places'."""
    robust = np.minimum(1.0, HUBER / np.maximum(np.abs(now), 1e-9))
    first = CAMERA * len(scale)
    unknown = np.concatenate(
        [CAMERA * seen.frame[:, None] + np.arange(CAMERA), first + PLACE * seen.thing[:, None] + np.arange(PLACE)],
        axis=1,
    )  # (n, 7)
    count = first + where.size
    blocks = np.einsum("nri,nr,nrj->nij", slope, robust, slope)
    at = unknown[:, :, None] * count + unknown[:, None, :]
    sums: FloatArray = np.bincount(at.ravel(), blocks.ravel(), count * count).astype(np.float64)
    normal = sums.reshape(count, count)
    pulls = np.einsum("nri,nr->ni", slope, robust * now)
    pull: FloatArray = np.bincount(unknown.ravel(), pulls.ravel(), count).astype(np.float64)
    held = np.minimum(1.0, HUBER / np.maximum(np.abs(drift), 1e-9))
    normal[np.diag_indices(count)] += np.concatenate([(held / scale**2).ravel(), np.full(where.size, PLACE_M**-2)])
    pull += np.concatenate([(held * drift / scale).ravel(), (where / PLACE_M**2).ravel()])
    return normal, pull


def relocated(
    cameras: FloatArray, own: FloatArray, spreads: FloatArray, kind: NDArray[np.int64], seen: Observed, focal: float
) -> FloatArray:
    """`own`, (T, 5), but for frames that fit the others badly: of those, where they fit.

    cameras: (T, 5), as adjusted.  own, spreads: (T, 5), as the frames tell.  kind: (n,) of the sightings `seen`.
    """
    better = own.copy()
    where = onto_surface(cameras[seen.frame], seen.uv, seen.depth, focal)
    for frame in range(len(cameras)):
        mine, places = _shared(frame, kind, seen, where)
        if len(mine) >= FEWEST:
            weight, camera = seen.score[mine], cameras[frame]
            # From above, ahead of a camera that looks along x: real its distance ahead, imaginary to the left.
            level = np.tile([0.0, 0.0, camera[2], 0.0, camera[4]], (len(mine), 1))
            local = _complex(onto_surface(level, seen.uv[mine], seen.depth[mine], focal))
            found = _proposal(camera[FLAT], own[frame, FLAT], spreads[frame, FLAT], weight, local, _complex(places))
            if found is not None:
                better[frame, FLAT] = found
    return better


def _complex(points: FloatArray) -> NDArray[np.complex128]:
    return np.asarray(points[:, 0] + 1j * points[:, 1], dtype=np.complex128)


def _shared(
    frame: int, kind: NDArray[np.int64], seen: Observed, where: FloatArray
) -> tuple[list[int], FloatArray]:
    """The best sighting of each kind in this frame, and where the others say that the kind's best thing stands."""
    mine: list[int] = []
    places = []
    for one in np.unique(kind[seen.frame == frame]):
        others = np.flatnonzero((kind == one) & (seen.frame != frame))
        if not len(others):
            continue
        group = others[seen.thing[others] == np.bincount(seen.thing[others], seen.score[others]).argmax()]
        if len(np.unique(seen.frame[group])) > 1:
            here = np.flatnonzero((kind == one) & (seen.frame == frame))
            mine.append(int(here[seen.score[here].argmax()]))
            places.append(np.average(where[group], axis=0, weights=seen.score[group]))
    return mine, np.array(places).reshape(-1, 2)


def _proposal(
    now: FloatArray, own: FloatArray, spread: FloatArray, weight: FloatArray, local: NDArray[np.complex128],
    world: NDArray[np.complex128],
) -> FloatArray | None:  # fmt: skip
    """Right, forward, heading (3,) that lay things seen at `local` best at `world`, if much better than `now` does."""

    def cost(camera: FloatArray) -> float:
        right, forward, heading = camera
        miss = np.abs((local - forward + 1j * right) * np.exp(1j * heading) - world) / MISS_M
        drift = camera - own
        drift[2] = np.arctan2(np.sin(drift[2]), np.cos(drift[2]))
        return float(weight @ np.minimum(miss, MOST) + OWN * np.minimum(np.abs(drift / spread), MOST).mean())

    best, least = None, cost(now) - BETTER
    for i, j in combinations(range(len(local)), 2):
        if min(abs(world[i] - world[j]), abs(local[i] - local[j])) >= APART_M:
            heading = float(np.angle((world[i] - world[j]) / (local[i] - local[j])))
            moved = (local - world * np.exp(-1j * heading))[[i, j]].mean()
            proposed = np.array([-moved.imag, moved.real, heading])
            if (new := cost(proposed)) < least:
                best, least = proposed, new
    return best
