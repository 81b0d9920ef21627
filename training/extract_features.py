"""Write BERT's hidden states for each line of a text as Arrow (feature-based approach; paper, section 5.3).

    clozeworks features --model models:/NAME@champion --input text.txt --output features.arrow

The input has one text per line; a line may have any length, nothing is truncated. --pool selects what a row is:

    concat  a sub-token: line, text, start, end, vector
    tokens  a word: the same, with the vector of its first sub-token, as the paper does for named entities
    mean    a line: line, vector; the mean over its sub-tokens without [CLS] and [SEP], null if it has none
    cls     a line: line, vector; that of [CLS], averaged over windows

line counts from 0; start and end are the characters (code points) of the line that delimit text. A vector is a
fixed-size list of 32-bit floats: the concatenated hidden states of --layers. The default, the last four, was the
paper's best. The schema's metadata records model, digest, layers, pool, length and vocabulary.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from typing import BinaryIO

from pipelines.commands.command_line import CommandParser
from pipelines.commands.process_exit import run_and_leave
from pipelines.contract import storage
from pipelines.contract.errors import InputError, exit_code_of
from training.features.encoder_arguments import add_encoder_arguments, parse_encoder_arguments
from training.stages.encoders import encoder_directory

STANDARD_INPUT = "-"
_PROGRESS_SECONDS = 10.0
_BLOCK_BYTES = 1 << 18


def main(arguments: list[str] | None = None) -> int:
    parser = CommandParser(
        prog="clozeworks features",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="example: clozeworks features --model models:/NAME@champion --input text.txt "
        "--pool tokens --output features.arrow",
    )
    add_encoder_arguments(parser, layers="-1,-2,-3,-4")
    parser.add_argument(
        "--input", required=True, metavar="FILE", help="UTF-8 text, one text per line; - is standard input"
    )
    parser.add_argument(
        "--pool", choices=("concat", "mean", "cls", "tokens"), default="concat", help="default: %(default)s"
    )
    parser.add_argument("--output", required=True, metavar="FILE", help="Arrow IPC file, written atomically")
    parsed = parse_encoder_arguments(parser, arguments)
    _require_another_file(parsed.input, parsed.output)
    directory = encoder_directory(parsed.model)
    with ExitStack() as stack:
        stream = _opened(parsed.input, stack)
        _extract(parsed, directory, stream)
    return 0


def _require_another_file(source: str, output: str) -> None:
    """Refuse to replace the text by its features.

    Raises:
        InputError: both are one file.
    """
    if source == STANDARD_INPUT or not storage.is_local(output):
        return
    path = storage.local_path(output)
    if os.path.exists(path) and os.path.exists(source) and os.path.samefile(source, path):
        raise InputError(f"--output {output}: is the file of --input, which it would replace; choose another")


def _opened(path: str, stack: ExitStack) -> BinaryIO:
    if path == STANDARD_INPUT:
        return sys.stdin.buffer
    try:
        return stack.enter_context(open(path, "rb"))
    except OSError as error:
        raise InputError(f"--input {path}: cannot be read ({error.strerror}); give a text file or -") from error


def read_lines(stream: BinaryIO, name: str) -> Iterator[str]:
    """Lines of a UTF-8 stream without their ends (LF, CR or CRLF) and without byte-order mark.

    Raises:
        InputError: a line is not UTF-8.
    """
    for number, raw in enumerate(_raw_lines(stream), start=1):
        try:
            yield raw.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            raise InputError(
                f"{name}:{number}: not UTF-8 at byte {error.start} of the line; convert the file, or remove the line"
            ) from error


def _raw_lines(stream: BinaryIO) -> Iterator[bytes]:
    begun: list[bytes] = []
    held = b""
    # Read what is available: a line from a pipe is processed while waiting for the next one.
    while block := stream.read1(_BLOCK_BYTES):  # type: ignore[attr-defined]
        data = held + block
        # A CR at the end may be half of a CRLF.
        held = b"\r" if data.endswith(b"\r") else b""
        lines = data.removesuffix(held).splitlines(keepends=True)
        for line in lines:
            begun.append(line)
            if line.endswith((b"\n", b"\r")):
                yield b"".join(begun).removesuffix(b"\n").removesuffix(b"\r")
                begun.clear()
    if begun or held:
        yield b"".join(begun)


def _extract(parsed: argparse.Namespace, directory: str, stream: BinaryIO) -> None:
    # torch takes seconds to load: not for --help, nor for a missing model or file.
    import pyarrow as pa

    from pipelines.contract.workspace import code_version
    from training.bert.modeling import chosen_layers
    from training.engine.devices import device_of_one_process
    from training.features.extractor import FeatureExtractor, chosen_length, load_encoder

    started = time.monotonic()
    encoder = load_encoder(directory, device_of_one_process())
    layers = chosen_layers(parsed.layers, encoder.config.num_hidden_layers)
    length = chosen_length(parsed.max_seq_length, encoder.config)
    extractor = FeatureExtractor(encoder.model, encoder.tokenizer, layers, parsed.pool, length, encoder.device)
    metadata = {
        "model": parsed.model,
        "model_sha256": encoder.digest,
        "layers": ",".join(str(layer) for layer in layers),
        "pool": parsed.pool,
        "max_seq_length": str(length),
        "vocabulary_sha256": encoder.tokenizer.vocabulary_sha256(),
        "code_version": code_version(),
    }
    schema = extractor.schema.with_metadata({f"clozeworks.{key}": value for key, value in metadata.items()})
    print(f"features: {parsed.model} on {encoder.device}, {extractor.vector_size} numbers per row", flush=True)
    num_rows, num_lines, told = 0, 0, started

    def counted() -> Iterator[str]:
        nonlocal num_lines
        for line in read_lines(stream, "standard input" if parsed.input == STANDARD_INPUT else parsed.input):
            num_lines += 1
            yield line

    with storage.atomic_output(parsed.output) as output, pa.ipc.new_file(output, schema) as writer:
        for batch in extractor.batches(counted()):
            writer.write_batch(batch.replace_schema_metadata(schema.metadata))
            num_rows += batch.num_rows
            if time.monotonic() - told >= _PROGRESS_SECONDS:
                told = time.monotonic()
                print(f"features: {num_lines} lines read, {num_rows} rows, {told - started:.0f} s", flush=True)
    seconds = time.monotonic() - started
    print(f"features: {num_lines} lines, {num_rows} rows in {parsed.output}, {seconds:.0f} s", flush=True)


if __name__ == "__main__":
    run_and_leave(lambda: exit_code_of(main))
