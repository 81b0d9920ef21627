"""A finished workspace written by hand, small, with real files in every format, and harmful texts."""

from __future__ import annotations

import gzip
import json
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
from tests.support.statistics import statistics_with

from flows.parameters.whole_recipe import WholeRecipe
from flows.running.outcomes import FlowOutcome, RegisteredModel, StageOutcome
from pipelines.contract import storage
from pipelines.contract.manifest import FileRecord, StageKey, record_of, write_manifest
from pipelines.contract.schemas import SPECIAL_TOKENS, examples_schema
from pipelines.contract.statistics import Statistics
from pipelines.statistics.preprocessing import (
    DocumentsStatistics,
    ExamplesStatistics,
    LengthStatistics,
    VocabularyStatistics,
)
from pipelines.statistics.training import TrialStatistics

SCRIPT = "</script></td><script>alert(1)</script>"
PICTURE = "<img src='http://127.0.0.1:9/leak.png' onerror=alert(1)>"
TURNED = "\u202eright to left\u2066 \u05e9\u05dc\u05d5\u05dd"
BROKEN = "half a pair \ud800, NUL \x00, escape \x1b[31m"
FORGED_NAME = "a\x1b]0;title\x07\nerror: forged\r<script>alert(2)</script>.txt"
WARNING = f"9.7 % of all tokens are [UNK] ({FORGED_NAME} {PICTURE}); raise vocabulary.alphabet_size"
LONG_NAME = "a-very-long-name-without-any-space-" * 6

VOCABULARY = [
    *SPECIAL_TOKENS,
    *("a", ".", "##s", "##ing", "the", "cat", "dog", "sat", "on", "mat", "long", "##est", "##ation", "<b>", "&amp;"),
    *("\u05e9\u05dc\u05d5\u05dd", "\u202e", "extraordinarily", PICTURE, "W" * 90),
]
ID = {token: number for number, token in enumerate(VOCABULARY)}

# The model's input, with (place, original) of each token to predict; where B begins; is B random?
IS_NEXT = ("[CLS] the [MASK] sat [SEP] on <b> mat ##s . [SEP]", {2: "cat", 6: "the", 7: "mat"}, 5, 0)
NOT_NEXT = ("[CLS] long ##est ##ation [SEP] [MASK] \u05e9\u05dc\u05d5\u05dd \u202e [SEP]", {5: PICTURE}, 5, 1)
PLAIN = ("[CLS] long ##est ##ation &amp; the [SEP]", {}, 5, 0)

LENGTHS = {
    "32": statistics_with(
        LengthStatistics,
        examples=900,
        tokens=27_000,
        length_histogram={f"{length:02d}": length * length for length in range(2, 33, 2)},
        masked_share=0.15,
        random_next_share=0.5,
        masked_as_mask=800,
        masked_as_random=100,
        masked_as_kept=100,
        mean_length=30.0,
        shortest_example=5,
    ),
    "512": statistics_with(
        LengthStatistics,
        examples=1_234_567_890,
        tokens=567_890_123_456,
        length_histogram={f"{length:03d}": 10**8 + length for length in range(32, 513, 32)},
    ),
}
HELDOUT = {"mlm_accuracy": 0.0001, "nsp_accuracy": 0.5, "mlm_perplexity": 9670.04, "loss": 9.9}
PRETRAINING = {
    "heldout_before": HELDOUT,
    "heldout_after": {"mlm_accuracy": 0.1798, "nsp_accuracy": 0.6582, "mlm_perplexity": 226.2, "loss": 6.0},
    "steps": 2200,
    "tokens": 2_344_405,
    "parameters": 1_503_746,
    "world_size": 2,
    "deviations": "hidden_dropout_prob 0.0 (BERT: 0.1), adam_beta2 0.98 (BERT: 0.999)",
}
TRIALS: dict[str, dict[str, Any]] = {
    "cola/pretrained": {
        "metric": "accuracy",
        "score": 0.573,
        "majority_baseline": 0.5,
        "train_rows": 6000,
        "dev_rows": 1000,
    },
    "cola/random": {"metric": "accuracy", "score": 0.513, "dev_rows": 1000},
    "squad/pretrained": {"metric": "f1", "score": 81.25, "dev_rows": 500},
    f"{LONG_NAME}/pretrained": {"metric": "matthews_correlation", "score": -0.125},
    f"{LONG_NAME}/random": {"metric": "matthews_correlation", "score": 0.02},
}


def write_workspace(
    whole: WholeRecipe,
    examples: Sequence[tuple[str, Mapping[int, str], int, int]] = (IS_NEXT, NOT_NEXT),
    metadata: Mapping[str, str] | None = None,
) -> FlowOutcome:
    """Write every stage that a report reads, and return it as the outcome of a run."""
    workspace = whole.run.workspace
    seconds = {"documents": 13.27, "vocabulary": 5.1, "examples": 0.4, "pretraining": 172.1, "finetuning": 9876.5}
    outputs = {
        "documents": _documents(storage.join(workspace, "documents")),
        "vocabulary": _vocabulary(storage.join(workspace, "vocabulary")),
        "examples": _examples(storage.join(workspace, "examples"), examples, metadata or {}),
        "pretraining": _pretraining(storage.join(workspace, "pretraining")),
    }
    directories = {name: {name: directory} for name, directory in outputs.items()}
    for name, statistics in TRIALS.items():
        trial = statistics_with(TrialStatistics, **statistics)
        _complete(storage.join(workspace, "finetuning", name), "finetuning", [], trial)
    directories["finetuning"] = {
        name: storage.join(workspace, "finetuning", name) for name in TRIALS if name.startswith("cola/")
    }
    stages = tuple(
        StageOutcome(
            stage=name,
            built=name not in ("documents", "vocabulary"),
            seconds=seconds[name] if name != "vocabulary" else None,
            mlflow_run_id="1",
            directories=of_stage,
        )
        for name, of_stage in directories.items()
    )
    models = tuple(
        RegisteredModel(name=f"trial-{name}", version="3", alias="champion", new=name == "cola")
        for name in ("encoder", "cola")
    )
    return FlowOutcome(stages=stages, models=models)


def _complete(
    directory: str, stage: str, files: Sequence[FileRecord], statistics: Statistics | Mapping[str, Any]
) -> str:
    config = (
        {"sources": [{"format": "text", "inputs": [f"{TURNED}.txt", "corpus.txt", FORGED_NAME]}]}
        if stage == "documents"
        else {}
    )
    write_manifest(directory, StageKey(stage, 1, config, {}).manifest(files, statistics, "0"))
    return directory


def _documents(directory: str) -> str:
    rejects = [
        {"source": SCRIPT, "reason": "too-short", "detail": PICTURE},
        {"source": "corpus.txt:2", "reason": "too-short", "detail": "the second of its reason"},
        {"source": TURNED, "reason": "not-utf-8", "detail": BROKEN},
        {"source": LONG_NAME, "reason": "duplicate", "detail": "the same text as document " + "0f" * 16},
    ]
    # Lone surrogates are written as JSON escapes.
    lines = "".join(json.dumps(reject) + "\n" for reject in rejects)
    storage.write_bytes(storage.join(directory, "rejected.jsonl.gz"), gzip.compress(lines.encode(), mtime=0))
    statistics = statistics_with(
        DocumentsStatistics,
        documents_read=1200,
        documents_kept=1100,
        documents_rejected=104,
        rejected_by_reason={"duplicate": 1, "not-utf-8": 1, "too-short": 2, "unseen": 100},
        heldout_documents=90,
        sentences=99_000,
        characters=123_456_789_012,
        cleaning={"control_characters_removed": 8},
    )
    return _complete(directory, "documents", [record_of(directory, "rejected.jsonl.gz", rows=4)], statistics)


def _vocabulary(directory: str) -> str:
    storage.write_bytes(storage.join(directory, "vocab.txt"), "".join(f"{token}\n" for token in VOCABULARY).encode())
    statistics = statistics_with(
        VocabularyStatistics,
        size=len(VOCABULARY),
        distinct_words=43_210,
        unk_share=0.0973,
        pieces_per_word=1.2345,
        warnings=[WARNING],
    )
    return _complete(directory, "vocabulary", [record_of(directory, "vocab.txt", rows=len(VOCABULARY))], statistics)


def _examples(
    directory: str, examples: Sequence[tuple[str, Mapping[int, str], int, int]], metadata: Mapping[str, str]
) -> str:
    schema = examples_schema(len(VOCABULARY), {"max_seq_length": "32", **metadata})
    rows = [
        {
            "input_ids": [ID[token] for token in text.split()],
            "segment_b_start": start,
            "masked_lm_positions": sorted(masked),
            "masked_lm_ids": [ID[masked[place]] for place in sorted(masked)],
            "next_sentence_label": label,
        }
        for text, masked, start, label in examples
    ]
    name = "length32/train-00000-of-00001.arrow"
    with (
        storage.atomic_output(storage.join(directory, name)) as stream,
        pa.ipc.new_file(stream, schema) as writer,
    ):
        writer.write_table(pa.Table.from_pylist(rows, schema=schema))
    return _complete(
        directory,
        "examples",
        [record_of(directory, name, rows=len(rows))],
        statistics_with(ExamplesStatistics, lengths=LENGTHS),
    )


def _pretraining(directory: str) -> str:
    lines = [{"step": 0, "heldout_mlm_loss": 9.2, "heldout_mlm_accuracy": 0.0001, "heldout_nsp_accuracy": 0.5}]
    for step in range(100, 2201, 100):
        accuracies = {"mlm_accuracy": step / 10_000, "nsp_accuracy": 0.5 + step / 10_000}
        lines.append({"step": step, "mlm_loss": 9 - step / 500, **accuracies, "tokens_per_second": 20_025.6})
    lines.append({"step": 2200, "heldout_mlm_loss": 5.1, "heldout_mlm_accuracy": 0.18, "heldout_nsp_accuracy": 0.658})
    lines.append({"step": 2200, "mlm_loss": float("nan")})
    text = "".join(json.dumps(line) + "\n" for line in lines)
    storage.write_bytes(storage.join(directory, "metrics.jsonl"), text.encode())
    return _complete(directory, "pretraining", [], PRETRAINING)
