"""Which files of the standard library are a source of docstrings."""

from __future__ import annotations

import sysconfig
from pathlib import Path

import pytest

from pipelines.settings.documents import SourceConfig
from pipelines.sources.python_docstrings import PythonDocstrings

KEPT = ("abc.py", "json/__init__.py", "json/tool.py", "a.b/c.py")
LEFT_OUT = (
    *("json/notes.txt", "test/abc.py", "json/tests/x.py", "json/test_tool.py", "site-packages/numpy/a.py"),
    *("idlelib/a.py", ".hidden/a.py", ".hidden.py", "json/.cache/a.py"),
)


def test_modules_without_tests_installed_packages_and_hidden_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "python3"
    for name in (*KEPT, *LEFT_OUT):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text('"""Text."""\n')
    (root / "broken.py").symlink_to("nowhere.py")
    monkeypatch.setattr(sysconfig, "get_paths", lambda: {"stdlib": str(root)})
    found = PythonDocstrings().find(SourceConfig(format="python-docstrings", inputs=("stdlib",)))
    assert [file.name for file in found] == sorted(f"stdlib/{name}" for name in KEPT)
    assert all(Path(file.uri).stat().st_size == file.size_bytes for file in found)
