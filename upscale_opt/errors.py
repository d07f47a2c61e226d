"""Every error this package raises on purpose: one class per boundary a user can hit.

Errors about what was given (masks, options, a model, its inputs) are ``ValueError``, too.
"""

from __future__ import annotations

from importlib import import_module
from types import ModuleType


class UpscaleError(Exception):
    """Base of all errors of this package; the message names the thing at fault and the way out."""


class ArgumentError(UpscaleError, ValueError):
    """An argument that names nothing known, or that is no such thing as is expected."""


class SchemaError(UpscaleError):
    """A file, JSON text or argument is not a valid graph, masks or solution."""


class DocumentError(SchemaError, ArgumentError):
    """The SchemaError of an argument."""


class MaskError(ArgumentError):
    """Masks that do not fit their graph: unknown parameter, axis or index."""


class RuleError(ArgumentError):
    """A rule that cannot be right: it names what is not there, or claims what is not so."""


class TraceError(ArgumentError):
    """A model could not be captured, or could not be run on the given inputs."""


class SolverError(ArgumentError):
    """An unknown solver or objective, or options that make no sense."""


class BudgetError(ArgumentError):
    """A budget that makes no sense, contradicts itself, or cannot be met by any masks."""


class MaterializeError(ArgumentError):
    """A solution that does not belong to the model, or would lose something of it."""


class DeployError(ArgumentError):
    """A pruned model cannot be written in a format, or what was written computes something else."""


class VerificationError(UpscaleError):
    """The pruned model does not compute what the masked model computes."""


class LittleRemovedWarning(UserWarning):
    """Little or nothing of what was masked could be removed; the message says why."""


def needed(
    module: str, what: str, extra: str, error: type[UpscaleError] = UpscaleError
) -> ModuleType:
    """Import a module that comes with an extra of this package.

    Args:
        module: its name.
        what: the beginning of what to say if it is not there, such as ``"pictures need"``.
        extra: the extra.
        error: the class of the error.

    Raises:
        UpscaleError: if it is not installed; of class ``error``.
    """
    try:
        return import_module(module)
    except ImportError as problem:
        raise error(f"{what} {problem.name or module}: {to_install(extra)}") from None


def to_install(extra: str) -> str:
    """The commands that install an extra of this package, from a clone and without one."""
    return f'pip install ".[{extra}]" in the clone, or "upscale-opt[{extra}]"'
