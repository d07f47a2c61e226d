"""Solves problems, one after the other, in a process that can be stopped at any time.

Problems come in as lines of JSON, ``{"seconds": …, "memory_mb": …, "problem": {…}}``. What is found
goes out as lines: ``progress`` with value and bound, and at last ``done``, which says how many
bytes of the solution's JSON follow, or ``failed``. The process ends with its standard input, even
in the middle of a problem: it never outlives its parent. SIGINT ends the search, as Ctrl-C does on
the command line: the best solution so far comes out.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import sys
import threading
from types import FrameType
from typing import Any

from upscale_opt.errors import UpscaleError
from upscale_opt.ir.graph import ChannelGraph
from upscale_opt.ir.masks import Masks
from upscale_opt.solver.api import solve
from upscale_opt.solver.options import SolveOptions
from upscale_opt.solver.progress import Progress


class _Child:
    def __init__(self) -> None:
        self._out = os.fdopen(os.dup(1), "wb")
        os.dup2(2, 1)  # what solvers print must not come between the lines
        self._writing = threading.Lock()
        self._solving = False

    def run(self) -> None:
        lines: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        threading.Thread(target=_listen, args=(lines,), daemon=True).start()
        signal.signal(signal.SIGINT, self._interrupt)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        self._say({"state": "ready"})
        while True:
            self._answer(json.loads(lines.get()))

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        if self._solving:
            self._solving = False
            raise KeyboardInterrupt

    def _answer(self, asked: dict[str, Any]) -> None:
        try:
            self._solving = True
            try:
                _limit_memory(asked["memory_mb"])
                header, body = self._solve(asked["problem"], asked["seconds"])
            finally:
                self._solving = False
        except KeyboardInterrupt:
            return self._fail("time_limit", "no solution was found within the time limit")
        except UpscaleError as error:
            return self._fail("invalid", str(error))
        except MemoryError:
            return self._fail("out_of_memory", "the problem needs more memory than is allowed")
        except RecursionError:
            return self._fail("invalid", "the problem is nested too deeply")
        except Exception as error:
            return self._fail("solver_failed", f"{type(error).__name__}: {error}")
        return self._say(header, body)

    def _solve(self, problem: dict[str, Any], seconds: float) -> tuple[dict[str, Any], bytes]:
        graph = ChannelGraph.model_validate(problem["graph"])
        masks = Masks.model_validate(problem["masks"])
        options = SolveOptions(**problem["options"])
        solution = solve(graph, masks, options=options, time_limit=seconds, progress=self._progress)
        self._solving = False  # there is an answer; to interrupt its writing would lose it
        body = solution.model_dump_json(exclude_defaults=True).encode()
        header = {
            "state": "done",
            "status": solution.status,
            "value": solution.objective_value,
            "bound": solution.lower_bound,
            "bytes": len(body),
        }
        return header, body

    def _progress(self, event: Progress) -> None:
        self._say({"state": "progress", "value": event.value, "bound": event.bound})

    def _fail(self, code: str, message: str) -> None:
        self._say({"state": "failed", "code": code, "message": message})

    def _say(self, header: dict[str, Any], body: bytes = b"") -> None:
        with self._writing:
            self._out.write(json.dumps(header).encode() + b"\n" + body)
            self._out.flush()


def _listen(lines: queue.SimpleQueue[bytes]) -> None:
    for line in sys.stdin.buffer:
        lines.put(line)
    os._exit(0)


def _limit_memory(megabytes: int) -> None:
    if megabytes and sys.platform == "linux":
        import resource

        size = megabytes * 2**20
        resource.setrlimit(resource.RLIMIT_AS, (size, size))


if __name__ == "__main__":
    _Child().run()
