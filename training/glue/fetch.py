"""Download GLUE's official archives, verify them, and unpack the folders that fine-tuning reads.

    clozeworks glue fetch --output DIR [--tasks cola rte ...] [--base-url URL] [--checksums FILE]

Writes CoLA/, SST-2/ ... with GLUE's own TSV files to DIR, and archives/ with the downloads and their SHA256SUMS.
Verified files are not downloaded again; an interrupted download starts over.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from pipelines.commands.command_line import CommandParser
from pipelines.commands.lifeline import follow_lifeline
from pipelines.contract import storage
from pipelines.contract.errors import InputError, exit_code_of
from training.glue.archives import BASE_URL, SOURCES, Source, unpack
from training.glue.checksums import Checksums
from training.glue.reading import read_examples, read_test
from training.glue.transfer import download
from training.settings.glue import TASKS, Task

ARCHIVES_DIRECTORY, CHECKSUMS_FILE = "archives", "SHA256SUMS"
_PART_SUFFIX = ".part"
_EXAMPLE = "example: clozeworks glue fetch --output glue --tasks cola rte"


def main(arguments: list[str] | None = None) -> int:
    parser = CommandParser(
        prog="clozeworks glue fetch", description=__doc__.splitlines()[0] if __doc__ else None, epilog=_EXAMPLE
    )
    parser.add_argument("--output", required=True, metavar="DIR", help="folder to write CoLA/, SST-2/ ... to")
    parser.add_argument("--tasks", nargs="+", metavar="TASK", default=list(SOURCES), help="default: all of GLUE")
    parser.add_argument("--base-url", metavar="URL", default=BASE_URL, help="a mirror with the same paths below it")
    parser.add_argument(
        "--checksums",
        metavar="FILE",
        help="expect these SHA-256 values (in sha256sum's format) instead of the published ones; a file that is not in "
        "the list is recorded at its first download and verified later",
    )
    parsed = parser.parse_args(arguments)
    follow_lifeline()
    fetch(parsed.output, parsed.tasks, parsed.base_url, parsed.checksums)
    return 0


def fetch(output: str, names: list[str], base_url: str, given_checksums: str | None) -> None:
    """Download, verify and unpack tasks, then count their rows.

    Args:
        output: local folder for the tasks' folders.
        names: tasks, keys of SOURCES.
        base_url: prefix of each source's path.
        given_checksums: file that replaces the published checksums, or None.

    Raises:
        InputError: an unknown task, no connection, a wrong checksum, a damaged archive, or a table with a bad row.
    """
    for name in names:
        if name not in SOURCES:
            raise InputError(f"--tasks names {name!r}; valid names: {', '.join(SOURCES)}")
    if not base_url.startswith(("http://", "https://")):
        raise InputError(f"--base-url {base_url}: must begin with http:// or https://")
    if not storage.is_local(output):
        raise InputError(f"--output {output}: must be a local folder; copy it to the bucket afterwards")
    directory = storage.local_path(output)
    archives = os.path.join(directory, ARCHIVES_DIRECTORY)
    with _sole_fetch(archives):
        checksums = Checksums.open(os.path.join(archives, CHECKSUMS_FILE), given_checksums)
        tasks = [TASKS[name] for name in dict.fromkeys(names)]
        for task in tasks:
            for source in SOURCES[task.name]:
                _obtain(source, f"{base_url.rstrip('/')}/{source.path}", archives, checksums)
            files = unpack(task, archives, directory)
            _say(f"{task.folder}: {', '.join(files)}")
    for task in tasks:
        _count_rows(task, os.path.join(directory, task.folder))
    sources = [source for task in tasks for source in SOURCES[task.name]]
    vouched_for = [source for source in sources if checksums.is_vouched_for(source)]
    _say(
        f"complete in {directory}: {len(vouched_for)} files verified against "
        + ("published checksums" if checksums.given is None else given_checksums or "")
        + f", {len(sources) - len(vouched_for)} only recorded in {checksums.path}"
    )


def _say(line: str) -> None:
    print(f"fetch: {line}", flush=True)


@contextmanager
def _sole_fetch(archives: str) -> Iterator[None]:
    os.makedirs(archives, exist_ok=True)
    with open(os.path.join(archives, ".lock"), "w") as guard:
        try:
            fcntl.flock(guard, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InputError(f"{archives}: another fetch is writing here; wait until it has ended") from error
        yield


def _obtain(source: Source, url: str, archives: str, checksums: Checksums) -> None:
    """Download a file to `archives` unless it is there, verify it, and report the source of the checksum."""
    path = os.path.join(archives, source.name)
    expected, whose = checksums.expected(source)
    found = storage.sha256_of(path) if os.path.isfile(path) else None
    if found is not None and expected is not None and found != expected:
        _say(f"{source.name}: exists but does not match {whose}; downloading it again")
        os.remove(path)
        found = None
    if found is None:
        found = _download(source, url, path, expected, whose)
    checksums.record(source, found)
    size_bytes = os.path.getsize(path)
    if expected is None:
        judgement = f"recorded only, without a value to compare with; later runs compare with {checksums.path}"
    else:
        judgement = f"verified against {whose}"
    _say(f"{source.name}: {size_bytes:,} bytes, sha256 {found[:12]}..., {judgement}")


def _download(source: Source, url: str, path: str, expected: str | None, whose: str) -> str:
    _say(f"{source.name}: downloading {url}")
    part = path + _PART_SUFFIX
    try:
        download(url, part, lambda line: _say(f"{source.name}: {line}"))
        found = storage.sha256_of(part)
        if expected is not None and found != expected:
            raise InputError(
                f"{url}: has sha256 {found}, but {whose} is {expected}; the file was damaged in transfer or changed at "
                "its source: run the command again, or pass the value that you trust in a file with --checksums"
            )
        storage.flush_to_disk(part)
        os.replace(part, path)
    finally:
        with suppress(FileNotFoundError):
            os.remove(part)
    return found


def _count_rows(task: Task, folder: str) -> None:
    """Read each file as fine-tuning will, print the number of rows, and warn if it differs from the published one."""
    counts = []
    for file, published in task.published_rows.items():
        path = os.path.join(folder, file)
        rows = len(read_test(task, path) if file in task.test_files else read_examples(task, path))
        counts.append(f"{file} {rows:,}")
        if rows != published:
            _say(f"warning: {path} has {rows:,} rows, the published file {published:,}")
    _say(f"{task.folder}: rows: {', '.join(counts)}")


if __name__ == "__main__":
    raise SystemExit(exit_code_of(main))
