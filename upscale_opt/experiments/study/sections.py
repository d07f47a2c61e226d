"""One network's part of the page: tables by amount, by cost and by criterion."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from upscale_opt.experiments.study.findings import (
    Cost,
    Pair,
    Spread,
    Verdict,
    at_equal_amounts,
    at_equal_costs,
    judge,
    over_seeds,
    value_of,
)
from upscale_opt.experiments.study.names import METHODS, PHOTOGRAPHS
from upscale_opt.experiments.study.records import Results, Row

_WORDS: dict[Cost, str] = {"multiply_adds": "multiply-adds", "latency": "latency"}


class Section:
    """One network on one data set.

    Attributes:
        net: the network.
        data: the data set.
        pairs: what is compared, by what is equal in both: ``"amounts"``, ``"multiply-adds"`` and
            ``"latency"``; only those for which there are any.
    """

    def __init__(self, net: str, data: str, results: Results) -> None:
        self.net = net
        self.data = data
        self._rows = [row for row in results.rows if (row.net, row.data) == (net, data)]
        self._unpruned = [one for one in results.unpruned if (one.net, one.data) == (net, data)]
        found = {"amounts": at_equal_amounts(self._rows)}
        for cost, words in _WORDS.items():
            found[words] = at_equal_costs(self._rows, self._unpruned, cost)
        self.pairs = {kind: pairs for kind, pairs in found.items() if pairs}

    @property
    def name(self) -> str:
        """The network and what it looks at."""
        return f"{self.net}, {self.data}"

    def lines(self) -> list[str]:
        """The tables, as Markdown."""
        measure = "agreement" if self.data == PHOTOGRAPHS else "accuracy"
        lines = [f"### {self.name}", ""]
        for kind, pairs in self.pairs.items():
            lines += (
                self._by_amount(measure, pairs)
                if kind == "amounts"
                else _by_cost(measure, kind, pairs)
            )
        lines += self._by_criterion(f"{measure}, %", value_of, digits=1)
        if self.data == PHOTOGRAPHS:
            title = "relative error of the logits, %"
            lines += self._by_criterion(title, lambda row: row.logit_error, digits=0)
        return lines

    def _by_amount(self, measure: str, pairs: Sequence[Pair]) -> list[str]:
        whole = {one.seed: one for one in self._unpruned}

        def multiply_adds(row: Row) -> float:
            return row.multiply_adds / whole[row.seed].multiply_adds

        def parameters(row: Row) -> float:
            return row.parameters / whole[row.seed].parameters

        lines = [
            f"At equal amounts. Means over all criteria; {measure} in %, and cost in % of the "
            "unpruned network's, each unconstrained / constrained:",
            "",
            table_row("dropped", measure, "difference", "wins, draws, losses", "winner",
                      "multiply-adds", "parameters", "copied channels", "latency"),
            table_rule(9),
        ]  # fmt: skip
        for amount in _places(pairs):
            verdict = judge([pair for pair in pairs if pair.at == amount])
            rows = [row for row in self._rows if row.amount == amount]
            lines.append(
                table_row(
                    f"{percent(amount)} %",
                    _both(rows, value_of, digits=1),
                    points(verdict.difference),
                    _counts(verdict),
                    verdict.winner,
                    _both(rows, multiply_adds),
                    _both(rows, parameters),
                    _both(rows, lambda row: row.copied_channels, scale=1),
                    _both([row for row in rows if row.latency is not None], _latency),
                )
            )
        return [*lines, ""]

    def _by_criterion(self, title: str, value: Callable[[Row], float], digits: int) -> list[str]:
        amounts = sorted({row.amount for row in self._rows})
        lines = [
            f"By criterion, {title}:",
            "",
            table_row("criterion", "", *(f"{percent(amount)} %" for amount in amounts)),
            table_rule(2 + len(amounts), left=2),
        ]
        for criterion in dict.fromkeys(row.criterion for row in self._rows):
            for method in METHODS:
                texts = []
                for amount in amounts:
                    key = criterion, method, amount
                    own = [r for r in self._rows if (r.criterion, r.method, r.amount) == key]
                    texts.append(_spread(over_seeds(own, value), digits) if own else "-")
                lines.append(table_row(criterion, method, *texts))
        return [*lines, ""]


def _by_cost(measure: str, kind: str, pairs: Sequence[Pair]) -> list[str]:
    lines = [
        f"At equal {kind}. {measure.capitalize()} in %, interpolated; means over the criteria and "
        "seeds for which both lines reach there:",
        "",
        table_row(kind, *METHODS, "difference", "wins, draws, losses", "winner"),
        table_rule(6),
    ]
    for share in reversed(_places(pairs)):
        own = [pair for pair in pairs if pair.at == share]
        verdict = judge(own)
        lines.append(
            table_row(
                f"{percent(share)} %",
                f"{100 * _mean([pair.unconstrained for pair in own]):.1f}",
                f"{100 * _mean([pair.constrained for pair in own]):.1f}",
                points(verdict.difference),
                _counts(verdict),
                verdict.winner,
            )
        )
    return [*lines, ""]


def _places(pairs: Sequence[Pair]) -> list[float]:
    return sorted({pair.at for pair in pairs})


def _latency(row: Row) -> float:
    assert row.latency is not None
    return row.latency


def _both(
    rows: Sequence[Row], value: Callable[[Row], float], digits: int = 0, scale: float = 100
) -> str:
    """The mean of a value without constraints / with them, in percent by default."""
    texts = []
    for method in METHODS:
        own = [row for row in rows if row.method == method]
        texts.append(f"{scale * over_seeds(own, value).mean:,.{digits}f}" if own else "-")
    return " / ".join(texts)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _counts(verdict: Verdict) -> str:
    return f"{verdict.wins}, {verdict.draws}, {verdict.losses}"


def _spread(value: Spread, digits: int) -> str:
    text = f"{100 * value.mean:.{digits}f}"
    return text if value.deviation is None else f"{text} ± {100 * value.deviation:.{digits}f}"


def points(difference: Spread) -> str:
    """A difference between shares, in points."""
    text = f"{100 * difference.mean:+.1f}"
    spread = difference.deviation
    return text if spread is None else f"{text} ± {100 * spread:.1f}"


def percent(share: float) -> str:
    """A share, without the sign."""
    return f"{100 * share:.0f}"


def table_row(*cells: str) -> str:
    """A row of a table in Markdown."""
    return f"| {' | '.join(cells)} |"


def table_rule(columns: int, left: int = 1) -> str:
    """The line below the head: numbers stand on the right, the first columns on the left."""
    return table_row(*["---"] * left, *["---:"] * (columns - left))
