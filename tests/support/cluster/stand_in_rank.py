"""A rank that trains nothing: it prints where it would meet the others, and stops as training does, with 75."""

from __future__ import annotations

import os
import signal
import time
from types import FrameType
from typing import NoReturn

SECRET_VARIABLE = "CLOZEWORKS_TEST_SECRET"


def _stop(_number: int, _frame: FrameType | None) -> NoReturn:
    print(f"rank {os.environ['RANK']} stopped after a checkpoint", flush=True)
    os._exit(75)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, _stop)
    has_secret = "with" if os.environ.get(SECRET_VARIABLE) else "without"
    print(f"rank {os.environ['RANK']} of {os.environ['WORLD_SIZE']} started {has_secret} its secret", flush=True)
    time.sleep(120)
