"""Which files inputs match: literal names, links, hidden and foreign files in the tree, and this project's results."""

from __future__ import annotations

import json
import os
import socket
import subprocess
from pathlib import Path

import pytest
from tests.support.preprocessing.small_run import JOBS, RECIPE, write_corpus

from pipelines import shard_corpus
from pipelines.contract.errors import InputError
from pipelines.contract.manifest import read_manifest
from pipelines.contract.recipe import read_recipe
from pipelines.inputs import local_files
from pipelines.inputs.file_patterns import find_files
from pipelines.jobs.arrow_files import read_table
from pipelines.reading.unpacking import StorageFaultError
from pipelines.settings.documents import DocumentsConfig
from pipelines.stage_keys import documents_key


def write(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name)


def names_of(pattern: object, workspace: Path | None = None) -> list[str]:
    """Labels without the root's own name; those of problems with their reason."""
    files = find_files((str(pattern),), str(workspace) if workspace else None)
    return [file.name.partition("/")[2] + (f" ({file.problem.reason})" if file.problem else "") for file in files]


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("part[1].txt", ["part[1].txt"]),
        ("part[12].txt", ["part1.txt"]),
        ("d[1]/*.txt", ["a.txt"]),
        ("d[1]", ["a.txt"]),
        ("*/part[1].txt", ["d1/part1.txt", "d[1]/part[1].txt"]),
        ("**/part[1].txt", ["d1/part1.txt", "d[1]/part[1].txt", "part[1].txt"]),
        ("what?.txt", ["what?.txt"]),
        ("wha?[0-9].txt", ["what1.txt"]),
    ],
)
def test_a_name_that_exists_goes_before_a_pattern(tmp_path: Path, pattern: str, names: list[str]) -> None:
    root = tmp_path / "corpus"
    write(root, "part[1].txt", "part1.txt", "d1/part1.txt", "d[1]/a.txt", "d1/a.txt", "what?.txt", "what1.txt")
    if pattern.startswith("*"):
        write(root, "d[1]/part[1].txt", "d[1]/part1.txt")
    found = [file.uri for file in find_files((f"{root}/{pattern}",))]
    expected = [str(root / name) for name in names]
    assert found in (expected, [str(root / "d[1]" / name) for name in names])


def test_a_bad_character_range_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"inputs = '.*/\[z-a\]\.txt': is not a valid pattern \(bad character range"):
        find_files((f"{tmp_path}/[z-a].txt",))


def test_hidden_directories_are_passed_over_like_hidden_files(tmp_path: Path) -> None:
    write(tmp_path, "a.txt", ".git/b.txt", "x/.ipynb_checkpoints/c.txt", "x/d.txt", ".e.txt", ".f/g/h.txt")
    assert names_of(tmp_path) == names_of(f"{tmp_path}/**/*.txt") == ["a.txt", "x/d.txt"]
    assert names_of(f"{tmp_path}/*/*.txt") == ["x/d.txt"]
    assert names_of(f"{tmp_path}/.f") == ["g/h.txt"]
    assert names_of(f"{tmp_path}/.*.txt") == [".e.txt"]


def test_only_what_the_pattern_names_is_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, "en/a/1.txt", "en/b/2.txt", "en/b/deep/3.txt", "de/a/4.txt", "lost+found/x")
    scanned: list[str] = []
    scandir = os.scandir

    def counting(path: str) -> object:
        scanned.append(os.path.relpath(path, tmp_path))
        if "lost+found" in path:
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(local_files.os, "scandir", counting)
    assert names_of(f"{tmp_path}/e*/*/*.txt") == ["en/a/1.txt", "en/b/2.txt"]
    assert sorted(scanned) == [".", "en", "en/a", "en/b"]
    assert "lost+found (unreadable)" in names_of(tmp_path)


def test_a_root_that_may_not_be_listed_and_a_failing_disk_are_errors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(error: OSError) -> None:
        def scandir(_path: str) -> object:
            raise error

        monkeypatch.setattr(local_files.os, "scandir", scandir)

    failing(PermissionError(13, "Permission denied"))
    with pytest.raises(InputError, match="permission to list it is denied"):
        find_files((str(tmp_path),))
    failing(OSError(5, "Input/output error"))
    with pytest.raises(StorageFaultError, match="listing failed: Input/output error"):
        find_files((str(tmp_path),))


def test_links_lead_to_each_file_once_and_to_nothing_outside(tmp_path: Path) -> None:
    root, outside = tmp_path / "corpus", tmp_path / "outside"
    write(root, "b/real.txt", "store/x.bin", "b/c/deep.txt")
    write(outside, "secret.txt")
    (root / "a.txt").symlink_to(root / "b/real.txt")
    (root / "only.txt").symlink_to("store/x.bin")
    (root / "up").symlink_to("..")
    (root / "b/loop").symlink_to(".")
    (root / "self.txt").symlink_to("self.txt")
    (root / "gone.txt").symlink_to("nowhere")
    (root / "out.txt").symlink_to(outside / "secret.txt")
    (root / "outdir").symlink_to(outside)
    problems = ["gone.txt (broken-link)", "out.txt (outside-link)", "self.txt (broken-link)"]
    directories = ["outdir (outside-link)", "up (outside-link)"]
    assert names_of(f"{root}/*.txt") == sorted(["a.txt", "only.txt", *problems])
    assert names_of(f"{root}/**/*.txt") == sorted(["b/c/deep.txt", "b/real.txt", "only.txt", *problems, *directories])
    assert names_of(f"{root}/b/*.txt") == ["real.txt"]
    # What an input names itself may be a link.
    (tmp_path / "link").symlink_to(root / "b")
    assert names_of(tmp_path / "link") == ["c/deep.txt", "real.txt"]
    assert [file.name for file in find_files((str(root / "out.txt"),))] == ["out.txt"]


def test_directories_behind_links_are_read_where_the_pattern_wants_their_name(tmp_path: Path) -> None:
    write(tmp_path, "versions/v1/a.txt", "versions/v2/b.txt")
    (tmp_path / "current").symlink_to("versions/v2")
    assert names_of(f"{tmp_path}/cur*/*.txt") == ["current/b.txt"]
    assert names_of(f"{tmp_path}/**/current/*.txt") == ["current/b.txt"]
    assert names_of(tmp_path) == ["versions/v1/a.txt", "versions/v2/b.txt"]


def test_directories_may_lie_as_deep_as_a_path_is_long(tmp_path: Path) -> None:
    path = f"{tmp_path}/corpus"
    for _ in range(1500):
        os.mkdir(path)
        path += "/d"
    try:
        with open(f"{path.removesuffix('/d')}/a.txt", "w") as stream:
            stream.write("x")
        assert names_of(tmp_path / "corpus") == [f"{'d/' * 1499}a.txt"]
    finally:
        # Python's own way to remove a tree goes as deep as the tree.
        subprocess.run(["rm", "-rf", f"{tmp_path}/corpus"], check=True)


def test_names_that_are_no_utf8_are_rejects(tmp_path: Path) -> None:
    write(tmp_path / "corpus", "a.txt")
    for name in (b"caf\xe9.txt", b"caf\xe9.md", b"d\xff/b.txt"):
        path = os.path.join(os.fsencode(tmp_path / "corpus"), name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "w") as stream:
            stream.write("x")
    reason = "(name-not-utf-8)"
    found = names_of(f"{tmp_path}/corpus/**/*.txt")
    assert found == ["a.txt", rf"caf\xe9.txt {reason}", rf"d\xff/b.txt {reason}"]
    assert names_of(f"{tmp_path}/corpus/a*") == ["a.txt"]


@pytest.mark.parametrize("kind", ["fifo", "socket"])
def test_only_regular_files_are_read(tmp_path: Path, kind: str) -> None:
    write(tmp_path, "a.txt")
    path = tmp_path / "b.txt"
    with socket.socket(socket.AF_UNIX) as server:
        if kind == "fifo":
            os.mkfifo(path)
        else:
            server.bind(os.path.relpath(path) if len(str(path)) > 100 else str(path))
        assert names_of(f"{tmp_path}/*.txt") == ["a.txt"]
        with pytest.raises(InputError, match="neither a regular file"):
            find_files((str(path),))


def stage_in(directory: Path) -> None:
    write(directory, "vocab.txt", "length128/a.txt")
    manifest = {"schema_version": 1, "stage": "vocabulary", "stage_version": 1, "files": [], "more": 1}
    (directory / "manifest.json").write_text(json.dumps(manifest))


def test_own_results_are_left_out_wherever_they_lie(tmp_path: Path) -> None:
    write(tmp_path, "a.txt", "ws/notes.txt", "old/mlartifacts/vocab.txt", "new/x/b.txt", "b/manifest.json", "b/b.txt")
    stage_in(tmp_path / "old/vocabulary")
    stage_in(tmp_path / "alone")
    write(tmp_path, "begun/notes.txt", "begun/documents.building/scratch/key.json")
    assert names_of(f"{tmp_path}/**/*.txt") == ["a.txt", "b/b.txt", "new/x/b.txt", "ws/notes.txt"]
    assert names_of(f"{tmp_path}/**/*.txt", tmp_path / "ws") == ["a.txt", "b/b.txt", "new/x/b.txt"]
    for named in ("alone", "alone/*.txt", "old/vocabulary"):
        with pytest.raises(InputError, match="matches no file"):
            find_files((f"{tmp_path}/{named}",))
    with pytest.raises(InputError, match="a result of this program, not a corpus"):
        find_files((f"{tmp_path}/alone/vocab.txt",))


def test_a_corpus_in_its_own_workspace_is_read_without_the_results(tmp_path: Path) -> None:
    write(tmp_path, "a.txt", "texts/b.txt", "mlartifacts/1/vocab.txt", "finetuning/data/dev.txt", "prefect/log.txt")
    write(tmp_path, "documents.building/x.txt", "pretraining.1/y.txt", "documents/novel.txt")
    stage_in(tmp_path / "vocabulary")
    # Nothing shows that documents/ is this project's.
    assert names_of(f"{tmp_path}/**/*.txt", tmp_path) == ["a.txt", "documents/novel.txt", "texts/b.txt"]
    assert names_of(f"{tmp_path}/texts", tmp_path) == ["b.txt"]


@pytest.mark.slow
def test_a_workspace_among_its_inputs_stays_complete_and_unchanged(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_corpus(tmp_path / "corpus", num_documents=20)
    recipe = tmp_path / "small.toml"
    lines = RECIPE.format(workspace=tmp_path / "corpus/ws", corpus=tmp_path / "corpus")
    recipe.write_text(lines.replace("/*.txt", "/**/*.txt"))
    for job in JOBS:
        job.run([str(recipe)])
    capsys.readouterr()
    for job in JOBS:
        job.run([str(recipe)])
    assert capsys.readouterr().out.count("complete and unchanged") == 3
    workspace = str(tmp_path / "corpus/ws")
    key = documents_key(read_recipe(str(recipe)).section("documents", DocumentsConfig), workspace)
    assert key.difference(f"{workspace}/documents") is None


def test_a_documents_job_tells_what_it_could_not_read(tmp_path: Path) -> None:
    write_corpus(tmp_path / "corpus", num_documents=20)
    (tmp_path / "corpus/link.txt").symlink_to("/etc/passwd")
    with open(os.fsencode(tmp_path / "corpus") + b"/b\xff.txt", "w") as stream:
        stream.write("A text that would be long enough to be read.")
    recipe = tmp_path / "small.toml"
    recipe.write_text(RECIPE.format(workspace=tmp_path / "ws", corpus=tmp_path / "corpus"))
    shard_corpus.run([str(recipe)])
    manifest = read_manifest(str(tmp_path / "ws/documents"))
    assert manifest is not None
    rejected = manifest.statistics["rejected_by_reason"]
    assert rejected == {"duplicate": 1, "name-not-utf-8": 1, "outside-link": 1, "too-short": 2, "undecodable": 1}
    tables = [read_table(str(path)) for path in (tmp_path / "ws/documents").glob("*.arrow")]
    assert sum(map(len, tables)) == 20


def test_a_file_without_permission_is_one_line_before_anything_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_corpus(tmp_path / "corpus", num_documents=3)
    recipe = tmp_path / "small.toml"
    recipe.write_text(RECIPE.format(workspace=tmp_path / "ws", corpus=tmp_path / "corpus"))
    access = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: "00" not in str(path) and access(path, mode))
    with pytest.raises(InputError, match=r"corpus/000\.txt: permission to read it is denied \(and 2 more\)"):
        shard_corpus.run([str(recipe)])
    assert not list((tmp_path / "ws").rglob("*.arrow*"))
