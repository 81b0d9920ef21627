"""How long a process waits for an MLflow server that is away, and for which errors it does."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import requests
from mlflow.exceptions import MlflowException, RestException

from training.tracking import patience
from training.tracking.patience import Patience, is_absence

AWAY = MlflowException("API request to http://127.0.0.1:1/api failed with exception Connection refused")


class Clock:
    """Time that passes by sleeping only."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now_seconds = 0.0
        self.pauses: list[float] = []
        monkeypatch.setattr(patience, "time", SimpleNamespace(monotonic=lambda: self.now_seconds, sleep=self._sleep))

    def _sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.now_seconds += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def away_until(clock: Clock, seconds: float) -> str:
    if clock.now_seconds < seconds:
        raise AWAY
    return "answer"


def test_a_minute_of_absence_is_waited_out_with_growing_pauses(clock: Clock) -> None:
    said: list[str] = []
    assert Patience(said.append).call(lambda: away_until(clock, 60.0)) == "answer"
    assert clock.pauses[:5] == [1.0, 2.0, 4.0, 8.0, 15.0]
    assert 60.0 <= clock.now_seconds <= 60.0 + patience.LONGEST_PAUSE_SECONDS
    assert len(said) == 2
    assert "retrying for up to 180 s" in said[0]
    assert said[1] == "MLflow responds again"


def test_a_server_that_stays_away_costs_the_limit_once(clock: Clock) -> None:
    waiting = Patience([].append, limit_seconds=20.0)
    for _ in range(3):
        with pytest.raises(MlflowException, match="Connection refused"):
            waiting.call(lambda: away_until(clock, 500.0))
        assert clock.now_seconds == 20.0
    clock.now_seconds = 500.0
    assert waiting.call(lambda: away_until(clock, 500.0)) == "answer"
    with pytest.raises(MlflowException):
        waiting.call(lambda: away_until(clock, 900.0))
    assert clock.now_seconds == 520.0, "it answered in between, so there is patience again"


def test_a_refusal_is_not_tried_again(clock: Clock) -> None:
    calls: list[int] = []

    def refuse() -> None:
        calls.append(1)
        raise MlflowException("no such run", error_code=5)

    with pytest.raises(MlflowException, match="no such run"):
        Patience([].append).call(refuse)
    assert (len(calls), clock.pauses) == (1, [])


def answer(status: int) -> requests.HTTPError:
    response = requests.Response()
    response.status_code = status
    return requests.HTTPError(response=response)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (AWAY, True),
        (MlflowException("API request to endpoint /api failed with error code 503 != 200"), True),
        (MlflowException("API request to endpoint /api failed with error code 404 != 200"), False),
        (MlflowException("(sqlite3.OperationalError) database is locked"), True),
        (MlflowException("(sqlite3.OperationalError) database or disk is full"), False),
        (RestException({"error_code": "TEMPORARILY_UNAVAILABLE", "message": "busy"}), True),
        (RestException({"error_code": "RESOURCE_DOES_NOT_EXIST", "message": "no"}), False),
        (answer(502), True),
        (answer(413), False),
        (requests.ConnectionError(), True),
        (ConnectionRefusedError(), True),
        (ValueError(), False),
    ],
)
def test_what_tells_of_an_absent_server(error: Exception, expected: bool) -> None:
    assert is_absence(error) is expected
