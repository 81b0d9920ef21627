"""Look for secrets in the files of the checkout: private keys, tokens of known services, passwords in addresses.

    python infra/secret_scan.py

Exit code 0 if none is found, else 1 with one line each: file, line, kind; never the secret itself. Mark a line with a
made-up secret for a test by `secret-scan: made up`.
"""

from __future__ import annotations

import argparse
import math
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

MADE_UP = "secret-scan: made up"
EXAMPLES = ("password", "secret", "word")
"""Placeholders for a password in example addresses."""
MAX_FILE_BYTES = 4 << 20
LEAST_ENTROPY_BITS = 3.5
"""Per character: random base64 of 24 characters has 4.2 or more, words have 3 or less."""

KINDS: dict[str, re.Pattern[str]] = {
    "private key": re.compile(r"-----BEGIN (?:[A-Z]+ )*PRIVATE KEY(?: BLOCK)?-----"),
    "access key of AWS": re.compile(r"\b(?:AKIA|ASIA)[A-Z2-7]{16}\b"),
    "key of Google": re.compile(r"\bAIza[\w-]{35}\b"),
    "token of GitHub": re.compile(r"\b(?:gh[pousr]_[A-Za-z0-9]{36}|github_pat_\w{60,})"),
    "token of GitLab": re.compile(r"\bglpat-[\w-]{20}"),
    "token of Hugging Face": re.compile(r"\bhf_[A-Za-z0-9]{30,}\b"),
    "token of Prefect": re.compile(r"\bpn[ub]_[A-Za-z0-9]{30,}\b"),
    "token of Slack": re.compile(r"\bxox[abprs]-[A-Za-z0-9-]{20,}"),
    "key of a model's service": re.compile(r"\bsk-(?:[a-z]+-)*[A-Za-z0-9_-]{32,}"),
    "web token": re.compile(r"\beyJ[\w-]{10,}\.eyJ[\w-]{10,}\.[\w-]{10,}"),
}
_ADDRESS = re.compile(r"\b[a-z][a-z0-9+.-]*://[^\s/:@\"'`<>{}$]+:([^\s/@\"'`<>{}$]{3,})@[\w\[]", re.IGNORECASE)
_ASSIGNED = re.compile(
    r"(?:password|passwd|secret|token|api[_-]?key|access[_-]?key|auth)\w*[\"']?\s*[:=]\s*[\"']?([A-Za-z0-9+/_=-]{20,})",
    re.IGNORECASE,
)


def faults_of(text: str) -> Iterator[tuple[int, str]]:
    """Line number and kind of each secret."""
    for number, line in enumerate(text.splitlines(), start=1):
        if MADE_UP in line:
            continue
        yield from ((number, kind) for kind, pattern in KINDS.items() if pattern.search(line))
        if any(match[1] not in EXAMPLES for match in _ADDRESS.finditer(line)):
            yield number, "password in an address"
        if any(_is_random(match[1]) for match in _ASSIGNED.finditer(line)):
            yield number, "value that looks random, assigned to a secret's name"


def _is_random(value: str) -> bool:
    """Whether the value has the entropy of a key, and both digits and letters, unlike most names in code."""
    if not (re.search(r"\d", value) and re.search(r"[A-Za-z]", value)):
        return False
    shares = [count / len(value) for count in Counter(value).values()]
    return -sum(share * math.log2(share) for share in shares) >= LEAST_ENTROPY_BITS


def files_of(root: Path) -> list[Path]:
    """Files that git tracks or would track; all files below the root if it is not a checkout."""
    command = ["git", "-C", str(root), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, capture_output=True, check=False)  # noqa: S603  # no shell
    if listed.returncode:
        return sorted(path for path in root.rglob("*") if path.is_file())
    return [root / name.decode(errors="surrogateescape") for name in listed.stdout.split(b"\0") if name]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=Path(__file__).resolve().parent.parent, help="another checkout")
    root = parser.parse_args(arguments).root
    files = [path for path in files_of(root) if path.is_file() and path.stat().st_size <= MAX_FILE_BYTES]
    found = 0
    for path in files:
        for number, kind in faults_of(path.read_text(encoding="utf-8", errors="replace")):
            print(f"{path.relative_to(root)}:{number}: {kind}")
            found += 1
    print(f"secrets: {len(files)} files: {'ok' if not found else f'{found} found'}")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
