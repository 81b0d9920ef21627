"""Closing lines of the documents job: what became of the corpus, and an error if nothing was kept."""

from __future__ import annotations

import json
import os
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tests.support.preprocessing.small_run import RECIPE, write_corpus

from pipelines import shard_corpus
from pipelines.contract.errors import InputError
from pipelines.contract.manifest import FileRecord, Manifest, read_manifest
from pipelines.documents.summary import closing_lines, require_documents
from pipelines.settings.documents import DocumentsConfig, SourceConfig
from pipelines.statistics.preprocessing import DocumentsStatistics

PROSE = "A text that is long enough to be kept. It has two sentences."


def manifest_of(train: list[int], heldout: list[int], rejected: dict[str, int], **more: Any) -> Manifest:
    """A manifest of shards with these numbers of rows; each reason has one reject."""
    shards = [("train", train), ("heldout", heldout)]
    files = [
        FileRecord(name=f"{split}-{index:05d}-of-{len(rows):05d}.arrow", rows=number, size_bytes=0, sha256="")
        for split, rows in shards
        for index, number in enumerate(rows)
    ]
    kept, num_rejected = sum(train) + sum(heldout), sum(rejected.values())
    statistics = {
        "documents_read": kept + num_rejected,
        "documents_kept": kept,
        "documents_rejected": num_rejected,
        "rejected_by_reason": rejected,
        "first_rejects": {reason: [[f"corpus/{reason}.txt", f"detail of {reason}"]] for reason in rejected},
        "train_documents": sum(train),
        "heldout_documents": sum(heldout),
        "cleaning": {},
        "sentences": 0,
        "characters": 0,
    } | more
    return Manifest(
        stage="documents", stage_version=3, code_version="1", config={}, inputs={}, files=files, statistics=statistics
    )


def config_of(**settings: Any) -> DocumentsConfig:
    language = settings.pop("language", "en")
    return DocumentsConfig(sources=(SourceConfig(inputs=("x",), language=language),), **settings)


def test_the_closing_line_tells_the_commonest_reasons_with_an_example_each() -> None:
    manifest = manifest_of([500, 400], [100], {"empty": 7, "duplicate": 30, "binary": 2, "too-short": 9, "language": 1})
    assert closing_lines(manifest, config_of()) == [
        "documents: 1,049 read, 1,000 kept (900 to train on, 100 held out), 49 rejected: 30 duplicate "
        "(corpus/duplicate.txt: detail of duplicate), 9 too-short (corpus/too-short.txt: detail of too-short), 7 empty "
        "(corpus/empty.txt: detail of empty), 3 for 2 other reasons; all are in rejected.jsonl.gz"
    ]
    (line,) = closing_lines(manifest_of([20], [5], {}), config_of())
    assert line == "documents: 25 read, 25 kept (20 to train on, 5 held out), 0 rejected"


def test_names_of_files_cannot_forge_a_line() -> None:
    examples = {"binary": [["a\x1b[2K\nerror: disk full.txt", "NUL at byte 0\u202e"]]}
    lines = closing_lines(manifest_of([20], [5], {"binary": 1}, first_rejects=examples), config_of())
    assert r"a\x1b[2K\nerror: disk full.txt: NUL at byte 0\u202e" in lines[0]
    assert len("\n".join(lines).splitlines()) == len(lines)


def test_faults_above_the_share_are_a_warning_with_what_changes_it() -> None:
    manifest = manifest_of([50], [5], {"undecodable": 7, "too-short": 1, "duplicate": 500})
    _, warning = closing_lines(manifest, config_of(warn_rejected_share=0.01))
    assert warning == (
        "documents: warning: 8 of 563 texts (1.4%) were rejected for a fault, more than documents.warn_rejected_share "
        "= 0.01. Remedy: set the source's encoding, such as encoding = 'latin-1' or 'cp1251'; lower "
        "documents.min_characters"
    )
    assert len(closing_lines(manifest, config_of(warn_rejected_share=0.02))) == 1
    assert config_of(warn_rejected_share=0.5).identity() == config_of().identity()


@pytest.mark.parametrize(
    ("train", "heldout", "said"),
    [
        (
            [3, 1, 0, 1],
            [2],
            "2 of 4 training shards hold a single document, and 1 none: random next sentences come from",
        ),
        ([1], [1], "1 of 1 training shards hold a single document: random next sentences come from the same shard"),
        ([20, 0], [2], "1 of 2 training shards hold no document; lower documents.num_shards"),
        ([20], [0], "no document is held out (documents.heldout_share = 0.01), so pre-training gets no held-out loss"),
        ([20, 30], [5], None),
    ],
)
def test_what_later_stages_will_lack_is_said(train: list[int], heldout: list[int], said: str | None) -> None:
    _, *warnings = closing_lines(manifest_of(train, heldout, {}), config_of())
    assert [warning.startswith(f"documents: warning: {said}") for warning in warnings] == [True] * (said is not None)


def test_the_number_of_shards_that_helps_is_named() -> None:
    _, warning = closing_lines(manifest_of([1] * 30, [5], {}), config_of())
    assert warning.endswith("set documents.num_shards = 3 or add documents")


def test_sentences_that_were_cut_and_languages_without_rules_are_said() -> None:
    cleaning = {"sentences_cut": 3}
    _, *warnings = closing_lines(manifest_of([20], [5], {}, cleaning=cleaning), config_of(language="th"))
    assert "documents.sources.0.language = 'th' has no sentence rules of its own" in warnings[0]
    assert "3 times no sentence ended within 10,000 characters" in warnings[1]


def test_nothing_kept_shows_three_rejects() -> None:
    examples = {
        "bad-json": [[f"a#{number}", "list, not an object"] for number in range(3)],
        "empty": [["b", "no text"]],
    }
    manifest = manifest_of([], [], {"bad-json": 9, "empty": 1}, first_rejects=examples)
    with pytest.raises(InputError) as caught:
        require_documents(manifest.statistics_as(DocumentsStatistics), {"heldout_share": 0.01})
    assert str(caught.value) == (
        "documents: none of the 10 texts read was kept, 10 were rejected. First of them: a#0: list, not an object "
        "[bad-json]; b: no text [empty]; a#1: list, not an object [bad-json]. Remedy: format = 'jsonl' needs one JSON "
        "object per line, not an array; or set another format"
    )


def write_array(root: Path) -> str:
    (root / "a.json").write_text(json.dumps([{"text": PROSE}] * 5))
    return 'format = "jsonl"'


def write_latin(root: Path) -> str:
    for number in range(5):
        (root / f"{number}.txt").write_bytes(f"Le café numéro {number} est fermé le lundi.".encode("latin-1"))
    return ""


def write_wrong_column(root: Path) -> str:
    (root / "a.parquet").write_bytes(b"not a table")
    pq.write_table(pa.table({"body": [PROSE]}), root / "b.parquet")
    return 'format = "parquet"'


def write_blank(root: Path) -> str:
    (root / "a.txt").write_text("\n\n \n")
    return 'document_separator = "blank-line"'


def write_one(root: Path) -> str:
    (root / "a.txt").write_text(f"{PROSE} It is number 0.")
    return ""


def write_one_and_others(root: Path) -> str:
    with zipfile.ZipFile(root / "1.zip", "w") as archive:
        archive.writestr("a.txt", PROSE)
    with tarfile.open(root / "2.tar.gz", "w:gz") as archive:
        archive.add(root / "1.zip")
    return write_one(root)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("write", "said"),
    [
        (write_array, r"none of the 1 texts read was kept.*list, not an object \[bad-json\].*not an array"),
        (write_latin, r"none of the 5 texts read was kept.*not UTF-8 at byte 6.*encoding = 'latin-1'"),
        (write_wrong_column, r"none of the 2 texts read was kept.*\[damaged\].*columns there: body.*set text_field"),
        (write_blank, r"the inputs hold no text; point"),
        (
            write_one_and_others,
            r"all of the 1 documents.*\. Of 3 texts read, 2 were rejected: corpus/1.zip: a ZIP.*\[archive\]",
        ),
        (write_one, r"all of the 1 documents kept are held out \(documents.heldout_share = 0.9\)[^.]*$"),
    ],
)
def test_a_corpus_that_gives_nothing_is_an_error_and_no_stage(tmp_path: Path, write: Any, said: str) -> None:
    (tmp_path / "corpus").mkdir()
    settings = write(tmp_path / "corpus")
    recipe = tmp_path / "r.toml"
    recipe.write_text(
        f'[run]\nworkspace = "{tmp_path}/ws"\nworkers = 1\n[documents]\nheldout_share = 0.9\n'
        f'[[documents.sources]]\ninputs = ["{tmp_path}/corpus"]\n{settings}\n'
    )
    for _ in range(2):
        with pytest.raises(InputError, match=said):
            shard_corpus.run([str(recipe)])
        assert read_manifest(str(tmp_path / "ws/documents")) is None


def test_the_job_ends_with_the_line_and_the_manifest_holds_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_corpus(tmp_path / "corpus")
    with open(os.path.join(tmp_path / "corpus", "b\nerror: x.txt"), "wb") as stream:
        stream.write(b"\0\0\0")
    recipe = tmp_path / "small.toml"
    recipe.write_text(RECIPE.format(workspace=tmp_path / "ws", corpus=tmp_path / "corpus"))
    shard_corpus.run([str(recipe)])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("documents: 65 read, 60 kept (")
    assert (
        "2 too-short (corpus/empty.txt: 0 characters, fewer than 20), 1 binary (corpus/b\\nerror: x.txt: NUL"
        in lines[0]
    )
    manifest = read_manifest(str(tmp_path / "ws/documents"))
    assert manifest is not None
    assert manifest.statistics["first_rejects"]["too-short"] == [
        ["corpus/empty.txt", "0 characters, fewer than 20"],
        ["corpus/short.txt", "3 characters, fewer than 20"],
    ]
