"""Examples on disk to packed micro-batches, one process, shuffled: ours against torch's DataLoader on the same rows.

Ours reads memory-mapped Arrow files and is timed from there to the tensors of a step, with its prefetch thread. The
peer has its rows in memory as Python lists; `transformers.DataCollatorForLanguageModeling` masks and pads them. Rates
are real tokens per CPU second. `value` and `ratio` are with masks drawn at reading, as the peer does; `static_value`
takes the masks as written. `identical`: every epoch read held each token once.
"""

from __future__ import annotations

import statistics
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from tests.support.measuring import cpu_seconds, report
from torch.utils.data import DataLoader
from transformers import BertTokenizerFast, DataCollatorForLanguageModeling

from pipelines.contract.manifest import Manifest, StageKey, record_of
from pipelines.contract.schemas import SPECIAL_TOKENS, examples_schema
from pipelines.contract.workspace import length_directory, shard_name
from pipelines.examples.arrow_rows import EXAMPLES_PER_BATCH
from pipelines.jobs.arrow_files import write_table
from training.data.arrow_examples import ArrowExamples
from training.data.dynamic_masking import DynamicMasking, row_keys
from training.data.ordering import GlobalOrder
from training.data.step_reader import Deal, StepReader
from training.engine.devices import keep_memory

RUNS = 5
LENGTH, VOCAB_SIZE = 128, 30_522
FULL_SHARE, SHORTEST = 0.75, 10
"""Rows that fill the maximum length; the others have any length from the shortest on."""
NUM_FILES, ROWS_PER_FILE = 8, 45_056
BATCH_SIZE = 256
PEER_ROWS = 40 * BATCH_SIZE
MASKING = DynamicMasking(0.15, 20, *(SPECIAL_TOKENS.index(token) for token in ("[CLS]", "[SEP]", "[MASK]")), VOCAB_SIZE)


def write_examples(directory: str) -> Manifest:
    """About 40 million tokens as the examples stage writes them, with static masks."""
    files = []
    metadata = {"masking": "static", "masked_lm_prob": "0.15", "max_predictions_per_seq": "20"}
    schema = examples_schema(VOCAB_SIZE, metadata)
    for index in range(NUM_FILES):
        generator = np.random.default_rng(index)
        others = generator.integers(SHORTEST, LENGTH, ROWS_PER_FILE)
        lengths = np.where(generator.random(ROWS_PER_FILE) < FULL_SHARE, LENGTH, others)
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        segment_b_start = lengths // 2
        ids = generator.integers(len(SPECIAL_TOKENS), VOCAB_SIZE, offsets[-1]).astype(np.uint16)
        ids[offsets[:-1]] = MASKING.cls_id
        ids[offsets[:-1] + segment_b_start - 1] = MASKING.sep_id
        ids[offsets[1:] - 1] = MASKING.sep_id
        keys = row_keys(np.arange(ROWS_PER_FILE), index)
        counts = MASKING.num_predictions(ids, offsets, keys)
        positions, masked_ids = MASKING.apply(ids, lengths, keys, counts)
        masked_offsets = np.concatenate([[0], np.cumsum(counts)])
        columns = [
            _lists(ids, offsets),
            pa.array(segment_b_start.astype(np.uint16)),
            _lists((positions - np.repeat(offsets[:-1], counts)).astype(np.uint16), masked_offsets),
            _lists(masked_ids, masked_offsets),
            pa.array(generator.integers(0, 2, ROWS_PER_FILE).astype(np.uint8)),
        ]
        arrays = [column.cast(field.type) for column, field in zip(columns, schema, strict=True)]
        name = f"{length_directory(LENGTH)}/{shard_name('train', index, NUM_FILES)}"
        write_table(f"{directory}/{name}", pa.Table.from_arrays(arrays, schema=schema), EXAMPLES_PER_BATCH)
        files.append(record_of(directory, name, ROWS_PER_FILE))
    return StageKey("examples", 1, {}, {}).manifest(files, {}, "benchmark")


def _lists(values: NDArray[Any], offsets: NDArray[np.int64]) -> pa.Array:
    return pa.ListArray.from_arrays(pa.array(offsets.astype(np.int32)), pa.array(values))


def peer_rows(examples: ArrowExamples) -> list[dict[str, list[int]]]:
    """Some rows with their masks undone, and all that saves the collator work."""
    rows = examples.read(((0, PEER_ROWS),)).without_masks()
    ids = np.split(rows.input_ids.values.astype(np.int64), rows.input_ids.offsets[1:-1])
    return [
        {
            "input_ids": row.tolist(),
            "token_type_ids": (np.arange(len(row)) >= start).astype(np.int64).tolist(),
            "special_tokens_mask": np.isin(row, [MASKING.cls_id, MASKING.sep_id]).astype(np.int64).tolist(),
            "next_sentence_label": int(label),
        }
        for row, start, label in zip(ids, rows.segment_b_start, rows.next_sentence_label, strict=True)
    ]


def peer_loader(directory: str, rows: list[dict[str, list[int]]]) -> DataLoader[Any]:
    vocabulary = Path(directory, "vocab.txt")
    words = [*SPECIAL_TOKENS, *(f"w{index}" for index in range(VOCAB_SIZE - len(SPECIAL_TOKENS)))]
    vocabulary.write_text("\n".join(words))
    collator = DataCollatorForLanguageModeling(BertTokenizerFast(str(vocabulary)), mlm_probability=0.15)
    return DataLoader(rows, batch_size=BATCH_SIZE, shuffle=True, collate_fn=collator)  # type: ignore[arg-type]


def main() -> None:
    torch.set_num_threads(1)
    # As training does on a CPU.
    keep_memory()
    with tempfile.TemporaryDirectory() as directory:
        examples = ArrowExamples(directory, write_examples(directory), "train", LENGTH)
        all_tokens = int(examples.read(((0, examples.num_rows),)).input_ids.offsets[-1])
        order = GlobalOrder(examples.num_rows, 1)
        steps = examples.num_rows // BATCH_SIZE
        identical = True

        def ours(masking: DynamicMasking | None, epoch: int) -> float:
            nonlocal identical
            tokens = 0

            def read_epoch() -> None:
                nonlocal tokens
                reader = StepReader(examples, order, BATCH_SIZE, Deal(with_plan=False), targets=masking)
                for step in reader.steps(epoch * examples.num_rows, steps):
                    tokens += step.micro_batches[0].sequences.num_tokens

            seconds = cpu_seconds(read_epoch)
            identical = identical and tokens == all_tokens
            return tokens / seconds / 1e6

        rows = peer_rows(examples)
        loader = peer_loader(directory, rows)
        peer_tokens = sum(len(row["input_ids"]) for row in rows)

        def peer() -> float:
            return peer_tokens / cpu_seconds(lambda: [batch["labels"] for batch in loader]) / 1e6

        ours(None, 0)
        peer()
        rounds = [(ours(None, epoch), ours(MASKING, epoch), peer()) for epoch in range(RUNS)]
    report(
        "loader",
        statistics.median(dynamic for _, dynamic, _ in rounds),
        "M tokens/s",
        peer="torch DataLoader + transformers.DataCollatorForLanguageModeling",
        peer_value=statistics.median(other for _, _, other in rounds),
        ratio=statistics.median(dynamic / other for _, dynamic, other in rounds),
        static_value=statistics.median(static for static, _, _ in rounds),
        static_ratio=statistics.median(static / other for static, _, other in rounds),
        identical=identical,
        tokens=all_tokens,
        runs=RUNS,
    )


if __name__ == "__main__":
    main()
