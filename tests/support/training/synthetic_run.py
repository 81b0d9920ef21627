"""A small workspace written by the data contract, without Beam."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import safetensors.torch
import torch
from tests.support import REPOSITORY
from tokenizers import BertWordPieceTokenizer

from pipelines.contract import storage
from pipelines.contract.manifest import StageKey, record_of, write_manifest
from pipelines.contract.schemas import DOCUMENTS_SCHEMA, SPECIAL_TOKENS, SPLITS, examples_schema
from pipelines.contract.workspace import length_directory, shard_name

NUM_WORDS = 200
LENGTHS = (32, 64)

RECIPE = """
[run]
name = "synthetic"

[model]
hidden_size = 32
num_hidden_layers = 2
num_attention_heads = 2
intermediate_size = 64
max_position_embeddings = 64

[pretraining]
learning_rate = 1e-3
num_warmup_steps = 2
eval_every_steps = 10
eval_examples = 64
checkpoint_every_steps = 5
log_every_steps = 1
phases = [
  { max_seq_length = 32, steps = 14, global_batch_size = 16 },
  { max_seq_length = 64, steps = 6, global_batch_size = 8 },
]

[finetuning]
tasks = ["word-order"]
compare_with_random = true
num_train_epochs = 1
learning_rate = 1e-3
max_seq_length = 64
word_order = { max_train_examples = 200, max_dev_examples = 60, min_words = 5, max_words = 12, damaged_words = 4 }
"""


@dataclass(frozen=True)
class Workspace:
    """Paths of a synthetic run, and how its commands are started."""

    path: str
    recipe: str

    def command(self, module: str, *arguments: str, ranks: int = 0) -> list[str]:
        """Command line of a stage: under the launcher with `ranks` processes, or alone with 0."""
        tail = [self.recipe, "--workspace", self.path, *arguments]
        if not ranks:
            return [sys.executable, "-m", module, *tail]
        launcher = os.path.join(os.path.dirname(sys.executable), "deepspeed")
        return [
            launcher,
            "--num_accelerators",
            str(ranks),
            "--master_port",
            str(free_port()),
            "--module",
            module,
            *tail,
        ]

    def run(self, module: str, *arguments: str, ranks: int = 0) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(module, *arguments, ranks=ranks),
            env=environment(),
            cwd=REPOSITORY,
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )

    def start(self, module: str, *arguments: str, ranks: int = 0) -> subprocess.Popen[str]:
        """Start a command in a process group of its own, so that a test may stop all of it."""
        return subprocess.Popen(
            self.command(module, *arguments, ranks=ranks),
            env=environment(),
            cwd=REPOSITORY,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def start_ranks(self, command: list[str], ranks: int) -> list[subprocess.Popen[str]]:
        """Start the processes of a run without a launcher, which costs seconds."""
        shared = {**environment(), "WORLD_SIZE": str(ranks), "LOCAL_SIZE": str(ranks)}
        shared |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "PYTHONFAULTHANDLER": "1"}
        return [
            subprocess.Popen(
                command,
                env={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
                cwd=REPOSITORY,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            for rank in range(ranks)
        ]

    def losses(self) -> dict[int, float]:
        """Logged training losses by step."""
        return {int(line["step"]): line["loss"] for line in self.metrics() if "loss" in line}

    def weights(self) -> dict[str, torch.Tensor]:
        """What the run has exported."""
        return safetensors.torch.load_file(os.path.join(self.path, "pretraining", "encoder", "model.safetensors"))

    def has_weights_of(self, other: Workspace) -> bool:
        first, second = self.weights(), other.weights()
        return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)

    def stage(self, name: str = "pretraining") -> str:
        """Directory of a stage's build where one is under way, else of its result."""
        building = os.path.join(self.path, f"{name}.building")
        return building if os.path.isdir(building) else os.path.join(self.path, name)

    def checkpoints(self) -> dict[int, str]:
        """Directories of finished checkpoints by their steps."""
        folder = os.path.join(self.stage(), "checkpoints")
        names = os.listdir(folder) if os.path.isdir(folder) else []
        return {int(name[5:]): os.path.join(folder, name) for name in sorted(names) if name.startswith("step-")}

    def stopped_after(self, step: int, name: str) -> Workspace:
        """A copy of a finished run as it was when its checkpoint of this step was the newest."""
        copy = Workspace(f"{self.path}-{name}", self.recipe)
        shutil.copytree(self.path, copy.path)
        os.remove(os.path.join(copy.path, "pretraining", "manifest.json"))
        for other, directory in copy.checkpoints().items():
            if other > step:
                shutil.rmtree(directory)
        assert step in copy.checkpoints()
        return copy

    def metrics(self, stage: str = "pretraining") -> list[dict[str, float]]:
        with open(os.path.join(self.stage(stage), "metrics.jsonl"), encoding="utf-8") as stream:
            return [json.loads(line) for line in stream if line.endswith("\n")]


def environment() -> dict[str, str]:
    """Environment of a child: the CPU accelerator, one thread, and this environment's programs first."""
    programs = os.path.dirname(sys.executable)
    return {
        **{key: value for key, value in os.environ.items() if not key.startswith("MLFLOW_")},
        "PATH": programs + os.pathsep + os.environ.get("PATH", ""),
        "DS_ACCELERATOR": "cpu",
        "OMP_NUM_THREADS": "1",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "CLOZEWORKS_LIFELINE_PID": str(os.getpid()),
    }


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def synthetic_sentence(generator: np.random.Generator) -> list[int]:
    """Word numbers of a sentence in which most words are followed by the next one, so that there is order to learn."""
    length = int(generator.integers(5, 13))
    steps = np.where(generator.random(length) < 0.8, 1, generator.integers(2, NUM_WORDS, length))
    return [int(word) for word in np.cumsum(steps) % NUM_WORDS]


def write_documents(directory: str, num_documents: int) -> list[list[list[int]]]:
    """Write the documents stage, an eighth of it held out; return all documents as word numbers."""
    generator = np.random.default_rng(1)
    documents = [
        [synthetic_sentence(generator) for _ in range(int(generator.integers(4, 12)))] for _ in range(num_documents)
    ]
    files = []
    for split in SPLITS:
        chosen = [index for index in range(num_documents) if (index % 8 == 0) == (split == "heldout")]
        table = pa.table(
            {
                "doc_id": pa.array([index.to_bytes(16, "big") for index in chosen], pa.binary(16)),
                "source": pa.array(["synthetic"] * len(chosen)).dictionary_encode(),
                "sentences": pa.array(
                    [[" ".join(f"w{word}" for word in sentence) + " ." for sentence in documents[i]] for i in chosen],
                    DOCUMENTS_SCHEMA.field("sentences").type,
                ),
            },
            schema=DOCUMENTS_SCHEMA,
        )
        name = shard_name(split, 0, 1)
        write_table(storage.join(directory, name), table)
        files.append(record_of(directory, name, table.num_rows))
    write_manifest(directory, StageKey("documents", 1, {}, {}).manifest(files, {}, "test"))
    return documents


def write_vocabulary(directory: str) -> int:
    words = [*SPECIAL_TOKENS, ".", *(f"w{index}" for index in range(NUM_WORDS))]
    storage.write_bytes(storage.join(directory, "vocab.txt"), "".join(f"{word}\n" for word in words).encode())
    tokenizer = BertWordPieceTokenizer({word: index for index, word in enumerate(words)}, lowercase=True)
    storage.write_bytes(storage.join(directory, "tokenizer.json"), tokenizer.to_str().encode())
    config = {"tokenizer_class": "BertTokenizer", "do_lower_case": True, "model_max_length": 64}
    storage.write_bytes(storage.join(directory, "tokenizer_config.json"), json.dumps(config).encode())
    names = ("vocab.txt", "tokenizer.json", "tokenizer_config.json")
    files = [record_of(directory, name, len(words)) for name in names]
    write_manifest(directory, StageKey("vocabulary", 1, {}, {}).manifest(files, {}, "test"))
    return len(words)


def example_row(generator: np.random.Generator, documents: list[list[list[int]]], length: int) -> dict[str, object]:
    """One next-sentence pair with static masks; ids of the words start after the special tokens and the full stop."""
    document = documents[int(generator.integers(len(documents)))]
    start = int(generator.integers(len(document) - 1))
    is_random = bool(generator.random() < 0.5)
    other = documents[int(generator.integers(len(documents)))] if is_random else document[start + 1 :]
    room = length - 3
    first = [word + 6 for word in document[start]][: room // 2]
    second = [word + 6 for sentence in other for word in sentence][: room - len(first)]
    tokens = [2, *first, 3, *second, 3]
    candidates = [index for index, token in enumerate(tokens) if token > 4]
    chosen = sorted(int(i) for i in generator.choice(candidates, max(1, round(0.15 * len(tokens))), replace=False))
    labels = [tokens[index] for index in chosen]
    for index in chosen:
        tokens[index] = 4
    return {
        "input_ids": tokens,
        "segment_b_start": len(first) + 2,
        "masked_lm_positions": chosen,
        "masked_lm_ids": labels,
        "next_sentence_label": int(is_random),
    }


def single_row(generator: np.random.Generator, documents: list[list[list[int]]], length: int) -> dict[str, object]:
    """A sentence of its own, with one static mask."""
    document = documents[int(generator.integers(len(documents)))]
    sentence = document[int(generator.integers(len(document)))]
    tokens = [2, *(word + 6 for word in sentence[: length - 2]), 3]
    chosen = int(generator.integers(1, len(tokens) - 1))
    label, tokens[chosen] = tokens[chosen], 4
    return {
        "input_ids": tokens,
        "segment_b_start": len(tokens),
        "masked_lm_positions": [chosen],
        "masked_lm_ids": [label],
        "next_sentence_label": 0,
    }


def write_examples(
    directory: str, vocabulary: str, size: int, documents: list[list[list[int]]], rows: int, pairs: bool = True
) -> None:
    make_row = example_row if pairs else single_row
    generator = np.random.default_rng(2)
    files = []
    for length in LENGTHS:
        metadata = {} if pairs else {"next_sentence": "false"}
        metadata |= {
            "vocabulary_sha256": storage.sha256_of(storage.join(vocabulary, "vocab.txt")),
            "vocabulary_size": str(size),
            "lowercase": "true",
            "max_seq_length": str(length),
        }
        schema = examples_schema(size, metadata)
        for split in SPLITS:
            count = rows if split == "train" else rows // 4
            for shard in range(2):
                table = pa.Table.from_pylist(
                    [make_row(generator, documents, length) for _ in range(count // 2)], schema=schema
                )
                name = storage.join(length_directory(length), shard_name(split, shard, 2))
                write_table(storage.join(directory, name), table, max_chunksize=100)
                files.append(record_of(directory, name, table.num_rows))
    write_manifest(directory, StageKey("examples", 1, {}, {}).manifest(files, {}, "test"))


def write_table(path: str, table: pa.Table, max_chunksize: int | None = None) -> None:
    with storage.atomic_output(path) as stream, pa.ipc.new_file(stream, table.schema) as writer:
        writer.write_table(table, max_chunksize=max_chunksize)


def write_workspace(path: str, num_documents: int = 200, rows: int = 400, pairs: bool = True) -> Workspace:
    documents = write_documents(storage.join(path, "documents"), num_documents)
    size = write_vocabulary(storage.join(path, "vocabulary"))
    write_examples(storage.join(path, "examples"), storage.join(path, "vocabulary"), size, documents, rows, pairs)
    recipe = os.path.join(path, "recipe.toml")
    storage.write_bytes(recipe, RECIPE.encode())
    return Workspace(path, recipe)
