"""scene_node over real DDS, in a process of its own: what it answers, and what it makes of bad input."""

from __future__ import annotations

import importlib.util
import os
import signal
from pathlib import Path

import numpy as np
import pytest
from geometry_msgs.msg import PoseStamped
from scene_harness import HEIGHT, POSE, WIDTH, Camera, picture, scene_node
from std_msgs.msg import String
from tiny_reasoner import write_tiny_reasoner
from tiny_scene import is_red
from visualization_msgs.msg import Marker

from policies.checkpoints import load_scene_model
from policies.spatial.live.memory import SceneMemory
from policies.types import SceneAnswer, SceneView
from vega3d_ros.inference.process import children_of
from vega3d_ros.ros import conversions

OK, WARN, ERROR = 0, 1, 2
FLAT = np.full((HEIGHT, WIDTH), 1.5)


def send_pose(camera: Camera, frame: str = "world") -> None:
    camera.pose.publish(conversions.pose_message(*POSE, 0, frame))


def test_it_answers_from_the_frames_it_has_seen_and_forgets_them_when_told() -> None:
    with scene_node("tiny_scene:RedScene", scene__frames=2) as (camera, _):
        camera.bring_up()
        refused = camera.ask("how much is red?")
        assert "no frame" in refused["error"] and refused["answer"] == "" and refused["frames"] == []
        for red in (3, 4, 5):
            camera.show(picture(red))
        answer = camera.ask(" how much is red? ")
        red_pixels = str(sum(int(is_red(image).sum()) for image in camera.used(answer)))
        assert (answer["answer"], answer["confidence"], answer["error"]) == (red_pixels, 0.75, "")
        seen = [frame["stamp_ns"] for frame in answer["frames"]]
        assert len(seen) == 2 and seen == sorted(seen) and {frame["camera"] for frame in answer["frames"]} == {"eye"}
        assert answer["stamp_ns"] >= seen[-1] and answer["latency_ms"] > 0
        assert answer["timings_ms"] == {"counting": 0.25}

        for question, words in ((" ", "empty"), ("x" * 10_240, "10240 characters"), ("é\n", "")):
            assert words in camera.ask(question)["error"]
        assert camera.ask("and now?")["answer"] == red_pixels, "what was refused has ended nothing"
        assert camera.shows(OK, "Answers from 2 frames")
        stages = {"see", "see_looking", "answer", "answer_counting", "question_to_answer"}
        assert {f"{stage}_ms_p99" for stage in stages} <= set(camera.values("latency"))

        camera.client.trigger("scene_node/forget")
        assert "no frame" in camera.ask("how much is red?")["error"]
        camera.show(picture(6))
        assert {int(is_red(image).sum()) for image in camera.used(camera.ask("how much is red?"))} == {36}
        assert camera.change("deactivate")
        assert camera.until(lambda: camera.question.get_subscription_count() == 0)
        assert camera.change("activate"), camera.log_text()
        assert "no frame" in camera.ask_when_heard("how much is red?")["error"], "an activation begins anew"


def test_an_object_is_placed_in_the_world_and_marked() -> None:
    with scene_node("tiny_scene:RedScene", depth=True) as (camera, _):
        camera.bring_up()
        send_pose(camera)
        camera.show(picture(4), FLAT)
        answer = camera.ask("the red thing", expression=True)
        assert answer["error"] == "" and answer["confidence"] == 0.5
        # Columns 40 to 43 and rows 10 to 13 of a camera that looks down: x grows with columns, y falls with rows.
        x, y = (41.5 - WIDTH / 2) / 60.0 * 1.5, (11.5 - HEIGHT / 2) / 60.0 * 1.5
        centre = [POSE[0][0] + x, POSE[0][1] - y, 0.0]
        assert camera.until(lambda: bool(camera.objects and camera.markers))
        (found,), (marker,) = camera.objects, camera.markers
        assert answer["object"]["centre"] == pytest.approx(centre, abs=1e-6)
        assert [found.pose.position.x, found.pose.position.y, found.pose.position.z] == pytest.approx(centre, abs=1e-6)
        assert found.header.frame_id == answer["object"]["frame_id"] == "world"
        assert conversions.stamp_ns(found.header.stamp) == answer["frames"][-1]["stamp_ns"]
        assert (marker.type, marker.action, marker.pose) == (Marker.CUBE, Marker.ADD, found.pose)
        assert [marker.scale.x, marker.scale.y] == pytest.approx([3 / 60.0 * 1.5] * 2, abs=1e-6)

        nothing = camera.ask("the unicorn", expression=True)
        assert nothing["object"] is None and nothing["error"] == "" and nothing["confidence"] is None
        assert camera.until(lambda: len(camera.markers) == 2) and camera.markers[1].action == Marker.DELETE
        assert len(camera.objects) == 1


def test_what_belongs_to_a_picture_and_is_missing_or_wrong_is_said_and_answers_go_on() -> None:
    with scene_node("tiny_scene:RedScene", depth=True) as (camera, _):
        camera.bring_up()
        camera.show(picture(2))
        assert "depth" in camera.status("eye").message and camera.status("eye").level == bytes([WARN])
        assert "depth" in camera.ask("the red thing", expression=True)["error"]
        camera.show(picture(2), FLAT)
        assert "No pose of camera 'eye' has come on 'eye/pose'" in camera.ask("the red thing", expression=True)["error"]
        send_pose(camera, "map")
        assert camera.shows(WARN, "'map' and not in 'world'", again=lambda: camera.show(picture(2), FLAT))
        send_pose(camera)
        small = np.full((HEIGHT // 2, WIDTH // 2), 1.5)
        camera.show(picture(2), small)
        changed = "'eye depth' changed from 64x48 to 32x24"
        assert camera.shows(WARN, changed, again=lambda: camera.show(picture(2), small))
        camera.client.trigger("scene_node/forget")
        camera.show(picture(2), small)
        assert camera.shows(WARN, "depth of 32x24 and pictures of 64x48: register")
        assert "lacks" in camera.ask("the red thing", expression=True)["error"]
        assert int(camera.ask("how much is red?")["answer"]) > 0
        camera.client.trigger("scene_node/forget")
        camera.show(picture(3), FLAT)
        assert camera.ask("the red thing", expression=True)["error"] == ""
        assert camera.shows(OK, "Answers from")


def test_bad_pictures_are_said_and_the_node_goes_on() -> None:
    with scene_node("tiny_scene:RedScene", max_age_s=2.0, scene__frames=1) as (camera, _):
        camera.bring_up()
        assert camera.shows(ERROR, "too small", again=lambda: bool(camera.send(picture(0, 4, 4))))
        assert "no frame" in camera.ask("how much is red?")["error"]
        grey = conversions.image_message(np.zeros((HEIGHT, WIDTH), np.uint8), 1)
        assert camera.shows(ERROR, "'mono8', which has no colour", again=lambda: camera.picture.publish(grey))
        camera.client.trigger("scene_node/forget")
        assert camera.shows(OK, "Answers from 1 frames", again=lambda: bool(camera.send(picture(2))))
        assert camera.ask("how much is red?")["answer"] == "4"
        assert camera.shows(WARN, "silent for")
        assert camera.shows(OK, "Answers from", again=lambda: bool(camera.send(picture(2))))

        def set_back() -> None:
            camera.send(picture(2), camera.send(picture(2)) - 1_000_000_000)

        assert camera.shows(WARN, "jumped back", again=set_back)


def test_simulated_time_that_is_set_while_the_node_is_inactive_counts() -> None:
    with scene_node("tiny_scene:RedScene", max_age_s=0.5) as (camera, _):
        assert camera.change("configure"), camera.log_text()
        camera.client.set_parameters("scene_node", {"use_sim_time": True})
        assert camera.change("activate"), camera.log_text()
        assert camera.shows(OK, "Answers from 1 frames", again=lambda: bool(camera.send(picture(2), 10**12)))
        assert camera.change("deactivate")
        camera.client.set_parameters("scene_node", {"use_sim_time": False})
        assert camera.change("activate"), camera.log_text()
        assert camera.shows(WARN, "stamped by", again=lambda: bool(camera.send(picture(2), 10**12)))


def test_questions_that_gather_are_answered_in_turn_and_too_many_are_refused() -> None:
    with scene_node("tiny_scene:SlowScene") as (camera, _):
        camera.bring_up()
        camera.show(picture(2))
        for text in ("first", *map(str, range(12))):
            camera.question.publish(String(data=text))
        assert camera.until(lambda: len(camera.answers) == 13), camera.answers
        refused = [answer["question"] for answer in camera.answers if "wait already" in answer["error"]]
        answered = [answer["question"] for answer in camera.answers if not answer["error"]]
        assert answered[0] == "first" and answered[1:] == sorted(answered[1:], key=int)
        assert len(refused) == 4 and set(refused) == {"8", "9", "10", "11"}


def test_a_model_that_breaks_hangs_or_dies_is_said_in_one_sentence() -> None:
    with scene_node("tiny_scene:BreakingScene") as (camera, child):
        camera.bring_up()
        camera.show(picture(2))
        assert "RuntimeError: CUDA error: device lost" in camera.ask("what?")["error"]
        assert camera.ask("what?")["answer"] == "4"
        (model,) = children_of(child.pid)
        os.kill(model, signal.SIGKILL)
        assert "has ended (exit status -9)" in camera.ask("what?")["error"]
        assert camera.shows(ERROR, "configure it again")
        assert camera.change("deactivate") and camera.change("cleanup")
        camera.bring_up()
        camera.show(picture(3))
        assert camera.ask("what?")["error"].startswith("The scene model failed"), "a new model is a new one"
    with scene_node("tiny_scene:HangingScene", scene__answer_timeout_s=1.0) as (camera, child):
        camera.bring_up()
        camera.show(picture(2))
        assert "has ended" in camera.ask("what?")["error"]
        assert camera.shows(ERROR, "silent for")
        assert "silent for" in camera.ask("what?")["error"]
        child.signal(signal.SIGINT)
        camera.client.close()
        assert child.wait(60.0) == 0, child.tail()


def test_a_published_checkpoint_answers_over_ros_what_it_answers_here(tmp_path: Path) -> None:
    folder = write_tiny_reasoner(tmp_path / "checkpoint")
    images = [np.random.default_rng(seed).integers(0, 256, (60, 80, 3), dtype=np.uint8) for seed in range(3)]
    vae = folder / "wan" / "Wan2.1_VAE.pth"
    with scene_node(str(folder), scene__frames=2) as (camera, _):
        vae.rename(folder / "aside")
        assert not camera.change("configure")
        assert camera.until(lambda: "lacks Wan2.1_VAE.pth" in camera.log_text()), camera.log_text()
        (folder / "aside").rename(vae)
        camera.bring_up()
        assert camera.until(lambda: "is that of" in camera.log_text()), "it is said whose video transformer it is"
        assert camera.shows(ERROR, "200x4 pixels is too flat", again=lambda: bool(camera.send(picture(0, 4, 200))))
        camera.client.trigger("scene_node/forget")
        for image in images:
            camera.show(image)
        memory = SceneMemory(load_scene_model(str(folder)), 2)
        for question in ("w5 w6 ?", "w9 w10 w11 ?", "w5 w6 ?"):
            answer = camera.ask(question)
            for stamp, image in enumerate(camera.used(answer)):
                memory.see(SceneView("eye", stamp, image))
            value = memory.answer(question).value
            assert isinstance(value, SceneAnswer) and answer["error"] == ""
            assert (answer["answer"], answer["confidence"]) == (value.text, round(value.confidence, 4))
            assert len(answer["frames"]) == 2 and {"read_frames", "answer"} <= set(answer["timings_ms"])
        assert "points at nothing" in camera.ask("w5", expression=True)["error"]


@pytest.mark.parametrize(
    ("model", "parameters", "words"),
    [
        ("nothing-of-that-name", {}, "There is no scene model 'nothing-of-that-name'"),
        ("tiny_policy:TinyPolicy", {}, "is no scene model"),
        ("tiny_scene:RedScene", {"scene__cameras": ["nose"]}, "names 'nose', and the robot has eye"),
        ("tiny_scene:RedScene", {"scene__tf": True}, "tf2_msgs is missing"),
    ],
)
def test_what_cannot_be_configured_is_said(model: str, parameters: dict[str, object], words: str) -> None:
    if "scene__tf" in parameters and importlib.util.find_spec("tf2_msgs") is not None:
        pytest.skip("tf2_msgs is installed")
    with scene_node(model, **parameters) as (camera, _):
        assert not camera.change("configure")
        assert camera.until(lambda: words in camera.log_text()), camera.log_text()
        assert "Traceback" not in camera.log_text()


def test_a_pose_is_a_pose() -> None:
    message = PoseStamped()
    message.pose.orientation.w = 2.0
    with pytest.raises(Exception, match="camera 'eye' is not a finite position"):
        conversions.base_pose(message, "The pose of camera 'eye'")
