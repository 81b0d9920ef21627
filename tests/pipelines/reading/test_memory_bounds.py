"""Memory that a small packed file takes in a worker: a few times one of its texts, never all of its contents."""

from __future__ import annotations

import bz2
import gzip
import json
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from pipelines.documents.cleaning import clean_text
from pipelines.documents.document import document_id
from pipelines.filtering.word_hashes import shingle_hashes
from pipelines.settings.documents import CleaningConfig, NearDuplicatesConfig

MIB = 1 << 20
PROSE = b"The ship left the harbour early in the morning, and nobody noticed it.\n"

UNPREDICTABLE = random.Random(1).randbytes(32 << 10).hex().encode()

# Reads a source as a worker does, and prints its rejects and the growth of its peak memory in MiB.
READ = """
import json, resource, sys
from pipelines.settings.documents import DocumentsConfig, SourceConfig
from pipelines.documents.document import DocumentReader, Reject
from pipelines.sources.formats import find_inputs
source = SourceConfig(**json.loads(sys.argv[1]))
config = DocumentsConfig(sources=(source,))
reader = DocumentReader(config)
((file,),) = find_inputs(config)
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
before = peak()
reasons = [item.reason if isinstance(item, Reject) else "" for item in reader.read(file, source)]
print(json.dumps([reasons, peak() - before]))
"""


def read(**settings: Any) -> tuple[list[str], int]:
    command = [sys.executable, "-c", READ, json.dumps(settings)]
    found = subprocess.run(command, capture_output=True, text=True, check=True, timeout=600)
    reasons, growth_mib = json.loads(found.stdout)
    return reasons, growth_mib


def blocks(unit: bytes, num_bytes: int) -> Iterator[bytes]:
    block = unit * (MIB // len(unit))
    for _ in range(num_bytes // len(block)):
        yield block


def write_packed(path: Path, data: Iterator[bytes]) -> None:
    if path.suffix == ".zst":
        with pa.CompressedOutputStream(str(path), "zstd") as stream:
            for block in data:
                stream.write(block)
        return
    with gzip.open(path, "wb", 6) if path.suffix == ".gz" else bz2.open(path, "wb", 1) as stream:
        for block in data:
            stream.write(block)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "unpacked_mib"), [("a.gz", 80), ("a.bz2", 20), ("a.zst", 80)])
@pytest.mark.parametrize("separator", ["file", "blank-line"])
def test_a_text_beyond_the_limit_takes_no_more_than_the_limit(
    tmp_path: Path, name: str, unpacked_mib: int, separator: str
) -> None:
    write_packed(tmp_path / name, blocks(UNPREDICTABLE, unpacked_mib * MIB))
    limit_mib = unpacked_mib // 20
    reasons, growth_mib = read(
        inputs=[str(tmp_path / name)], document_separator=separator, max_record_bytes=limit_mib * MIB
    )
    assert reasons == ["too-large"]
    assert growth_mib < 10 + 4 * limit_mib


@pytest.mark.slow
@pytest.mark.parametrize("unit", [PROSE, b"word\n", b"letters"], ids=["prose", "lines", "letters"])
def test_a_text_within_the_limit_takes_a_few_times_its_size(tmp_path: Path, unit: bytes) -> None:
    write_packed(tmp_path / "a.gz", blocks(unit, 64 * MIB))
    assert (tmp_path / "a.gz").stat().st_size < MIB
    reasons, growth_mib = read(inputs=[str(tmp_path / "a.gz")])
    assert reasons == [""]
    assert growth_mib < 5 * 64


def test_long_texts_give_what_short_ones_give(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "One\u2003w\x01ord  and\nanother.\n\n\n  Two\t\twords\n \n" + "many " * 30
    sentences = [f"Sentence {number}." for number in range(25)]
    words = NearDuplicatesConfig().words_per_shingle
    cleaning = CleaningConfig()
    expected = clean_text(text, cleaning), document_id(sentences), shingle_hashes(text, words).tolist()
    for name, value in (
        ("pipelines.documents.document._SENTENCES_AT_ONCE", 4),
        ("pipelines.filtering.word_hashes._WORDS_AT_ONCE", 7),
        ("pipelines.documents.cleaning._PIECE_CHARACTERS", 5),
    ):
        monkeypatch.setattr(name, value)
    assert (clean_text(text, cleaning), document_id(sentences), shingle_hashes(text, words).tolist()) == expected
