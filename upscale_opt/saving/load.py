"""Load a pruned model from its file into the definition of its original."""

from __future__ import annotations

import os
from itertools import zip_longest
from pathlib import Path
from typing import Literal, TypeVar, overload

import torch
from torch import nn

from upscale_opt.errors import MaterializeError, SchemaError, TraceError
from upscale_opt.materializing.names import new_name
from upscale_opt.materializing.origin import Origin, Stage, set_modes
from upscale_opt.materializing.own_code import put_into
from upscale_opt.materializing.pruned_module import PrunedModule, carry, making_of
from upscale_opt.materializing.rebuild import repeat
from upscale_opt.materializing.stages import stages_of
from upscale_opt.materializing.used import kind_of, registered, tensors_of
from upscale_opt.saving.file import Contents, Manifest, unpack
from upscale_opt.saving.module_settings import difference
from upscale_opt.solver.checking.check import damage
from upscale_opt.tracing.copying import copied
from upscale_opt.tracing.examples import remake
from upscale_opt.tracing.program import Program
from upscale_opt.tracing.recent import recalled_or_run
from upscale_opt.tracing.wrappings import (
    computed_by_torch,
    make_permanent,
    masked_by_torch,
    unwrapped,
)

M = TypeVar("M", bound=nn.Module)


@overload
def load(model_definition: M, path: str | os.PathLike[str], *, in_place: Literal[True]) -> M: ...
@overload
def load(
    model_definition: nn.Module, path: str | os.PathLike[str], *, in_place: Literal[False] = False
) -> PrunedModule: ...
def load(
    model_definition: nn.Module, path: str | os.PathLike[str], *, in_place: bool = False
) -> nn.Module:
    """Read a pruned model that :func:`save` wrote, into the definition of its original.

    The definition is captured as the original was when it was pruned, made smaller as the solution
    says (as often as it was pruned), and given the file's tensors. Nothing in the file is executed.

    Args:
        model_definition: an instance of the original's class, made with the same arguments. Its
            weights do not matter, and it is not changed. Where a model was pruned several times,
            it may also be that model as it was in between.
        path: the file.
        in_place: give the definition itself the smaller layers, for its own code, as
            :meth:`upscale_opt.Pruned.into` does, and return it.

    Returns:
        The pruned model as it was saved, but on the definition's device (on the CPU, if that is
        the meta device). It can be trained further, saved again, and pruned further.

    Raises:
        SchemaError: if the file cannot be read, is damaged or foreign, or of a newer version.
        MaterializeError: if the definition is that of another model, or, in place, its code cannot
            stay.
    """
    if not isinstance(model_definition, nn.Module):
        given = getattr(model_definition, "__name__", type(model_definition).__name__)
        raise MaterializeError(
            f"cannot load into {given}, which is not a module; give an instance of the original's "
            "class, such as torchvision.models.resnet18()"
        )
    model_definition = unwrapped(model_definition)
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise SchemaError(f"cannot read pruned model {path}: {error.strerror}") from None
    try:
        contents = unpack(data)
        pruned = _rebuilt(model_definition, contents)
        _fill(pruned, contents)
    except (SchemaError, MaterializeError) as error:
        raise type(error)(f"{path}: {error}") from None
    carry(pruned, model_definition, type(model_definition).__name__)
    set_modes(pruned, contents.manifest.modes)
    if not in_place:
        return pruned
    _leave_meta(model_definition)
    put_into(model_definition, pruned)
    set_modes(model_definition, contents.manifest.modes)
    return model_definition


def _rebuilt(definition: nn.Module, contents: Contents) -> PrunedModule:
    """The definition, made smaller as often as the original was. Its tensors are arbitrary."""
    manifest = contents.manifest
    stages = (*manifest.earlier, Stage(solution=contents.solution, origin=manifest.origin))
    known = stages_of(definition)
    done = len(known) if known == stages[: len(known)] and len(known) < len(stages) else 0
    blank = own = copied(definition)
    _leave_meta(blank)
    _unwrap(blank, stages[0].origin)
    for stage in stages[done:]:
        _dress(blank, stage.origin)
        program = _captured(blank, stage, manifest)
        pruned = repeat(blank, program, stage)
        reason = _difference(pruned, stage.origin)
        if reason is not None:
            raise MaterializeError(_another(manifest, definition, reason))
        making = making_of(pruned)
        making.solution, making.origin, blank = stage.solution, stage.origin, pruned
        if stage.own_code:
            put_into(own, pruned)
            blank = own
    reason = difference(pruned, manifest.settings)
    if reason is not None:
        raise MaterializeError(_another(manifest, definition, reason))
    making_of(pruned).earlier = manifest.earlier
    return pruned


def _leave_meta(model: nn.Module) -> None:
    """Give memory on the CPU to what has none. Unlike ``to_empty``, this keeps ties."""
    made: dict[int, torch.Tensor] = {}
    for name, tensor in list(registered(model)):
        if tensor.is_meta:
            if id(tensor) not in made:
                empty = torch.empty_like(tensor, device="cpu")
                learns = tensor.requires_grad
                made[id(tensor)] = (
                    nn.Parameter(empty, learns) if isinstance(tensor, nn.Parameter) else empty
                )
            _replace(model, name, made[id(tensor)])


def _unwrap(blank: nn.Module, origin: Origin) -> None:
    """Make parameters of what is computed in the definition, and was no longer in the original."""
    modes = {module: module.training for module in blank.modules()}
    blank.eval()
    names = [*masked_by_torch(blank), *computed_by_torch(blank)]
    if any(name in origin.shapes for name in names):
        make_permanent(blank)
    for module, training in modes.items():
        module.training = training


def _dress(blank: nn.Module, origin: Origin) -> None:
    """Bring a model into the modes and dtypes of the original."""
    set_modes(blank, origin.modes)
    for name, tensor in registered(blank):
        dtype = origin.dtype_of(name, tensor)
        if tensor.dtype != dtype:
            tensor.data = tensor.data.to(dtype)


def _captured(blank: nn.Module, stage: Stage, manifest: Manifest) -> Program:
    """The definition's program, if it is that of the original."""
    solution, origin = stage.solution, stage.origin
    args, kwargs = remake(solution.example, *kind_of(blank))
    try:
        program = recalled_or_run(blank, args, kwargs, solution.example, solution.capture)
    except TraceError as error:
        raise MaterializeError(_another(manifest, blank, str(error))) from None
    found = program.as_solved(solution.graph_fingerprint)
    if found is None:
        names = {list(new_name(blank, name))[-1] for name, _ in registered(blank)}
        lacking = next((name for name in origin.shapes if name not in names), None)
        reason = "its channel graph differs" if lacking is None else f"it has no {lacking!r}"
        raise MaterializeError(_another(manifest, blank, reason))
    broken = damage(found.graph, solution)
    if broken is not None:
        raise SchemaError(f"the solution is damaged: {broken}")
    return found


def _difference(pruned: PrunedModule, origin: Origin) -> str | None:
    """Say how a definition that has the same channels computes something else; ``None`` if not."""
    made = making_of(pruned).origin
    assert made is not None
    for call, own in zip_longest(origin.calls, made.calls):
        if own != call:
            return f"it computes {own or 'nothing'} instead of {call or 'nothing'}"
    for name, shape in origin.shapes.items():
        size = made.shapes.get(name, "no shape")
        if size != shape:
            return f"tensor {name!r} gets {size} instead of {shape}"
    return None


def _another(manifest: Manifest, definition: nn.Module, reason: str) -> str:
    other = "" if manifest.torch == torch.__version__ else f" with PyTorch {manifest.torch}"
    return (
        f"a pruned {manifest.origin.model} was saved here{other}, and the definition, a "
        f"{type(definition).__name__}, is another model than its original: {reason}; give an "
        "instance of the same class, made with the same arguments; if it was pruned with rules "
        "(upscale_opt.rule), register them first"
    )


def _fill(pruned: PrunedModule, contents: Contents) -> None:
    """Replace every parameter and buffer by the file's."""
    aliases, frozen = contents.manifest.aliases, set(contents.manifest.frozen)
    wanted = tensors_of(pruned)
    given = contents.tensors | {alias: contents.tensors[name] for alias, name in aliases.items()}
    for name in (*wanted, *given):
        if name not in given or name not in wanted:
            what = "lacks" if name not in given else "holds"
            raise SchemaError(f"the file {what} the tensor {name!r}, unlike the model it describes")
        if given[name].shape != wanted[name].shape:
            raise SchemaError(
                f"the file holds {name!r} with the shape {tuple(given[name].shape)}, but its "
                f"solution leaves {tuple(wanted[name].shape)}"
            )
    made: dict[int, torch.Tensor] = {}  # so that what was one tensor becomes one again
    for name, old in wanted.items():
        tensor = given[name]
        if id(tensor) not in made:
            placed = tensor.to(old.device)
            learns = aliases.get(name, name) not in frozen and (
                placed.is_floating_point() or placed.is_complex()
            )
            made[id(tensor)] = (
                nn.Parameter(placed, learns) if isinstance(old, nn.Parameter) else placed
            )
        _replace(pruned, name, made[id(tensor)])


def _replace(model: nn.Module, name: str, tensor: torch.Tensor) -> None:
    owner, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(owner), leaf, tensor)
