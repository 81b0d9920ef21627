"""The scan for secrets: finds a planted one of each kind, names file and line, and never prints it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from tests.support import REPOSITORY

SCAN = REPOSITORY / "infra" / "secret_scan.py"

# In two pieces each, so that the scan of this file finds none.
PLANTED = {
    "private key": ("-----BEGIN RSA ", "PRIVATE KEY-----"),
    "access key of AWS": ("AKIA", "IOSFODNN7EXAMPLE"),
    "key of Google": ("AIza", "SyA1234567890abcdefghijklmnopqrstuv"),
    "token of GitHub": ("ghp_", "16C7e42F292c6912E7710c838347Ae178B4a"),
    "token of GitLab": ("glpat-", "a1B2c3D4e5F6g7H8i9J0"),
    "token of Hugging Face": ("hf_", "aBcDeFgHiJkLmNoPqRsTuVwXyZ01234567"),
    "token of Prefect": ("pnu_", "aBcDeFgHiJkLmNoPqRsTuVwXyZ0123456789"),
    "token of Slack": ("xoxb-", "123456789012-abcdefghijkl"),
    "key of a model's service": ("sk-proj-", "aB3dE5fG7hI9jK1lM3nO5pQ7rS9tU1vW3xY5"),
    "web token": ("eyJhbGciOiJIUzI1NiJ9.", "eyJzdWIiOiIxMjM0NTYifQ.dBjftJeZ4CVP-mB92K27uhbUJU1p1r"),
    "password in an address": ("postgresql://mlflow:", "hunter2@db.example.org/mlflow"),
    "value that looks random, assigned to a secret's name": ("API_KEY = '", "q8Zr2Lw5Xn7Vb1Tc4Yd9Ke3G'"),
}


def scan(root: Path) -> tuple[int, list[str]]:
    command = [sys.executable, str(SCAN), "--root", str(root)]
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert result.stderr == ""
    return result.returncode, result.stdout.splitlines()


def test_this_checkout_holds_none() -> None:
    code, lines = scan(REPOSITORY)
    assert (code, lines[:-1]) == (0, [])


@pytest.mark.parametrize("kind", PLANTED)
def test_a_planted_secret_is_found_and_not_printed(tmp_path: Path, kind: str) -> None:
    secret = "".join(PLANTED[kind])
    (tmp_path / "settings").mkdir()
    (tmp_path / "settings" / "a b.toml").write_text(f"first = 1\nsecond = {secret}\n")
    code, lines = scan(tmp_path)
    assert code == 1
    assert f"settings/a b.toml:2: {kind}" in lines
    assert PLANTED[kind][1] not in "\n".join(lines)


@pytest.mark.parametrize(
    "line",
    [
        "postgresql://${USER}:${PASSWORD}@db/mlflow",
        "scheme://user:password@host",
        "http://127.0.0.1:4200/api",
        "sha256 = " + "0f" * 32,
        "token = tokenizer.token_to_id(special_token_name)",
        "password: ${POSTGRES_PASSWORD:?set it in .env}",
        "secret: " + "AKIA" + "IOSFODNN7EXAMPLE  # secret-scan: made up",
    ],
)
def test_what_is_no_secret_is_let_through(tmp_path: Path, line: str) -> None:
    (tmp_path / "file").write_text(line)
    assert scan(tmp_path)[0] == 0
