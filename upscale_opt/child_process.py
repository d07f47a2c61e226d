"""A process that is told lines of JSON and answers in lines of JSON, seen from its parent.

What is said must be a dict with a ``"state"``: ``"ready"`` first, when it can begin. If it has
``"bytes"``, so many follow the line. A process must end with its standard input, so that none
outlives its parent.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import threading
from collections.abc import Sequence
from typing import Any, NamedTuple


class Reply(NamedTuple):
    """A line that the process wrote, and the bytes behind it."""

    said: dict[str, Any]
    body: bytes = b""


class EndedError(Exception):
    """The process has ended, and everything it said was heard."""


class ChildProcess:
    """The process, from its start to :meth:`stop`.

    It is in a session of its own: Ctrl-C is for the parent. What it writes to standard error is
    dropped.

    Args:
        command: what to run.

    Attributes:
        pid: its number.
        ready: it has said so.

    Raises:
        OSError: if it cannot be started.
    """

    def __init__(self, command: Sequence[str]) -> None:
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            creationflags=getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0),
        )
        self._replies: queue.SimpleQueue[Reply | None] = queue.SimpleQueue()
        self.pid = self._process.pid
        self.ready = False
        threading.Thread(target=self._listen, daemon=True).start()

    @property
    def alive(self) -> bool:
        """It has not ended."""
        return self._process.poll() is None

    def send(self, line: bytes) -> None:
        """Write a line, in a thread: the process may be slow to read, or not read at all."""
        threading.Thread(target=self._write, args=(line + b"\n",), daemon=True).start()

    def reply(self, seconds: float) -> Reply | None:
        """The next reply; None if none comes within the time.

        Raises:
            EndedError: if none will come.
        """
        try:
            reply = self._replies.get(timeout=max(0.0, seconds))
        except queue.Empty:
            return None
        if reply is None:
            self._replies.put(None)  # for whoever asks again
            raise EndedError
        if reply.said["state"] == "ready":
            self.ready = True
        return reply

    def interrupt(self) -> None:
        """Ask it to stop what it is doing, as Ctrl-C does."""
        self._process.send_signal(signal.SIGINT)

    def stop(self) -> None:
        """Kill it, and what it has started, at once."""
        if os.name != "posix":
            self._process.kill()
        elif self._process.returncode is None:  # or else the number may be another's by now
            with contextlib.suppress(ProcessLookupError, PermissionError):  # nobody left
                os.killpg(self.pid, signal.SIGKILL)
        assert self._process.stdin is not None
        with contextlib.suppress(OSError, ValueError):  # a line that it did not read any more
            self._process.stdin.close()
        self._process.wait()

    def _write(self, data: bytes) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(OSError, ValueError):  # it has ended, and no reply will come
            self._process.stdin.write(data)
            self._process.stdin.flush()

    def _listen(self) -> None:
        """Pass on what the process says, and None behind the last of it."""
        assert self._process.stdout is not None
        with contextlib.suppress(OSError, ValueError), self._process.stdout as out:
            for line in out:
                said = json.loads(line)
                body = out.read(said.get("bytes", 0))
                if len(body) < said.get("bytes", 0):
                    break
                self._replies.put(Reply(said, body))
        self._replies.put(None)
