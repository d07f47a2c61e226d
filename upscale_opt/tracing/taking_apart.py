"""Write attention that is a single call as several, so that its weights can be understood.

The calls compute what the original does, for the inputs that they are recorded with and all others
alike. Whatever is not known to be the same is left as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import fx, nn
from torch.nn import functional
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

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
        What to call under the tracer, if the call is one of a tensor with itself, without masks
        and dropout. The weights that it returns are made of calls of their own.
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
    query = given.get("query")
    if not isinstance(query, fx.Proxy) or any(given.get(n) is not query for n in names[1:3]):
        return None
    if given.get("key_padding_mask") is not None or given.get("attn_mask") is not None:
        return None
    flags = [given.get("is_causal", False), given["need_weights"], given["average_attn_weights"]]
    if flags[0] is not False or any(type(flag) is not bool for flag in flags):
        return None
    return lambda: _attend(module, query, *flags[1:])


def _is_plain(module: nn.MultiheadAttention) -> bool:
    projection = module.out_proj
    hooks = (
        projection._forward_hooks,
        projection._forward_pre_hooks,
    )
    return (
        module._qkv_same_embed_dim
        and module.bias_k is None
        and module.bias_v is None
        and not module.add_zero_attn
        and not module.dropout
        and "forward" not in vars(module)
        and type(projection) is NonDynamicallyQuantizableLinear
        and not any(hooks)
    )


def _attend(
    module: nn.MultiheadAttention, x: Any, need_weights: bool, average: bool
) -> tuple[Any, Any]:
    heads, size = module.num_heads, module.head_dim
    joint: Any = functional.linear(x, module.in_proj_weight, module.in_proj_bias)
    joint = joint.unflatten(-1, (3, heads, size))
    first = -3 if module.batch_first else 0  # the axis of tokens, once only heads are apart
    parts = joint.unbind(-3)
    query, key, value = (parts[number].movedim(first, -2) for number in range(3))
    mixed = functional.scaled_dot_product_attention(query, key, value, scale=size**-0.5)
    result = module.out_proj(mixed.movedim(-2, first).flatten(-2))
    if not need_weights:
        return result, None
    weights = functional.softmax((query * size**-0.5) @ key.transpose(-2, -1), -1)
    return result, weights.mean(-3) if average else weights


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
