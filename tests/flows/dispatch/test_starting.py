"""The request that starts a part, with stand-ins for the server's answers."""

from __future__ import annotations

import contextlib
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import httpx
import pytest
from prefect.exceptions import PrefectHTTPStatusError

from flows.dispatch import child_runs
from flows.dispatch.child_runs import Part
from pipelines.contract.errors import InputError

PART = Part("one", "child/working", {})
OWN: Any = SimpleNamespace(name="parent", id=uuid4())


def _refused(status: int) -> PrefectHTTPStatusError:
    request = httpx.Request("POST", "http://127.0.0.1:4200/api")
    response = httpx.Response(status, text="the server's words", request=request)
    return PrefectHTTPStatusError("refused", request=request, response=response)


def _answers(monkeypatch: pytest.MonkeyPatch, *answers: Any) -> list[dict[str, Any]]:
    """Let the server answer so, one after the other; returns what was asked."""
    asked: list[dict[str, Any]] = []

    def run_deployment(_: str, **arguments: Any) -> Any:
        asked.append(arguments)
        answer = answers[len(asked) - 1]
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(child_runs, "run_deployment", run_deployment)
    monkeypatch.setattr(child_runs, "get_client", lambda **_: contextlib.nullcontext())
    monkeypatch.setattr(child_runs, "POLL_SECONDS", 0.0)
    return asked


def test_a_busy_server_is_asked_again_and_starts_one_run(monkeypatch: pytest.MonkeyPatch) -> None:
    run, said = SimpleNamespace(id=uuid4()), list[str]()
    asked = _answers(monkeypatch, _refused(503), httpx.ConnectError("refused"), run)
    assert child_runs._start(PART, OWN, said.append) == run.id
    assert len({each["idempotency_key"] for each in asked}) == 1
    assert [line.split(" (")[0] for line in said] == [
        "Prefect's server does not answer",
        "Prefect's server answers again",
    ]
    again = _answers(monkeypatch, run)
    child_runs._start(PART, OWN, said.append)
    assert again[0]["idempotency_key"] != asked[0]["idempotency_key"]


def test_a_request_that_the_server_rejects_is_refused_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = _answers(monkeypatch, _refused(409))
    with pytest.raises(InputError, match="child/working: rejected by the server: the server's words"):
        child_runs._start(PART, OWN, lambda _: None)
    assert len(asked) == 1
