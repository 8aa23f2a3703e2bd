"""What goes wrong in a small policy's training: full disks, damaged states, numbers that are none."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors import SafetensorError
from test_train_nano import demos as demos  # a fixture
from test_train_nano import train

from policies.files import weight_files
from policies.files.weight_files import write_tensors
from policies.nano.vocabulary import Vocabulary
from policies.training import curves, distil, train_nano, train_spatial, train_vega, train_world_simulator
from policies.training.curves import LOG, add_line, cut_log, read_log
from policies.training.dataset import Wordings
from policies.training.nano import building
from policies.training.optimisation import begin, going_on, save_state
from policies.training.study.__main__ import main as study_main
from policies.types import VegaError

VEGA_NANO = Path(train_nano.__file__).parents[1] / "vega_nano"


def full_disk(path: Path, *_: object, **__: object) -> int:
    """As `Path.write_text` there: the file is empty before anything is refused."""
    path.open("w").close()
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_leaves_the_log_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A training that goes on cuts its log; what was logged until its checkpoint is nowhere else."""
    log = tmp_path / "log.jsonl"
    log.write_text('{"step": 1}\n{"step": 2}\n')
    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", full_disk)
        with pytest.raises(VegaError, match="No space left on device"):
            cut_log(log, 1)
    assert len(read_log(log)) == 2 and list(tmp_path.iterdir()) == [log]
    cut_log(log, 1)
    assert read_log(log) == [{"step": 1}]


def test_what_cannot_be_written_or_read_is_said_in_one_sentence(
    demos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    pairs = ((demos, tmp_path / "file", "--output"), (tmp_path, tmp_path, "collect_skills"))
    for demonstrations, output, text in pairs:
        for main in (train_nano.main, train_world_simulator.main):
            assert main(["--data", str(demonstrations), "--output", str(output)]) == 2
            assert text in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(
    "options",
    [
        ["--warm-start", "nowhere"], ["--sentences", "nowhere.txt"], ["--text-encoder", "bag"],
        ["--encoder-blocks", "3"], ["--no-remember"], ["--remember"], ["--normalise", "all"],
    ],
)  # fmt: skip
def test_what_is_said_of_a_new_policy_is_not_passed_over_where_one_goes_on(
    options: list[str], demos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--data", str(demos), "--init", str(VEGA_NANO), "--output", str(tmp_path / "o"), "--steps", "1"]
    assert train_nano.main([*words, *options]) == 2
    name = "--remember" if "remember" in options[0] else options[0]
    assert f"{name} is about a new policy, and --init names one that exists" in capsys.readouterr().err


def test_other_options_without_an_effect_are_refused(
    demos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, somewhere = ["--data", str(demos), "--output", str(tmp_path / "o")], str(tmp_path)
    for main, options, said in (
        (train_nano.main, ["--fusion", "add", "--steps", "1"], "--fusion is about tokens that are fused in"),
        (train_nano.main, ["--no-remember", "--progress-loss", "l1"], "--progress-loss is about what a policy remem"),
        (train_world_simulator.main, ["--unet-beside", somewhere, "--vae-steps", "9"], "--vae-steps changes nothing"),
        (train_world_simulator.main, ["--unet-beside", somewhere, "--tap", "1"], "--tap changes nothing"),
        (train_world_simulator.main, ["--unet-beside", somewhere, "--held-out", "x"], "--held-out changes nothing"),
        (train_spatial.main, ["--from-scratch", "--warm-start", somewhere], "--warm-start changes nothing"),
        (train_spatial.main, ["--init", somewhere, "--warm-start", somewhere], "--warm-start changes nothing beside"),
        (train_spatial.main, ["--init", somewhere, "--from-scratch"], "--from-scratch changes nothing beside --init"),
        (train_vega.main, ["--policy", somewhere, "--gpus", "2"], "--gpus is of --plan alone: processes are started"),
        (train_vega.main, ["--policy", somewhere, "--gpu-tflops", "9"], "--gpu-tflops is of --plan alone"),
    ):
        assert main([*data, *options]) == 2  # type: ignore[operator]
        error = capsys.readouterr().err
        assert said in error and error.count("\n") == 1


def test_nothing_is_learned_from_twice_nor_judged_by_what_was_learned(
    demos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A pattern of the shell and a name beside it may say the same; the double of what is held out would be learned."""
    link, once = tmp_path / "link", ["--output", str(tmp_path / "o"), "--data", str(demos)]
    link.symlink_to(demos)
    study = [*once, str(link), "--world-simulator", str(VEGA_NANO / "world_simulator"), "--plan"]
    for main, words, said in (
        (train_nano.main, [*once, str(link)], "twice"),
        (train_spatial.main, [*once, str(link)], "twice"),
        (train_world_simulator.main, [*once, str(link)], "twice"),
        (distil.main, [*once, str(link), "--policy", "vega-nano"], "twice"),
        (study_main, study, "twice"),
        (train_world_simulator.main, [*once, "--held-out", str(link)], f"--held-out names {link}, which --data names"),
    ):
        assert main(words) == 2  # type: ignore[operator]
        error = capsys.readouterr().err
        assert said in error and error.count("\n") == 1


def test_the_folder_around_a_dataset_is_told_from_one_without(
    demos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What collect_skills was given as --output has the dataset in a folder of its own."""
    (tmp_path / "dataset").symlink_to(demos)
    for folder, said in ((tmp_path, f"give {tmp_path / 'dataset'}."), (demos / "meta", "make one with")):
        assert train_nano.main(["--data", str(folder), "--output", str(tmp_path / "o")]) == 2
        assert said in capsys.readouterr().err


@pytest.mark.parametrize("state", [b"", b"no archive", {"step": 1}, [1], {"a": np.zeros(1)}])
def test_a_state_that_is_damaged_or_another_programs_is_one_sentence(tmp_path: Path, state: object) -> None:
    path = tmp_path / "training_state.pt"
    if isinstance(state, bytes):
        path.write_bytes(state)
    else:
        torch.save(state, path)
    with pytest.raises(VegaError, match=r"\.pt .*give another --output\.$") as told, going_on(path, "module"):
        pass
    assert "\n" not in str(told.value)


def test_a_state_of_other_sizes_is_one_sentence(tmp_path: Path) -> None:
    module, path = torch.nn.Linear(2, 3), tmp_path / "vae.pt"
    save_state(path, {"module": torch.nn.Linear(3, 3).state_dict(), "step": 1})
    with pytest.raises(VegaError, match="of other sizes"), going_on(path, "module") as state:
        module.load_state_dict(state["module"])
    save_state(path, {"module": module.state_dict(), "step": 4})
    with going_on(path, "module") as state:
        assert state["step"] == 4


def test_a_state_is_read_onto_the_device_that_accelerate_names_among_several_processes(tmp_path: Path) -> None:
    """It numbers CPUs there, which torch cannot read onto: no training of several could go on."""
    save_state(path := tmp_path / "training_state.pt", {"mean": torch.ones(2), "step": 4})
    with going_on(path, "mean", device=torch.device("cpu", 0)) as state:
        assert state["mean"].device.type == "cpu" and state["step"] == 4


@pytest.mark.parametrize("training", [train_nano, train_spatial, distil, train_world_simulator])
def test_a_training_writes_over_no_checkpoint_that_is_none_of_its_own(
    training: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(VEGA_NANO / "config.json", tmp_path)
    words = ["--data", str(tmp_path / "none"), "--output", str(tmp_path)]
    assert training.main([*words, "--policy", str(VEGA_NANO)] if training is distil else words) == 2
    said = f"The folder {tmp_path} holds a checkpoint that this training did not make: give another --output."
    assert said in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]
    (tmp_path / LOG).touch()  # killed between its first weights and its first state
    begin(7, torch.get_num_threads(), tmp_path)


@pytest.mark.parametrize("line", ["{", "[]", '{"steps": 1}', "3"])
def test_a_log_with_a_line_of_something_else_is_one_sentence(line: str, tmp_path: Path) -> None:
    (tmp_path / LOG).write_text(f'{{"step": 1}}\n{line}\n')
    with pytest.raises(VegaError, match="holds a line that is none"):
        cut_log(tmp_path / LOG, 5)
    (tmp_path / LOG).write_text('{"step": 1, "l1": 0.5}\n')  # as train_vega writes it
    assert curves.main([str(tmp_path)]) == 2


@pytest.mark.parametrize(
    ("things", "sentence", "part"),
    [
        (("milk",), "pick up the banana", "names 'banana'"),
        (("milk",), "go there", "names nothing that this policy knows"),
        ((), "prends le café", "No sentence of --data names a thing"),
        ((), "打开抽屉", "No sentence of --data names a thing"),
    ],
)
def test_sentences_that_no_policy_can_be_told_end_a_training_before_it_begins(
    things: tuple[str, ...], sentence: str, part: str
) -> None:
    known = Vocabulary(["milk", "pick", "up", "the"], things)
    policy = SimpleNamespace(vocabulary=known, config=SimpleNamespace(things=things))
    demos = SimpleNamespace(wordings=Wordings.make([sentence]))
    with pytest.raises(VegaError, match=part):
        building.check_sentences(policy, demos)  # type: ignore[arg-type]


def test_a_training_that_diverges_keeps_the_state_that_was_good(demos: Path, tmp_path: Path, capsys) -> None:
    train(demos, tmp_path, 9, "--lr", "1e25")
    assert "is no number any more" in capsys.readouterr().err
    with going_on(tmp_path / "training_state.pt", "learner") as state:
        assert state["step"] < 9 and all(bool(torch.isfinite(value).all()) for value in state["learner"].values())


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left"), RuntimeError("PytorchStreamWriter failed")])
def test_a_full_disk_keeps_the_weights_and_the_state_that_were_there(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: object, path: Path, **__: object) -> None:
        path.write_bytes(b"half")
        raise SafetensorError(str(error)) if "safetensors" in path.name else error

    weights, state = tmp_path / "model.safetensors", tmp_path / "training_state.pt"
    write_tensors({"a": torch.ones(2)}, weights)
    save_state(state, {"step": 1})
    kept = {path: path.read_bytes() for path in tmp_path.iterdir()}
    monkeypatch.setattr(weight_files, "save_file", full)
    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(VegaError, match="make room"):
        write_tensors({"a": torch.zeros(2)}, weights)
    with pytest.raises(VegaError, match="make room"):
        save_state(state, {"step": 2})
    with pytest.raises(VegaError, match="make room"):
        add_line(Path("/dev/full"), {"step": 2})
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == kept
