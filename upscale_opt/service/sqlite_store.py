"""Jobs in a SQLite file, for one machine."""

from __future__ import annotations

import contextlib
import sqlite3
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

from pydantic import ValidationError

from upscale_opt.service.errors import CorruptError, StorageError
from upscale_opt.service.jobs import STATES, Change, Job, State

_TABLES = """
CREATE TABLE IF NOT EXISTS jobs (id TEXT PRIMARY KEY, state TEXT, due REAL, record TEXT)
    WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS jobs_due ON jobs (state, due);
CREATE TABLE IF NOT EXISTS blobs (id TEXT, kind TEXT, data BLOB, PRIMARY KEY (id, kind));
CREATE TABLE IF NOT EXISTS totals (name TEXT PRIMARY KEY, value REAL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS workers (name TEXT PRIMARY KEY, seen REAL) WITHOUT ROWID;
"""

_PATIENCE = 10.0
"""Seconds to wait while another process writes."""


class SqliteStore:
    """A :class:`~upscale_opt.service.jobs.Store` in one file, shared by all threads.

    Args:
        path: the file; made if there is none.

    Raises:
        CorruptError: if the file is not a sound database.
        StorageError: if it cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.RLock()
        with self._errors():
            path.parent.mkdir(parents=True, exist_ok=True)
            check_file(path)
            self._db = sqlite3.connect(
                path, timeout=_PATIENCE, check_same_thread=False, isolation_level=None
            )
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=FULL")
            self._db.executescript(_TABLES)

    def update(
        self,
        id: str,
        change: Change,
        *,
        blobs: dict[str, bytes | None] | None = None,
        totals: dict[str, float] | None = None,
    ) -> Job | None:
        """See :class:`~upscale_opt.service.jobs.Store`."""
        with self._transaction() as db:
            new = change(self._job(id), time.time())
            if new is None:
                return None
            db.execute(
                "INSERT OR REPLACE INTO jobs VALUES (?, ?, ?, ?)",
                (id, new.state, new.due, new.model_dump_json()),
            )
            for kind, data in (blobs or {}).items():
                if data is None:
                    db.execute("DELETE FROM blobs WHERE id = ? AND kind = ?", (id, kind))
                else:
                    db.execute("INSERT OR REPLACE INTO blobs VALUES (?, ?, ?)", (id, kind, data))
            for name, value in (totals or {}).items():
                db.execute(
                    "INSERT INTO totals VALUES (?1, ?2) "
                    "ON CONFLICT (name) DO UPDATE SET value = value + ?2",
                    (name, value),
                )
        return new

    def read(self, id: str) -> Job | None:
        """See :class:`~upscale_opt.service.jobs.Store`."""
        with self._errors():
            return self._job(id)

    def blob(self, id: str, kind: str) -> bytes | None:
        """See :class:`~upscale_opt.service.jobs.Store`."""
        rows = self._rows("SELECT data FROM blobs WHERE id = ? AND kind = ?", id, kind)
        return cast(bytes, rows[0][0]) if rows else None

    def due(self, state: State, before: float, most: int) -> list[str]:
        """See :class:`~upscale_opt.service.jobs.Store`."""
        return [
            row[0]
            for row in self._rows(
                "SELECT id FROM jobs WHERE state = ? AND due < ? ORDER BY due LIMIT ?",
                state,
                time.time() - before,
                most,
            )
        ]

    def counts(self) -> dict[State, int]:
        """See :class:`~upscale_opt.service.jobs.Store`."""
        counted = dict(self._rows("SELECT state, count(*) FROM jobs GROUP BY state"))
        return {state: counted.get(state, 0) for state in STATES}

    def totals(self) -> dict[str, float]:
        """See :class:`~upscale_opt.service.jobs.Store`."""
        return dict(self._rows("SELECT name, value FROM totals"))

    def remove(self, id: str, state: State) -> None:
        """See :class:`~upscale_opt.service.jobs.Store`."""
        with self._transaction() as db:
            gone = db.execute("DELETE FROM jobs WHERE id = ? AND state = ?", (id, state))
            if gone.rowcount:
                db.execute("DELETE FROM blobs WHERE id = ?", (id,))

    def beat(self, worker: str, alive: bool = True) -> None:
        """See :class:`~upscale_opt.service.jobs.Store`."""
        with self._transaction() as db:
            if alive:
                db.execute("INSERT OR REPLACE INTO workers VALUES (?, ?)", (worker, time.time()))
            else:
                db.execute("DELETE FROM workers WHERE name = ?", (worker,))
            db.execute("DELETE FROM workers WHERE seen < ?", (time.time() - 3600,))

    def workers(self, within: float) -> int:
        """See :class:`~upscale_opt.service.jobs.Store`."""
        since = time.time() - within
        rows = self._rows("SELECT count(*) FROM workers WHERE seen >= ?", since)
        return int(rows[0][0])

    def check(self) -> None:
        """See :class:`~upscale_opt.service.jobs.Store`."""
        if not self.path.exists():
            raise StorageError(f"{self.path} is gone; restart the service")
        self._rows("SELECT 1 FROM jobs LIMIT 1")

    def close(self) -> None:
        """See :class:`~upscale_opt.service.jobs.Store`."""
        with self._lock:
            self._db.close()

    def _job(self, id: str) -> Job | None:
        rows = self._rows("SELECT record FROM jobs WHERE id = ?", id)
        try:
            return Job.model_validate_json(rows[0][0]) if rows else None
        except ValidationError:
            raise CorruptError(f"{self.path} has a job that cannot be read: {id}") from None

    def _rows(self, query: str, *values: Any) -> list[Any]:
        with self._errors(), self._lock:
            return self._db.execute(query, values).fetchall()

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._errors(), self._lock:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield self._db
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:
                    with contextlib.suppress(sqlite3.Error):
                        self._db.execute("ROLLBACK")
                raise

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        with sqlite_errors(self.path):
            yield


@contextlib.contextmanager
def sqlite_errors(path: Path) -> Iterator[None]:
    """Turn what SQLite raises in the body into our errors."""
    try:
        yield
    except sqlite3.Error as error:
        if _means_corrupt(error):
            raise CorruptError(f"{path} is not a sound database: {error}") from None
        raise StorageError(f"{path} cannot be used: {error}") from None
    except OSError as error:
        raise StorageError(f"{path} cannot be used: {error.strerror or error}") from None


def _means_corrupt(error: sqlite3.Error) -> bool:
    text = str(error)
    return "malformed" in text or "not a database" in text or "corrupt" in text


def check_file(path: Path) -> None:
    """Check an SQLite file thoroughly, if there is one.

    Raises:
        CorruptError: if it is not a sound database.
    """
    if not path.exists():
        return
    with sqlite_errors(path):
        db = sqlite3.connect(path, timeout=_PATIENCE)
        try:
            said = str(db.execute("PRAGMA quick_check(1)").fetchone()[0])
        finally:
            db.close()
        if said != "ok":
            raise CorruptError(f"{path} is not a sound database: {said}")
