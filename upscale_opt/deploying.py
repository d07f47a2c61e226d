"""Files of pruned models for other runtimes: ONNX, PyTorch's own pt2, and safetensors."""

from __future__ import annotations

import io
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import nn
from torch.utils import _pytree as pytree

from upscale_opt.errors import DeployError, needed
from upscale_opt.ir.base import write_atomically
from upscale_opt.materializing.used import kind_of
from upscale_opt.saving.load import load
from upscale_opt.saving.save import save
from upscale_opt.tracing.copying import copied
from upscale_opt.tracing.examples import Inputs, as_call, dtype_name, map_tensors
from upscale_opt.verifying.deviation import allowed, deviation
from upscale_opt.verifying.outputs import outputs_of

Format = Literal["onnx", "pt2", "safetensors"]

FORMATS: tuple[str, ...] = get_args(Format)

_ROUNDED = 1e-4
"""The largest distance of a file's outputs from the eager model's in float32, relative to the
largest output. Less than a pruned model's from the masked one's, as a file sums the same numbers;
in other precisions, as much."""

_ONNX = ("onnx", "onnxscript", "onnxruntime")


@dataclass(frozen=True)
class Deployed:
    """A file that was written and checked.

    Attributes:
        path: where it is.
        format: ``"onnx"``, ``"pt2"`` or ``"safetensors"``.
        size: in bytes.
        deviation: of its outputs from the eager model's, relative to the largest one.
        batches: the batch sizes on which both were run; one, if the batch is fixed.
    """

    path: Path
    format: str
    size: int
    deviation: float
    batches: tuple[int, ...]


def deploy(
    pruned: nn.Module,
    inputs: Inputs,
    path: str | os.PathLike[str],
    *,
    format: Format | None = None,
    dynamic_batch: bool = True,
    definition: nn.Module | None = None,
) -> Deployed:
    """Write a pruned model to a file, whole or not at all, and check what was written.

    The model is written in evaluation mode and in its functional form: nothing works in place. What
    is to be the file is read again, run on the example inputs and on other batch sizes, and
    compared with the eager model; only then it takes its place.

    Args:
        pruned: what :func:`upscale_opt.materialize` returned, or the ``model`` of what
            :func:`upscale_opt.prune` did.
        inputs: example inputs.
        path: where to.
        format: ``"onnx"``, ``"pt2"`` (:func:`torch.export.save`) or ``"safetensors"``
            (:func:`upscale_opt.save`); by the ending of ``path``, if not given.
        dynamic_batch: let the first axis be of any size, in all inputs whose first axis is as long
            as that of the first. ``safetensors`` fixes no sizes anyhow.
        definition: the original model, of any weights, that a ``safetensors`` file is loaded into.

    Raises:
        DeployError: if a library is missing, the model cannot be captured or written, or the file
            computes something else.
        MaterializeError: if ``safetensors`` cannot hold it.
        OSError: if the file cannot be written; a file that was there is as before.
    """
    target = Path(path)
    kind = target.suffix.removeprefix(".") if format is None else format
    check_format(kind)
    if not isinstance(pruned, nn.Module):
        hint = "; give its .model" if hasattr(pruned, "model") else ""
        raise DeployError(f"expected a model, but got a {type(pruned).__name__}{hint}")
    if kind == "safetensors":
        if definition is None:
            raise DeployError("give definition=, the original model, to check a safetensors file")
        return _saved(pruned, inputs, target, definition)
    eager = copied(pruned).eval()
    program = capture(eager, inputs, dynamic_batch=dynamic_batch)
    with failing(f"{kind} cannot hold this model"):
        data, run = (_as_onnx if kind == "onnx" else _as_pt2)(program)
    found, batches = _compared(kind, eager, run, inputs, dynamic_batch)
    write_atomically(target, data)
    return Deployed(target, kind, len(data), found, batches)


def check_format(format: str) -> None:
    """Find out now, not after the work, if files of a format cannot be made here.

    Raises:
        DeployError: if there is no such format, or a library is missing.
    """
    if format not in FORMATS:
        raise DeployError(f"{format!r} is not a format; there are {', '.join(FORMATS)}")
    for library in _ONNX if format == "onnx" else ():
        needed(library, "ONNX files need", "onnx", DeployError)


def capture(
    model: nn.Module, inputs: Inputs, *, dynamic_batch: bool = True
) -> torch.export.ExportedProgram:
    """The functional form of a model, as :mod:`torch.export` captures it: nothing is in place.

    Args:
        model: in evaluation mode.
        inputs: example inputs.
        dynamic_batch: see :func:`deploy`.

    Raises:
        DeployError: if it cannot be captured.
    """
    size = _batch(inputs)
    if dynamic_batch and size == 1:  # as a number, one is taken for part of the model
        inputs = _resized(inputs, size, 2)
        size = 2
    args, kwargs = as_call(inputs)
    batch = torch.export.Dim("batch", min=1)

    def axes(leaf: Any) -> Any:
        return {0: batch} if dynamic_batch and _is_batch(leaf, size) else None

    shapes = pytree.tree_map(axes, kwargs or args)
    hint = "" if not dynamic_batch else "; dynamic_batch=False fixes the batch size"
    with failing("torch.export cannot capture this model", hint), torch.no_grad():
        program = torch.export.export(
            model, args, kwargs or None, dynamic_shapes=shapes, strict=False
        )
        functional: torch.export.ExportedProgram = program.run_decompositions({})
    return functional


Run = Callable[[Inputs], Any]


def _as_pt2(program: torch.export.ExportedProgram) -> tuple[bytes, Run]:
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    data = buffer.getvalue()
    log = logging.getLogger("torch._export.serde.serialize")
    level = log.level
    log.setLevel(logging.ERROR)  # it warns of symbols that decomposing left without use
    try:
        return data, _runner(torch.export.load(io.BytesIO(data)).module())
    finally:
        log.setLevel(level)


def onnx_of(program: torch.export.ExportedProgram) -> bytes:
    """The ONNX file of a captured program, checked by ``onnx.checker``."""
    import onnx

    converted = torch.onnx.export(program, dynamo=True, verbose=False)
    assert converted is not None
    proto = converted.model_proto
    _name_batch(proto.graph, program)
    data: bytes = proto.SerializeToString()
    onnx.checker.check_model(data, full_check=True)
    return data


def session_of(data: bytes, *, threads: int = 0, profile: str | None = None) -> Any:
    """An onnxruntime session on the CPU.

    Args:
        data: the ONNX file.
        threads: to compute with, and be timed: numbers next to zero, which are slow and of which
            random networks have many, are zero then. 0: as onnxruntime likes.
        profile: where to write times of its nodes: how the file's path begins.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors
    if threads:
        options.intra_op_num_threads = options.inter_op_num_threads = threads
        options.add_session_config_entry("session.set_denormal_as_zero", "1")
    if profile is not None:
        options.enable_profiling, options.profile_file_prefix = True, profile
    return onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])


def arrays_of(inputs: Inputs) -> list[Any]:
    """The tensors of inputs as numpy arrays, in the order in which a file takes them."""
    leaves = [x for x in pytree.tree_leaves(as_call(inputs)) if isinstance(x, torch.Tensor)]
    return [leaf.detach().cpu().numpy() for leaf in leaves]


def _as_onnx(program: torch.export.ExportedProgram) -> tuple[bytes, Run]:
    data = onnx_of(program)
    session = session_of(data)
    names = [given.name for given in session.get_inputs()]

    def run(inputs: Inputs) -> list[torch.Tensor]:
        results = session.run(None, dict(zip(names, arrays_of(inputs), strict=True)))
        return [torch.from_numpy(result) for result in results]

    return data, run


def _name_batch(graph: Any, program: torch.export.ExportedProgram) -> None:
    """Call the batch's axis ``batch``, which torch.export gave a made-up name."""
    given = set(program.graph_signature.user_inputs)
    values = [node.meta.get("val") for node in program.graph.nodes if node.name in given]
    shapes = [value.shape for value in values if isinstance(value, torch.Tensor)]
    made_up = {str(axis) for shape in shapes for axis in shape if isinstance(axis, torch.SymInt)}
    for value in (*graph.input, *graph.output, *graph.value_info):
        for axis in value.type.tensor_type.shape.dim:
            if axis.dim_param in made_up and len(made_up) == 1:
                axis.dim_param = "batch"


def _saved(model: nn.Module, inputs: Inputs, path: Path, definition: nn.Module) -> Deployed:
    """Write what :func:`upscale_opt.save` writes; it is checked before it takes its place."""
    trial = path.with_name(f".{path.name}.{os.getpid()}")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        save(model, trial)
        loaded = load(definition, trial).eval()
        found, batches = _compared(
            "safetensors", copied(model).eval(), _runner(loaded), inputs, True
        )
        size = trial.stat().st_size
        os.replace(trial, path)
    finally:
        trial.unlink(missing_ok=True)
    return Deployed(path, "safetensors", size, found, batches)


def _compared(
    kind: str, eager: nn.Module, run: Run, inputs: Inputs, dynamic_batch: bool
) -> tuple[float, tuple[int, ...]]:
    """The distance of a file's outputs from the eager model's, and the batches it was measured on.

    Raises:
        DeployError: if they are too far apart, or the file does not run.
    """
    size = _batch(inputs)
    dtype = kind_of(eager)[0]
    most = _ROUNDED if dtype == torch.float32 else allowed(dtype)
    worst, batches = 0.0, []
    for batch in sorted({1, size, max(size, 2) + 1}) if dynamic_batch and size else [size]:
        given = _resized(inputs, size, batch)
        try:
            wanted = _tensors(outputs_of(eager, given))
        except Exception:
            if batch == size:
                raise
            continue  # the model itself takes no such batch
        with failing(f"the {kind} file does not run on a batch of {batch}"):
            error = deviation(wanted, _tensors(run(given)))
        if not error <= most:
            raise DeployError(
                f"the {kind} file deviates by {error:.2e} on a batch of {batch}, where "
                f"{most:.0e} is allowed in {dtype_name(dtype)}; nothing was written"
            )
        worst = max(worst, error)
        batches.append(batch)
    return worst, tuple(batches)


def _runner(model: nn.Module) -> Run:
    return partial(outputs_of, model)


def _tensors(outputs: Any) -> list[torch.Tensor]:
    leaves = pytree.tree_leaves(outputs)
    return [leaf.detach().cpu() for leaf in leaves if isinstance(leaf, torch.Tensor)]


def _batch(inputs: Inputs) -> int:
    """The length of the first axis of the first tensor that has one; 0 if none has."""
    leaves = pytree.tree_leaves(as_call(inputs))
    sizes = (len(leaf) for leaf in leaves if isinstance(leaf, torch.Tensor) and leaf.ndim)
    return next(sizes, 0)


def _is_batch(leaf: object, size: int) -> bool:
    return isinstance(leaf, torch.Tensor) and leaf.ndim > 0 and len(leaf) == size


def _resized(inputs: Inputs, size: int, batch: int) -> Any:
    """The inputs with another batch size, at most three times theirs; not all entries alike."""

    def resize(tensor: torch.Tensor) -> torch.Tensor:
        if batch == size or not _is_batch(tensor, size):
            return tensor
        return torch.cat([tensor, tensor.flip(-1), tensor])[:batch]

    return map_tensors(inputs, resize)


@contextmanager
def failing(what: str, way_out: str = "") -> Iterator[None]:
    """Whatever goes wrong inside is one error of ours.

    Raises:
        DeployError: instead of any other error.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, DeployError):
            raise
        text = " ".join(str(error).split())[:300]
        raise DeployError(f"{what} ({type(error).__name__}: {text}){way_out}") from error
