"""Progress lines of a run: one for each event, printed once on the console and stored in Prefect's run logs."""

from __future__ import annotations

import logging

from rich.console import Console
from rich.text import Text

LOGGER_NAME = "flows"

_STAGE_COLUMN = 12
_logger = logging.getLogger(LOGGER_NAME)


class Narrator:
    """Logs the events of one stage to the console and to the Prefect run that it belongs to."""

    def __init__(self, stage: str, run_logger: logging.Logger | logging.LoggerAdapter[logging.Logger]):
        self._stage = stage
        self._run_logger = run_logger

    def event(self, text: str) -> None:
        """Log a line of the flow itself: the stage starts, ends, or is skipped."""
        self._tell(logging.INFO, f"{self._stage:<{_STAGE_COLUMN}} {text}")

    def output(self, text: str) -> None:
        """Log a line that the stage's process printed."""
        if text.strip():
            self._tell(logging.INFO, f"{self._stage:<{_STAGE_COLUMN}} | {text}")

    def _tell(self, level: int, line: str) -> None:
        _logger.log(level, "%s", line)
        self._run_logger.log(level, "%s", line)


class ConsoleHandler(logging.Handler):
    """Prints the bare message of a record; output of a stage's process is dimmed."""

    def __init__(self, console: Console):
        super().__init__()
        self._console = console

    def emit(self, record: logging.LogRecord) -> None:
        message = record.getMessage()
        quoted = message[_STAGE_COLUMN:].startswith(" | ")
        self._console.print(Text(message, style="dim" if quoted else ""), soft_wrap=True)


def narrate_to_console() -> Console:
    """Show the run's lines on standard output, and Prefect's own lines for the same events in its log only."""
    console = Console(highlight=False)
    _logger.setLevel(logging.INFO)
    _logger.propagate = False
    _logger.handlers = [ConsoleHandler(console)]
    for name in ("prefect.flow_runs", "prefect.task_runs"):
        logging.getLogger(name).propagate = False
    # When the server is gone, each of these logs repeatedly, with the complete event that it could not send; flows
    # reports it in one line.
    for name in ("prefect.events.clients", "prefect._internal.concurrency"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    return console
