"""The documents job over all kinds of input at once, good and bad: it ends, and counts add up."""

from __future__ import annotations

import bz2
import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines import shard_corpus
from pipelines.contract.manifest import read_manifest
from pipelines.contract.recipe import read_recipe
from pipelines.documents import document as documents
from pipelines.documents.document import plan_parts
from pipelines.jobs.arrow_files import read_table
from pipelines.settings.documents import DocumentsConfig

RECIPE = """
[run]
workspace = "{root}/workspace"
workers = 1
[documents]
num_shards = 2
[[documents.sources]]
inputs = ["{root}/text"]
[[documents.sources]]
inputs = ["{root}/bert.txt"]
document_separator = "google-bert"
[[documents.sources]]
format = "jsonl"
inputs = ["{root}/lines/*.jsonl*"]
[[documents.sources]]
format = "parquet"
inputs = ["{root}/rows.parquet"]
[[documents.sources]]
format = "csv"
inputs = ["{root}/rows.csv"]
[[documents.sources]]
format = "tsv"
quoting = "none"
inputs = ["{root}/rows.tsv"]
[[documents.sources]]
format = "hf-dataset"
inputs = ["{root}/saved/train"]
[[documents.sources]]
format = "mediawiki"
inputs = ["{root}/dump.xml.bz2", "{root}/cut.xml"]
[[documents.sources]]
format = "wikiextractor"
inputs = ["{root}/wiki_00"]
"""


def prose(label: str, number: int) -> str:
    return f"The {label} text with number {number} is here. It has a second sentence, number {number}."


def write_inputs(root: Path) -> None:
    (root / "text").mkdir()
    (root / "lines").mkdir()
    (root / "text/good.txt").write_text(prose("plain", 0))
    (root / "text/wide.txt").write_bytes(prose("wide", 0).encode("utf-16"))
    (root / "text/no-mark.txt").write_bytes(prose("wide", 1).encode("utf-16-le"))
    (root / "text/empty.txt").write_bytes(b"")
    (root / "text/nul.txt").write_bytes(prose("nul", 0).encode() + b"\0")
    (root / "text/latin.txt").write_bytes("déjà vu, une fois de plus".encode("latin-1"))
    (root / "text/line.txt").write_text("A line of four megabytes has many words. " * 100_000)
    (root / "text/picture.txt").write_bytes(b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + bytes(range(256)) * 40)
    (root / "text/cut.txt.gz").write_bytes(gzip.compress(prose("cut", 0).encode())[:-9])
    (root / "bert.txt").write_text("Dr. Who is one. Sentence\nand this is another\n\n" + prose("bert", 1) + "\n")
    lines = [json.dumps({"text": prose("json", number)}) for number in range(2000)]
    (root / "lines/many.jsonl").write_text("\n".join([*lines, '{"text": "cut off']))
    packed = gzip.compress("\n".join(json.dumps({"text": prose("gz", number)}) for number in range(500)).encode())
    (root / "lines/cut.jsonl.gz").write_bytes(packed[:-12])
    packed = bz2.compress("\n".join(json.dumps({"text": prose("bz2", number)}) for number in range(500)).encode())
    (root / "lines/cut.jsonl.bz2").write_bytes(packed[:-12])
    pq.write_table(pa.table({"text": [prose("row", 0), None]}), root / "rows.parquet")
    (root / "rows.csv").write_text(f'n,text\n1,"{prose("csv", 0)}\n\nA paragraph."\n2,{prose("csv", 1)},more\n')
    lines = [f'{number}\t"{prose("tsv", number)}' for number in range(1000)]
    (root / "rows.tsv").write_text("\n".join(["n\ttext", *lines, ""]))
    (root / "saved/train").mkdir(parents=True)
    (root / "saved/train/state.json").write_text('{"_data_files": [{"filename": "data.arrow"}]}')
    rows = pa.table({"text": [prose("saved", number) for number in range(5)]})
    with pa.ipc.new_stream(root / "saved/train/data.arrow", rows.schema) as writer:
        writer.write_table(rows)
    page = "<page>\n<title>T</title><ns>0</ns><id>{0}</id><revision><id>1</id><text>{1}</text></revision>\n</page>\n"
    pages = "".join(page.format(number, prose("wiki", number)) for number in range(3))
    (root / "dump.xml.bz2").write_bytes(bz2.compress(f"<mediawiki>\n{pages}".encode()))
    (root / "cut.xml").write_text(f"<mediawiki>\n{pages.replace('wiki', 'cut')}"[:-60])
    (root / "wiki_00").write_text(
        f'<doc id="1" title="T">\nT\n\n{prose("extract", 0)}\n</doc>\n<doc id="2" title="U">\n'
    )


def test_a_job_over_good_and_bad_input_of_every_format(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_inputs(tmp_path)
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(RECIPE.format(root=tmp_path))
    monkeypatch.setattr(documents, "PART_BYTES", 20_000)
    plan = plan_parts(read_recipe(str(recipe)).section("documents", DocumentsConfig))
    assert sum(file.name == "lines/many.jsonl" for part in plan for file in part.files) > 5
    shard_corpus.run([str(recipe)])

    directory = tmp_path / "workspace/documents"
    manifest = read_manifest(str(directory))
    assert manifest is not None
    counts = manifest.statistics
    assert counts["documents_read"] == counts["documents_kept"] + counts["documents_rejected"]
    rejected = counts["rejected_by_reason"]
    with gzip.open(directory / "rejected.jsonl.gz", "rt") as stream:
        rejects = [json.loads(line) for line in stream]
    assert len(rejects) == sum(rejected.values())
    assert {(row["source"].partition("#")[0], row["reason"]) for row in rejects} == {
        ("text/no-mark.txt", "binary"),
        ("text/nul.txt", "binary"),
        ("text/empty.txt", "too-short"),
        ("text/latin.txt", "undecodable"),
        ("text/cut.txt.gz", "truncated"),
        ("text/picture.txt", "binary"),
        ("lines/many.jsonl", "bad-json"),
        ("lines/cut.jsonl.bz2", "truncated"),
        ("cut.xml", "truncated"),
        ("lines/cut.jsonl.gz", "truncated"),
        ("rows.parquet", "not-a-string"),
        ("rows.csv", "wrong-fields"),
        ("wiki_00", "truncated"),
    }
    rows = [row for path in sorted(directory.glob("*-of-*.arrow")) for row in read_table(str(path)).to_pylist()]
    sentences = {row["source"]: row["sentences"] for row in rows}
    assert len(sentences) == len(rows) == counts["documents_kept"]
    kept_of = [name.partition("#")[0] for name in sentences]
    assert kept_of.count("lines/many.jsonl") == 2000
    assert kept_of.count("rows.tsv") == 1000
    assert kept_of.count("train/data.arrow") == 5
    assert sentences["rows.csv#7"][-1] == "A paragraph."
    assert 300 < kept_of.count("lines/cut.jsonl.gz") < 500
    assert sentences["bert.txt#0"] == ["Dr. Who is one. Sentence", "and this is another"]
    assert {name for name in sentences if "dump" in name} == {f"dump.xml.bz2#{number}" for number in range(3)}
    assert {name for name in sentences if name.startswith("cut.xml")} == {"cut.xml#0", "cut.xml#1"}
    assert len(sentences["text/line.txt"]) == 100_000
    assert {"text/good.txt", "text/wide.txt", "rows.parquet#0", "wiki_00#1"} <= set(sentences)
