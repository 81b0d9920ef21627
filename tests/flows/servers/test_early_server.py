"""A run's private server is started before the modules of its flow, and only where it is certain to be used."""

from __future__ import annotations

import importlib
import os
from pathlib import Path
from typing import get_type_hints

import pytest

from flows import cli
from flows.parameters.flow_arguments import END_TO_END, REQUESTS
from flows.servers import early_server, local_server
from flows.servers.early_server import begin_early, home_in_workspace

RECIPE = "flows/recipes/demo.toml"


@pytest.fixture
def begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Homes for which a server was begun; a stand-in for the process, which the tests of flows start."""
    homes: list[str] = []
    monkeypatch.setattr(early_server, "begin", homes.append)
    for name in early_server._SETTINGS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "nobody"))
    return homes


def test_a_valid_command_begins_the_server_of_its_workspace(begun: list[str], tmp_path: Path) -> None:
    for flow in ("end_to_end", "pretrain", "finetune"):
        begin_early(flow, [RECIPE, "--workspace", str(tmp_path / flow), "--rebuild"])
        assert begun.pop() == home_in_workspace(str(tmp_path / flow))
    assert not begun


@pytest.mark.parametrize(
    "words",
    [
        ["--help"],
        ["gone.toml"],
        [RECIPE, "--set", "pretraining.learning_rate=high"],
        [RECIPE, "--workspace", "s3://bucket/run"],
    ],
)
def test_what_is_not_valid_or_not_here_begins_nothing(
    words: list[str], begun: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    begin_early("end_to_end", words)
    assert not begun
    assert capsys.readouterr() == ("", ""), "the command itself reports it"


@pytest.mark.parametrize("name", REQUESTS)
def test_the_table_of_requests_is_that_of_the_flows(name: str) -> None:
    assert set(REQUESTS) == {END_TO_END, *cli.FLOWS}
    flow = getattr(importlib.import_module(f"flows.{name}"), name)
    assert get_type_hints(flow.fn)["request"] is REQUESTS[name]


def test_arguments_that_are_wrong_end_the_command(begun: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        begin_early("end_to_end", [RECIPE, "--rebild"])
    assert capsys.readouterr().err == "error: unrecognized arguments: --rebild; see clozeworks run --help\n"
    assert not begun


def test_where_prefect_may_have_a_server_of_the_users_own_nothing_is_begun(
    begun: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [os.path.abspath(RECIPE), "--workspace", str(tmp_path / "w")]
    monkeypatch.chdir(tmp_path)
    for name in early_server._SETTINGS:
        with monkeypatch.context() as patch:
            patch.setenv(name, "x")
            begin_early("end_to_end", words)
    for name, part in early_server._SETTINGS_FILES.items():
        path = Path(name).expanduser()
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"# {part}\n")
        begin_early("end_to_end", words)
        path.unlink()
    assert not begun
    begin_early("end_to_end", words)
    assert len(begun) == 1


def test_a_server_that_is_not_asked_for_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    stopped: list[str] = []

    class Server:
        def __init__(self, home: str) -> None:
            self.home = home

        def stop(self) -> None:
            stopped.append(self.home)

    monkeypatch.setattr(local_server, "LocalServer", Server)
    local_server.begin("a")
    with local_server.local_server("a") as server:
        assert (server.__class__, stopped) == (Server, [])
    assert stopped == ["a"]
    local_server.begin("b")
    local_server.discard_begun()
    local_server.discard_begun()
    assert stopped == ["a", "b"]
