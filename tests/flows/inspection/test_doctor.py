"""Findings of `doctor`: on this machine, and in a Python without any packages."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from flows import doctor
from flows.inspection import machine as diagnosis


def test_each_part_has_a_state_and_what_is_not_there_a_remedy() -> None:
    found = list(diagnosis.findings())
    assert len({finding.part for finding in found}) == len(found)
    for finding in found:
        assert finding.found
        assert bool(finding.remedy) == (finding.state != "ok"), finding
        assert "\n" not in finding.found + finding.remedy


def test_exit_code_and_json_agree(capsys: pytest.CaptureFixture[str]) -> None:
    code = doctor.main(["--json"])
    told = json.loads(capsys.readouterr().out)
    assert code == (0 if told["complete"] else 1)
    assert told["complete"] == all(part["state"] != "missing" for part in told["parts"])


def test_a_python_without_any_package_is_told_what_it_lacks(repository: Path) -> None:
    command = [sys.executable, "-S", "-m", "flows.doctor", "--json"]
    result = subprocess.run(command, cwd=repository, capture_output=True, text=True, check=False)
    assert result.returncode == 1, result.stderr
    states = {part["part"]: part["state"] for part in json.loads(result.stdout)["parts"]}
    for extra in diagnosis.EXTRAS:
        assert states[f"packages: {extra}"] == "missing"
    assert states["torch, DeepSpeed"] == "missing"
    assert states["Python"] == "ok"


def test_nothing_heavy_is_imported(repository: Path) -> None:
    code = "import sys; from flows import doctor; doctor.main([]); print(sorted(sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], cwd=repository, capture_output=True, text=True, check=True)
    modules = result.stdout.splitlines()[-1]
    assert not [name for name in ("torch", "deepspeed", "mlflow", "prefect", "pydantic") if f"'{name}'" in modules]


def test_another_version_than_the_locks_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "requirements.lock").write_text("pytest==0.0.1 \\\n    --hash=sha256:00\nno-such-package==1.0\n")
    monkeypatch.setattr(diagnosis, "ROOT", str(tmp_path))
    finding = next(one for one in diagnosis.findings() if one.part == "versions as locked")
    assert finding.state == "optional"
    assert "locked 0.0.1" in finding.found
    assert "no-such-package" not in finding.found


def test_a_port_in_use_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        monkeypatch.setattr(diagnosis, "MLFLOW_PORT", listener.getsockname()[1])
        finding = next(one for one in diagnosis.findings() if "(MLflow)" in one.part)
    assert (finding.state, finding.found) == ("optional", "in use")
