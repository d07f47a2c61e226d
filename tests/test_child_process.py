"""Processes that are told and answer lines of JSON: whatever they do, their parent goes on."""

from __future__ import annotations

import os
import sys
import time

import pytest

from upscale_opt.child_process import ChildProcess, EndedError, Reply

READY = 'import json, os, sys, time\nprint(\'{"state": "ready"}\', flush=True)\n'


def started(code: str) -> ChildProcess:
    return ChildProcess([sys.executable, "-S", "-c", READY + code])


def test_replies_have_bytes_behind_them() -> None:
    child = started(
        "for line in sys.stdin:\n"
        "    print(json.dumps({'state': 'done', 'bytes': len(line)}), line, sep='\\n', end='')\n"
        "    sys.stdout.flush()\n"
    )
    assert not child.ready
    assert child.reply(60) == Reply({"state": "ready"})
    assert child.ready
    for text in (b"one", b"another"):
        child.send(text)
        size = len(text) + 1
        assert child.reply(60) == Reply({"state": "done", "bytes": size}, text + b"\n")
    assert child.reply(0.0) is None
    assert child.alive
    child.stop()
    assert not child.alive
    child.stop()


@pytest.mark.parametrize(
    "code",
    [
        "",
        "os.kill(os.getpid(), 9)",
        "print('no JSON', flush=True); time.sleep(60)",
        'print(\'{"state": "done", "bytes": 9}\', end=\'\\ncut off\')',
    ],
)
def test_the_end_is_told_to_whoever_asks(code: str) -> None:
    child = started(code)
    assert child.reply(60) == Reply({"state": "ready"})
    for _ in range(2):
        with pytest.raises(EndedError):
            child.reply(60)
    child.send(b"in vain")
    child.stop()


def test_a_process_that_does_not_read_is_not_waited_for() -> None:
    child = started("time.sleep(60)")
    begin = time.monotonic()
    child.send(b" " * 10**7)
    assert child.reply(30) == Reply({"state": "ready"})
    child.stop()
    assert time.monotonic() - begin < 30


def test_what_it_has_started_ends_with_it() -> None:
    child = started(
        "import subprocess\n"
        "below = subprocess.Popen([sys.executable, '-S', '-c', 'import time; time.sleep(60)'])\n"
        "print(json.dumps({'state': 'found', 'pid': below.pid}), flush=True)\n"
        "time.sleep(60)\n"
    )
    child.reply(60)
    found = child.reply(60)
    assert found is not None
    child.stop()
    assert is_gone(found.said["pid"])


def test_interrupts_are_for_those_that_are_meant() -> None:
    """Ctrl-C goes to the parent's group, in which the process is not; or to it, if asked to."""
    child = started(
        "try:\n"
        '    print(\'{"state": "found"}\', flush=True)\n'
        "    time.sleep(60)\n"
        "except KeyboardInterrupt:\n"
        '    print(\'{"state": "done"}\', flush=True)\n'
    )
    child.reply(60)
    assert child.reply(60) == Reply({"state": "found"})
    assert os.getpgid(child.pid) != os.getpgid(0)
    child.interrupt()
    assert child.reply(60) == Reply({"state": "done"})
    child.stop()


def is_gone(pid: int) -> bool:
    """The process ends within a minute, or has ended and nobody has noticed yet."""
    for _ in range(1200):
        try:
            with open(f"/proc/{pid}/stat") as stat:
                if stat.read().rpartition(")")[2].split()[0] == "Z":
                    return True
        except FileNotFoundError:
            return True
        time.sleep(0.05)
    return False
