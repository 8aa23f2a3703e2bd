"""What scene_node does with frames and questions of before: a clock that was set back, a deactivation."""

from __future__ import annotations

from typing import Any

from scene_harness import picture, scene_node
from std_msgs.msg import String

OK, WARN, ERROR = 0, 1, 2
SECOND_NS = 10**9
LATER_NS, SOONER_NS = 1000 * SECOND_NS, 5 * SECOND_NS


def asked(camera: Any, *texts: str) -> bool:
    """Ask them and wait until they have arrived; none of them has an answer yet."""
    camera.answers.clear()
    for text in texts:
        camera.question.publish(String(data=text))
    before = int(camera.values().get("questions", 0))
    return bool(camera.until(lambda: int(camera.values().get("questions", 0)) >= before + len(texts)))


def test_a_cameras_clock_that_was_set_back_ends_what_was_seen_before() -> None:
    with scene_node("tiny_scene:RedScene", scene__frames=4, use_sim_time=True) as (camera, _):
        camera.bring_up()
        for number in range(1, 4):

            def send(number: int = number) -> None:
                camera.send(picture(number), LATER_NS + number * SECOND_NS)

            kept = {"frames_kept": str(number)}
            send()
            assert camera.until(lambda kept=kept: kept.items() <= camera.values().items(), again=send)

        def set_back() -> None:
            camera.send(picture(6), SOONER_NS)

        told = "jumped back by 998.00 s, so what was seen before was forgotten"
        set_back()
        assert camera.shows(WARN, told, again=set_back), camera.sentence()
        answer = camera.ask("how much is red?")
        assert [frame["stamp_ns"] for frame in answer["frames"]] == [SOONER_NS], answer
        assert (answer["answer"], answer["error"]) == ("36", "")
        camera.client.trigger("scene_node/forget")
        assert camera.shows(OK, "Answers from 1 frames", again=set_back), camera.sentence()


def test_questions_under_way_as_the_clock_is_set_back_are_answered_with_that() -> None:
    with scene_node("tiny_scene:HangingScene", use_sim_time=True) as (camera, _):
        camera.bring_up()
        assert camera.shows(OK, "Answers from 1 frames", again=lambda: bool(camera.send(picture(2), LATER_NS)))
        assert asked(camera, "under way", "waiting")
        assert not camera.answers

        def set_back() -> None:
            camera.send(picture(6), SOONER_NS)

        assert camera.until(lambda: len(camera.answers) == 2, again=set_back), camera.answers
        assert [answer["question"] for answer in camera.answers] == ["under way", "waiting"]
        assert all("jumped back" in answer["error"] and not answer["answer"] for answer in camera.answers)


def test_questions_under_way_are_answered_with_the_deactivation() -> None:
    with scene_node("tiny_scene:HangingScene", scene__answer_timeout_s=8.0) as (camera, _):
        camera.bring_up()
        camera.show(picture(2))
        assert asked(camera, "under way", "waiting")
        assert not camera.answers
        assert camera.change("deactivate")
        assert camera.until(lambda: len(camera.answers) == 2), camera.answers
        assert [answer["question"] for answer in camera.answers] == ["under way", "waiting"]
        assert all("was deactivated" in answer["error"] and not answer["answer"] for answer in camera.answers)
        assert camera.change("activate"), camera.log_text()
        # The model then fails, as it hangs: that is no second answer to what was answered.
        assert camera.shows(ERROR, "silent for"), camera.sentence()
        assert "silent for" in camera.ask_when_heard("new")["error"]
        assert [answer["question"] for answer in camera.answers] == ["under way", "waiting", "new"], camera.answers
