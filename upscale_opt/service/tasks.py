"""The task queue: which job is to be solved next. The queue only delivers; the store knows.

Whatever happens to a message, :func:`Queue.refill` puts jobs that wait into the queue again, and a
job that is delivered twice is claimed once.
"""

from __future__ import annotations

import contextlib
import json
import logging
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from huey import RedisHuey, SqliteHuey
from huey.registry import Message
from huey.serializer import Serializer

from upscale_opt.service.errors import CorruptError
from upscale_opt.service.jobs import Jobs, Store
from upscale_opt.service.settings import Settings
from upscale_opt.service.sqlite_store import SqliteStore, check_file, sqlite_errors

log = logging.getLogger("upscale_opt.service")

JOBS_FILE = "jobs.sqlite3"
QUEUE_FILE = "queue.sqlite3"


class JsonSerializer(Serializer):  # type: ignore[misc]
    """Messages as JSON in place of pickles: reading one can run nothing."""

    def _serialize(self, data: Any) -> bytes:
        return json.dumps({"id": data.id, "name": data.name, "args": list(data.args)}).encode()

    def _deserialize(self, data: Any) -> Any:
        fields = json.loads(bytes(data))
        id, name, (job,) = str(fields["id"]), str(fields["name"]), fields["args"]
        return Message(id=id, name=name, args=(str(job),), kwargs={})


def solve_job(id: str) -> None:
    """The task, by name; workers look at its argument and do the work themselves."""


class Queue:
    """The queue of jobs that wait, in SQLite or Redis, by huey.

    Args:
        settings: say which.
        pool: connections to Redis, if it is that.
    """

    def __init__(self, settings: Settings, pool: Any = None) -> None:
        self._name = settings.namespace
        self._path: Path | None = None if pool is not None else settings.data / QUEUE_FILE
        self._pool = pool
        self._inode = 0
        self._lock = threading.RLock()
        with self._errors():
            self._open()

    def _open(self) -> None:
        options: dict[str, Any] = {"results": False, "serializer": JsonSerializer()}
        if self._path is None:
            self._huey = RedisHuey(
                self._name, connection_pool=self._pool, read_timeout=1, **options
            )
        else:
            _mend(self._path)
            self._huey = SqliteHuey(
                self._name, filename=str(self._path), timeout=10, journal_mode="wal", **options
            )
            self._inode = self._path.stat().st_ino
        self._task = self._huey.task()(solve_job)

    def put(self, id: str) -> None:
        """Add a job."""
        with self._errors():
            self._refresh()
            self._huey.enqueue(self._task.s(id))

    def get(self) -> str | None:
        """Take the next one; None if there is none (Redis waits a second for one)."""
        with self._errors():
            self._refresh()
            try:
                task = self._huey.dequeue()
            except (ValueError, KeyError, TypeError) as error:
                log.warning("dropped a message that is none of ours: %r", error)
                return None
            return None if task is None else str(task.args[0])

    def ids(self) -> set[str]:
        """All jobs in the queue."""
        with self._errors():
            self._refresh()
            return {str(task.args[0]) for task in self._huey.pending()}

    def length(self) -> int:
        """The number of messages in the queue."""
        with self._errors():
            self._refresh()
            return int(self._huey.pending_count())

    def refill(self, jobs: Jobs) -> int:
        """Put jobs back that wait for long, but are not in the queue; how many there were."""
        waiting = jobs.overdue()
        if not waiting:
            return 0
        there = self.ids()
        lost = [id for id in waiting if id not in there and jobs.touch(id)]
        for id in lost:
            self.put(id)
        return len(lost)

    def close(self) -> None:
        """Let go of the file or the server."""
        self._huey.storage.close()

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        if self._path is None:
            from upscale_opt.service.redis_store import redis_errors

            with redis_errors():
                yield
            return
        try:
            with sqlite_errors(self._path):
                yield
        except CorruptError:
            self._inode = -1  # so that it is opened anew
            raise

    def _refresh(self) -> None:
        """Open the file anew if it was found corrupt, or another process moved it aside."""
        if self._path is None:
            return
        with self._lock:
            found = self._path.stat().st_ino if self._path.exists() else -2
            if found != self._inode:
                self._inode = -1
                self._huey.storage.close()
                self._open()


def _mend(path: Path) -> None:
    """Move a queue that is corrupt aside; all jobs that wait are in the store, too."""
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        check_file(path)
    except CorruptError as error:
        aside = path.with_name(f"{path.name}.corrupt-{time.strftime('%Y%m%d-%H%M%S')}")
        with contextlib.suppress(FileNotFoundError):  # another process was faster
            path.rename(aside)
        for suffix in ("-wal", "-shm"):
            with contextlib.suppress(FileNotFoundError):
                path.with_name(path.name + suffix).unlink()
        log.warning("%s; moved to %s. No job is lost: the queue is made anew", error, aside)


def open_storage(settings: Settings) -> tuple[Store, Queue]:
    """The store and the queue that the settings name.

    Raises:
        StorageError: if they cannot be opened. Redis is not needed yet.
    """
    if settings.queue is None:
        try:
            store = SqliteStore(settings.data / JOBS_FILE)
        except CorruptError as error:
            raise CorruptError(
                f"{error}; put a backup in its place, or move it away (its jobs are lost then)"
            ) from None
        return store, Queue(settings)
    from upscale_opt.service.redis_store import RedisStore, connect

    pool = connect(settings.queue)
    return RedisStore(pool, settings.namespace), Queue(settings, pool)
