"""Shared n-grams against plain sets of tuples; formats of evaluation data; the files of a recipe's tasks; a job."""

from __future__ import annotations

import bz2
import json
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flows.parameters.whole_recipe import WholeRecipe
from pipelines import shard_corpus
from pipelines.contract.errors import InputError, failure_line
from pipelines.contract.manifest import read_manifest
from pipelines.contract.recipe import read_recipe
from pipelines.documents.summary import closing_lines
from pipelines.filtering.decontamination import EvaluationGrams, Hit, collect_grams
from pipelines.filtering.evaluation_texts import evaluation_files_of, evaluation_texts
from pipelines.filtering.shingles import words_of
from pipelines.jobs.arrow_files import write_table
from pipelines.settings.decontamination import DecontaminationConfig
from pipelines.settings.documents import DocumentsConfig, SourceConfig
from pipelines.stage_keys import documents_key
from pipelines.validation.workspace import validate

SENTENCE = "The old ferryman's boat had been lying on the far bank since the storm, half full of rain-water."


def config_of(*files: Path, **more: int) -> DocumentsConfig:
    section = DecontaminationConfig(files=tuple(map(str, files)), **more)
    return DocumentsConfig(sources=(SourceConfig(inputs=("x",)),), decontamination=section)


def grams_of(directory: Path, size: int, *files: Path) -> EvaluationGrams:
    facts, table = collect_grams(evaluation_files_of(config_of(*files)), size)
    assert facts.grams == len(table)
    write_table(str(directory / "grams.arrow"), table, len(table))
    return EvaluationGrams(str(directory / "grams.arrow"))


def plain_grams(text: str, size: int) -> list[tuple[str, ...]]:
    """In lower case and without punctuation."""
    words = "".join(character if character.isalnum() else " " for character in text.lower()).split()
    return [tuple(words[start : start + size]) for start in range(len(words) - size + 1)]


TEXTS = st.lists(st.sampled_from(["a", "B", "c.", "(d)", "e-f", "é", "7"]), max_size=30).map(" ".join)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(evaluation=st.lists(TEXTS, max_size=4), document=TEXTS, size=st.integers(4, 6))
def test_hits_are_those_of_plain_sets(evaluation: list[str], document: str, size: int, tmp_path: Path) -> None:
    path = tmp_path / "dev.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in evaluation))
    known = {gram for text in evaluation for gram in plain_grams(text, size)}
    if not known:
        with pytest.raises(InputError, match="lower it, or remove the section"):
            grams_of(tmp_path, size, path)
        return
    shared = [gram for gram in plain_grams(document, size) if gram in known]
    found = grams_of(tmp_path, size, path).find(document.split(" "))
    assert found == (Hit(f"{tmp_path.name}/dev.jsonl", " ".join(shared[0])) if shared else None)


def test_a_text_is_found_whatever_its_case_and_punctuation(tmp_path: Path) -> None:
    (tmp_path / "dev.tsv").write_text(f"id\tsentence\n1\t{SENTENCE}\n")
    grams = grams_of(tmp_path, 13, tmp_path / "dev.tsv")
    copy = "she wrote: 'the old ferryman 's boat had been lying -- on the far bank, since the storm; half-full of RAIN'"
    hit = grams.find([copy])
    assert hit == Hit(f"{tmp_path.name}/dev.tsv", "the old ferryman s boat had been lying on the far bank since")
    assert grams.find(["The old ferryman's boat had been lying", "on the far bank since the storm."]) is not None
    assert grams.find(["The old ferryman's boat has been lying on the far shore since the storm, half full."]) is None
    assert grams.find([]) is None
    assert words_of("One, two; three.", 1, 5) == ["two", "three"]


def write_parquet(path: Path) -> None:
    pq.write_table(pa.table({"n": [1], "texts": [[SENTENCE, "b"]]}), path)


def write_stream(path: Path) -> None:
    table = pa.table({"text": [SENTENCE]})
    with pa.ipc.new_stream(path, table.schema) as writer:
        writer.write_table(table)


FILES: dict[str, Callable[[Path], object]] = {
    "dev.tsv": lambda path: path.write_text(f'0\t1\t"{SENTENCE}\n'),
    "dev.txt": lambda path: path.write_text(f"First.\n\n{SENTENCE}\n"),
    "dev.csv": lambda path: path.write_text('n,text\n1,"A first line.\n' + SENTENCE + '"\n'),
    "dev.json": lambda path: path.write_text(json.dumps({"data": [{"paragraphs": [{"context": SENTENCE}]}]})),
    "dev.jsonl.bz2": lambda path: path.write_bytes(bz2.compress(json.dumps({"a": [SENTENCE]}).encode())),
    "dev.conll": lambda path: path.write_text("".join(f"{word} X O\n" for word in SENTENCE.split()) + "\nEnd X O\n"),
    "dev.parquet": write_parquet,
    "data-00000-of-00001.arrow": write_stream,
}


@pytest.mark.parametrize("name", FILES)
def test_every_format_of_evaluation_data(tmp_path: Path, name: str) -> None:
    FILES[name](tmp_path / name)
    hit = grams_of(tmp_path, 13, tmp_path / name).find([SENTENCE])
    assert hit is not None
    assert hit.file == f"{tmp_path.name}/{name}"


def test_bad_evaluation_data_are_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^documents\.decontamination\.files = '.*gone' matches no file") as caught:
        evaluation_files_of(config_of(tmp_path / "gone"))
    assert str(failure_line(caught.value)).removeprefix("error: ").startswith("documents.decontamination.files = ")
    for name, content in (("a.json", b"{"), ("a.parquet", b"x"), ("a.tsv", b"caf\xe9"), ("a.jsonl", b"[" * 100_000)):
        (tmp_path / name).write_bytes(content)
        (file,) = evaluation_files_of(config_of(tmp_path / name))
        with pytest.raises(InputError, match=rf"decontamination: .*{name}: cannot be read as its name says \("):
            list(evaluation_texts(file))
    with pytest.raises(ValueError, match="set files, or tasks = true"):
        DecontaminationConfig()


RECIPE = """
[run]
workspace = "{root}/ws"
workers = 2
[documents]
num_shards = 2
heldout_share = 0.2
decontamination = {{tasks = true, files = ["{root}/extra.txt"]}}
[[documents.sources]]
inputs = ["{root}/corpus"]
[finetuning]
tasks = ["rte", "squad", "tagging", "word-order"]
glue_dir = "{root}/glue"
squad = {{train_file = "{root}/train.json", dev_file = "{root}/dev.json"}}
tagging = {{train_file = "{root}/train.conll", dev_file = "{root}/dev.conll", test_file = "{root}/test.conll"}}
"""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "data"


@pytest.fixture
def recipe(root: Path) -> str:
    (root / "corpus").mkdir(parents=True)
    (root / "glue/RTE").mkdir(parents=True)
    header = "index\tsentence1\tsentence2\tlabel\n"
    words = [f"word{number}" for number in range(60)]
    texts = {name: " ".join(words[3 * place : 3 * place + 14]) for place, name in enumerate("abcdefgh")}
    (root / "glue/RTE/train.tsv").write_text(f"{header}0\t{texts['a']}\tx\tentailment\n")
    (root / "glue/RTE/dev.tsv").write_text(f"{header}0\tshort\t{SENTENCE}\tentailment\n")
    (root / "glue/RTE/test.tsv").write_text(f"index\tsentence1\tsentence2\n0\tshort\t{texts['b']}\n")
    (root / "dev.json").write_text(json.dumps({"data": [{"context": texts["c"].upper()}]}))
    (root / "dev.conll").write_text("".join(f"{word} O\n" for word in texts["d"].split()))
    (root / "test.conll").write_text("".join(f"{word} O\n" for word in texts["e"].split()))
    (root / "extra.txt").write_text(f"{texts['f']}\n")
    for name, text in texts.items():
        (root / f"corpus/{name}.txt").write_text(f"A document begins. It says: {text}. And it ends here.")
    (root / "corpus/sentence.txt").write_text(f"He looked up. {SENTENCE} Nobody had come.")
    for number in range(10):
        (root / f"corpus/good{number}.txt").write_text(f"A good document has its own words, such as {number}{number}.")
    path = root / "recipe.toml"
    path.write_text(RECIPE.format(root=root))
    return str(path)


def test_the_files_of_the_tasks_are_those_of_dev_and_test(recipe: str, root: Path) -> None:
    config = read_recipe(recipe).section("documents", DocumentsConfig)
    assert config.decontamination is not None
    names = ["extra.txt", "dev.conll", "dev.json", "glue/RTE/dev.tsv", "glue/RTE/test.tsv", "test.conll"]
    assert config.decontamination.files == tuple(f"{root}/{name}" for name in names)
    assert WholeRecipe.check(read_recipe(recipe)).documents == config
    with pytest.raises(InputError, match=r"tasks = true, but finetuning.tasks = \['word-order'\] names no task with"):
        read_recipe(recipe, ['finetuning.tasks=["word-order"]']).section("documents", DocumentsConfig)
    off = read_recipe(recipe, ["documents.decontamination={files = ['x']}"]).section("documents", DocumentsConfig)
    assert off.identity()["decontamination"] == {"files": ["x"], "tasks": False, "words_per_gram": 13}
    assert "decontamination" not in DocumentsConfig(sources=off.sources).identity()


def test_the_key_follows_the_contents_of_evaluation_data(recipe: str, root: Path) -> None:
    config = read_recipe(recipe).section("documents", DocumentsConfig)
    before = documents_key(config, str(root / "ws")).inputs
    assert documents_key(config, str(root / "ws")).inputs == before
    (root / "extra.txt").write_text("Another text of evaluation.\n")
    assert documents_key(config, str(root / "ws")).inputs != before


@pytest.mark.slow
def test_a_job_drops_documents_with_a_sentence_of_evaluation_data(
    recipe: str, root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shard_corpus.run([recipe])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("documents: looking for 18 distinct 13-grams of ")
    assert " texts in 6 evaluation files; " in lines[0]
    assert lines[-1] == (
        "documents: 6 documents share words with evaluation data and were dropped: 1 for RTE/dev.tsv, 1 for "
        "RTE/test.tsv, 1 for data/dev.conll, 1 for data/dev.json, 1 for data/extra.txt, 1 for data/test.conll"
    )
    manifest = read_manifest(str(root / "ws/documents"))
    assert manifest is not None
    assert manifest.statistics["rejected_by_reason"] == {"contaminated": 6}
    assert manifest.statistics["decontamination"]["evaluation_grams"] == 18
    rejects = dict(manifest.statistics["first_rejects"]["contaminated"])
    assert rejects["corpus/b.txt"].startswith("has the same words as RTE/test.tsv: word3 word4 word5 ")
    assert closing_lines(manifest, read_recipe(recipe).section("documents", DocumentsConfig))[1] == lines[-1]
    assert list(validate(str(root / "ws/documents")))
    shard_corpus.run([recipe, "--workspace", str(root / "other"), "--set", "run.workers=1"])
    for path in (root / "ws/documents").iterdir():
        if path.is_file():
            assert path.read_bytes() == (root / "other/documents" / path.name).read_bytes(), path.name
