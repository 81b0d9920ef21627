"""Plain text: one document per file or per block between blank lines, or Google BERT's form, a sentence per line."""

from __future__ import annotations

from collections.abc import Iterator

from pipelines.inputs.file_patterns import find_files
from pipelines.reading.source import InputFile, RawDocument, Reject
from pipelines.reading.text_records import RecordShape, read_records, read_whole
from pipelines.settings.documents import SourceConfig


class PlainText:
    def find(self, config: SourceConfig, workspace: str | None = None) -> list[InputFile]:
        return find_files(config.inputs, workspace)

    def read(self, file: InputFile, config: SourceConfig) -> Iterator[RawDocument | Reject]:
        if config.document_separator == "file":
            yield _whole_document(file, config)
            return
        has_ready_sentences = config.document_separator == "google-bert"
        for record in read_records(file, config, _BLOCKS):
            if isinstance(record, Reject):
                yield record
            else:
                # Keep the lines apart: in this form a line is often one sentence or paragraph.
                text = record.text.strip().replace("\n", "\n\n")
                yield RawDocument(record.source, text, has_ready_sentences)


def _whole_document(file: InputFile, config: SourceConfig) -> RawDocument | Reject:
    whole = read_whole(file, config)
    return whole if isinstance(whole, Reject) else RawDocument(file.name, whole.text)


def _begins_block(line: bytes, is_after_blank: bool) -> bool:
    return is_after_blank and not line.isspace()


def _is_whole_block(block: bytes) -> bool:
    return block.splitlines()[-1].strip() == b""


_BLOCKS = RecordShape(_begins_block, _is_whole_block)
