"""camera_info says where things are in the picture: known points, against what MuJoCo draws."""

from __future__ import annotations

import mujoco
import numpy as np
import pytest
import torch

from policies.spatial.scene import world_coordinates
from sim.demonstrations.labels import project
from sim.render_views import ViewRenderer
from sim.robot.robot_topics import camera_info, mountings
from sim.worlds.libero_env import CAMERAS, LiberoEnvironment


@pytest.fixture(scope="module")
def environment():
    environment = LiberoEnvironment("libero_object", 3)
    environment.reset(0)
    yield environment
    environment.close()


def drawn(environment, camera: str, geom: int) -> np.ndarray:
    """Centre (2,) px of the pixels on which MuJoCo draws a geom."""
    ids = environment.env.sim.render(camera_name=CAMERAS[camera], width=256, height=256, segmentation=True)[::-1, :, 1]
    rows, columns = np.nonzero(ids == geom)
    return np.array([columns.mean(), rows.mean()])


@pytest.mark.parametrize("thing", ["ketchup_1_g0", "bbq_sauce_1_g0", "cream_cheese_1_g0"])
def test_a_thing_on_the_floor_is_drawn_where_the_camera_info_says(environment, thing):
    model, data = environment.env.sim.model._model, environment.env.sim.data._data
    camera = environment.camera_model("agentview")
    info = camera_info(camera, "agentview_optical_frame", 0)
    geom = model.geom(thing).id
    in_camera = camera.rotation.T @ (data.geom_xpos[geom] - camera.position)
    pixel = np.array(info.p).reshape(3, 4) @ np.append(in_camera, 1.0)
    assert np.abs(pixel[:2] / pixel[2] - drawn(environment, "agentview", geom)).max() < 1.0
    np.testing.assert_allclose(pixel[:2] / pixel[2], camera.project(data.geom_xpos[geom]))


def test_the_teachers_pixels_are_where_a_marker_is_drawn(environment):
    """Small balls before agentview, without bias: labels, the camera's model and the picture have one convention."""
    model, data = environment.env.sim.model._model, environment.env.sim.data._data
    camera, rng, away = environment.camera_model("agentview"), np.random.default_rng(0), []
    renderer = mujoco.Renderer(model, 256, 256)
    try:
        renderer.enable_segmentation_rendering()
        for _ in range(40):
            at = camera.position + camera.rotation @ (0.5 * np.array([*rng.uniform(-0.25, 0.25, 2), 1.0]))
            renderer.update_scene(data, CAMERAS["agentview"])
            marker = renderer.scene.geoms[renderer.scene.ngeom]
            size, colour = np.full(3, 0.006), np.ones(4, np.float32)
            mujoco.mjv_initGeom(marker, mujoco.mjtGeom.mjGEOM_SPHERE, size, at, np.eye(3).ravel(), colour)
            marker.objid, marker.objtype, marker.segid = 9999, mujoco.mjtObj.mjOBJ_SITE, renderer.scene.ngeom
            renderer.scene.ngeom += 1
            seen = np.argwhere(renderer.render()[:, :, 0] == 9999)
            assert len(seen) > 20
            told = project(environment.env.sim, CAMERAS["agentview"], at, 256)
            np.testing.assert_allclose(told[::-1], camera.project(at), atol=1e-6)
            away.append(told - seen.mean(axis=0))
    finally:
        renderer.close()
        environment.env.sim._render_context_offscreen.gl_ctx.make_current()
    assert np.abs(np.mean(away, axis=0)).max() < 0.1


@pytest.mark.parametrize("name", sorted(CAMERAS))
def test_optical_frames_are_mounted_where_mujocos_cameras_are(environment, name):
    """The frame composed from the link and the static transform, against MuJoCo's own camera pose."""
    model, data = environment.env.sim.model._model, environment.env.sim.data._data
    camera = environment.camera_model(name)
    link_position, link_rotation = np.zeros(3), np.eye(3)
    if name == "wrist":
        assert camera.parent == "panda_hand_flange"
        body = model.body("robot0_right_hand").id
        link_position, link_rotation = data.xpos[body], data.xmat[body].reshape(3, 3)
    index = model.camera(CAMERAS[name]).id
    looks = -data.cam_xmat[index].reshape(3, 3)[:, 2]
    np.testing.assert_allclose(link_position + link_rotation @ camera.position, data.cam_xpos[index], atol=1e-9)
    np.testing.assert_allclose((link_rotation @ camera.rotation)[:, 2], looks, atol=1e-9)
    sent = mountings(environment.base_position, environment.base_quaternion, {name: camera}, 5)
    assert [(m.header.frame_id, m.child_frame_id) for m in sent] == [
        ("world", "panda_link0"),
        (camera.parent, f"{name}_optical_frame"),
    ]
    turn = sent[1].transform.rotation
    x, y, z, w = turn.x, turn.y, turn.z, turn.w
    third = [2 * (x * z + y * w), 2 * (y * z - x * w), 1 - 2 * (x * x + y * y)]
    np.testing.assert_allclose(third, camera.rotation[:, 2], atol=1e-9)


def test_what_is_rendered_for_correspondence_lies_where_mujocos_rays_end(environment):
    with ViewRenderer(environment, 256) as renderer:
        pictures, depth, poses = renderer.views(3, np.random.default_rng(0))
        intrinsics = renderer.intrinsics
    np.testing.assert_array_equal(pictures[0], environment.render("agentview"))
    lifted = world_coordinates(*(torch.from_numpy(part) for part in (depth.astype(np.int32), intrinsics, poses)))
    model, data = renderer.model, renderer.data
    shown, hit = np.array([0, 1, 1, 0, 0, 0], np.uint8), np.zeros(1, np.int32)
    errors = []
    for view, pose in enumerate(poses):
        for row, column in np.random.default_rng(view).integers(256, size=(60, 2)):
            ray = pose[:3, :3] @ np.linalg.solve(intrinsics[:3, :3], [column, row, 1.0])
            ray /= np.linalg.norm(ray)
            distance = mujoco.mj_ray(model, data, pose[:3, 3], ray, shown, 1, -1, hit)
            errors.append(np.linalg.norm(pose[:3, 3] + distance * ray - lifted[view, row, column].numpy()))
    # Some pixels show what their ray misses, edges among them; a pose or a focal length that is off moves them all.
    assert np.median(errors) < 0.001 and np.percentile(errors, 70) < 0.005
