"""Check the documents stage: every row, and the statistics recomputed from the shards."""

from __future__ import annotations

import gzip
import json
import zlib
from collections import Counter

import pyarrow.compute as pc

from pipelines.contract import storage
from pipelines.contract.manifest import Manifest
from pipelines.contract.schemas import documents_schema
from pipelines.contract.workspace import REJECTS_NAME, shard_name
from pipelines.documents.document import document_id, shard_number, shards_of
from pipelines.filtering.decontamination import CONTAMINATED
from pipelines.settings.documents import DocumentsConfig
from pipelines.validation.faults import FaultError, compare, compare_names, config_of, table_of


def validate_documents(directory: str, manifest: Manifest) -> None:
    config = config_of(directory, manifest, DocumentsConfig)
    names = {(split, index): shard_name(split, index, count) for split, index, count in shards_of(config)}
    shards = [file for file in manifest.files if file.name.endswith(".arrow")]
    compare_names(directory, list(manifest.files), [*names.values(), REJECTS_NAME])
    found: Counter[str] = Counter()
    for file in shards:
        table = table_of(directory, file, documents_schema(config.source_names))
        previous = b""
        for row, (doc_id, sentences) in enumerate(
            zip(table["doc_id"].to_pylist(), table["sentences"].to_pylist(), strict=True)
        ):
            where = f"{directory}/{file.name}, row {row}"
            if doc_id != document_id(sentences):
                raise FaultError(f"{where}: doc_id is not the hash of the sentences")
            if len(sentences) < config.min_sentences:
                raise FaultError(f"{where}: has {len(sentences)} sentences, fewer than {config.min_sentences}")
            if doc_id <= previous:
                raise FaultError(f"{where}: doc_id is not greater than the one before")
            split, number = shard_number(doc_id, config.heldout_share, config.num_shards)
            if names[split, number] != file.name:
                raise FaultError(f"{where}: belongs to {names[split, number]} by its hash")
            previous = doc_id
        texts = table["sentences"].combine_chunks().flatten()
        counts = {"sentences": len(texts), "characters": int(pc.sum(pc.utf8_length(texts)).as_py() or 0)}
        for name, count in counts.items():
            compare(f"{directory}/{file.name}", name, file.statistics.get(name), count)
        found.update(counts)
        found.update({"documents_kept": table.num_rows, f"{file.name.partition('-')[0]}_documents": table.num_rows})
    rejected = _count_rejects(directory, manifest)
    found.update({"documents_rejected": sum(rejected.values())})
    found["documents_read"] = found["documents_kept"] + found["documents_rejected"]
    stated = {"train_documents": 0, "heldout_documents": 0} | manifest.statistics
    for name in sorted(found):
        compare(directory, name, stated.get(name), found[name])
    if (decontamination := manifest.statistics.get("decontamination")) is not None:
        dropped = sum(decontamination["documents_by_file"].values())
        compare(directory, "decontamination.documents_by_file, summed", dropped, rejected[CONTAMINATED])
    compare(directory, "rejected_by_reason", manifest.statistics.get("rejected_by_reason"), dict(rejected))


def _count_rejects(directory: str, manifest: Manifest) -> Counter[str]:
    """Number of lines in the file of rejects, by reason."""
    (file,) = (file for file in manifest.files if file.name == REJECTS_NAME)
    where = f"{directory}/{file.name}"
    reasons: Counter[str] = Counter()
    filesystem, path = storage.filesystem_of(storage.join(directory, file.name))
    try:
        with filesystem.open_input_stream(path, compression=None) as stream, gzip.open(stream) as lines:
            for line in lines:
                reasons[json.loads(line)["reason"]] += 1
    except (OSError, EOFError, zlib.error, ValueError, KeyError, TypeError, RecursionError) as error:
        row = sum(reasons.values())
        raise FaultError(f"{where}, row {row}: not JSON with a reason, or the file is cut off ({error})") from error
    compare(where, "rows", file.rows, sum(reasons.values()))
    return reasons
