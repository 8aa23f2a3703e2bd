"""What the arms of a study solve, as a picture: a dot for a seed, a line for an arm, the difference beneath."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from benchmarks.prior.evaluations import Condition, Evaluations, Found, of_arm, percent
from sim.results.paired import compare_arms


def draw(
    path: Path, found: Found, arms: Sequence[str], base: str, conditions: Sequence[Condition], runs: Evaluations
) -> None:
    """A panel for each suite.  Filled: as trained; hollow: with noise in the place of the tokens.

    Beneath an arm stand its points more than `base`'s with their 95 % interval, over the seeds that both have.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    shown = [arm for arm in arms if any(run.arm == arm and parts for run, parts in found.items())]
    size = (max(4.6, 1.25 * len(shown)), 3.3 * len(conditions) + 0.4)  # one below the other: a page is narrow
    figure, axes = pyplot.subplots(len(conditions), 1, figsize=size, squeeze=False)
    colours = pyplot.get_cmap("tab10").colors  # type: ignore[attr-defined]
    for axis, condition in zip(axes[:, 0], conditions, strict=True):
        beneath = []
        for place, arm in enumerate(shown):
            own = {run: parts[condition] for run, parts in found.items() if run.arm == arm and condition in parts}
            noisy = [kept for run in own if (kept := runs.kept(run, condition, "noise")) is not None]
            for row, aside, fill in ((list(own.values()), -0.12, colours[place]), (noisy, 0.12, "none")):
                values, middle = [percent([episodes]) for episodes in row], place + aside
                axis.plot([middle] * len(values), values, "o", color=colours[place], markerfacecolor=fill)
                if row:
                    axis.hlines(percent(row), middle - 0.1, middle + 0.1, color=colours[place], linewidth=2)
            beneath.append(f"{arm}\n{_more(found, arm, base, condition)}")
        axis.set(title=condition.name, xticks=range(len(shown)), xticklabels=beneath, ylim=(0, 100))
        axis.tick_params(axis="x", labelsize=7)
        axis.grid(axis="y", alpha=0.3)
        axis.set_ylabel("solved, %", fontsize=8)
    figure.suptitle(
        f"each dot a seed; hollow: noise in its place\nbeneath: points more than {base}, 95 % interval", fontsize=9
    )
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def _more(found: Found, arm: str, base: str, condition: Condition) -> str:
    """An arm's points more than the base's; nothing of the base itself, or without a seed of both."""
    own, others = of_arm(found, arm, condition), of_arm(found, base, condition)
    seeds = sorted(own.keys() & others.keys())
    if arm == base or not seeds:
        return "\n"
    more = compare_arms([others[seed] for seed in seeds], [own[seed] for seed in seeds])
    low, high = more.interval_95
    return f"{more.difference:+.0f} ({low:+.0f} to {high:+.0f})\n{len(seeds)} seed{'s' if len(seeds) > 1 else ''}"
