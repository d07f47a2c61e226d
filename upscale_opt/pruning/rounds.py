"""Pruning in rounds: a little at a time, with fine-tuning between, to a budget of the first."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field
from torch import nn

from upscale_opt.errors import BudgetError
from upscale_opt.ir.base import Record, write_atomically
from upscale_opt.ir.budget import RESOURCES, Budget
from upscale_opt.pruning.prune import Pruned, prune
from upscale_opt.reconstruction.data import listed
from upscale_opt.saving.load import load
from upscale_opt.saving.save import save
from upscale_opt.solver.progress import Listener, Progress
from upscale_opt.tracing.examples import Inputs

Tune = Callable[[nn.Module], Any]
"""Trains a pruned model in place; what it returns does not matter."""

_STATE = "rounds.json"


class _State(Record):
    """The rounds that are done.

    Attributes:
        budget: of all rounds together.
        rounds: how many there shall be.
        done: how many are.
        left: the shares of the first model's resources that are left.
    """

    budget: Budget
    rounds: int
    done: int = 0
    left: dict[str, float] = Field(default_factory=dict)


@dataclass(frozen=True)
class Rounds:
    """The result of :func:`prune_in_rounds`.

    Attributes:
        model: the last pruned model, tuned.
        last: the last round; ``None`` if all rounds had been done before.
        left: the shares of the first model's resources that are left, by what the budget limits.
    """

    model: nn.Module
    last: Pruned | None
    left: dict[str, float]


def prune_in_rounds(
    model: nn.Module,
    inputs: Inputs,
    *,
    budget: Budget,
    rounds: int = 3,
    data: Iterable[Any] | None = None,
    tune: Tune | None = None,
    folder: str | Path | None = None,
    progress: Listener | None = None,
    **options: Any,
) -> Rounds:
    """Prune in several rounds, each by the same factor, and tune the model after each.

    Budgets count from the first model: with ``Budget(macs=0.25)`` and two rounds, half of the
    multiply-adds are left after the first and a quarter after the second. Limits in milliseconds
    hold in the last round alone.

    Args:
        model: the model. It is not changed.
        inputs: example inputs, as for :func:`upscale_opt.trace`.
        budget: what may remain at the end.
        rounds: how many.
        data: calibration batches, as for :func:`upscale_opt.prune`.
        tune: trains a pruned model in place, in train mode if it likes; it is put back into
            evaluation mode afterwards.
        folder: where the model is saved after every round. Called again with the same folder and
            budget, the rounds that are done are loaded.
        progress: told of every round, and of the steps in it.
        **options: of :func:`upscale_opt.prune`.

    Raises:
        BudgetError: if the budget or the number of rounds makes no sense, or the folder holds
            rounds of another budget.
        UpscaleError: as :func:`upscale_opt.prune`.
    """
    if not isinstance(rounds, int) or rounds < 1:
        raise BudgetError(f"rounds must be a whole number from 1 on, not {rounds!r}")
    if not isinstance(budget, Budget):
        raise BudgetError(f"a budget is a Budget, not an object of class {type(budget).__name__}")
    batches = None if data is None else listed(data)
    place = None if folder is None else Path(folder)
    state = _State(budget=budget, rounds=rounds)
    current, last = model, None
    if place is not None:
        state, current = _resumed(place, state, model)
    while state.done < rounds:
        if progress is not None:
            progress(Progress(f"round {state.done + 1} of {rounds}"))
        last = prune(
            current,
            inputs,
            budget=_this_round(state),
            data=batches,
            progress=progress,
            **options,
        )
        current = last.model
        if tune is not None:
            tune(current)
            current.eval()
        left = {name: state.left.get(name, 1.0) * share for name, share in _shares(last).items()}
        state = state.model_copy(update={"done": state.done + 1, "left": left})
        if place is not None:
            _keep(place, state, current)
    return Rounds(current, last, dict(state.left))


def _shares(result: Pruned) -> dict[str, float]:
    """The shares that a round left of what it began with; of time by the clock, if it was on it."""
    assert result.choice is not None
    shares: dict[str, float] = {use.resource: use.share for use in result.choice.resources}
    if result.times is not None and "latency" in shares:
        rivals = {"constrained"} & result.times.milliseconds.keys()
        taken = "constrained" if rivals and result.choice.solver == "constrained" else "pruned"
        shares["latency"] = result.times.share(taken)
    return shares


def _this_round(state: _State) -> Budget:
    """The budget of the next round, in shares of what is left."""
    at = state.done + 1
    final = at == state.rounds
    update: dict[str, Any] = {"milliseconds": state.budget.milliseconds if final else None}
    for name in RESOURCES:
        share = getattr(state.budget, name)
        if share is None:
            continue
        target = math.exp(math.log(share) * at / state.rounds)
        update[name] = min(target / state.left.get(name, 1.0), 1.0)
    if all(value is None for value in update.values()):
        raise BudgetError(
            "milliseconds alone say nothing of the rounds before the last: give latency, or one "
            "round"
        )
    return state.budget.model_copy(update=update)


def _resumed(folder: Path, state: _State, model: nn.Module) -> tuple[_State, nn.Module]:
    path = folder / _STATE
    if not path.exists():
        return state, model
    try:
        known = _State.model_validate_json(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise BudgetError(f"{path} is damaged ({error}); remove it to begin anew") from None
    if (known.budget, known.rounds) != (state.budget, state.rounds):
        raise BudgetError(
            f"{folder} holds rounds of another budget ({known.budget}, {known.rounds} rounds); "
            "name another folder"
        )
    return known, load(model, folder / _file(known.done)) if known.done else model


def _keep(folder: Path, state: _State, model: nn.Module) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    save(model, folder / _file(state.done))
    write_atomically(folder / _STATE, state.model_dump_json().encode())


def _file(done: int) -> str:
    return f"round-{done}.safetensors"
