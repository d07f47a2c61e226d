"""Jobs in Redis, for several machines."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, cast

import redis
from pydantic import ValidationError
from redis.backoff import ConstantBackoff
from redis.retry import Retry

from upscale_opt.service.errors import CorruptError, StorageError
from upscale_opt.service.jobs import STATES, Change, Job, State

_DURABLE = 1000
"""Milliseconds in which Redis must have written a job to its disk, if it writes to one."""


def connect(url: str) -> redis.ConnectionPool:
    """Connections to the server that are soon given up if it does not answer."""
    return redis.ConnectionPool.from_url(
        url,
        socket_connect_timeout=2.0,
        socket_timeout=4.0,
        health_check_interval=15,
        retry=Retry(ConstantBackoff(0.05), 1),
    )


class RedisStore:
    """A :class:`~upscale_opt.service.jobs.Store` in Redis.

    Transitions are optimistic transactions (WATCH, MULTI); all times are the server's.

    Args:
        pool: connections.
        namespace: in front of all keys.
    """

    def __init__(self, pool: redis.ConnectionPool, namespace: str) -> None:
        self._redis = redis.Redis(connection_pool=pool)
        self._name = namespace
        self._waits = True

    def update(
        self,
        id: str,
        change: Change,
        *,
        blobs: dict[str, bytes | None] | None = None,
        totals: dict[str, float] | None = None,
    ) -> Job | None:
        """See :class:`~upscale_opt.service.jobs.Store`."""
        pipe: Any
        with redis_errors(), self._redis.pipeline() as pipe:
            while True:
                try:
                    pipe.watch(self._key("job", id))
                    new = change(self._parsed(pipe.get(self._key("job", id))), self._now(pipe))
                    if new is None:
                        return None
                    pipe.multi()
                    pipe.set(self._key("job", id), new.model_dump_json())
                    for state in STATES:
                        if state != new.state:
                            pipe.zrem(self._key("state", state), id)
                    pipe.zadd(self._key("state", new.state), {id: new.due})
                    for kind, data in (blobs or {}).items():
                        if data is None:
                            pipe.delete(self._key(kind, id))
                        else:
                            pipe.set(self._key(kind, id), data)
                    for name, value in (totals or {}).items():
                        pipe.hincrbyfloat(self._key("totals"), name, value)
                    pipe.execute()
                    break
                except redis.WatchError:
                    continue
            if blobs:
                self._wait(pipe)
        return new

    def _wait(self, pipe: Any) -> None:
        """Wait until the server has written to its disk, if it does that at all."""
        if not self._waits:
            return
        pipe.reset()
        try:
            client: Any = self._redis
            written = client.execute_command("WAITAOF", 1, 0, _DURABLE)
        except redis.ResponseError:  # it is too old, or writes no append-only file
            self._waits = False
            return
        if not written or int(written[0]) < 1:
            raise StorageError("Redis does not write to its disk")

    def read(self, id: str) -> Job | None:
        """See :class:`~upscale_opt.service.jobs.Store`."""
        with redis_errors():
            return self._parsed(self._redis.get(self._key("job", id)))

    def blob(self, id: str, kind: str) -> bytes | None:
        """See :class:`~upscale_opt.service.jobs.Store`."""
        with redis_errors():
            return cast("bytes | None", self._redis.get(self._key(kind, id)))

    def due(self, state: State, before: float, most: int) -> list[str]:
        """See :class:`~upscale_opt.service.jobs.Store`."""
        with redis_errors():
            until = self._now(self._redis) - before
            found: Any = self._redis.zrangebyscore(
                self._key("state", state), "-inf", f"({until!r}", start=0, num=most
            )
            return [id.decode() for id in found]

    def counts(self) -> dict[State, int]:
        """See :class:`~upscale_opt.service.jobs.Store`."""
        with redis_errors(), self._redis.pipeline(transaction=False) as pipe:
            for state in STATES:
                pipe.zcard(self._key("state", state))
            return dict(zip(STATES, pipe.execute(), strict=True))

    def totals(self) -> dict[str, float]:
        """See :class:`~upscale_opt.service.jobs.Store`."""
        with redis_errors():
            found: Any = self._redis.hgetall(self._key("totals"))
            return {name.decode(): float(value) for name, value in found.items()}

    def remove(self, id: str, state: State) -> None:
        """See :class:`~upscale_opt.service.jobs.Store`."""
        pipe: Any
        wanted = contextlib.suppress(redis.WatchError)  # by somebody else, again
        with redis_errors(), self._redis.pipeline() as pipe, wanted:
            pipe.watch(self._key("job", id))
            job = self._parsed(pipe.get(self._key("job", id)))
            if job is not None and job.state != state:
                return
            pipe.multi()
            pipe.delete(*(self._key(kind, id) for kind in ("job", "request", "result")))
            pipe.zrem(self._key("state", state), id)
            pipe.execute()

    def beat(self, worker: str, alive: bool = True) -> None:
        """See :class:`~upscale_opt.service.jobs.Store`."""
        with redis_errors():
            now = self._now(self._redis)
            if alive:
                self._redis.zadd(self._key("workers"), {worker: now})
            else:
                self._redis.zrem(self._key("workers"), worker)
            self._redis.zremrangebyscore(self._key("workers"), "-inf", now - 3600)

    def workers(self, within: float) -> int:
        """See :class:`~upscale_opt.service.jobs.Store`."""
        with redis_errors():
            since = self._now(self._redis) - within
            client: Any = self._redis
            return int(client.zcount(self._key("workers"), since, "+inf"))

    def check(self) -> None:
        """See :class:`~upscale_opt.service.jobs.Store`."""
        with redis_errors():
            self._redis.ping()

    def close(self) -> None:
        """See :class:`~upscale_opt.service.jobs.Store`."""
        self._redis.close()

    def _key(self, *parts: str) -> str:
        return ":".join((self._name, *parts))

    def _now(self, client: Any) -> float:
        seconds, microseconds = client.time()
        return int(seconds) + int(microseconds) / 1e6

    def _parsed(self, data: Any) -> Job | None:
        try:
            return None if data is None else Job.model_validate_json(data)
        except ValidationError:
            raise CorruptError("Redis has a job that cannot be read") from None


@contextlib.contextmanager
def redis_errors() -> Iterator[None]:
    """Turn what Redis raises in the body into our errors; a password is not repeated."""
    try:
        yield
    except redis.RedisError as error:
        kind = type(error).__name__
        said = "" if isinstance(error, redis.AuthenticationError) else f": {error}"
        raise StorageError(f"Redis does not do its work ({kind}{said})") from None
    except OSError as error:
        raise StorageError(f"Redis cannot be reached: {error.strerror or error}") from None
