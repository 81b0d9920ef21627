"""Exit codes of processes in words."""

from __future__ import annotations

import signal

_DEADLY = frozenset(
    {signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGILL, signal.SIGABRT, signal.SIGBUS, signal.SIGFPE}
    | {signal.SIGKILL, signal.SIGSEGV, signal.SIGPIPE, signal.SIGTERM, signal.SIGXCPU, signal.SIGXFSZ, signal.SIGSYS}
)


def ending_of(exit_code: int) -> str:
    """How a process ended, in words; as in `subprocess`, a negative code is a signal.

    Launchers and shells turn the signal that ended their child into an exit code: 256 - 9 and 128 + 9 for SIGKILL.
    """
    if (number := _signal_behind(exit_code)) is None:
        return f"ended with exit code {exit_code}"
    hint = ", most likely because memory ran out" if number == signal.SIGKILL else ""
    through = f" (exit code {exit_code})" if exit_code > 0 else ""
    return f"was killed by {signal.Signals(number).name}{through}{hint}"


def _signal_behind(exit_code: int) -> int | None:
    for number in (-exit_code, 256 - exit_code, exit_code - 128):
        if number in _DEADLY:
            return number
    return None
