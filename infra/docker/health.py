"""Check a container's health: exit code 0 or 1 and one line, for the images' HEALTHCHECK and Kubernetes' probes.

    health.py url http://127.0.0.1:5000/health
    health.py writable /workspace
    health.py exists s3://bucket/run/pretraining/manifest.json
    health.py progress /workspace/pretraining.building/metrics.jsonl /tmp/training_started --seconds 1800

`progress`: the newest of these files has changed within `--seconds`. Training whose peer is gone may wait forever in a
collective call, alive to every other probe. `exists` and `progress` take URIs of object stores too.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
import urllib.request

_HTTP_TIMEOUT_SECONDS = 5.0


def url_problem(url: str) -> str | None:
    """Why an HTTP address does not answer; None if it does."""
    try:
        with urllib.request.urlopen(url, timeout=_HTTP_TIMEOUT_SECONDS):  # noqa: S310  # an address of this deployment
            return None
    except (OSError, ValueError) as error:
        return f"{url}: {error}"


def writable_problem(directory: str) -> str | None:
    """Why no file can be written there: a volume that belongs to someone else, or a full one."""
    try:
        with tempfile.TemporaryFile(dir=directory) as stream:
            stream.write(b"x")
            stream.flush()
            os.fsync(stream.fileno())
    except OSError as error:
        return f"{directory}: {error}"
    return None


def progress_problem(paths: list[str], seconds: float, now_seconds: float) -> str | None:
    """Why training counts as stalled: no existing file has changed within `seconds`; None if one has."""
    changed = [seconds for path in paths if (seconds := changed_seconds(path)) is not None]
    if not changed:
        return f"{', '.join(paths)}: none of them exists"
    age = now_seconds - max(changed)
    return f"{', '.join(paths)}: no change for {age:.0f} s" if age > seconds else None


def changed_seconds(path: str) -> float | None:
    """When a file was last changed, in seconds since 1970; None if there is none."""
    if "://" not in path:
        return os.path.getmtime(path) if os.path.exists(path) else None
    from pipelines.contract import storage

    filesystem, inner = storage.filesystem_of(path)
    info = filesystem.get_file_info(inner)
    return (info.mtime_ns or 0) / 1e9 if info.is_file else None


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    kinds = parser.add_subparsers(dest="kind", required=True)
    kinds.add_parser("url").add_argument("url")
    kinds.add_parser("writable").add_argument("directory")
    kinds.add_parser("exists").add_argument("path")
    progress = kinds.add_parser("progress")
    progress.add_argument("paths", nargs="+")
    progress.add_argument("--seconds", type=float, default=1800.0)
    parsed = parser.parse_args(arguments)
    if parsed.kind == "url":
        problem = url_problem(parsed.url)
    elif parsed.kind == "writable":
        problem = writable_problem(parsed.directory)
    elif parsed.kind == "exists":
        problem = None if changed_seconds(parsed.path) is not None else f"{parsed.path}: does not exist"
    else:
        problem = progress_problem(parsed.paths, parsed.seconds, time.time())
    print(problem or "well")
    return 1 if problem else 0


if __name__ == "__main__":
    sys.exit(main())
