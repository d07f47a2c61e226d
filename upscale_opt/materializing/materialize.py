"""Materialise a solution: from the masked model and a plan to a smaller model."""

from __future__ import annotations

from torch import nn

from upscale_opt.errors import MaterializeError, SchemaError, TraceError
from upscale_opt.ir.solution import Solution
from upscale_opt.masking.zeros import masks_of
from upscale_opt.materializing.pruned_module import PrunedModule
from upscale_opt.materializing.rebuild import rebuild
from upscale_opt.materializing.used import kind_of
from upscale_opt.solver.checking.check import damage, losses
from upscale_opt.tracing.examples import remake
from upscale_opt.tracing.program import Program
from upscale_opt.tracing.recent import recall
from upscale_opt.tracing.running import run_as
from upscale_opt.tracing.wrappings import unwrapped


def materialize(
    model: nn.Module,
    solution: Solution,
    *,
    allow_inplace: bool = True,
) -> PrunedModule:
    """The pruned model: smaller weights, and views and gathers where the solution says.

    Args:
        model: the masked model that the solution was made for. It is not changed.
        solution: from :func:`upscale_opt.solve`.
        allow_inplace: where no gradients are wanted, let concatenations be written into buffers
            and sums into their own summands. ``False`` for the functional form, which leaves every
            activation as it was computed, for those who look at activations by hooks; what is
            captured or compiled has that form anyhow. A file does not hold this choice: what is
            loaded may work in place.

    Returns:
        A module on the same device, of the same dtype and in the same mode. It shares no storage
        with ``model``; its submodules keep their names. Its attribute ``solution`` is the
        solution, so that :func:`upscale_opt.save` can save it.

    Raises:
        MaterializeError: if the solution is for another model, or would drop something that is
            not zero in this one.
        SchemaError: if ``solution`` is not a solution.
    """
    if not isinstance(model, nn.Module):
        given = f"an object of class {type(model).__name__}"
        raise MaterializeError(f"expected a model, but got {given}")
    Solution.require(solution)
    model = unwrapped(model)
    program = _program(model, solution)
    lost = losses(program.graph, masks_of(model, program.graph), solution)
    if lost:
        raise MaterializeError(
            f"the solution drops what is not zero in this model: {lost[0]}; apply the masks to the "
            "model first (upscale_opt.apply_masks), or solve for the masks it has"
        )
    return rebuild(model, program, solution, in_place=allow_inplace)


def _program(model: nn.Module, solution: Solution) -> Program:
    """The model captured, if it is the one that the solution is for, and the solution is sound."""
    program = recall(model, solution.example, solution.capture)
    if program is None:
        try:
            program = run_as(model, *remake(solution.example, *kind_of(model)), solution.capture)
        except SchemaError as error:
            raise MaterializeError(f"the solution is damaged: {error}; solve again") from None
        except TraceError as error:
            raise MaterializeError(f"{_another(model)} ({error})") from None
    program = program.as_solved(solution.graph_fingerprint)
    if program is None:
        raise MaterializeError(_another(model))
    broken = damage(program.graph, solution)
    if broken is not None:
        raise MaterializeError(f"the solution is damaged: {broken}; solve again")
    return program


def _another(model: nn.Module) -> str:
    return (
        f"the solution was made for another model than this {type(model).__name__} (or for "
        "another mode, train or eval, or with other rules, upscale_opt.rule); trace and solve again"
    )
