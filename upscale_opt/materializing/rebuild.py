"""Rebuild a captured model with fewer channels, as a solution says: first the calls, then passes.

Each pass takes the program as far as it is written (:class:`State`), and changes it.
"""

from __future__ import annotations

import copy

import torch
from torch import fx, nn

from upscale_opt.ir import graph as ir
from upscale_opt.ir.solution import Solution
from upscale_opt.materializing.angles import narrow_angles
from upscale_opt.materializing.calls import emit
from upscale_opt.materializing.checks import write_checks
from upscale_opt.materializing.gathered import gathered
from upscale_opt.materializing.in_place import protect
from upscale_opt.materializing.names import old_name
from upscale_opt.materializing.origin import Stage, origin_of
from upscale_opt.materializing.parameters import fill_root
from upscale_opt.materializing.pruned_module import (
    Making,
    PrunedModule,
    carry,
    making_of,
    remember,
)
from upscale_opt.materializing.shared_layers import narrow_layers
from upscale_opt.materializing.stages import stages_of
from upscale_opt.materializing.state import State
from upscale_opt.runtime.gather import compact
from upscale_opt.runtime.modules import OURS
from upscale_opt.runtime.required_inputs import require_inputs
from upscale_opt.runtime.signature import name_parameters
from upscale_opt.tracing.program import Program


def rebuild(
    model: nn.Module,
    program: Program,
    solution: Solution,
    *,
    in_place: bool = True,
    compacted: Solution | None = None,
) -> PrunedModule:
    """The pruned model; that ``solution`` is sound and belongs to ``program`` must be known.

    Args:
        model: the model that ``program`` captured. It is not changed, and nothing is shared with
            it.
        program: the captured model and its graph.
        solution: which channels to keep, in which order, and how reads are served.
        in_place: let concatenations write into buffers, and sums into their summands.
        compacted: whose views are made contiguous, if not those of ``solution``.
    """
    with torch.inference_mode(False):  # or else the export could never be trained
        state = State(model, program, solution, in_place)
        _write_calls(state)
        narrow_angles(state)
        narrow_layers(state)
        _compact_views(state, compacted or solution)
        _drop_unused(state)
        protect(state)
        write_checks(state)
        fill_root(state)
        pruned = _module(state)
    # What an earlier pruning added is traced through, and not named, but its work is done, too.
    ours = [name for name, m in model.named_modules() if isinstance(m, OURS)]
    making = Making(
        solution=solution,
        origin=origin_of(model, pruned),
        earlier=stages_of(model),
        named=frozenset((*program.captured.modules, *program.captured.tensors, *ours)),
        renamed=state.renamed,
        fixed_mode=model.training if program.captured.by_mode else making_of(model).fixed_mode,
    )
    remember(pruned, making)
    return pruned


def repeat(model: nn.Module, program: Program, stage: Stage) -> PrunedModule:
    """The pruned model that an earlier pruning made, of the original or one that is like it.

    What it says of its making is what was made now; compare that with ``stage``.

    Args:
        model: the model that ``program`` captured; see :func:`rebuild`.
        program: the captured model and its graph.
        stage: the earlier pruning.
    """
    solution = stage.solution
    plan = gathered(solution) if stage.origin.gather_views else solution
    return rebuild(model, program, plan, compacted=solution)


def _write_calls(state: State) -> None:
    old = state.program.captured.graph
    for node in old.nodes:
        state.env[node] = call = emit(state, node)
        named = getattr(node.target, "__module__", "") == "_operator"
        if node in state.program.effects and named and isinstance(call, fx.Node):
            # A method: pickled code would have x + y for x += y, and so update no buffer.
            call.op, call.target = "call_method", f"__{call.target.__name__}__"  # type: ignore[union-attr]
        elif node in state.program.captured.detached and _is_computed(state, node, call):
            state.env[node] = state.new.call_method("detach", (call,))
    state.new.set_codegen(copy.deepcopy(old._codegen))


def _is_computed(state: State, node: fx.Node, call: object) -> bool:
    """Tell whether a call makes a tensor, and does not modify one."""
    program = state.program
    writes = node in program.effects or node in program.mutations
    return isinstance(call, fx.Node) and isinstance(program.values.get(node), str) and not writes


def _compact_views(state: State, solution: Solution) -> None:
    """Remove the gaps in memory from views, in front of operations that want it so."""
    for read in solution.reads:
        value = state.selected.get((read.op, read.operand))
        if value is None or read.plan == "gather" or read.kind == "place":
            continue
        op, tensor = state.operations[read.op], state.graph.tensors[read.tensor]
        strict = isinstance(op, ir.Layer) or (isinstance(op, ir.ChannelWise) and op.parameters)
        part = len(read.channels) < len(solution.tensors[read.tensor])
        gap = part or read.tensor in state.buffers
        if strict and gap and tensor.axis == 1 and len(tensor.shape) in (4, 5):
            readers = list(value.users)
            with state.new.inserting_after(value):
                dense = state.new.call_function(compact, (value,))
            for reader in readers:
                reader.replace_input_with(value, dense)


def _drop_unused(state: State) -> None:
    """Leave out the calls that nothing needs, and the modules of ours that no call is left of."""
    program = state.program
    numbers = {
        node
        for check in program.captured.checks
        for node in check.inputs
        if not isinstance(program.values.get(node), str)
    }
    effects = {state.env[node] for node in program.effects | numbers if node in state.env}
    state.new.eliminate_dead_code(
        is_impure_node=lambda n: (
            n.op in ("placeholder", "output")
            or n in effects
            or n.target in (torch._assert, require_inputs)
        )
    )
    used = {str(node.target) for node in state.new.nodes if node.op == "call_module"}
    for name, _ in list(state.root.named_children()):
        if name not in used:
            delattr(state.root, name)


def _module(state: State) -> PrunedModule:
    """The finished program with its modules, in the modes and with the hooks of the original."""
    name_parameters(state.new)
    pruned = PrunedModule(state.root, state.new)
    originals = dict(state.model.named_modules(remove_duplicate=False))
    for name, module in pruned.named_modules():
        module.training = originals.get(old_name(name, state.renamed), state.model).training
    carry(pruned, state.model, type(state.model).__name__)
    return pruned
