"""Rules: how a user says what a module or function does to channels."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from types import FunctionType
from typing import Any, Literal

import torch
from torch import fx, nn
from torch.utils import _pytree as pytree

from upscale_opt.errors import RuleError
from upscale_opt.tracing.claims import (
    ChannelWiseClaim,
    Claim,
    ElementwiseClaim,
    LayerClaim,
    OpaqueClaim,
    Parameters,
    Resize,
    SymmetricClaim,
)
from upscale_opt.tracing.site import CallSite

RuleFunction = Callable[["Call"], Claim]


def rule(target: Any, *, resize: Resize | None = None) -> Callable[[RuleFunction], RuleFunction]:
    """Teach tracing what a module or function does to channels (a decorator).

        >>> import torch
        >>> import upscale_opt as uo
        >>> class Gain(torch.nn.Module):
        ...     def __init__(self, size):
        ...         super().__init__()
        ...         self.gain = torch.nn.Parameter(torch.ones(size))
        ...     def forward(self, x):
        ...         return x.sign() * x.abs().pow(self.gain[:, None, None])
        >>> @uo.rule(Gain)
        ... def gain(call: uo.rules.Call) -> uo.rules.Claim:
        ...     return call.channelwise(keeps_zero=True, parameters={"gain": "neutral"})

    From now on, every call of the target is kept as one call, whatever happens inside, and is what
    the rule says. A later rule for the same target replaces it. A rule is believed: try it with
    :func:`upscale_opt.rules.check_rules`. Loading a pruned model from its file takes the same
    rules.

    Args:
        target: a class of modules (and those of its subclasses that inherit its ``forward``), a
            Python function, a subclass of :class:`torch.autograd.Function`, or a function, tensor
            method or operator of PyTorch (``torch.cumsum``, ``torch.Tensor.cumsum``,
            ``torch.ops.aten.cumsum``).
        resize: for modules that hold sizes: which attributes to set to which, such as
            ``{"num_features": "inputs"}``, or a function of the pruned module and its
            :class:`Sizes`.

    Raises:
        RuleError: if ``target`` is nothing that a rule can be given for.
    """
    kind = _kind(target)

    def register(function: RuleFunction) -> RuleFunction:
        call = _applier(target) if kind == "autograd" else target
        _rules[_key(target)] = Rule(target, kind, function, resize, call)
        return function

    return register


@contextmanager
def local_rules() -> Iterator[None]:
    """Forget, at the end, the rules that were registered inside."""
    before = dict(_rules)
    try:
        yield
    finally:
        _rules.clear()
        _rules.update(before)


@dataclass(frozen=True)
class Call:
    """A call of a rule's target, as its rule sees it. Tensors are on the meta device.

    Attributes:
        module: the module that is called, if one is.
        args: the positional arguments.
        kwargs: the keyword arguments.
        inputs: the activations among them, in order, each once.
        output: what the call returns.
    """

    module: nn.Module | None
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    inputs: tuple[torch.Tensor, ...]
    output: Any

    def channelwise(
        self,
        axis: int = 1,
        *,
        keeps_zero: bool,
        parameters: Parameters | None = None,
        out_axis: int | None = None,
    ) -> Claim:
        """Each channel of the result depends on the same channel of the first tensor alone.

        All channels are treated alike, apart from what ``parameters`` hold for each. The result
        may have several times as many elements along its axis: as many for each of the tensor's.
        Further tensors are handed over whole.

        Args:
            axis: the channel axis.
            keeps_zero: a channel that is zero stays zero (where ``"shift"`` and ``"mean"``
                parameters are zero).
            parameters: every parameter or buffer with an entry per channel, by its name in the
                module's state dict, or by the function's argument (name, or position as
                ``"1"``), with its role: ``"scale"`` multiplies (zero makes the channel zero, but
                for its shift), ``"shift"`` is added, ``"mean"`` is subtracted before,
                ``"neutral"`` is anything else that leaves zeros zero, whatever it holds. With
                ``(role, axis)`` where its shape leaves open which axis runs along the channels.
            out_axis: the result's channel axis, if it is another.
        """
        first, last = self._axes(axis, out_axis)
        return ChannelWiseClaim(first, last, keeps_zero, dict(parameters or {}))

    def symmetric(
        self,
        axis: int = 1,
        *,
        groups: int = 1,
        reduces: bool = False,
        parameters: Parameters | None = None,
        out_axis: int | None = None,
    ) -> Claim:
        """The result needs all channels of the first tensor, in any order: norms, softmax, means.

        Args:
            axis: the channel axis.
            groups: only within this many runs of equal length may the order change.
            reduces: the result has no channels; else it has the tensor's.
            parameters: as for :meth:`channelwise`.
            out_axis: the result's channel axis, if it is another.
        """
        first, last = self._axes(axis, None if reduces else out_axis, counted=not reduces)
        return SymmetricClaim(first, last, groups, reduces, dict(parameters or {}))

    def layer(
        self,
        weight: str,
        *,
        reads: int,
        writes: int,
        bias: str | None = None,
        groups: int = 1,
        axis: int = 1,
        out_axis: int | None = None,
    ) -> Claim:
        """A weight reads the channels of the first tensor and writes those of the result.

        Each slice of the weight along ``reads`` is multiplied with its channel, and what they give
        is summed; each slice along ``writes`` makes one channel of the result, and the bias is
        added to it.

        Args:
            weight: its name, as in :meth:`channelwise`.
            reads: its axis with a slice for each channel of the tensor (of each group).
            writes: its axis with a slice for each channel of the result.
            bias: the bias's name.
            groups: into how many groups the channels fall, as in grouped convolutions.
            axis: the tensor's channel axis.
            out_axis: the result's channel axis, if it is another.
        """
        first, last = self._axes(axis, out_axis)
        return LayerClaim(first, last, weight, reads, writes, bias, groups)

    def elementwise(self, axis: int = 1, *, zero_if: Literal["all", "any", "never"]) -> Claim:
        """All tensors, and the result, have the same channels, and are combined one by one.

        Args:
            axis: the channel axis.
            zero_if: a channel of the result is zero if it is in ``"all"`` tensors, in ``"any"`` of
                them, or ``"never"`` for certain.
        """
        first, last = self._axes(axis, None)
        return ElementwiseClaim(first, last, zero_if)

    def opaque(self, reason: str) -> Claim:
        """Nothing is known (for these arguments): all channels stay, in their order.

        Args:
            reason: what the graph shall say about it.
        """
        return OpaqueClaim(reason)

    def _axes(self, axis: int, out_axis: int | None, *, counted: bool = True) -> tuple[int, int]:
        """Both channel axes, counted from the front."""
        if not self.inputs:
            raise RuleError("says something of channels, but the call is given no activation")
        rank = self.inputs[0].ndim
        last = axis if out_axis is None else out_axis
        ranks = [(axis, rank)]
        if counted and isinstance(self.output, torch.Tensor):
            ranks.append((last, self.output.ndim))
        for number, limit in ranks:
            if not -limit <= number < limit:
                raise RuleError(f"names the axis {number} of a tensor with {limit} axes")
        return axis % rank, last % ranks[-1][1]


@dataclass(frozen=True)
class Rule:
    """A registered rule.

    Attributes:
        target: what it is for.
        kind: which sort of thing that is.
        function: what to ask.
        resize: how to tell a module its sizes.
        call: what stands for the target in a captured program.
    """

    target: Any
    kind: Literal["module", "function", "autograd", "torch"]
    function: RuleFunction
    resize: Resize | None
    call: Any = field(repr=False)

    def claim(self, call: Call) -> Claim:
        """The rule's claim about a call.

        Raises:
            RuleError: if it says nothing that makes sense.
        """
        said = self.function(call)
        if not isinstance(said, Claim):
            raise RuleError(
                f"returned a {type(said).__name__}; return call.channelwise(...), .symmetric, "
                ".layer, .elementwise or .opaque"
            )
        return said

    @contextmanager
    def blamed(self, name: str) -> Iterator[None]:
        """Say in every :class:`RuleError` which rule and call it is about."""
        try:
            yield
        except RuleError as error:
            raise RuleError(
                f"the rule for {_name(self.target)}, at call {name!r}: {error}"
            ) from None


_rules: dict[Any, Rule] = {}


def find_rule(target: Any, module: nn.Module | None) -> Rule | None:
    """The rule for a call of a captured program, if there is one.

    Args:
        target: of the call.
        module: the module that is called, if one is.
    """
    if not _rules:
        return None
    if module is None:
        return next((r for r in _rules.values() if r.kind != "module" and _calls(r, target)), None)
    own = type(module).forward
    if "forward" in vars(module):
        return None
    for cls in type(module).__mro__:
        if cls in _rules and getattr(cls, "forward", None) is own:
            return _rules[cls]
    return None


def call_of(site: CallSite) -> Call:
    """A traced call as its rule sees it."""

    def shown(leaf: Any) -> Any:
        return to_meta(leaf.fake) if hasattr(leaf, "fake") else leaf

    args, kwargs = pytree.tree_map(shown, site.arguments)
    inputs = tuple(to_meta(tensor.fake) for tensor in site.inputs)
    outputs = [to_meta(tensor.fake) for tensor in site.outputs]
    return Call(site.module, args, kwargs, inputs, outputs[0] if len(outputs) == 1 else outputs)


def to_meta(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor without data, of the same shape and dtype."""
    return torch.empty(tuple(tensor.shape), dtype=tensor.dtype, device="meta")


@contextmanager
def kept_as_calls() -> Iterator[None]:
    """Let :mod:`torch.fx` record calls of functions that have rules, instead of looking into them.

    A Python function is found under any name in the namespace of any loaded module; not in
    closures, containers and class bodies. Other things record themselves.
    """
    functions = {id(r.target): _recording(r) for r in _rules.values() if r.kind == "function"}
    with ExitStack() as undo:
        for module in list(sys.modules.values()) if functions else []:
            names = getattr(module, "__dict__", None) or {}
            for name, value in list(names.items()):
                if id(value) in functions:
                    names[name] = functions[id(value)]
                    undo.callback(names.__setitem__, name, value)
        for given in [r for r in _rules.values() if r.kind == "autograd"]:
            inherited = "apply" not in vars(given.target)
            own = vars(given.target).get("apply")
            given.target.apply = staticmethod(_recording(given))
            if inherited:
                undo.callback(delattr, given.target, "apply")
            else:
                undo.callback(setattr, given.target, "apply", own)
        yield


def _recording(given: Rule) -> Callable[..., Any]:
    def record(*args: Any, **kwargs: Any) -> Any:
        proxies = [v for v in pytree.tree_leaves((args, kwargs)) if isinstance(v, fx.Proxy)]
        if not proxies:
            return given.call(*args, **kwargs)
        return proxies[0].tracer.create_proxy("call_function", given.call, args, kwargs)

    return record


def _applier(cls: Any) -> Callable[..., Any]:
    """A function of its own that stands for ``cls.apply`` in programs."""
    apply = torch.autograd.Function.__dict__["apply"].__get__(None, cls)

    def call(*args: Any) -> Any:
        return apply(*args)

    call.__name__ = call.__qualname__ = f"{cls.__name__}_apply"
    call.__module__ = cls.__module__
    return call


def _kind(target: Any) -> Literal["module", "function", "autograd", "torch"]:
    if isinstance(target, type):
        if issubclass(target, nn.Module):
            return "module"
        if issubclass(target, torch.autograd.Function):
            return "autograd"
    elif isinstance(target, FunctionType) and not _is_torch(target):
        return "function"
    elif callable(target) and not isinstance(target, nn.Module):
        return "torch"
    raise RuleError(
        f"no rule can be given for {_name(target)}; give a class of modules, a function, a "
        "subclass of torch.autograd.Function, or a function, tensor method or operator of PyTorch"
    )


def _is_torch(function: FunctionType) -> bool:
    return function.__module__.split(".")[0] == "torch"


def _key(target: Any) -> Any:
    return target if isinstance(target, type) else id(target)


def _calls(given: Rule, target: Any) -> bool:
    """Tell whether ``target``, of a call in a program, is what a rule is for."""
    if isinstance(target, str):  # a tensor's method
        return getattr(torch.Tensor, target, None) is given.target
    if given.call is target:
        return True
    packet = getattr(target, "overloadpacket", None)
    own = getattr(given.target, "_opoverload", given.target)  # of torch.library.custom_op
    return own is target or (packet is not None and packet is own)


def _name(target: Any) -> str:
    return str(getattr(target, "__qualname__", None) or getattr(target, "__name__", repr(target)))
