"""The command line, called in this process."""

from __future__ import annotations

from typing import Protocol

import pytest

from upscale_opt import cli

Output = pytest.CaptureFixture[str]


class Refuses(Protocol):
    """Calls the command line, which fails at once; see the fixture ``refuses``."""

    def __call__(self, *arguments: object, code: int, words: list[str]) -> None: ...


def call(*arguments: object) -> int:
    """Run the command line in this process; its exit code."""
    with pytest.raises(SystemExit) as stopped:
        cli.main([str(argument) for argument in arguments])
    return int(stopped.value.code or 0)


def one_line_error(capsys: Output) -> str:
    """The one line on stderr that says what is wrong, apart from the steps before it."""
    lines = capsys.readouterr().err.splitlines()
    errors = [line for line in lines if not line.endswith(" ...")]
    assert len(errors) == 1
    assert errors[0].startswith("error: ")
    return errors[0]
