"""`pipelines.validate` finds every deliberate damage to a workspace, in one line that names the place.

Each case changes one thing, and many then make checksums, sizes and digests consistent again.
"""

from __future__ import annotations

import gzip
import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from tests.support.preprocessing.small_run import RECIPE, run_all, write_corpus

from pipelines.contract import storage
from pipelines.contract.errors import InputError
from pipelines.contract.manifest import read_manifest
from pipelines.jobs.arrow_files import read_table, write_table
from pipelines.validation.workspace import validate

STAGES = ("documents", "vocabulary", "examples")
SHARD, HELDOUT = "train-00002-of-00004.arrow", "heldout-00000-of-00001.arrow"
FILE = "length32/train-00001-of-00004.arrow"
Damage = Callable[[Path], Any]
Facts = dict[str, Any]


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another valid workspace: the same settings on fewer documents."""
    root = tmp_path_factory.mktemp("other")
    write_corpus(root / "corpus", num_documents=40)
    recipe = root / "small.toml"
    recipe.write_text(RECIPE.format(workspace=root / "workspace", corpus=root / "corpus"))
    run_all(str(recipe))
    return root / "workspace"


def edit(path: Path, change: Callable[[Facts], Any]) -> None:
    facts = json.loads(path.read_text())
    change(facts)
    path.write_text(json.dumps(facts))


def manifest(stage: str, change: Callable[[Facts], Any]) -> Damage:
    return lambda workspace: edit(workspace / stage / "manifest.json", change)


def put(stage: str, place: str, value: Any) -> Damage:
    """Set a value of a manifest; `place` has dots, numbers are indices."""

    def change(facts: Any) -> None:
        *outer, last = place.split(".")
        for key in outer:
            facts = facts[int(key)] if isinstance(facts, list) else facts[key]
        if isinstance(facts, list):
            facts[int(last)] = value
        else:
            facts[last] = value

    return manifest(stage, change)


def drop(stage: str, place: str) -> Damage:
    def change(facts: Any) -> None:
        *outer, last = place.split(".")
        for key in outer:
            facts = facts[int(key)] if isinstance(facts, list) else facts[key]
        del facts[int(last) if isinstance(facts, list) else last]

    return manifest(stage, change)


def restate(workspace: Path, stage: str) -> None:
    """Make all sizes, rows and checksums fit, and with them the digests of the stages that come after."""
    for later in STAGES[STAGES.index(stage) :]:
        directory = workspace / later

        def fit(facts: Facts, directory: Path = directory) -> None:
            for file in facts["files"]:
                path = directory / file["name"]
                file["sha256"], file["size_bytes"] = storage.sha256_of(str(path)), path.stat().st_size
                if file["name"].endswith(".arrow"):
                    file["rows"] = read_table(str(path)).num_rows
            for name in facts["inputs"]:
                if name in STAGES and (before := read_manifest(str(workspace / name))) is not None:
                    facts["inputs"][name] = before.digest

        edit(directory / "manifest.json", fit)


def rows(stage: str, name: str, change: Callable[[list[Facts]], Any]) -> Damage:
    def damage(workspace: Path) -> None:
        path = str(workspace / stage / name)
        table = read_table(path)
        own = table.to_pylist()
        change(own)
        os.remove(path)
        write_table(path, pa.Table.from_pylist(own, schema=table.schema), 50)
        restate(workspace, stage)

    return damage


def text(stage: str, name: str, change: Callable[[str], str], fit: bool = True) -> Damage:
    def damage(workspace: Path) -> None:
        path = workspace / stage / name
        path.write_text(change(path.read_text()))
        if fit:
            restate(workspace, stage)

    return damage


def raw(stage: str, name: str, change: Callable[[bytes], bytes], fit: bool = False) -> Damage:
    def damage(workspace: Path) -> None:
        path = workspace / stage / name
        path.write_bytes(change(path.read_bytes()))
        if fit:
            restate(workspace, stage)

    return damage


def flip(data: bytes, place: float = 0.5) -> bytes:
    at = int(place * len(data))
    return data[:at] + bytes([data[at] ^ 0x10]) + data[at + 1 :]


def add_file(stage: str, name: str, like: str | None = None) -> Damage:
    def damage(workspace: Path) -> None:
        target = workspace / stage / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes((workspace / stage / like).read_bytes() if like else b"x")

    return damage


def repeat_file(facts: Facts) -> None:
    facts["files"].append(facts["files"][0])


def swap_tokens(lines: str) -> str:
    tokens = lines.split("\n")
    tokens[-2], tokens[-3] = tokens[-3], tokens[-2]
    return "\n".join(tokens)


def swap_vocabulary(workspace: Path) -> None:
    """Swap two tokens, in vocab.txt and tokenizer.json alike."""
    text("vocabulary", "vocab.txt", swap_tokens)(workspace)
    tokens = (workspace / "vocabulary" / "vocab.txt").read_text().split("\n")[:-1]

    def renumber(facts: Facts) -> None:
        facts["model"]["vocab"] = {token: number for number, token in enumerate(tokens)}

    edit(workspace / "vocabulary" / "tokenizer.json", renumber)
    restate(workspace, "vocabulary")


def tokenizer(change: Callable[[Facts], Any]) -> Damage:
    def damage(workspace: Path) -> None:
        edit(workspace / "vocabulary" / "tokenizer.json", change)
        restate(workspace, "vocabulary")

    return damage


def rejects(change: Callable[[list[bytes]], list[bytes]]) -> Damage:
    def compressed(data: bytes) -> bytes:
        return gzip.compress(b"".join(change(gzip.decompress(data).splitlines(keepends=True))), mtime=0)

    return raw("documents", "rejected.jsonl.gz", compressed, fit=True)


def with_metadata(key: str, value: str | None) -> Damage:
    def damage(workspace: Path) -> None:
        path = str(workspace / "examples" / FILE)
        table = read_table(path)
        metadata = {name: one for name, one in table.schema.metadata.items() if name != key.encode()}
        if value is not None:
            metadata[key.encode()] = value.encode()
        table = table.replace_schema_metadata(metadata).combine_chunks()
        os.remove(path)
        write_table(path, table, 8192)
        restate(workspace, "examples")

    return damage


def first(**values: Any) -> Callable[[list[Facts]], Any]:
    return lambda own: own[5].update(values)


def lengthen(own: list[Facts]) -> None:
    own[5]["input_ids"] = own[5]["input_ids"] * 3


def with_null(workspace: Path) -> None:
    path = str(workspace / "examples" / FILE)
    table = read_table(path)
    labels = pa.array([None, *table["next_sentence_label"].to_pylist()[1:]], pa.uint8())
    columns = [*table.columns[:-1], labels]
    os.remove(path)
    write_table(path, pa.Table.from_arrays(columns, schema=table.schema), 8192)
    restate(workspace, "examples")


def exchange(workspace: Path, one: str, other: str) -> None:
    first_path, second_path = workspace / one, workspace / other
    data = first_path.read_bytes()
    first_path.write_bytes(second_path.read_bytes())
    second_path.write_bytes(data)


def link_away(workspace: Path) -> None:
    path = workspace / "examples" / FILE
    path.unlink()
    path.symlink_to("/nowhere")


def directory_for_file(workspace: Path) -> None:
    path = workspace / "vocabulary" / "vocab.txt"
    path.unlink()
    path.mkdir()


CASES: dict[str, Damage] = {
    # Manifests as such.
    **{f"{stage}-no-json": raw(stage, "manifest.json", lambda data: data[:-40]) for stage in STAGES},
    **{f"{stage}-no-utf8": raw(stage, "manifest.json", lambda data: b"\xff" + data) for stage in STAGES},
    **{f"{stage}-list": raw(stage, "manifest.json", lambda _data: b"[]") for stage in STAGES},
    **{f"{stage}-deep": raw(stage, "manifest.json", lambda _data: b"[" * 100_000) for stage in STAGES},
    **{f"{stage}-schema-older": put(stage, "schema_version", 0) for stage in STAGES},
    **{f"{stage}-schema-newer": put(stage, "schema_version", 99) for stage in STAGES},
    **{f"{stage}-version-older": put(stage, "stage_version", 0) for stage in STAGES},
    **{f"{stage}-version-newer": put(stage, "stage_version", 99) for stage in STAGES},
    **{f"{stage}-other-stage": put(stage, "stage", "pretraining") for stage in STAGES},
    **{f"{stage}-no-files": put(stage, "files", []) for stage in STAGES},
    **{f"{stage}-no-inputs": put(stage, "inputs", {}) for stage in STAGES},
    **{f"{stage}-more-inputs": put(stage, "inputs.more", "0" * 63 + "1") for stage in STAGES},
    **{f"{stage}-no-config": put(stage, "config", {}) for stage in STAGES},
    **{f"{stage}-more-config": put(stage, "config.more", 1) for stage in STAGES},
    **{f"{stage}-no-statistics": put(stage, "statistics", {}) for stage in STAGES},
    **{f"{stage}-twice": manifest(stage, repeat_file) for stage in STAGES},
    **{f"{stage}-rows": put(stage, "files.0.rows", 3) for stage in STAGES},
    **{f"{stage}-rows-negative": put(stage, "files.0.rows", -3) for stage in STAGES},
    **{f"{stage}-size": put(stage, "files.1.size_bytes", 3) for stage in STAGES},
    **{f"{stage}-sha": put(stage, "files.1.sha256", "a" * 64) for stage in STAGES},
    **{f"{stage}-sha-empty": put(stage, "files.1.sha256", "") for stage in STAGES},
    **{f"{stage}-dots": put(stage, "files.0.name", "../documents/" + SHARD) for stage in STAGES},
    **{f"{stage}-absolute": put(stage, "files.0.name", "/etc/hostname") for stage in STAGES},
    **{f"{stage}-lost-record": drop(stage, "files.0") for stage in STAGES},
    **{f"{stage}-stray": add_file(stage, "notes.txt") for stage in STAGES},
    **{f"{stage}-half-written": add_file(stage, "x.arrow.0123.tmp") for stage in STAGES},
    **{f"{stage}-scratch": add_file(stage, "scratch/key.json") for stage in STAGES},
    "stages-exchanged": lambda workspace: exchange(workspace, "documents/manifest.json", "examples/manifest.json"),
    # Stages that do not belong together.
    "documents-input-zero": put("documents", "inputs.corpus", "0" * 64),
    "documents-input-word": put("documents", "inputs.corpus", "unchanged"),
    "vocabulary-input-zero": put("vocabulary", "inputs.documents", "0" * 64),
    "vocabulary-input-other": put("vocabulary", "inputs.documents", "12" * 32),
    "examples-documents-zero": put("examples", "inputs.documents", "0" * 64),
    "examples-documents-other": put("examples", "inputs.documents", "12" * 32),
    "examples-vocabulary-other": put("examples", "inputs.vocabulary", "12" * 32),
    # Settings that did not make these files.
    "passes": put("examples", "config.passes", 3),
    "passes-fewer": put("examples", "config.passes", 1),
    "passes-type": put("examples", "config.passes", "2"),
    "short-sequences": put("examples", "config.short_seq_prob", 0.5),
    "examples-seed": put("examples", "config.seed", 1),
    "masking": put("examples", "config.masking", "whole_word"),
    "masked-share": put("examples", "config.masked_lm_prob", 0.2),
    "bins": put("examples", "config.num_length_bins", 2),
    "next-sentence": put("examples", "config.next_sentence", False),
    "length": put("examples", "config.lengths.0.max_seq_length", 33),
    "predictions": put("examples", "config.lengths.0.max_predictions_per_seq", 4),
    "a-length-less": drop("examples", "config.lengths.0"),
    "vocabulary-size": put("vocabulary", "config.size", 301),
    "lowercase": put("vocabulary", "config.lowercase", False),
    "strip-accents": put("vocabulary", "config.strip_accents", False),
    "layout": put("vocabulary", "config.layout", "bert"),
    "min-count": put("vocabulary", "config.min_count", 400),
    "alphabet": put("vocabulary", "config.alphabet_size", 12),
    "shards": put("documents", "config.num_shards", 5),
    "heldout-share": put("documents", "config.heldout_share", 0.1),
    "min-sentences": put("documents", "config.min_sentences", 1_000),
    # Statistics.
    "documents-kept": put("documents", "statistics.documents_kept", 1),
    "documents-read": put("documents", "statistics.documents_read", 1),
    "documents-characters": put("documents", "statistics.characters", 1),
    "reasons": put("documents", "statistics.rejected_by_reason", {}),
    "shard-characters": put("documents", "files.2.statistics.characters", 7),
    "shard-without-statistics": put("documents", "files.2.statistics", {}),
    "words": put("vocabulary", "statistics.words", 1),
    "unk-share": put("vocabulary", "statistics.unk_share", 0.5),
    "vocabulary-warnings": put("vocabulary", "statistics.warnings", ["all is lost"]),
    "pieces": put("examples", "statistics.text.pieces_per_word", 1.0),
    "cut": put("examples", "statistics.lengths.32.tokens_cut", 0),
    "same-document": put("examples", "statistics.lengths.32.same_document_random_next", 4),
    "more-lengths": put("examples", "statistics.lengths.99", {}),
    "lengths-list": put("examples", "statistics.lengths", []),
    "length-number": put("examples", "statistics.lengths.32", 7),
    "unknown-statistic": put("examples", "statistics.more", 1),
    "examples-warnings": put("examples", "statistics.warnings", ["all is lost"]),
    "file-statistic": put("examples", "files.1.statistics.unk", 5_000),
    "file-statistic-more": put("examples", "files.1.statistics.more", 5),
    "file-without-statistics": put("examples", "files.1.statistics", {}),
    # Files.
    **{f"flip-{place}": raw("examples", FILE, lambda data, at=place: flip(data, at)) for place in (0.1, 0.5, 0.9)},
    "documents-flip": raw("documents", SHARD, flip),
    "documents-cut": raw("documents", SHARD, lambda data: data[:-200], fit=False),
    "documents-empty": raw("documents", SHARD, lambda _data: b""),
    "examples-empty": raw("examples", FILE, lambda _data: b""),
    "lost": lambda workspace: (workspace / "examples" / FILE).unlink(),
    "lost-shard": lambda workspace: (workspace / "documents" / SHARD).unlink(),
    "lost-tokenizer": lambda workspace: (workspace / "vocabulary" / "tokenizer.json").unlink(),
    "link": link_away,
    "directory": directory_for_file,
    "files-exchanged": lambda workspace: exchange(
        workspace, f"examples/{FILE}", "examples/length32/train-00002-of-00004.arrow"
    ),
    "shards-exchanged": lambda workspace: exchange(
        workspace, f"documents/{SHARD}", "documents/train-00001-of-00004.arrow"
    ),
    "shard-too-many": add_file("documents", "train-00004-of-00005.arrow", SHARD),
    "file-too-many": add_file("examples", "length32/train-00004-of-00005.arrow", FILE),
    "length-too-many": add_file("examples", "length128/train-00000-of-00001.arrow", FILE),
    # Rows, with checksums and digests that fit.
    "sentence": rows("documents", SHARD, lambda own: own[1]["sentences"].append("More.")),
    "no-sentences": rows("documents", SHARD, lambda own: own[1].update(sentences=[])),
    "document-lost": rows("documents", SHARD, lambda own: own.pop()),
    "document-twice": rows("documents", SHARD, lambda own: own.append(own[-1])),
    "document-order": rows("documents", SHARD, lambda own: own.reverse()),
    "heldout-lost": rows("documents", HELDOUT, lambda own: own.pop()),
    "id": rows("examples", FILE, lambda own: own[5]["input_ids"].__setitem__(1, 60_000)),
    "row-long": rows("examples", FILE, lengthen),
    "row-empty": rows("examples", FILE, first(input_ids=[])),
    "row-lost": rows("examples", FILE, lambda own: own.pop()),
    "rows-lost": rows("examples", FILE, lambda own: own.clear()),
    "row-twice": rows("examples", FILE, lambda own: own.append(own[0])),
    "label": rows("examples", FILE, lambda own: own[5].update(next_sentence_label=1 - own[5]["next_sentence_label"])),
    "label-2": rows("examples", FILE, first(next_sentence_label=2)),
    "segment": rows("examples", FILE, first(segment_b_start=60_000)),
    "unmasked": rows("examples", FILE, first(masked_lm_positions=[], masked_lm_ids=[])),
    "position": rows("examples", FILE, first(masked_lm_positions=[31] * 5, masked_lm_ids=[9] * 5)),
    "fewer-ids": rows("examples", FILE, lambda own: own[5]["masked_lm_ids"].pop()),
    "null": with_null,
    "metadata-seed": with_metadata("clozeworks.seed", "1"),
    "metadata-size": with_metadata("clozeworks.vocabulary_size", "many"),
    "metadata-gone": with_metadata("clozeworks.masking", None),
    "metadata-more": with_metadata("clozeworks.\u00fc", "1"),
    # Vocabulary.
    "unused-filled": text("vocabulary", "vocab.txt", lambda lines: lines.replace("\nka\n", "\nmine\n")),
    "tokens-swapped": swap_vocabulary,
    "token-twice": text("vocabulary", "vocab.txt", lambda lines: lines.replace("\nka\n", "\nlo\n")),
    "token-lost": text("vocabulary", "vocab.txt", lambda lines: lines.replace("\nka\n", "\n")),
    "no-mask": text("vocabulary", "vocab.txt", lambda lines: lines.replace("[MASK]", "[GAP]")),
    "no-unk": text("vocabulary", "vocab.txt", lambda lines: lines.replace("[UNK]", "[GAP]")),
    "no-line-end": text("vocabulary", "vocab.txt", lambda lines: lines[:-1]),
    "no-lines": text("vocabulary", "vocab.txt", lambda _lines: ""),
    "vocabulary-bytes": raw("vocabulary", "vocab.txt", lambda data: b"\xff" + data, fit=True),
    "tokenizer-text": text("vocabulary", "tokenizer.json", lambda _lines: "{}"),
    "tokenizer-case": tokenizer(lambda facts: facts["normalizer"].update(lowercase=False)),
    "tokenizer-accents": tokenizer(lambda facts: facts["normalizer"].update(strip_accents=False)),
    "tokenizer-prefix": tokenizer(lambda facts: facts["model"].update(max_input_chars_per_word=200)),
    "tokenizer-specials": tokenizer(lambda facts: facts["added_tokens"].pop()),
    "tokenizer-truncates": tokenizer(
        lambda facts: facts.update(
            truncation={"direction": "Right", "max_length": 8, "strategy": "LongestFirst", "stride": 0}
        )
    ),
    # Rejects.
    "reject-lost": rejects(lambda lines: lines[1:]),
    "reject-words": rejects(lambda lines: [*lines[:-1], b"no JSON\n"]),
    "reject-list": rejects(lambda lines: [*lines[:-1], b'["reason"]\n']),
    "reject-reason": rejects(lambda lines: [*lines[:-1], b'{"reason": ["x"]}\n']),
    "reject-deep": rejects(lambda lines: [*lines[:-1], b"[" * 100_000 + b"\n"]),
    "rejects-cut": raw("documents", "rejected.jsonl.gz", lambda data: data[:-9], fit=True),
    "rejects-no-gzip": raw("documents", "rejected.jsonl.gz", lambda _data: b"reason", fit=True),
    "rejects-unnamed": manifest(
        "documents",
        lambda facts: facts.update(files=[one for one in facts["files"] if one["name"] != "rejected.jsonl.gz"]),
    ),
}


@pytest.mark.parametrize("case", sorted(CASES))
def test_every_damage_is_found(built: tuple[Path, str], tmp_path: Path, case: str) -> None:
    workspace = tmp_path / "w"
    shutil.copytree(built[0], workspace)
    CASES[case](workspace)
    with pytest.raises(InputError) as caught:
        validate(str(workspace))
    line = str(caught.value)
    assert "\n" not in line
    # A place in the workspace, and which stage it is.
    assert re.search(rf"{re.escape(str(workspace))}/({'|'.join(STAGES)})", line), line


def test_there_are_many_kinds_of_damage() -> None:
    assert len(CASES) >= 190


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_of_another_sound_run_is_found(
    built: tuple[Path, str], other: Path, tmp_path: Path, stage: str
) -> None:
    validate(str(other))
    workspace = tmp_path / "w"
    shutil.copytree(built[0], workspace)
    shutil.rmtree(workspace / stage)
    shutil.copytree(other / stage, workspace / stage)
    with pytest.raises(InputError, match=r"digest|metadata"):
        validate(str(workspace))


def test_documents_of_another_run_are_found_though_the_digests_fit(
    built: tuple[Path, str], other: Path, tmp_path: Path
) -> None:
    workspace = tmp_path / "w"
    shutil.copytree(built[0], workspace)
    shutil.rmtree(workspace / "documents")
    shutil.copytree(other / "documents", workspace / "documents")
    restate(workspace, "documents")
    with pytest.raises(
        InputError, match=r"vocab\.txt, row \d+: .* where making it from|statistics|the manifest states"
    ):
        validate(str(workspace))
    with pytest.raises(InputError, match=r"length32: [\d,]+ examples in the files of train, where the documents give"):
        validate(str(workspace / "examples"))


def fault_of(directory: str) -> list[str]:
    try:
        validate(directory)
    except InputError as error:
        return [str(error)]
    return []


def test_random_values_in_a_manifest_end_in_one_line(built: tuple[Path, str], tmp_path: Path) -> None:
    """With any value in a manifest: valid, or one line; never another exception."""
    generator = np.random.default_rng(11)
    values: list[Any] = [None, True, -1, 10**30, 0.5, "x", "", [], {}, [[1]], {"a": {}}]
    workspace = tmp_path / "w"
    shutil.copytree(built[0], workspace)

    def places(value: Any) -> list[tuple[Any, Any]]:
        items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
        return [place for key, inner in items for place in [(value, key), *places(inner)]]

    lines: list[str] = []
    for number in range(120):
        path = workspace / STAGES[number % 3] / "manifest.json"
        sound = path.read_text()
        facts = json.loads(sound)
        choices = places(facts)
        holder, key = choices[int(generator.integers(len(choices)))]
        holder[key] = values[int(generator.integers(len(values)))]
        path.write_text(json.dumps(facts))
        lines += fault_of(str(workspace / STAGES[number % 3]))
        path.write_text(sound)
    assert len(lines) >= 100
    assert not [line for line in lines if "\n" in line]
