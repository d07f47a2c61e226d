"""Every setting of the service, with its limits."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    SecretStr,
    ValidationError,
    field_validator,
)
from typing_extensions import Self

from upscale_opt.errors import UpscaleError
from upscale_opt.ir.base import first_problem

PREFIX = "UPSCALE_OPT_"
"""In front of the names of environment variables: ``UPSCALE_OPT_MAX_QUEUE=50``."""


def default_folder() -> Path:
    """The folder of jobs unless the service is told otherwise: in the user's data directory."""
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Application Support"
    else:
        base = Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share")
    return base / "upscale-opt"


class Settings(BaseModel):
    """The settings; each is also an environment variable, in capitals behind ``UPSCALE_OPT_``.

    Attributes:
        host: the address to listen at.
        port: the port; 0 for any free one.
        data: the folder of the SQLite files.
        queue: a Redis URL in place of the SQLite files.
        namespace: in front of the names of all keys in Redis.
        workers: worker processes that the service starts; each solves one job at a time.
        token: what clients must send as ``Authorization: Bearer …``, if set.
        max_body_bytes: of a request's body.
        max_depth: how deep JSON may be nested.
        max_digits: of a number in JSON.
        max_channels: in a graph.
        max_entries: of all lists of channels in a request together, written out.
        max_reads: inputs of all operations of a graph together.
        max_time_limit: seconds that a job may ask for.
        max_threads: threads that a job may ask for.
        max_queue: jobs that may wait.
        max_streams: event streams that may be open at a time.
        memory_mb: megabytes of address space that a solve may take; 0 for no limit.
        body_seconds: in which a request's body must have come.
        retention: seconds for which finished jobs are kept.
        solve_processes: processes for ``/v1/solve``.
        solve_waiting: requests that may wait for one of them.
        solve_patience: seconds that they may wait.
        solve_max_channels: in a graph for ``/v1/solve``.
        solve_max_reads: the same for reads.
        solve_time_limit: the most seconds that ``/v1/solve`` solves for.
        lease: seconds after which a job whose worker is silent is given to another.
        max_attempts: how often a job is begun before it has failed.
        heartbeat: seconds between two signs of life in event streams.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    host: str = "127.0.0.1"
    port: int = Field(default=8000, ge=0, le=65535)
    data: Path = Field(default_factory=default_folder)
    queue: str | None = None
    namespace: str = Field(default="upscale-opt", pattern=r"^[A-Za-z0-9_.-]{1,64}$")
    workers: NonNegativeInt = 1
    token: SecretStr | None = None

    max_body_bytes: PositiveInt = 16 * 2**20
    max_depth: PositiveInt = Field(default=64, le=500)
    max_digits: PositiveInt = Field(default=20, le=4000)
    max_channels: PositiveInt = 500_000
    max_entries: PositiveInt = 4_000_000
    max_reads: PositiveInt = 50_000
    max_time_limit: PositiveFloat = 3600.0
    max_threads: PositiveInt = 4
    max_queue: PositiveInt = 1000
    max_streams: PositiveInt = 256
    memory_mb: NonNegativeInt = 8192
    body_seconds: PositiveFloat = 30.0
    retention: PositiveFloat = 7 * 24 * 3600.0

    solve_processes: PositiveInt = 2
    solve_waiting: NonNegativeInt = 128
    solve_patience: PositiveFloat = 30.0
    solve_max_channels: PositiveInt = 50_000
    solve_max_reads: PositiveInt = 5_000
    solve_time_limit: PositiveFloat = 10.0

    lease: float = Field(default=15.0, ge=1.0)
    max_attempts: PositiveInt = 3
    heartbeat: PositiveFloat = 10.0

    @field_validator("queue")
    @classmethod
    def _redis(cls, value: str | None) -> str | None:
        if value and not value.startswith(("redis://", "rediss://", "unix://")):
            raise ValueError("a queue is a URL such as redis://127.0.0.1:6379/0")
        return value or None

    @field_validator("token")
    @classmethod
    def _sayable(cls, value: SecretStr | None) -> SecretStr | None:
        text = value.get_secret_value() if value is not None else ""
        if value is not None and not (text.isascii() and text.isprintable() and text.strip()):
            raise ValueError("a token is one or more printable ASCII characters")
        return value

    @classmethod
    def read(
        cls, given: Mapping[str, Any] | None = None, environment: Mapping[str, str] | None = None
    ) -> Self:
        """The settings from the environment, overruled by those given that are not None.

        Raises:
            UpscaleError: naming the first one that makes no sense.
        """
        environment = os.environ if environment is None else environment
        values: dict[str, Any] = {
            name: environment[PREFIX + name.upper()]
            for name in cls.model_fields
            if environment.get(PREFIX + name.upper(), "") != ""
        }
        values.update({name: value for name, value in (given or {}).items() if value is not None})
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise UpscaleError(f"not a valid setting: {first_problem(error)}") from None

    def for_workers(self) -> dict[str, Any]:
        """The settings that a worker process has to know, as JSON; not the token."""
        return self.model_dump(mode="json", exclude={"token"})
