"""Write attention that is a single call as several, so that its weights can be understood.

The calls compute what the original does, for the inputs that they are recorded with and all others
alike. Whatever is not known to be the same is left as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional
from torch.nn.modules import transformer
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from upscale_opt.runtime.attention_bias import added_mask, attention_bias
from upscale_opt.runtime.swin import join_windows, mask_windows, split_windows


def multihead(
    module: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> Callable[[], tuple[fx.Proxy, fx.Proxy | None]] | None:
    """Write a call of :class:`torch.nn.MultiheadAttention` as layers and attention.

    Args:
        module: the module called.
        args: its arguments, as :mod:`torch.fx` hands them on.
        kwargs: and its keyword arguments.

    Returns:
        What to call under the tracer, if that computes the same. The weights that it returns are
        made of calls of their own.
    """
    if type(module) is not nn.MultiheadAttention or not _is_plain(module):
        return None
    names = (
        "query",
        "key",
        "value",
        "key_padding_mask",
        "need_weights",
        "attn_mask",
        "average_attn_weights",
        "is_causal",
    )
    given = {"need_weights": True, "average_attn_weights": True, **kwargs}
    given.update(zip(names, args, strict=False))
    sources = [given.get(name) for name in names[:3]]
    if not all(isinstance(source, fx.Proxy) for source in sources):
        return None
    causal = given.get("is_causal", False)
    flags = [causal, given["need_weights"], given["average_attn_weights"]]
    mask, padding = given.get("attn_mask"), given.get("key_padding_mask")
    if any(type(flag) is not bool for flag in flags) or (causal and mask is None):
        return None
    dropout = module.dropout if module.dropout and module.training else 0.0
    if dropout and flags[1]:
        return None  # the weights that it returns are those that were dropped
    if causal and (padding is not None or flags[1]):
        causal = False  # then it goes by the mask
    masks = (None if causal else mask), padding
    return lambda: _attend(module, sources, masks, dropout, causal, *flags[1:])


@contextmanager
def masks_as_calls() -> Iterator[None]:
    """Let torch's transformers ask nothing of the masks that they are given while they are traced.

    A mask of which it is not said that it is causal is taken as it is, whatever it holds.
    """
    torchs: Any = functional
    layers: Any = transformer
    added, dtype_of = torchs._canonical_mask, torchs._none_or_dtype
    is_causal = layers._detect_is_causal_mask

    def canonical(mask: Any, *more: Any, **named: Any) -> Any:
        if isinstance(mask, fx.Proxy):
            traced: Any = mask
            return added_mask(traced, named["target_type"])
        return added(mask, *more, **named)

    def known(mask: Any) -> Any:
        return None if isinstance(mask, fx.Proxy) else dtype_of(mask)

    def detected(mask: Any, causal: Any = None, size: Any = None) -> Any:
        if causal is None and isinstance(mask, fx.Proxy):
            return False
        return is_causal(mask, causal, size)

    torchs._canonical_mask, torchs._none_or_dtype = canonical, known
    layers._detect_is_causal_mask = detected
    try:
        yield
    finally:
        torchs._canonical_mask, torchs._none_or_dtype = added, dtype_of
        layers._detect_is_causal_mask = is_causal


def pads(module: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    """Tell whether a call of :class:`torch.nn.TransformerEncoder` may use nested tensors.

    That it does if it is told of padding, without gradients: then it makes zeros of padded tokens,
    which its layers do not.
    """
    if type(module) is not nn.TransformerEncoder or not getattr(module, "use_nested_tensor", True):
        return False
    return len(args) > 2 or kwargs.get("src_key_padding_mask") is not None


def _is_plain(module: nn.MultiheadAttention) -> bool:
    projection = module.out_proj
    hooks = (
        projection._forward_hooks,
        projection._forward_pre_hooks,
    )
    return (
        "forward" not in vars(module)
        and type(projection) is NonDynamicallyQuantizableLinear
        and not any(hooks)
    )


def _attend(
    module: nn.MultiheadAttention,
    sources: Sequence[Any],
    masks: tuple[Any, Any],
    dropout: float,
    causal: bool,
    need_weights: bool,
    average: bool,
) -> tuple[Any, Any]:
    heads, size = module.num_heads, module.head_dim
    first = -3 if module.batch_first else 0  # the axis of tokens, once only heads are apart
    added = (module.bias_k is not None) + bool(module.add_zero_attn)
    if module._qkv_same_embed_dim and not added:
        parts: dict[int, Any] = {}
        for source in sources:  # of each all parts; materialising leaves out what nothing reads
            if id(source) not in parts:
                joint: Any = functional.linear(source, module.in_proj_weight, module.in_proj_bias)
                parts[id(source)] = joint.unflatten(-1, (3, heads, size)).unbind(-3)
        query, key, value = (
            parts[id(source)][number].movedim(first, -2) for number, source in enumerate(sources)
        )
    else:
        query, key, value = (
            part.unflatten(-1, (heads, size)).movedim(-3, -2)
            for part in _projected(module, sources)
        )
    given = any(mask is not None for mask in masks)
    bias: Any = None
    if given:
        bias = attention_bias(*masks, heads, sources[0].dtype, sources[0].ndim)
        bias = functional.pad(bias, (0, added)) if added else bias

    def seen() -> Any:
        scores = (query * size**-0.5) @ key.transpose(-2, -1)
        return functional.softmax(scores if bias is None else scores + bias, -1)

    weights: Any = None
    if need_weights and given:
        weights = seen()
        mixed = weights @ value  # tokens that see nothing are another thing to a single call
    else:
        more: dict[str, Any] = {"attn_mask": bias} if given else {}
        more |= {"dropout_p": dropout} if dropout else {}
        more |= {"is_causal": True} if causal else {}
        scale = size**-0.5
        mixed = functional.scaled_dot_product_attention(query, key, value, scale=scale, **more)
    result = module.out_proj(mixed.movedim(-2, first).flatten(-2))
    if not need_weights:
        return result, None
    weights = seen() if weights is None else weights
    return result, weights.mean(-3) if average else weights


def _projected(module: nn.MultiheadAttention, sources: Sequence[Any]) -> list[Any]:
    """Queries, keys and values of shape (..., tokens, width), with the tokens that are added."""
    width, bias = module.embed_dim, module.in_proj_bias
    projected: list[Any] = []
    for number, source in enumerate(sources):
        part: Any
        if module._qkv_same_embed_dim:
            joint: Any = functional.linear(source, module.in_proj_weight, bias)
            part = joint.unflatten(-1, (3, width)).unbind(-2)[number]
        else:
            weight = (module.q_proj_weight, module.k_proj_weight, module.v_proj_weight)[number]
            part = functional.linear(source, weight)
            if bias is not None:
                part = part + torch.narrow(bias, 0, number * width, width)
        part = part if module.batch_first else part.movedim(0, -2)
        more = (None, module.bias_k, module.bias_v)[number]
        if more is not None:
            nothing: Any = torch.narrow(part, -2, 0, 1) * 0.0  # of the batch's size, unasked
            part = torch.cat([part, nothing + more.flatten()], -2)
        if module.add_zero_attn and number:
            part = functional.pad(part, (0, 0, 0, 1))
        projected.append(part)
    return projected


def some_outputs(target: Any, args: Sequence[Any]) -> Callable[[], Any] | None:
    """Write a linear layer with some rows of a weight as one with all, of whose outputs some stay.

    That is what a pruned model does where calls share a weight.
    """
    if target is not functional.linear or len(args) != 3 or not isinstance(args[1], fx.Proxy):
        return None
    x, weight, bias = args
    rows = _rows(weight)
    if rows is None or (bias is not None and _rows(bias) != rows):
        return None
    whole: list[Any] = [
        None if part is None else fx.Proxy(part.node.args[0], weight.tracer)
        for part in (weight, bias)
    ]
    first, count = rows
    return lambda: torch.narrow(functional.linear(x, *whole), -1, first, count)


def _rows(part: Any) -> tuple[Any, Any] | None:
    """First and number of the rows that are taken of a parameter."""
    node = part.node if isinstance(part, fx.Proxy) else None
    if node is None or node.target is not torch.narrow or len(node.args) != 4 or node.args[1]:
        return None
    whole = node.args[0]
    if not isinstance(whole, fx.Node) or whole.op != "get_attr":
        return None
    return node.args[2], node.args[3]


def shifted_windows(
    target: Any, args: Sequence[Any], kwargs: Mapping[str, Any], shape_of: Callable[[Any], Any]
) -> Callable[[], fx.Proxy] | None:
    """Write torchvision's attention within windows (Swin, of the first version) as several calls.

    Args:
        target: the function called.
        args: its arguments, as :mod:`torch.fx` hands them on.
        kwargs: and its keyword arguments.
        shape_of: the shape of a parameter, or ``None``.
    """
    if getattr(target, "__name__", "") != "shifted_window_attention":
        return None
    if getattr(target, "__module__", "") != "torchvision.models.swin_transformer":
        return None
    names = (
        "input",
        "qkv_weight",
        "proj_weight",
        "relative_position_bias",
        "window_size",
        "num_heads",
        "shift_size",
        "attention_dropout",
        "dropout",
        "qkv_bias",
        "proj_bias",
        "logit_scale",
    )
    given = {**kwargs, **dict(zip(names, args, strict=False))}
    shape = shape_of(given["qkv_weight"])
    plain = all(not given.get(name) for name in ("attention_dropout", "dropout"))
    if not plain or given.get("logit_scale") is not None or shape is None:
        return None
    window, shift = list(given["window_size"]), list(given["shift_size"])
    return lambda: _within_windows(given, window, shift, shape[0] // 3)


def _within_windows(given: Mapping[str, Any], window: Any, shift: Any, width: int) -> Any:
    x, heads = given["input"], int(given["num_heads"])
    extent = x.size(1), x.size(2)
    joint: Any = functional.linear(
        split_windows(x, window, shift), given["qkv_weight"], given["qkv_bias"]
    )
    joint = joint.unflatten(-1, (3, heads, width // heads))
    parts = joint.unbind(-3)
    query, key, value = (parts[number].transpose(1, 2) for number in range(3))
    scores = (query * (width // heads) ** -0.5) @ key.transpose(-2, -1)
    scores = scores + given["relative_position_bias"]
    if any(shift):
        scores = mask_windows(scores, *extent, window, shift)
    mixed = functional.softmax(scores, -1) @ value
    mixed = mixed.transpose(1, 2).flatten(2)
    result = functional.linear(mixed, given["proj_weight"], given["proj_bias"])
    return join_windows(result, *extent, window, shift)
