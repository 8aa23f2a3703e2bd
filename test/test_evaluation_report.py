"""The page about evaluations, and the paired comparison, against known values and in a real browser."""

from __future__ import annotations

import itertools
import json
import math
import operator
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.types import VegaError
from sim import compare
from sim.results.evaluation import EpisodeRecord, ResultWriter
from sim.results.evaluation_report import page, read_run, write_report
from sim.results.film import strip, strip_path, video_path
from sim.results.paired import Pair, compare_arms, compare_pair, mcnemar_exact, sign_flips_exact
from sim.results.video import write_video
from sim.worlds.environment import VIEWS

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def make_run(folder: Path, seed: int, **fields: Any) -> Path:
    """A finished run of 10 tasks x 10 trials with pictures of its failures."""
    rng = np.random.default_rng(seed)
    folder.mkdir()
    header = {
        "suite": "libero_object", "policy": "<b>nano</b>", "checkpoint_sha256": "ab" * 32, "transport": "direct",
        "clock": "lockstep", "command": "eef", "protocol": "openvla-oft", "versions": {"mujoco": "3.3.2"}, **fields,
    }  # fmt: skip
    writer = ResultWriter(folder, header)
    (folder / "pictures").mkdir()
    for task in range(10):
        for trial in range(10):
            good = bool(rng.random() < 0.8)
            writer.records.append(EpisodeRecord(task, trial, good, 90, 0, "", 1.0, "a", "b", (28.0, 30.0)))
            frames = [rng.integers(0, 255, (64, 64, 3), dtype=np.uint8) for _ in range(6)]
            if not good:
                strip_path(folder / "pictures", task, trial).write_bytes(strip(frames))
                write_video(video_path(folder / "pictures", task, trial), frames, 10.0)
    writer.add(EpisodeRecord(9, 10, False, 0, 0, "the renderer died", 1.0, "", ""))
    writer.close()
    return folder


def test_mcnemar_of_known_tables() -> None:
    # Two-sided binomial tests at 1/2: 10 of 10 is 2/1024; 3 of 12 is 2 (1 + 12 + 66 + 220) / 4096.
    assert mcnemar_exact(0, 10) == pytest.approx(2 / 1024)
    assert mcnemar_exact(3, 9) == pytest.approx(598 / 4096)
    assert mcnemar_exact(0, 0) == mcnemar_exact(4, 4) == 1.0


@pytest.mark.parametrize(("worse", "better"), [(0.0, 0.0), (0.02, 0.05), (0.1, 0.1), (0.1, 0.4), (0.0, 0.9)])
def test_the_interval_of_a_difference_holds_it_nineteen_times_in_twenty(worse: float, better: float) -> None:
    """Exactly: over every outcome of 25 pairs, with its probability."""
    held = 0.0
    for lost in range(26):
        for won in range(26 - lost):
            ways = math.comb(25, lost) * math.comb(25 - lost, won)
            low, high = Pair(0, lost, won, 25 - lost - won).interval_95
            if low <= 100 * (better - worse) <= high:
                held += ways * worse**lost * better**won * (1 - worse - better) ** (25 - lost - won)
    assert held > 0.94
    # One that is wide enough for everything would hold as well.
    assert low < high and Pair(0, 0, 25, 0).interval_95[0] > 50 and Pair(1000, 0, 0, 0).interval_95[1] < 1


@pytest.mark.parametrize("share", [0.02, 0.05, 0.2])
def test_tasks_that_are_all_alike_are_no_proof_that_the_next_is(share: float) -> None:
    """Where a share of tasks is gained whole, the interval of ten has to hold it nineteen times in twenty."""
    held = 0.0
    for won in range(11):
        ways = math.comb(10, won) * share**won * (1 - share) ** (10 - won)
        first, second = (
            [{"task": t, "trial": i, "success": solved and t < won, "error": ""} for t in range(10) for i in range(5)]
            for solved in (False, True)
        )
        low, high = compare_arms([first], [second]).interval_95
        held += ways * (low <= 100 * share <= high)
        assert low < high
    assert held > 0.94
    assert compare_arms([second, second], [first, first]).interval_95 == pytest.approx((-high, -low))


@given(st.lists(st.tuples(st.booleans(), st.booleans())))
def test_pairs_are_counted_by_initial_state_whatever_the_order(outcomes: list[tuple[bool, bool]]) -> None:
    first = [{"task": 0, "trial": i, "success": a} for i, (a, _) in enumerate(outcomes)]
    second = [{"task": 0, "trial": i, "success": b} for i, (_, b) in enumerate(outcomes)]
    pair = compare_pair(first, [*reversed(second), {"task": 1, "trial": 0, "success": True}])
    assert pair.count == len(outcomes)
    assert pair.only_first == outcomes.count((True, False))
    assert pair.only_second == outcomes.count((False, True))
    assert 0 < pair.p_value <= 1
    assert pair.p_value == compare_pair(second, first).p_value
    assert pair.by_task == (() if not outcomes else (pair.only_second - pair.only_first,))


@given(st.lists(st.integers(-1, 1), max_size=40))
def test_tasks_of_one_state_each_are_judged_as_states_are(gained: list[int]) -> None:
    assert sign_flips_exact(gained) == pytest.approx(mcnemar_exact(gained.count(-1), gained.count(1)))


@given(st.lists(st.integers(-5, 5), max_size=9))
def test_signs_are_flipped_in_every_way(gained: list[int]) -> None:
    flipped = [sum(map(operator.mul, signs, gained)) for signs in itertools.product((-1, 1), repeat=len(gained))]
    expected = sum(abs(total) >= abs(sum(gained)) for total in flipped) / len(flipped)
    assert sign_flips_exact(gained) == pytest.approx(expected)


def test_near_copies_of_a_state_are_no_evidence() -> None:
    """Two tasks, all of whose states one run solves and the other does not, are two observations, not twenty."""
    first = [{"task": task, "trial": trial, "success": task > 1} for task in range(4) for trial in range(10)]
    pair = compare_pair(first, [{**e, "success": True} for e in first])
    assert pair.by_task == (10, 10, 0, 0)
    assert pair.p_value < 1e-5 and pair.p_over_tasks == 0.5


def test_the_page_holds_the_numbers_and_needs_nothing_else(tmp_path: Path) -> None:
    run = read_run(make_run(tmp_path / "a", 1, renderer="osmesa"))
    text = page([run])
    assert "<th>Renderer</th><td>osmesa</td>" in text
    won, count = run.tally()
    assert count == 100
    assert f"{won:.1f} %" in text and "98.4 %" in text and "99.4 %" in text
    assert "&lt;b&gt;nano" in text and "<b>nano" not in text
    assert set(re.findall(r'(?:src|href)="([a-z]+:)', text)) == {"data:"}
    assert text.count("<video") == 100 - won


@pytest.mark.parametrize(
    ("fields", "name", "facts"),
    [
        ({"perturb": ["camera", "light"], "views": VIEWS}, "perturbed camera+light", "camera, light"),
        ({"perturb": ["light"]}, "perturbed light as drawn in version 1", "light"),
        ({"perturb": ["camera"]}, "perturbed camera", "camera"),
        ({"world_simulator": "noise"}, "world simulator noise", "noise"),
    ],
)
def test_what_is_not_as_usual_is_told_and_not_put_beside_published_rates(
    fields: dict[str, Any], name: str, facts: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain, changed = make_run(tmp_path / "plain", 1, policy="p"), make_run(tmp_path / "it", 2, policy="p", **fields)
    usual, text = page([read_run(plain)]), page([read_run(changed)])
    assert "98.4 %" in usual and 'class="published"' in usual and "arXiv 2502.19645" in usual
    assert read_run(plain).name == "p, eef (plain)" and read_run(changed).name == f"p, eef, {name} (it)"
    assert f"<h1>libero_object: p, {name}</h1>" in text and "<h1>libero_object: p</h1>" in usual
    assert f"p, eef, {name} (it)" in text and f"<td>{facts}</td>" in text.partition("What was run")[2]
    for shown in (text, page([read_run(plain), read_run(changed)])):
        assert "98.4 %" not in shown and 'class="published"' not in shown and "arXiv 2502.19645" not in shown
    assert compare.main([str(plain), str(changed), "--output", str(tmp_path / "page.html")]) == 0
    assert f"libero_object p, eef, {name} (it): " in capsys.readouterr().out


def test_a_run_of_a_part_of_a_suite_says_that_the_published_rates_are_of_all_of_it(tmp_path: Path) -> None:
    whole, part = make_run(tmp_path / "whole", 1), make_run(tmp_path / "part", 2)
    summary = json.loads((part / "summary.json").read_text())
    summary["episodes"] = [episode for episode in summary["episodes"] if episode["task"] in (2, 5)]
    (part / "summary.json").write_text(json.dumps(summary))
    said = "Published rates are of all 10 tasks of a suite: &lt;b&gt;nano&lt;/b&gt;, eef (part) tried 2 of them. "
    for runs in ([part], [whole, part]):
        text = page([read_run(run) for run in runs])
        assert "98.4 %" in text and said in text
    assert "Published rates are of all" not in page([read_run(whole)])
    summary["suite"] = "libero_object_swap"  # of which nothing is published
    (part / "summary.json").write_text(json.dumps(summary))
    assert "Published rates are of all" not in page([read_run(whole), read_run(part)])


def test_compare_says_what_differs_and_writes_the_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folders = [make_run(tmp_path / name, seed) for name, seed in (("a", 1), ("b", 2))]
    output = tmp_path / "compare.html"
    assert compare.main([str(folder) for folder in folders]) == 0  # beside the first, not where one happens to be
    pair = compare_pair(*(read_run(folder).counted for folder in folders))
    said = capsys.readouterr().out
    assert "in 100 pairs (" in said and f"p = {pair.p_value:.3g} (exact McNemar" in said
    assert f"over {len(pair.by_task)} tasks " in said and f"p = {pair.p_over_tasks:.3g} (signs" in said
    assert "Run against run" in output.read_text()
    assert compare.main([str(tmp_path)]) == 2
    assert "give a folder of a run" in capsys.readouterr().err
    assert compare.main([str(folder) for folder in (*folders, folders[0])]) == 2
    assert f"Run '{folders[0]}' is named twice" in capsys.readouterr().err


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    (tmp_path / "summary.json").write_text(json.dumps({"suite": "s"}))
    with pytest.raises(VegaError, match="folder of a run"):
        read_run(tmp_path)


def chromium(tmp_path: Path, page: Path, *options: str) -> str:
    command = [str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--allow-file-access-from-files"]
    command += [f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=5000", *options, page.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=True).stdout


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium")
def test_a_browser_prints_it_without_cutting_anything_off(tmp_path: Path) -> None:
    write_report([read_run(make_run(tmp_path / "a", 1))], tmp_path / "page.html")
    chromium(tmp_path, tmp_path / "page.html", f"--print-to-pdf={tmp_path / 'page.pdf'}", "--no-pdf-header-footer")
    printed = (tmp_path / "page.pdf").read_bytes()
    assert printed.startswith(b"%PDF")
    assert 1 <= len(re.findall(rb"/Type\s*/Page\b", printed)) <= 8
    # As narrow as a sheet of A4 (794 CSS px less its margins) nothing may be wider than the sheet.
    assert seen_in_a_frame(tmp_path, 718)[0] <= 718


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium")
def test_a_browser_shows_it_on_a_phone_without_sideways_scrolling(tmp_path: Path) -> None:
    runs = [read_run(make_run(tmp_path / name, seed)) for name, seed in (("a", 1), ("b", 2))]
    write_report(runs, tmp_path / "page.html")
    width, images, broken, drawn = seen_in_a_frame(tmp_path, 390)
    assert width <= 390 and images > 10 and broken == 0 and drawn


def seen_in_a_frame(tmp_path: Path, width: int) -> tuple[int, int, int, bool]:
    """(width of what there is to scroll, images, broken images, whether the chart is drawn) of `page.html`.

    A frame can be as narrow as a phone or a sheet of paper; a window of a headless browser cannot.
    """
    probe = f"""<iframe id="f" src="page.html" style="width:{width}px;height:800px;border:0"></iframe>"""
    probe += """<script>f.onload = () => { const d = f.contentDocument;
      const broken = [...d.images].filter(i => !i.complete || !i.naturalWidth).length;
      document.title = [d.documentElement.scrollWidth, d.images.length, broken,
        d.querySelector('svg.forest').getBoundingClientRect().height > 100].join(' '); };</script>"""
    (tmp_path / "probe.html").write_text(probe)
    said = chromium(tmp_path, tmp_path / "probe.html", "--dump-dom")
    found = re.search(r"<title>(\d+) (\d+) (\d+) (\w+)</title>", said)
    assert found, said[-500:]
    return int(found[1]), int(found[2]), int(found[3]), found[4] == "true"


@pytest.mark.parametrize(
    ("part", "fields"),
    [
        *((f"it does not say '{name}'", {name: None}) for name in ("suite", "policy", "protocol", "errors", "wall_s")),
        ("an episode does not say 'steps'", {"episodes": [{"task": 0, "trial": 0, "success": True, "error": ""}]}),
        ("No evaluation can be read", {"episodes": [0]}),
        ("No evaluation can be read", {"episodes": None}),
    ],
)
def test_a_record_that_lacks_something_is_one_sentence(
    part: str, fields: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = {"suite": "libero_object", "policy": "p", "protocol": "mine", "errors": 0, "wall_s": 1, "episodes": []}
    (tmp_path / "summary.json").write_text(json.dumps(whole | fields))
    assert compare.main([str(tmp_path), "--output", str(tmp_path / "page.html")]) == 2
    out, error = capsys.readouterr()
    assert not out and part in error and error.count("\n") == 1


def test_a_page_below_a_file_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run(tmp_path / "run", 1)
    assert compare.main([str(run), "--output", str(run / "summary.json" / "page.html")]) == 2
    assert "could not be written (Not a directory)" in capsys.readouterr().err
