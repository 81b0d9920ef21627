"""Raw text to training rows on all cores, by the clock, with start-up: our three jobs against what people run.

The first peer is `datasets.map` with `BertTokenizerFast`, two processes, as `run_mlm.py` of `transformers` does it:
with a given vocabulary, it tokenises lines and cuts them into rows. Ours reads, cleans and de-duplicates documents,
splits sentences, trains the vocabulary, and writes next-sentence pairs with masks. The second is `lddl` 0.1.0: its
`create_pairs_from_document` makes the same kind of rows, timed on a sample of our documents on one core and scaled to
all of them on two. Results are compared where they must be equal: the token ids of sentences.

    make bench NAME=preprocessing
    .venv/bin/python tests/benchmarks/preprocessing.py --megabytes 5 --rounds 1
"""

from __future__ import annotations

import argparse
import random
import shutil
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.ipc
from tests.support import REPOSITORY
from tests.support.measuring import NOVELS, cpu_seconds, english_paragraphs, report
from tests.support.peers import installed
from tests.support.preprocessing.lddl import lddl_functions
from tests.support.process_usage import Usage, total, usage_of
from transformers import BertTokenizerFast

from pipelines.commands.process_start import command_of
from pipelines.contract.manifest import read_manifest
from pipelines.wordpiece.tokenizer import WordPieceTokenizer

LENGTH, MASKED_SHARE, PROCESSES = 128, 0.15, 2
DATASETS = ("datasets==5.2.0", "dill==0.4.1", "multiprocess==0.70.19", "xxhash==4.1.0")
JOBS = ("shard_corpus", "train_vocabulary", "build_examples")
VOCABULARY_SIZE, SMALL_SIZE = 30_522, 2_000
SMALL_MEGABYTES = 0.1
"""One novel: what is left of the time is start-up."""
LDDL_DOCUMENTS = 40
RECIPE = """
[run]
workspace = "{workspace}"
workers = {processes}
[documents]
num_shards = 8
max_characters = 100_000
[[documents.sources]]
inputs = ["{corpus}/*.txt"]
document_separator = "file"
[vocabulary]
size = {vocabulary_size}
[examples]
passes = 1
lengths = [{{ max_seq_length = {length}, max_predictions_per_seq = 20 }}]
"""


def copied_corpus(directory: Path, megabytes: float) -> float:
    """Copy novels, or write other English text, until there are so many megabytes; returns how many there are."""
    directory.mkdir()
    if not NOVELS.is_dir():
        text = "\n\n".join(english_paragraphs(round(megabytes * 1e6)))
        (directory / "0.txt").write_text(text)
        return len(text.encode()) / 1e6
    size_bytes = 0
    for path in sorted(NOVELS.glob("*.txt")):
        if size_bytes >= megabytes * 1e6:
            break
        shutil.copy(path, directory)
        size_bytes += path.stat().st_size
    return size_bytes / 1e6


def ours(directory: Path, corpus: Path, vocabulary_size: int, jobs: Sequence[str] = ("preprocess",)) -> list[Usage]:
    """Run all three jobs in a new workspace, by one command or by one each."""
    directory.mkdir()
    recipe = directory / "recipe.toml"
    recipe.write_text(
        RECIPE.format(
            workspace=directory / "workspace",
            corpus=corpus,
            length=LENGTH,
            processes=PROCESSES,
            vocabulary_size=vocabulary_size,
        )
    )
    # As the command `clozeworks` and the flows start them.
    return [usage_of(command_of(f"pipelines.{job}", [str(recipe)])) for job in jobs]


def mapped(directory: Path, corpus: Path, vocabulary: Path) -> Usage:
    """Run the peer's script with a given vocabulary."""
    directory.mkdir()
    command = ["-m", "tests.support.preprocessing.mapped_dataset", str(vocabulary), str(directory)]
    texts = [str(path) for path in sorted(corpus.glob("*.txt"))]
    return usage_of(
        [sys.executable, *command, *texts, f"--length={LENGTH}", f"--processes={PROCESSES}"],
        {
            "PYTHONPATH": str(REPOSITORY),
            "PEER_PACKAGES": str(installed(*DATASETS)),
            "HF_HOME": str(directory / "home"),
            "HF_HUB_OFFLINE": "1",
        },
    )


def sentences_of_documents(workspace: Path) -> list[list[str]]:
    """The sentences of each document that the first job wrote."""
    found: list[list[str]] = []
    for path in sorted((workspace / "documents").glob("train-*.arrow")):
        with pyarrow.ipc.open_file(path) as reader:
            found += reader.read_all()["sentences"].to_pylist()
    return found


def lddl_seconds(documents: list[list[str]], vocabulary: list[str]) -> float:
    """CPU seconds that LDDL's functions take for all documents, by a sample of them: tokens, pairs and masks."""
    lddl = lddl_functions()
    tokenizer = BertTokenizerFast(vocab={token: index for index, token in enumerate(vocabulary)})
    sample = documents[:LDDL_DOCUMENTS]
    random.seed(1)

    def work() -> None:
        read = [
            lddl.Document(
                number,
                tuple(
                    lddl.Sentence(tuple(tokenizer.tokenize(text, max_length=512, truncation=True))) for text in document
                ),
            )
            for number, document in enumerate(sample)
        ]
        for number in range(len(read)):
            lddl.create_pairs_from_document(
                read, number, LENGTH, masking=True, masked_lm_ratio=MASKED_SHARE, vocab_words=tuple(vocabulary)
            )

    sizes = [sum(map(len, document)) for document in documents]
    return cpu_seconds(work) * sum(sizes) / sum(sizes[:LDDL_DOCUMENTS])


def are_equal(documents: list[list[str]], vocabulary: list[str]) -> bool:
    """Whether both tokenisers give the same ids for the sample's sentences."""
    texts = [text for document in documents[:LDDL_DOCUMENTS] for text in document]
    theirs = BertTokenizerFast(vocab={token: index for index, token in enumerate(vocabulary)})
    expected = theirs(texts, add_special_tokens=False).input_ids
    found = WordPieceTokenizer(vocabulary, lowercase=True).tokenize(pa.array(texts))
    return [ids.tolist() for ids in np.split(found.input_ids, found.offsets[1:-1])] == expected


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=float, default=60, help="of text; all novels by default")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    (REPOSITORY / "build").mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=REPOSITORY / "build") as name:
        root = Path(name)
        megabytes = copied_corpus(root / "corpus", arguments.megabytes)
        copied_corpus(root / "small", SMALL_MEGABYTES)
        rounds: list[dict[str, Usage]] = []
        size = VOCABULARY_SIZE if megabytes > 40 else SMALL_SIZE
        for number in range(arguments.rounds):
            one = total(ours(root / f"ours{number}", root / "corpus", size))
            workspace = root / f"ours{number}" / "workspace"
            peer = mapped(root / f"peer{number}", root / "corpus", workspace / "vocabulary" / "vocab.txt")
            apart = total(ours(root / f"apart{number}", root / "corpus", size, JOBS))
            rounds.append({"ours": one, "peer": peer, "ours by three commands": apart})
            print({name: usage._asdict() for name, usage in rounds[-1].items()}, file=sys.stderr, flush=True)
        small = total(ours(root / "ours-small", root / "small", SMALL_SIZE))
        peer_small = mapped(root / "peer-small", root / "small", workspace / "vocabulary" / "vocab.txt")
        documents = sentences_of_documents(workspace)
        vocabulary = (workspace / "vocabulary" / "vocab.txt").read_text().splitlines()
        examples = read_manifest(str(workspace / "examples"))
        assert examples is not None
        peer_rows = int((root / "peer0" / "rows.txt").read_text())
        lddl = lddl_seconds(documents, vocabulary)
        equal = are_equal(documents, vocabulary)

    def median(name: str, field: str) -> float:
        return statistics.median(getattr(usages[name], field) for usages in rounds)

    wall, cpu = (
        statistics.median(getattr(usages["peer"], field) / getattr(usages["ours"], field) for usages in rounds)
        for field in ("wall_seconds", "cpu_seconds")
    )
    report(
        "preprocessing",
        median("ours", "wall_seconds"),
        f"s by the clock for {megabytes:.0f} MB of text, three jobs",
        peer="datasets.map with BertTokenizerFast and grouping (run_mlm.py), 2 processes, vocabulary given",
        peer_value=median("peer", "wall_seconds"),
        ratio=wall,
        identical=equal,
        runs=arguments.rounds,
        cpu_seconds=median("ours", "cpu_seconds"),
        peer_cpu_seconds=median("peer", "cpu_seconds"),
        cpu_ratio=cpu,
        start_up_seconds=small.wall_seconds,
        peer_start_up_seconds=peer_small.wall_seconds,
        seconds_by_three_commands=median("ours by three commands", "wall_seconds"),
        tokens=examples.statistics["lengths"][str(LENGTH)]["tokens"],
        peer_tokens=peer_rows * LENGTH,
        lddl_cpu_seconds=lddl,
        ratio_to_lddl=lddl / PROCESSES / median("ours", "wall_seconds"),
    )


if __name__ == "__main__":
    main()
