"""The study as a Markdown page: every sentence with a number in it is made from the rows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby

from upscale_opt.experiments.study.findings import DRAW, LOST, Pair, judge
from upscale_opt.experiments.study.names import PHOTOGRAPHS, WEIGHT_DECAY
from upscale_opt.experiments.study.records import Results, Row, Unpruned
from upscale_opt.experiments.study.sections import (
    Section,
    percent,
    points,
    table_row,
    table_rule,
)

Pictures = Mapping[str, Sequence[tuple[str, str]]]
"""For every data set, titles and links of its pictures."""


def write_report(results: Results, command: str, machine: str, pictures: Pictures) -> str:
    """The page.

    Args:
        results: of one side and one way of ranking.
        command: what was run.
        machine: what it ran on, in words.
        pictures: what to show.
    """
    sections = _sections(results)
    lines = ["# What removing constraints buys", "", f"Written by `{command}` ({machine}).", ""]
    lines += [*_method(results.rows), "## In short", ""]
    if any(section.pairs for section in sections):
        lines += _summary_table(sections)
        lines += ["Who is better, by the rule for winners above:", ""]
        lines += [f"* **{line}." for line in summary(results, after_name=":**")]
        lines.append("")
    else:
        lines += ["There is nothing to compare: pruned in one way only.", ""]
    lines += ["## The networks", "", *_networks(results.unpruned), *_training(results.unpruned)]
    for data, group in groupby(sections, key=lambda section: section.data):
        lines += [f"## On {data}", ""]
        for title, link in pictures.get(data, ()):
            lines += [f"![{title}]({link})", ""]
        for section in group:
            lines += section.lines()
    return "\n".join(lines).rstrip() + "\n"


def summary(results: Results, after_name: str = ":") -> list[str]:
    """Say who wins where, a line for every network.

    Args:
        results: of one side and one way of ranking.
        after_name: what stands behind the network's name.
    """
    lines = []
    for section in _sections(results):
        told = [f"at equal {kind}, {_winners(pairs)}" for kind, pairs in section.pairs.items()]
        if told:
            lines.append(f"{section.name}{after_name} {'; '.join(told)}")
    return lines


def _sections(results: Results) -> list[Section]:
    keys = dict.fromkeys((row.data, row.net) for row in results.rows)
    return [Section(net, data, results) for data, net in keys]


def _winners(pairs: Sequence[Pair]) -> str:
    """The places where each method wins, in words."""
    by_winner: dict[str, list[str]] = {}
    for at in sorted({pair.at for pair in pairs}):
        winner = judge([pair for pair in pairs if pair.at == at]).winner
        by_winner.setdefault(winner, []).append(percent(at))
    if len(by_winner) == 1:
        (winner,) = by_winner
        return f"{winner} everywhere"
    order = ("unconstrained", "constrained", "neither")
    return ", ".join(
        f"{winner} at {_listed(by_winner[winner])} %" for winner in order if winner in by_winner
    )


def _listed(texts: Sequence[str]) -> str:
    return texts[0] if len(texts) == 1 else f"{', '.join(texts[:-1])} and {texts[-1]}"


def _method(rows: Sequence[Row]) -> list[str]:
    side = {"input": "read", "output": "write", "both": "read and write"}[rows[0].side]
    ranked = "in the whole network" if rows[0].is_global else "in each unit that decides"
    timed = any(row.latency is not None for row in rows)
    worst = max(row.deviation for row in rows)
    optimal = sum(row.status == "optimal" for row in rows)
    copies = max((row.copied_channels for row in rows if row.method == "constrained"), default=0)
    return [
        "Channels were dropped in two ways. *Unconstrained*: every layer decides for itself which "
        f"of the channels that it {side}s it can do without. *Constrained*: all layers that share "
        "a channel decide together, by the weights of all of them, as other pruning libraries do. "
        "Then the network was exported and measured, **without fine-tuning**.",
        "",
        f"* **Exports.** {len(rows):,}, each verified to compute what its masked network computes "
        f"(largest relative deviation in float64: {worst:.0e}). {optimal:,} of the plans are "
        f"proven to copy as few channels as possible. Constrained exports copy {copies}.",
        "* **The same in both ways**: the weights, the criterion, the images that criteria look "
        f"at, the layers pruned, and the share of channels dropped {ranked}. {_equality(rows)}",
        "* **Not the same**: what an export costs. A channel has to be computed as long as one "
        "layer reads it, so at equal amounts the unconstrained export is the larger one, and it "
        "copies channels. Therefore the two are compared at equal multiply-adds, too (accuracy "
        "interpolated between the amounts that were measured, beginning with the unpruned "
        f"network){', and at equal latency, which includes the copies' if timed else ''}.",
        "* **Spread**: ± is the standard deviation over training seeds. A *win* is a difference of "
        f"more than {100 * DRAW:g} points, unless both are lost (at {100 * LOST:g} % or less). "
        "The *winner* of many comparisons is better by more than that on average, and by more "
        "than the difference's spread over seeds; there is none if most of them are draws.",
        *(
            []
            if rows[0].is_global or {"l2", "lamp"} - {row.criterion for row in rows}
            else [
                "* **LAMP** ranks as L2 does where every unit is ranked by itself, as here; so "
                "these two are one criterion that counts twice."
            ]
        ),
        *(
            [
                "* **Latency** is the share of the unpruned network's: medians of interleaved runs "
                "in one process on one thread, in batches of 64 (photographs: 1). It is measured "
                "for the first seed only, so there is no spread to judge by."
            ]
            if timed
            else []
        ),
        "",
    ]


def _equality(rows: Sequence[Row]) -> str:
    """Say how far the shares of channels that were really dropped are apart, by criterion."""
    found: dict[tuple[str, str, int, float, str], dict[str, float]] = {}
    for row in rows:
        key = row.data, row.net, row.seed, row.amount, row.criterion
        found.setdefault(key, {})[row.method] = row.dropped
    apart: dict[str, float] = {}
    for (*_, criterion), shares in found.items():
        if len(shares) == 2:
            difference = abs(shares["unconstrained"] - shares["constrained"])
            apart[criterion] = max(apart.get(criterion, 0.0), difference)
    if not apart:
        return ""
    why = (
        "as a channel that many layers share counts once where they decide together"
        if rows[0].is_global
        else "by rounding, and where a criterion has nothing to say about a layer that others "
        "share channels with"
    )
    text = ", ".join(f"{name} {100 * value:.1f}" for name, value in apart.items())
    return (
        f"The shares of all layers' channels that were really dropped differ, {why}. By at most "
        f"so many points: {text}."
    )


def _summary_table(sections: Iterable[Section]) -> list[str]:
    lines = [
        table_row("network", "compared at equal", "comparisons", "unconstrained wins", "draws",
                  "constrained wins", "mean difference, points"),
        table_rule(7, left=2),
    ]  # fmt: skip
    for section in sections:
        for kind, pairs in section.pairs.items():
            found = judge(pairs)
            counts = (found.pairs, found.wins, found.draws, found.losses)
            texts = (f"{count:,}" for count in counts)
            lines.append(table_row(section.name, kind, *texts, points(found.difference)))
    return [*lines, ""]


def _training(networks: Sequence[Unpruned]) -> list[str]:
    """Say what the reader has to know about how the networks were made."""
    if all(one.data == PHOTOGRAPHS for one in networks):
        return []
    return [
        "How a network was trained decides how well it survives pruning. Unless the command says "
        f"otherwise, these were trained with a weight decay of {WEIGHT_DECAY:g} (AdamW), about as "
        "much as costs them no accuracy. It was chosen by looking at how networks survive both "
        "kinds of pruning on the test images, so their accuracies after pruning are not those of "
        "networks that were trained without pruning in mind: try `--weight-decay 0.05`.",
        "",
    ]


def _networks(networks: Sequence[Unpruned]) -> list[str]:
    lines = [
        table_row("network", "data", "parameters", "multiply-adds", "test images",
                  "accuracy of each seed, %"),
        table_rule(6, left=2),
    ]  # fmt: skip
    for (net, data), group in groupby(networks, key=lambda one: (one.net, one.data)):
        own = list(group)
        known = [f"{100 * one.accuracy:.1f}" for one in own if one.accuracy is not None]
        first = own[0]
        counts = (first.parameters, first.multiply_adds, first.images)
        texts = (f"{count:,}" for count in counts)
        lines.append(table_row(net, data, *texts, ", ".join(known) or "not known"))
    lines.append("")
    if any(one.data == PHOTOGRAPHS for one in networks):
        lines += [
            "EfficientNet-Lite0 has its real ImageNet weights, but ImageNet is not at hand: it is "
            "shown crops of three photographs only (a palace and a flower from scikit-learn, a "
            "portrait from Matplotlib) and their mirrors, and what is measured is how often the "
            "export says what the unpruned network says. Criteria that look at images see other "
            "crops of the same photographs. This tells how fast a real network departs from "
            "itself, not how accurate it is.",
            "",
        ]
    return lines
