"""A tokenizer that gives the corpus other ids than the examples have is found and named."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from pipelines.contract.errors import InputError
from pipelines.contract.manifest import StageKey, record_of, write_manifest
from pipelines.contract.schemas import DOCUMENTS_SCHEMA, SPECIAL_TOKENS, examples_schema
from pipelines.contract.workspace import shard_name
from pipelines.jobs.arrow_files import write_table
from pipelines.wordpiece.tokenizer import WordPieceTokenizer
from pipelines.wordpiece.word_counts import tokenizer_files
from training.tokenizing.checks import require_same_tokenizer, words_of
from training.tokenizing.export import write_tokenizer

WORDS = [
    "Daniel",
    "daniel",
    "da",
    "##niel",
    "##n",
    "caf",
    "Caf",
    "##é",
    "##e",
    "lives",
    "in",
    "the",
    ".",
    "中",
    "文",
    "x",
]
TOKENS = [*SPECIAL_TOKENS, "[unused0]", *WORDS]
SENTENCES = ["Daniel lives in the Café .", "the café in 中文 .", "dan lives \u200bin the da\u0301niel ."]


class Stages:
    """The three stages that preprocessing writes, in small."""

    def __init__(self, place: Path, lowercase: bool, strip_accents: bool | None, dynamic: bool = False) -> None:
        self.vocabulary, self.examples, self.documents = (
            str(place / name) for name in ("vocabulary", "examples", "documents")
        )
        config = {"lowercase": lowercase, "strip_accents": strip_accents}
        for name, content in tokenizer_files(TOKENS, lowercase, strip_accents).items():
            write(place / "vocabulary" / name, content)
        files = [record_of(self.vocabulary, name, len(TOKENS)) for name in ("vocab.txt", "tokenizer.json")]
        write_manifest(self.vocabulary, StageKey("vocabulary", 1, config, {}).manifest(files, {}, "test"))
        write_stage(self.documents, "documents", shard_name("train", 0, 1), self._documents())
        rows = WordPieceTokenizer(TOKENS, lowercase, strip_accents).tokenize(pa.array(SENTENCES))
        parts = np.split(rows.input_ids, rows.offsets[1:-1])
        table = pa.Table.from_pylist(
            [example(part.tolist(), dynamic) for part in parts], schema=examples_schema(len(TOKENS), {})
        )
        write_stage(self.examples, "examples", f"length32/{shard_name('train', 0, 1)}", table)

    @staticmethod
    def _documents() -> pa.Table:
        rows = [{"doc_id": bytes(16), "source": "a", "sentences": SENTENCES}]
        return pa.Table.from_pylist(rows, schema=DOCUMENTS_SCHEMA)

    def check(self, directory: str) -> None:
        require_same_tokenizer(directory, self.vocabulary, self.examples, self.documents)


def write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def write_stage(directory: str, stage: str, name: str, table: pa.Table) -> None:
    Path(directory, name).parent.mkdir(parents=True, exist_ok=True)
    write_table(f"{directory}/{name}", table, 100)
    files = [record_of(directory, name, table.num_rows)]
    write_manifest(directory, StageKey(stage, 1, {}, {}).manifest(files, {}, "test"))


def example(ids: list[int], dynamic: bool) -> dict[str, Any]:
    row = [2, *ids, 3]
    masked = [] if dynamic else [1]
    return {
        "input_ids": [4 if place in masked else token for place, token in enumerate(row)],
        "segment_b_start": len(row),
        "masked_lm_positions": masked,
        "masked_lm_ids": [row[place] for place in masked],
        "next_sentence_label": 0,
    }


CASINGS = [(True, None), (True, False), (False, None), (False, True)]


@pytest.mark.parametrize(("lowercase", "strip_accents"), CASINGS)
def test_an_export_passes_and_any_other_casing_does_not(
    tmp_path: Path, lowercase: bool, strip_accents: bool | None
) -> None:
    stages = Stages(tmp_path, lowercase, strip_accents, dynamic=lowercase)
    stages.check(stages.vocabulary)
    encoder = tmp_path / "encoder"
    encoder.mkdir()
    write_tokenizer(str(encoder), stages.vocabulary, 64)
    stages.check(str(encoder))
    for other in CASINGS:
        if other == (lowercase, strip_accents):
            continue
        config = json.loads((encoder / "tokenizer_config.json").read_text())
        config |= {"do_lower_case": other[0], "strip_accents": other[1]}
        changed = tmp_path / f"changed-{other}"
        shutil.copytree(encoder, changed)
        (changed / "tokenizer_config.json").write_text(json.dumps(config))
        with pytest.raises(
            InputError, match=r"changed-.*: its tokenizer gives '.*' other ids than .*(examples|documents) has"
        ):
            stages.check(str(changed))


def test_a_vocabulary_that_is_not_that_of_the_examples_is_found_without_documents(tmp_path: Path) -> None:
    stages = Stages(tmp_path, True, None)
    other = tmp_path / "other"
    tokens = [*SPECIAL_TOKENS, "[unused0]", *reversed(WORDS)]
    for name, content in tokenizer_files(tokens, True, None).items():
        write(other / name, content)
    with pytest.raises(InputError, match=r"other: its tokenizer gives '.*' other ids than .*examples has \(token 1"):
        require_same_tokenizer(str(other), stages.vocabulary, stages.examples)
    require_same_tokenizer(stages.vocabulary, stages.vocabulary, stages.examples, str(tmp_path / "none"))


def test_a_vocabulary_edited_by_hand_is_refused_with_the_way_to_do_it(tmp_path: Path) -> None:
    stages = Stages(tmp_path, True, None)
    path = tmp_path / "vocabulary" / "vocab.txt"
    path.write_text(path.read_text().replace("[unused0]", "zebra"))
    with pytest.raises(InputError, match=r"vocab\.txt: line 6 is 'zebra', .*rebuild the stage.*--encoder"):
        stages.check(stages.vocabulary)


def test_examples_of_a_vocabulary_that_is_gone_are_named(tmp_path: Path) -> None:
    stages = Stages(tmp_path, True, None)
    tokens = [*SPECIAL_TOKENS, "[unused0]", *(word.upper() + "X" * place for place, word in enumerate(WORDS))]
    for name, content in tokenizer_files(tokens, True, None).items():
        write(tmp_path / "vocabulary" / name, content)
    with pytest.raises(InputError, match=r"examples: of \d+ words .* splits \d+ differently"):
        require_same_tokenizer(stages.vocabulary, stages.vocabulary, stages.examples)


def test_pieces_that_a_row_cut_off_are_no_words() -> None:
    ids = {token: index for index, token in enumerate(TOKENS)}
    row = ["[CLS]", "##niel", "lives", "da", "##niel", "[SEP]", "caf", "##é", "[UNK]", "in", "[SEP]"]
    words = words_of(np.array([ids[token] for token in row]), TOKENS)
    assert words == {"lives": [ids["lives"]], "café": [ids["caf"], ids["##é"]]}
