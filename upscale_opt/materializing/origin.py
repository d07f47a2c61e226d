"""The origin of a pruned model: enough to make its like from another definition."""

from __future__ import annotations

import operator
from collections import Counter
from typing import Annotated, Any

import torch
from pydantic import AfterValidator
from torch import fx, nn

from upscale_opt.ir.base import Record
from upscale_opt.ir.solution import Solution
from upscale_opt.materializing.used import registered, tensors_of
from upscale_opt.runtime.required_inputs import require_inputs
from upscale_opt.tracing.examples import DTYPES, dtype_name


def _known_dtype(name: str) -> str:
    if name not in DTYPES:
        raise ValueError(f"{name!r} is not a dtype that files of pruned models have")
    return name


Dtype = Annotated[str, AfterValidator(_known_dtype)]


class Modes(Record):
    """The modules of a model that are in training mode.

    Attributes:
        training: whether the model itself is.
        others: its submodules of the other mode.
    """

    training: bool
    others: tuple[str, ...] = ()


class Origin(Record):
    """The original of a pruned model as it was when it was pruned, and what was made of it.

    Attributes:
        model: the original's class.
        modes: the modes of the original's modules.
        dtype: of most of its floating-point parameters and buffers.
        dtypes: of the others, by name.
        shapes: of the parameters and buffers that the pruned model uses.
        calls: the pruned model's program, call by call.
        gather_views: only in old files: views were served as gathers, and made contiguous, too.
    """

    model: str
    modes: Modes
    dtype: Dtype
    dtypes: dict[str, Dtype]
    shapes: dict[str, tuple[int, ...]]
    calls: tuple[str, ...]
    gather_views: bool = False

    def dtype_of(self, name: str, tensor: torch.Tensor) -> torch.dtype:
        """The dtype that the original's tensor ``name`` had; ``tensor`` is its like."""
        own = self.dtypes.get(name, self.dtype if tensor.is_floating_point() else "")
        return DTYPES.get(own, tensor.dtype)


class Stage(Record):
    """One pruning, of a model that was then pruned further.

    Attributes:
        solution: what was made by it.
        origin: what it was made of, and how.
        own_code: the smaller layers were given to a model of the original's class, and that one
            was pruned further.
    """

    solution: Solution
    origin: Origin
    own_code: bool = False

    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> Stage:
        return self  # it is frozen, and may be large


def origin_of(model: nn.Module, pruned: fx.GraphModule) -> Origin:
    """The origin of ``pruned``, which was made of ``model``."""
    floats = {
        name: dtype_name(tensor.dtype)
        for name, tensor in registered(model)
        if (tensor.is_floating_point() or tensor.is_complex())
        and dtype_name(tensor.dtype) in DTYPES
    }
    usual = Counter(floats.values()).most_common(1)
    dtype = usual[0][0] if usual else dtype_name(torch.get_default_dtype())
    return Origin(
        model=type(model).__name__,
        modes=modes_of(model),
        dtype=dtype,
        dtypes={name: own for name, own in floats.items() if own != dtype},
        shapes={name: tuple(tensor.shape) for name, tensor in tensors_of(pruned).items()},
        calls=calls_of(pruned.graph),
    )


def modes_of(model: nn.Module) -> Modes:
    """The modules of ``model`` that are in training mode."""
    others = [name for name, module in model.named_modules() if module.training != model.training]
    return Modes(training=model.training, others=tuple(others))


def set_modes(model: nn.Module, modes: Modes) -> None:
    """Put every module of ``model`` into the mode that ``modes`` says."""
    others = set(modes.others)
    for name, module in model.named_modules():
        module.training = modes.training != (name in others)


def calls_of(graph: fx.Graph) -> tuple[str, ...]:
    """The calls of the program and their arguments, line by line: ``"3: call_method clone(%2)"``.

    The same on every device, and for what is left of the program in a pickle (which names calls
    anew, and has ``x + y`` for ``x += y``). What torch.fx assumed of inputs is left out: it
    follows from the definition and the example.
    """
    nodes = [n for n in graph.nodes if n.target is not require_inputs or len(n.args) == 3]
    numbers = {node: number for number, node in enumerate(nodes)}
    return tuple(f"{number}: {_call(node, numbers)}" for node, number in numbers.items())


def _call(node: fx.Node, numbers: dict[fx.Node, int]) -> str:
    target = node.target
    name = target if isinstance(target, str) else getattr(target, "__name__", str(target))
    if isinstance(target, torch._ops.OpOverload):
        name = str(target)
    elif getattr(target, "__module__", "") == "_operator":
        name = _IN_PLACE.get(name, name)
    if node.op in ("placeholder", "output"):
        name = ""
    given = [_text(value, numbers) for value in node.args]
    given += [f"{key}={_text(value, numbers)}" for key, value in node.kwargs.items()]
    return f"{node.op} {name}({', '.join(given)})"


_IN_PLACE = {f"i{name.rstrip('_')}": name for name in dir(operator)}


def _text(value: Any, numbers: dict[fx.Node, int]) -> str:
    """An argument; devices are left out."""
    if isinstance(value, fx.Node):
        return f"%{numbers[value]}"
    if isinstance(value, torch.device):
        return "device"
    if isinstance(value, (tuple, list)):
        return f"[{', '.join(_text(item, numbers) for item in value)}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{key}: {_text(value[key], numbers)}' for key in value)}}}"
    if isinstance(value, slice):
        return f"slice{_text([value.start, value.stop, value.step], numbers)}"
    return repr(value)
