"""Prefect's empty database is created once, and copied for the next workspace."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from flows.servers import prefect_database
from flows.servers.kept_database import kept_path
from flows.servers.prefect_database import DATABASE_NAME, set_up_prefect
from pipelines.inputs.registered_models import CACHE_VARIABLE

pytestmark = pytest.mark.slow


def contents_of(path: Path) -> list[str]:
    """Schema and rows as SQL."""
    with closing(sqlite3.connect(path)) as connection:
        return list(connection.iterdump())


@pytest.fixture(scope="module")
def created(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache with the database that a first workspace has left there, and that workspace's home."""
    folder = tmp_path_factory.mktemp("first")
    (folder / "cache").mkdir()
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv(CACHE_VARIABLE, str(folder / "cache"))
        set_up_prefect(str(folder / "home"))
    return folder


def refuse(_path: str) -> None:
    raise AssertionError("the database is created again")


def test_the_second_workspace_gets_a_copy(created: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CACHE_VARIABLE, str(created / "cache"))
    monkeypatch.setattr(prefect_database, "_create", refuse)
    set_up_prefect(str(tmp_path))
    assert contents_of(tmp_path / DATABASE_NAME) == contents_of(created / "home" / DATABASE_NAME)
    assert (tmp_path / DATABASE_NAME).stat().st_mode & 0o777 == 0o600
    assert [file.name for file in tmp_path.iterdir() if "lock" not in file.name] == [DATABASE_NAME]
    assert [file.name for file in Path(kept_path()).parent.iterdir()] == [Path(kept_path()).name]


@pytest.mark.parametrize("damage", ["garbage", "truncated", "another revision"])
def test_a_kept_database_that_is_not_sound_is_made_again(
    damage: str, created: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sound = (created / "home" / DATABASE_NAME).read_bytes()
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    kept = Path(kept_path())
    kept.parent.mkdir(parents=True)
    kept.write_bytes({"garbage": b"no database at all", "truncated": sound[: len(sound) // 2]}.get(damage, sound))
    if damage == "another revision":
        with closing(sqlite3.connect(kept)) as connection:
            connection.execute("UPDATE alembic_version SET version_num = '0123456789ab'")
            connection.commit()
    # Migrations take five seconds; the fixture has seen them.
    monkeypatch.setattr(prefect_database, "_create", lambda path: Path(path).write_bytes(sound))
    set_up_prefect(str(tmp_path / "home"))
    expected = contents_of(created / "home" / DATABASE_NAME)
    assert contents_of(tmp_path / "home" / DATABASE_NAME) == expected
    assert contents_of(kept) == expected


def test_a_cache_that_cannot_be_written_is_no_hindrance(
    created: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "databases").write_bytes(b"a file")
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    sound = (created / "home" / DATABASE_NAME).read_bytes()
    monkeypatch.setattr(prefect_database, "_create", lambda path: Path(path).write_bytes(sound))
    set_up_prefect(str(tmp_path / "home"))
    assert (tmp_path / "home" / DATABASE_NAME).exists()
    assert "the empty database is not kept" in capsys.readouterr().out


def test_a_shared_cache_is_not_created_for_its_user_alone(
    created: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    sound = (created / "home" / DATABASE_NAME).read_bytes()
    monkeypatch.setattr(prefect_database, "_create", lambda path: Path(path).write_bytes(sound))
    set_up_prefect(str(tmp_path / "home"))
    assert not (tmp_path / "cache").exists()
