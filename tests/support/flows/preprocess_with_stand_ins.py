"""As a script: `flows.preprocess` with the stand-in stages of the flow tests."""

from __future__ import annotations

if __name__ == "__main__":
    from tests.support.flows import chain_of_stand_ins

    chain_of_stand_ins.install(setattr)
    from flows.preprocess import preprocess
    from flows.running.command import run_as_command

    raise SystemExit(run_as_command(preprocess))
