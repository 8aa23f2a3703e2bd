"""Meshes with fewer faces and edges without smoothing, for demonstrations only: a scored run draws all of it.

A software renderer spends its time on triangles, and a bowl of LIBERO has 42 500, on some 40 pixels across.  Then on
MuJoCo's four samples in every pixel; a policy sees pictures that are made smaller anyway.
"""

from __future__ import annotations

from typing import Any

import fast_simplification
import mujoco
import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree

from policies.types import FloatArray
from sim.worlds.libero_env import LiberoEnvironment

PLAIN, TEXTURED, FINE = 1500, 4000, 6  # faces left without and with a texture; of a fine mesh that part
SIZE, LEAST = 0.3, 0.15  # m: what is smaller keeps so much less, at least that share; a screw fills fewer pixels
TURNED = 0.1  # of a mesh's size: so far counts a face that looks away by a radian


def draw_quickly(environment: LiberoEnvironment) -> None:
    """Draw this environment so from now on."""
    simplify_meshes(environment)
    sim = environment.env.sim
    context = sim._render_context_offscreen
    sim.model._model.vis.quality.offsamples = 0
    context.con.free()
    context._set_mujoco_context_and_buffers()


def simplify_meshes(environment: LiberoEnvironment) -> int:
    """Draw this environment with fewer faces from now on; how many are left out.

    Meshes that take part in contacts stay, and with them all that physics reads.
    """
    sim = environment.env.sim
    model, context = sim.model._model, sim._render_context_offscreen
    context.gl_ctx.make_current()
    before = int(model.mesh_facenum.sum())
    for mesh in range(model.nmesh):
        geoms = (model.geom_type == mujoco.mjtGeom.mjGEOM_MESH) & (model.geom_dataid == mesh)
        touched = model.geom_contype[geoms].any() or model.geom_conaffinity[geoms].any()
        materials = model.geom_matid[geoms]
        textured = bool((model.mat_texid[materials[materials >= 0]] >= 0).any()) and model.mesh_texcoordadr[mesh] >= 0
        share = np.clip(np.linalg.norm(np.ptp(_part(model, mesh, "vert"), axis=0)) / SIZE, LEAST, 1.0)
        most = round(share * (max(TEXTURED, int(model.mesh_facenum[mesh]) // FINE) if textured else PLAIN))
        if model.mesh_facenum[mesh] > most and not touched:
            simplify_mesh(model, mesh, most, textured)
            mujoco.mjr_uploadMesh(model, context.con, mesh)
    return before - int(model.mesh_facenum.sum())


def simplify_mesh(model: Any, mesh: int, faces: int, textured: bool) -> None:
    """Replace one mesh's faces in place by about `faces`: quadric edge collapse (Garland and Heckbert 1997).

    More stay where a mesh consists of many pieces.  textured: keep how its texture lies on it.
    A new corner takes normal and texture coordinate of the old corner nearest to it, among those of faces that look the
    same way and lie in the same patch of the texture: so edges and both sides of a thin wall stay apart, and no face
    shows what lies between two patches.
    """
    vertices, triangles = _part(model, mesh, "vert"), _part(model, mesh, "face")
    # LIBERO's .msh files have a vertex for every corner of a face: nothing hangs together before places are made one.
    places, place = np.unique(vertices, axis=0, return_inverse=True)
    welded = place.reshape(-1)[triangles].astype(np.int32)
    points, found = fast_simplification.simplify(places, welded, target_count=faces)
    size = float(np.linalg.norm(np.ptp(places, axis=0)))
    patch = _patches(_part(model, mesh, "face", "facetexcoord")) * 10 * size if textured else np.zeros(len(triangles))
    old, new = places[welded], points[found]
    under = cKDTree(_facing(old.mean(axis=1), old, size)).query(_facing(new.mean(axis=1), new, size))[1]
    sides = [
        np.concatenate([_facing(shape[:, corner], shape, size), at[:, None]], axis=1)
        for shape, at in ((old, patch), (new, patch[under]))
        for corner in range(3)
    ]
    origin = cKDTree(np.concatenate(sides[:3])).query(np.concatenate(sides[3:]))[1]
    for name in ("facenormal", *(["facetexcoord"] if textured else [])):
        values = _part(model, mesh, "face", name)
        values[: len(found)] = values.T.reshape(-1)[origin].reshape(3, -1).T
    vertices[: len(points)] = points
    triangles[: len(found)] = found
    model.mesh_facenum[mesh] = len(found)


def _patches(texture: NDArray[np.int32]) -> NDArray[np.int32]:
    """(F, 3) texture coordinates of faces -> (F,) which of them hang together."""
    count, most = len(texture), int(texture.max()) + 1
    faces = np.repeat(np.arange(count), 3)
    graph = coo_array((np.ones(3 * count), (faces, count + texture.reshape(-1))), (count + most, count + most))
    return connected_components(graph, directed=False)[1][:count]  # type: ignore[no-any-return]


def _facing(places: FloatArray, triangles: FloatArray, size: float) -> FloatArray:
    """(F, 3) places of faces (F, 3, 3), m -> (F, 6): with the face's normal beside, as a distance."""
    normals = np.cross(triangles[:, 1] - triangles[:, 0], triangles[:, 2] - triangles[:, 0])
    normals /= np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-12)
    return np.concatenate([places, TURNED * size * normals], axis=1)


def _part(model: Any, mesh: int, kind: str, of: str = "") -> NDArray[Any]:
    """View of one mesh's vertices or faces."""
    first, count = (getattr(model, f"mesh_{kind}{what}")[mesh] for what in ("adr", "num"))
    view: NDArray[Any] = getattr(model, f"mesh_{of or kind}")[first : first + count]
    return view
