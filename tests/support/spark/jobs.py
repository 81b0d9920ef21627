"""The three jobs that every cluster runs, two recipes for them, and the files that are compared."""

from __future__ import annotations

import random
import sys
from pathlib import Path

from tests.support import REPOSITORY

JOBS = {"shard_corpus": "documents", "train_vocabulary": "vocabulary", "build_examples": "examples"}
"""In order, with the stage that each writes."""

_RECIPE = """
[run]
name = "spark"
workspace = "{workspace}"
workers = 2
[documents]
num_shards = 4
heldout_share = 0.2
[documents.near_duplicates]
{sources}
[vocabulary]
size = 2000
[examples]
passes = 2
[[examples.lengths]]
max_seq_length = 64
max_predictions_per_seq = 10
[[examples.lengths]]
max_seq_length = 128
max_predictions_per_seq = 20
"""

# Real text that any machine with Python has, and more where corpora are next to the checkout.
_DOCSTRINGS = """
[[documents.sources]]
format = "python-docstrings"
inputs = ["stdlib"]
max_input_bytes = {bytes}
"""
_NOVELS = """
[[documents.sources]]
inputs = ["{directory}/*.txt"]
document_separator = "blank-line"
"""

_MIXED_RECIPE = """
[run]
name = "mixed"
workspace = "{root}/workspace"
workers = 2
[documents]
num_shards = 3
heldout_share = 0.2
quality = {{ rules = ["gopher-repetition", "min-words"], limits = {{ min-words = 20 }} }}
decontamination = {{ files = ["{root}/dev.tsv"], words_per_gram = 8 }}
[[documents.sources]]
name = "library"
weight = 0.4
format = "python-docstrings"
inputs = ["stdlib"]
max_input_bytes = 400_000
[[documents.sources]]
name = "letters"
weight = 0.6
inputs = ["{root}/letters.txt"]
document_separator = "blank-line"
[vocabulary]
from = "{root}/vocab.txt"
extend = 200
[examples]
passes = 2
next_sentence = false
lengths = [{{ max_seq_length = 64, max_predictions_per_seq = 10 }}]
[[examples.sets]]
name = "expert"
sources = [{{ name = "letters", weight = 3 }}, {{ name = "library", weight = 1 }}]
masking = "dynamic_whole_word"
passes = 1
lengths = [{{ max_seq_length = 48, max_predictions_per_seq = 7 }}]
"""


def write_recipe(root: Path) -> Path:
    """Near-duplicates, a trained vocabulary and pairs of sentences, in some megabytes of text."""
    novels = REPOSITORY.parent / "shared" / "data" / "corpora" / "demo"
    sources = _DOCSTRINGS.format(bytes=4_000_000) + (_NOVELS.format(directory=novels) if novels.is_dir() else "")
    return _write(root / "spark.toml", _RECIPE.format(workspace=root / "workspace", sources=sources))


def write_small_recipe(root: Path) -> Path:
    """As `write_recipe`, with less text."""
    return _write(
        root / "small.toml", _RECIPE.format(workspace=root / "workspace", sources=_DOCSTRINGS.format(bytes=600_000))
    )


def write_mixed_recipe(root: Path) -> Path:
    """Sources with weights, rules of quality, decontamination, a vocabulary that is extended, two sets of examples."""
    generator = random.Random(5)

    def sentence() -> str:
        words = ["".join(generator.choices("abcdefgh", k=generator.randint(2, 6))) for _ in range(9)]
        return " ".join(words).capitalize() + "."

    documents = [[sentence() for _ in range(generator.randint(1, 14))] for _ in range(60)]
    documents.append([sentence()] * 10)
    (root / "letters.txt").write_text("\n\n".join("\n".join(document) for document in documents))
    longest = max(documents[:-1], key=len)
    (root / "dev.tsv").write_text(f"id\tsentence\n1\t{longest[3]}\n")
    letters = "abcdefghijklmnopqrstuvwxyz0123456789.,()_"
    tokens = ["[PAD]", *(f"[unused{number}]" for number in range(20)), "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokens += [*letters, *(f"##{letter}" for letter in letters), "the", "##ing"]
    (root / "vocab.txt").write_text("\n".join(tokens) + "\n")
    return _write(root / "mixed.toml", _MIXED_RECIPE.format(root=root))


def _write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def command(job: str, recipe: Path, *arguments: str) -> list[str]:
    return [sys.executable, "-m", f"pipelines.{job}", str(recipe), *arguments]


def files_below(directory: Path) -> dict[str, bytes]:
    """All files of the stages but locks and what was verified, which are in directories that begin with a dot."""
    paths = (path for stage in JOBS.values() for path in (directory / stage).rglob("*"))
    files = (path for path in paths if path.is_file() and not path.parent.name.startswith("."))
    return {str(path.relative_to(directory)): path.read_bytes() for path in files}
