"""Downloading GLUE from a server on this machine: checksums, retries, unsafe and damaged archives, the same layout."""

from __future__ import annotations

import fcntl
import hashlib
import io
import stat
import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from pipelines.contract.errors import InputError, exit_code_of
from training.glue import fetch, transfer
from training.glue.archives import SOURCES, mrpc_files, unpack
from training.glue.checksums import read_checksums
from training.glue.reading import read_examples, read_test
from training.glue.transfer import download
from training.settings.glue import GLUE_TASKS, TASKS, Task


class ArchiveServer:
    """Serves `files` by path; the two lists of misbehaviour are used up, an entry a request."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.statuses: list[int] = []
        self.cuts: list[int] = []
        """After so many bytes of the body the connection ends."""
        self.requests: list[str] = []
        """Path of each request."""
        self.url = ""

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        path = handler.path.lstrip("/")
        self.requests.append(path)
        if self.statuses or path not in self.files:
            handler.send_error(self.statuses.pop(0) if self.statuses else 404)
            return
        data = self.files[path]
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(data)))
        handler.end_headers()
        handler.wfile.write(data[: self.cuts.pop(0) if self.cuts else None])


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[ArchiveServer]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    served = ArchiveServer()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            served.answer(self)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listening:
        served.url = f"http://127.0.0.1:{listening.server_address[1]}"
        thread = threading.Thread(target=listening.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield served
        listening.shutdown()
        thread.join()


def table(task: Task, file: str, rows: int = 3) -> bytes:
    """A small file in the official form: the columns that are read, between others."""
    is_test = file in task.test_files
    if task.name == "cola" and not is_test:
        return "".join(f"gj04\t{row % 2}\t*\tSentence {row}.\n" for row in range(rows)).encode()
    names = ["index", task.sentence_a.name, *([task.sentence_b.name] if task.sentence_b else [])]
    lines = [names if is_test else [*names, "genre", task.label.name]]
    for row in range(rows):
        cells = [str(row), f'"A {row}', *([f"B {row}"] if task.sentence_b else [])]
        lines.append(cells if is_test else [*cells, "fiction", task.labels[row % 2] if task.labels else "2.5"])
    return "".join("\t".join(line) + "\n" for line in lines).encode()


def zipped(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def official(task: Task) -> dict[str, bytes]:
    """What the official server has for a task, by its path there."""
    sources = SOURCES[task.name]
    if task.name == "ax":
        return {sources[0].path: table(task, "diagnostic.tsv")}
    if task.name == "mrpc":
        header = b"\xef\xbb\xbfQuality\t#1 ID\t#2 ID\t#1 String\t#2 String\n"
        rows = b"1\t10\t20\tA b .\tB a .\r\n0\t11\t21\tC d .\tD c .\r\n"
        return {sources[0].path: header + rows, sources[1].path: header + rows, sources[2].path: b"11\t21\n"}
    members = {f"{task.folder}/{file}": table(task, file) for file in task.files}
    more = {f"{task.folder}/original/a.jsonl": b"{}", f"__MACOSX/{task.folder}/._train.tsv": b"x", "README": b"x"}
    return {sources[0].path: zipped({**members, **more})}


def checksums_of(files: dict[str, bytes], path: Path) -> str:
    lines = [f"{hashlib.sha256(data).hexdigest()}  {name.rsplit('/', 1)[-1]}\n" for name, data in files.items()]
    path.write_text("".join(lines))
    return str(path)


def run(server: ArchiveServer, output: Path, *arguments: str) -> int:
    return exit_code_of(lambda: fetch.main(["--output", str(output), "--base-url", server.url, *arguments]))


def tree(directory: Path) -> dict[str, bytes]:
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def test_every_task_is_laid_out_and_a_second_run_downloads_nothing(
    server: ArchiveServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for task in GLUE_TASKS:
        server.files |= official(task)
    given = checksums_of(server.files, tmp_path / "given")
    glue = tmp_path / "glue"
    assert run(server, glue, "--checksums", given) == 0
    shown = capsys.readouterr().out
    assert f"12 files verified against {given}, 0 only recorded" in shown
    assert "warning: " + str(glue / "QNLI" / "dev.tsv") + " has 3 rows, the published file 5,463" in shown
    written = tree(glue)
    for task in GLUE_TASKS:
        for file in task.files:
            path = str(glue / task.folder / file)
            examples = read_test(task, path) if file in task.test_files else read_examples(task, path)
            assert len(examples) == {"mrpc": 1 if file != "test.tsv" else 2}.get(task.name, 3)
    assert not [name for name in written if "original" in name or "MACOSX" in name or name.endswith((".part", ".tmp"))]
    assert written["archives/SHA256SUMS"].decode().splitlines() == sorted(
        Path(given).read_text().splitlines(), key=lambda line: line.split()[1]
    )
    assert written["MRPC/dev.tsv"].decode("utf-8-sig").splitlines()[1] == "0\t11\t21\tC d .\tD c ."

    server.requests.clear()
    (glue / "RTE" / "dev.tsv").write_bytes(b"damaged")
    untouched = (glue / "QQP" / "train.tsv").stat().st_mtime_ns
    assert run(server, glue, "--checksums", given) == 0
    assert server.requests == []
    assert tree(glue) == written
    assert (glue / "QQP" / "train.tsv").stat().st_mtime_ns == untouched


def test_published_checksums_refuse_other_bytes(
    server: ArchiveServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server.files |= official(TASKS["rte"])
    assert run(server, tmp_path / "glue", "--tasks", "rte") == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "but the published checksum is 6bf86de103ec" in error
    assert {name for name in tree(tmp_path / "glue") if name != "archives/.lock"} == set()


def test_a_file_that_nobody_vouches_for_is_recorded_and_then_held_to_it(
    server: ArchiveServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server.files |= official(TASKS["rte"])
    nothing, glue = tmp_path / "nothing", tmp_path / "glue"
    nothing.write_text("")
    arguments = ("--tasks", "rte", "--checksums", str(nothing))
    assert run(server, glue, *arguments) == 0
    shown = capsys.readouterr().out
    assert "RTE.zip" in shown
    assert "recorded only, without a value to compare with" in shown
    assert "0 files verified" in shown
    assert ", 1 only recorded in" in shown

    archive = glue / "archives" / "RTE.zip"
    good = archive.read_bytes()
    archive.write_bytes(b"altered")
    assert run(server, glue, *arguments) == 0
    shown = capsys.readouterr().out
    assert "exists but does not match the checksum recorded in" in shown
    assert "verified against the checksum recorded in" in shown
    assert archive.read_bytes() == good

    archive.unlink()
    server.files[SOURCES["rte"][0].path] = official(TASKS["qnli"])[SOURCES["qnli"][0].path]
    assert run(server, glue, *arguments) == 2
    assert "but the checksum recorded in" in capsys.readouterr().err


def test_a_broken_transfer_begins_anew(server: ArchiveServer, tmp_path: Path) -> None:
    server.files["file"] = bytes(range(256)) * 40
    server.statuses, server.cuts = [503, 429], [4000, 3000]
    path = tmp_path / "file"
    path.write_bytes(b"what a killed run left" * 1000)
    lines: list[str] = []
    download(f"{server.url}/file", str(path), lines.append, 0.0)
    assert path.read_bytes() == server.files["file"]
    assert server.requests == ["file"] * 5
    assert "ended after 4,000 of 10,240 bytes; attempt 4 of 5" in lines[2]
    assert "ended after 3,000 of 10,240 bytes; attempt 5 of 5" in lines[3]


def test_a_transfer_that_keeps_failing_is_one_line_and_leaves_nothing(
    server: ArchiveServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(transfer.time, "sleep", lambda _: None)
    server.files |= official(TASKS["rte"])
    server.cuts = [100] * 5
    assert run(server, tmp_path / "glue", "--tasks", "rte") == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "the connection ended after 100 of" in error
    assert "run the command again when the server is reachable" in error
    assert set(tree(tmp_path / "glue")) == {"archives/.lock"}
    server.requests.clear()
    with pytest.raises(InputError, match=r"HTTP 404 Not Found; check the address"):
        download(f"{server.url}/absent", str(tmp_path / "absent"), print, 0.0)
    assert len(server.requests) == 1


def link_member() -> zipfile.ZipInfo:
    info = zipfile.ZipInfo("RTE/more.tsv")
    info.create_system, info.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
    return info


@pytest.mark.parametrize(
    ("member", "message"),
    [
        ("../evil.tsv", "points outside the folder"),
        ("RTE/../../evil.tsv", "points outside the folder"),
        ("/evil.tsv", "points outside the folder"),
        ("..\\evil.tsv", "points outside the folder"),
        ("C:/evil.tsv", "points outside the folder"),
        (link_member(), "is a link"),
    ],
)
def test_unsafe_archives_are_refused_whole(tmp_path: Path, member: str | zipfile.ZipInfo, message: str) -> None:
    archives = tmp_path / "glue" / "archives"
    archives.mkdir(parents=True)
    with zipfile.ZipFile(archives / "RTE.zip", "w") as archive:
        for file in ("train.tsv", "dev.tsv", "test.tsv"):
            archive.writestr(f"RTE/{file}", b"fine")
        archive.writestr(member, b"/etc/passwd")
    before = tree(tmp_path)
    with pytest.raises(InputError, match=rf"RTE\.zip: refused: its member .* {message}"):
        unpack(TASKS["rte"], str(archives), str(tmp_path / "glue"))
    assert tree(tmp_path) == before


def test_damaged_archives_are_one_line(tmp_path: Path) -> None:
    data = official(TASKS["rte"])[SOURCES["rte"][0].path]
    archive = tmp_path / "RTE.zip"
    body = data.index(b"RTE/train.tsv") + len("RTE/train.tsv") + 4
    flipped = bytearray(data)
    flipped[body] ^= 0xFF
    for damaged in (b"", data[:-40], data[: len(data) // 2], bytes(flipped)):
        archive.write_bytes(damaged)
        with pytest.raises(InputError, match=r"RTE\.zip: damaged archive .* delete it and run") as caught:
            unpack(TASKS["rte"], str(tmp_path), str(tmp_path / "glue"))
        assert "\n" not in str(caught.value)
        assert not (tmp_path / "glue" / "RTE" / "train.tsv").exists()
    archive.write_bytes(zipped({"RTE/train.tsv": b"", "QNLI/dev.tsv": b""}))
    with pytest.raises(InputError, match=r"RTE\.zip: has no RTE/dev\.tsv"):
        unpack(TASKS["rte"], str(tmp_path), str(tmp_path / "glue"))


def test_mrpc_is_split_as_the_official_script_splits_it(shared_data: Path, tmp_path: Path) -> None:
    folder = shared_data / "glue" / "MRPC"
    published_test = (folder / "test.tsv").read_bytes()
    test = tmp_path / "test.txt"
    rows = published_test.decode().splitlines()[1:]
    test.write_text("Quality\t...\t...\t...\t...\n" + "".join("1\t" + row.split("\t", 1)[1] + "\n" for row in rows))
    files = mrpc_files(str(folder / "msr_paraphrase_train.txt"), str(test), str(folder / "dev_ids.tsv"))
    assert files["train.tsv"] == (folder / "train.tsv").read_bytes()
    assert files["dev.tsv"] == (folder / "dev.tsv").read_bytes()
    assert files["test.tsv"] == published_test
    ids = tmp_path / "ids.tsv"
    ids.write_text("1606495\t1606619\n1\t2\n")
    with pytest.raises(InputError, match=r"ids\.tsv:2: pair 1 2 is not in"):
        mrpc_files(str(folder / "msr_paraphrase_train.txt"), str(test), str(ids))


def test_real_files_travel_unchanged_and_the_published_checksum_of_one_holds(
    server: ArchiveServer, tmp_path: Path, shared_data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    real = shared_data / "glue"
    dev_ids = hashlib.sha256((real / "MRPC" / "dev_ids.tsv").read_bytes()).hexdigest()
    assert SOURCES["mrpc"][2].sha256 == dev_ids
    for name in ("rte", "wnli"):
        folder = TASKS[name].folder
        members = {f"{folder}/{file}": (real / folder / file).read_bytes() for file in TASKS[name].files}
        server.files[SOURCES[name][0].path] = zipped(members)
    given = checksums_of(server.files, tmp_path / "given")
    assert run(server, tmp_path / "glue", "--tasks", "rte", "wnli", "--checksums", given) == 0
    shown = capsys.readouterr().out
    assert "warning" not in shown
    assert "RTE: rows: train.tsv 2,490, dev.tsv 277, test.tsv 3,000" in shown
    assert (tmp_path / "glue" / "RTE" / "train.tsv").read_bytes() == (real / "RTE" / "train.tsv").read_bytes()


def test_sources_cover_glue() -> None:
    assert list(SOURCES) == [task.name for task in GLUE_TASKS]
    values = [source.sha256 for sources in SOURCES.values() for source in sources]
    assert len({*values}) == len(values) == 12
    assert all(len(value) == 64 and int(value, 16) for value in values)


def test_mistakes_are_one_line(server: ArchiveServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def line(*arguments: str) -> str:
        assert run(server, tmp_path / "glue", *arguments) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        return error

    assert "--tasks names 'stsb'; valid names: cola, sst-2, mrpc, sts-b" in line("--tasks", "stsb")
    assert "must begin with http:// or https://" in line("--base-url", "file:///tmp")
    assert "must be a local folder" in line("--output", "s3://bucket/glue")
    assert "cannot be read as a list of checksums" in line("--checksums", str(tmp_path / "absent"))
    (tmp_path / "sums").write_text("0" * 64 + "  RTE.zip\nmd5 RTE.zip\n")
    assert "sums:2: expected a SHA-256 of 64 digits" in line("--checksums", str(tmp_path / "sums"))
    (tmp_path / "sums").write_text("0" * 64 + " *RTE.zip\n")
    assert read_checksums(str(tmp_path / "sums")) == {"RTE.zip": "0" * 64}
    assert "HTTP 404" in line("--tasks", "rte")
    with (tmp_path / "glue" / "archives" / ".lock").open("w") as guard:
        fcntl.flock(guard, fcntl.LOCK_EX)
        assert "another fetch is writing here" in line("--tasks", "rte")
