"""Rows of examples as Arrow batches, and back."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipelines.examples.masking import MaskedExamples

EXAMPLES_PER_BATCH = 8192


def examples_batch(examples: MaskedExamples, schema: pa.Schema) -> pa.RecordBatch:
    """Wrap the arrays of masked examples as one batch of the contract's columns."""
    id_type = np.dtype(str(schema.field("input_ids").type.value_type)).type  # to_pandas_dtype would import pandas
    columns = [
        _lists(examples.input_ids, examples.offsets, id_type),
        pa.array(examples.segment_b_start),
        _lists(examples.masked_lm_positions, examples.masked_lm_offsets, np.uint16),
        _lists(examples.masked_lm_ids, examples.masked_lm_offsets, id_type),
        pa.array(examples.next_sentence_label),
    ]
    return pa.RecordBatch.from_arrays(
        [column.cast(field.type) for column, field in zip(columns, schema, strict=True)], schema=schema
    )


def examples_of(rows: pa.Table | pa.RecordBatch) -> MaskedExamples:
    """The columns of examples as flat arrays: the reverse of `examples_batch`."""
    columns = {
        name: column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
        for name, column in zip(rows.schema.names, rows.columns, strict=True)
    }

    def flat(name: str) -> NDArray[Any]:
        return columns[name].flatten().to_numpy()  # type: ignore[no-any-return]

    def offsets(name: str) -> NDArray[np.int64]:
        raw = columns[name].offsets.to_numpy().astype(np.int64)
        return raw - raw[0] if len(raw) else np.zeros(1, np.int64)

    return MaskedExamples(
        input_ids=flat("input_ids").astype(np.int32),
        offsets=offsets("input_ids"),
        segment_b_start=columns["segment_b_start"].to_numpy(),
        masked_lm_positions=flat("masked_lm_positions"),
        masked_lm_ids=flat("masked_lm_ids").astype(np.int32),
        masked_lm_offsets=offsets("masked_lm_positions"),
        next_sentence_label=columns["next_sentence_label"].to_numpy(),
    )


def _lists(values: NDArray[np.generic], offsets: NDArray[np.int64], dtype: type[np.generic]) -> pa.Array:
    flat = pa.array(values.astype(dtype, copy=False))
    return pa.ListArray.from_arrays(pa.array(offsets.astype(np.int32)), flat)
