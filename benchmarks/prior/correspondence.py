"""What `python -m policies.correspondence` has found, and whether what finds places again also solves more."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isnan, nan
from pathlib import Path
from typing import Any

from benchmarks.prior.evaluations import Condition, Episodes, Trained, percent, said, simulator_settings, whole
from benchmarks.rows import Rows
from policies.types import VegaError

MEASURES = ("raw", "gap", "retrieval")
FEWEST = 4  # arms, below which an order says nothing
NAME = "correspondence_readings"

Place = tuple[str, int | None, int | None]  # encoder, k, block
Readings = Mapping[Place, Mapping[str, float]]  # percent of each measure


def read_table(table: Path, wan: str) -> Readings:
    """What that command wrote.  wan: the study's world simulator's name in it.  Raises VegaError for another file."""
    try:
        readings = {
            (row["encoder"], row["k"], row["block"]): {measure: float(row[measure]) for measure in MEASURES}
            for row in said(table, "rows")
        }
    except (KeyError, TypeError, ValueError):
        raise VegaError(f"The file '{table}' is no table of policies.correspondence: give that it wrote.") from None
    if all(place[0] != wan for place in readings):
        raise VegaError(f"The table '{table}' has no encoder '{wan}': name the study's world simulator by --scored-as.")
    return readings


def correspondence(
    rows: Rows, readings: Readings | None, wan: str, found: Mapping[Trained, Mapping[Condition, Episodes]]
) -> None:
    """A row for every reading and measure, and the order of arms by each beside that by success."""
    from policies.correspondence.encoders import random_of  # torch, which --help does without

    if readings is None:
        rows.missing(NAME, "no table of `python -m policies.correspondence` is given as --correspondence")
        return
    for (encoder, k, block), row in readings.items():
        place = [encoder, *([f"k{k}"] if k is not None else []), *([f"block{block}"] if block is not None else [])]
        label = "_".join(place).replace(",", "").replace(" ", "_")
        for measure in MEASURES:
            rows.information(f"correspondence_{label}_{measure}_percent", row[measure])
    random = [row for (encoder, _, _), row in readings.items() if encoder == random_of(wan)]
    rows.at_least("correspondence_readings_of_a_random_network", len(random), 1)
    success = of_arms(found)
    places = {arm: place for arm, place in read_at(wan, found).items() if arm in success and place in readings}
    if len(places) < FEWEST:
        rows.missing("correspondence_rank_correlation", f"{len(places)} of {FEWEST} arms have both a score and success")
        return
    for measure in MEASURES:
        both = [(readings[place][measure], success[arm]) for arm, place in places.items()]
        name = f"correspondence_rank_correlation_of_{measure}_and_success_of_{len(both)}_arms"
        found_order = rank_correlation(both)
        if isnan(found_order):
            rows.missing(name, "all arms have the same score, or the same success")
        else:
            rows.information(name, found_order)


def of_arms(found: Mapping[Trained, Mapping[Condition, Episodes]]) -> dict[str, float]:
    """Percent solved of all that an arm's runs have tried, of arms whose runs tried the same."""
    most = max(map(len, found.values()), default=0)
    complete = [(run, whole(parts)) for run, parts in found.items() if parts and len(parts) == most]
    return {run.arm: percent([tried for other, tried in complete if other.arm == run.arm]) for run, _ in complete}


def read_at(wan: str, found: Mapping[Trained, Any]) -> dict[str, Place]:
    """Where the table says of each arm what its policy fuses; of "vae" that is the patch embedding, without noise."""
    from policies.correspondence.encoders import random_of  # torch, which --help does without
    from policies.fusion.imagenet import BLOCK, IMAGENET

    places: dict[str, Place] = {"vae": (wan, 0, -1), "imagenet": (IMAGENET, None, BLOCK)}
    for run in found:
        settings = simulator_settings(run.folder) if run.recorded is None else run.record.get("world_simulator")
        if run.arm in ("prior", "untrained") and settings:
            name = wan if run.arm == "prior" else random_of(wan)
            places[run.arm] = (name, int(settings["noise_index"]), int(settings["tap"]))
    return places


def rank_correlation(pairs: Sequence[tuple[float, float]]) -> float:
    """Spearman's; not a number where all of one side are equal."""
    from scipy.stats import spearmanr

    if any(len(set(side)) == 1 for side in zip(*pairs, strict=True)):
        return nan
    return float(spearmanr(pairs).statistic)
