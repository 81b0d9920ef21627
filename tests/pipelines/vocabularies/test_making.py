"""The vocabulary stage with a vocabulary that is brought: real jobs, their manifests, and what reads them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import transformers
from tests.support.preprocessing.small_run import run_all

from pipelines import train_vocabulary
from pipelines.contract.errors import InputError
from pipelines.contract.manifest import Manifest, require_manifest
from pipelines.contract.recipe import read_recipe
from pipelines.contract.workspace import EXAMPLES, VOCABULARY
from pipelines.settings.vocabulary import VocabularyConfig
from pipelines.stage_keys import vocabulary_key
from pipelines.statistics.preprocessing import ExamplesStatistics, VocabularyStatistics
from pipelines.validation.workspace import validate
from training.tokenizing.checks import require_same_tokenizer

ADDED = ["<ent>", "kalo"]


def recipe_of(source: str, path: Path, workspace: Path, settings: str) -> str:
    """A recipe's documents and examples with another [vocabulary]."""
    text = Path(source).read_text().replace("size = 300", settings)
    old = read_recipe(source).tables["run"]["workspace"]
    path.write_text(text.replace(f'workspace = "{old}"', f'workspace = "{workspace}"'))
    return str(path)


def vocabulary_of(workspace: Path) -> Manifest:
    return require_manifest(str(workspace / VOCABULARY), VOCABULARY, "")


@pytest.fixture(scope="module")
def brought(built: tuple[Path, str], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, Path]:
    """A workspace with another vocabulary that has added tokens and [unused] entries: itself, recipe, source."""
    root = tmp_path_factory.mktemp("brought")
    tokens = (built[0] / VOCABULARY / "vocab.txt").read_text().split("\n")[:200]
    tokens[9:9] = ["[unused0]", "[unused1]"]
    tokenizer = transformers.BertTokenizer({token: index for index, token in enumerate(tokens)}, do_lower_case=False)
    tokenizer.add_tokens(["Kalo"])
    tokenizer.save_pretrained(str(root / "source"))
    (root / "w").mkdir()
    shutil.copytree(built[0] / "documents", root / "w" / "documents")
    recipe = recipe_of(built[1], root / "r.toml", root / "w", f'from = "{root}/source"\nextend = 2')
    run_all(recipe)
    return root / "w", recipe, root / "source"


def test_a_workspaces_own_vocabulary_gives_its_bytes(built: tuple[Path, str], tmp_path: Path) -> None:
    workspace, recipe = built
    (tmp_path / "w").mkdir()
    shutil.copytree(workspace / "documents", tmp_path / "w" / "documents")
    train_vocabulary.run([recipe_of(recipe, tmp_path / "r.toml", tmp_path / "w", f'from = "{workspace}"')])
    for name in ("vocab.txt", "tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / "w" / VOCABULARY / name).read_bytes() == (workspace / VOCABULARY / name).read_bytes()
    one, other = (vocabulary_of(place) for place in (workspace, tmp_path / "w"))
    facts = other.statistics_as(VocabularyStatistics)
    assert facts.origin == str(workspace)
    assert {**one.statistics, "origin": str(workspace)} == other.statistics
    assert other.config == {"extend": 0}
    assert set(other.inputs) == {"documents", "brought"}
    validate(str(tmp_path / "w" / VOCABULARY))


@pytest.mark.slow
def test_a_brought_and_extended_vocabulary_decides_the_examples(brought: tuple[Path, str, Path]) -> None:
    workspace, _, source = brought
    theirs = sorted(vocab := json.loads((source / "tokenizer.json").read_text())["model"]["vocab"], key=vocab.get)
    ours = (workspace / VOCABULARY / "vocab.txt").read_text().split("\n")[:-1]
    facts = vocabulary_of(workspace).statistics_as(VocabularyStatistics)
    assert facts.extension is not None
    assert (facts.extension.into_unused, facts.extension.appended) == (2, 0)
    assert [ours[9], ours[10]] == list(facts.extension.replaced.values()) == facts.extension.examples
    assert [*ours[:9], *theirs[9:11], *ours[11:]] == [*theirs, "Kalo"]
    assert facts.extension.unk_share_before > facts.unk_share > 0.01
    assert len(facts.warnings) == 1
    assert f"vocabulary.from = {source} does not fit" in facts.warnings[0]
    # The examples have the casing and the added token of the source.
    tokenizer = transformers.AutoTokenizer.from_pretrained(str(workspace / VOCABULARY))
    assert tokenizer.tokenize("Kalo kaloKalo")[0] == "Kalo"
    text = require_manifest(str(workspace / EXAMPLES), EXAMPLES, "").statistics_as(ExamplesStatistics).text
    sentences = []
    for path in sorted((workspace / "documents").glob("*.arrow")):
        with pa.ipc.open_file(path) as reader:
            sentences += reader.read_all()["sentences"].combine_chunks().flatten().to_pylist()
    ids = [token for sentence in sentences for token in tokenizer(sentence, add_special_tokens=False)["input_ids"]]
    assert ids.count(len(theirs)) > 0
    assert (text.tokens, text.unk) == (len(ids), ids.count(tokenizer.unk_token_id))
    require_same_tokenizer(
        str(workspace / VOCABULARY), *(str(workspace / stage) for stage in (VOCABULARY, EXAMPLES, "documents"))
    )
    validate(str(workspace))


@pytest.mark.slow
def test_the_key_names_what_was_found_and_not_where(
    brought: tuple[Path, str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    workspace, recipe, source = brought
    before = (workspace / VOCABULARY / "manifest.json").read_bytes()
    shutil.copytree(source, tmp_path / "moved")
    train_vocabulary.run([recipe, "--set", f"vocabulary.from={tmp_path}/moved"])
    assert "vocabulary: complete and unchanged" in capsys.readouterr().out
    # A source that is away is not needed while the stage that adopted it is complete; another setting needs it.
    source.rename(tmp_path / "away")
    try:
        train_vocabulary.run([recipe])
        assert "vocabulary: complete and unchanged" in capsys.readouterr().out
        with pytest.raises(InputError, match="no such file or directory"):
            train_vocabulary.run([recipe, "--set", "vocabulary.extend=1"])
        with pytest.raises(InputError, match="no such file or directory"):
            train_vocabulary.run([recipe, "--set", f"vocabulary.from={source}2"])
    finally:
        (tmp_path / "away").rename(source)
    # A refusal comes before anything is replaced.
    with pytest.raises(InputError, match=r"its \[unused\] entries|\[unused\] entries and added tokens"):
        train_vocabulary.run([recipe, "--set", "vocabulary.extend=3"])
    assert (workspace / VOCABULARY / "manifest.json").read_bytes() == before
    config = read_recipe(recipe).section("vocabulary", VocabularyConfig)
    assert vocabulary_key(config, str(workspace)).difference(str(workspace / VOCABULARY)) is None
    tokenizer = (source / "tokenizer.json").read_text()
    (source / "tokenizer.json").write_text(tokenizer.replace('"##ka"', '"##qu"'))
    changed = vocabulary_key(config, str(workspace)).difference(str(workspace / VOCABULARY))
    assert changed == "input brought changed"


DAMAGES: dict[str, tuple[str, Any]] = {
    "origin": ("statistics.extension.replaced", {"[unused0]": "x"}),
    "digest": ("inputs.brought", "0" * 63 + "1"),
    "extend": ("config.extend", 1),
    "before": ("statistics.extension.pieces_per_word_before", 9.0),
    "lost": ("statistics.extension", None),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_statement_about_the_source_is_found(
    brought: tuple[Path, str, Path], tmp_path: Path, name: str
) -> None:
    for stage in ("documents", VOCABULARY):
        shutil.copytree(brought[0] / stage, tmp_path / stage)
    path = tmp_path / VOCABULARY / "manifest.json"
    manifest = json.loads(path.read_text())
    key, value = DAMAGES[name]
    *parents, last = key.split(".")
    node = manifest
    for parent in parents:
        node = node[parent]
    node[last] = value
    path.write_text(json.dumps(manifest))
    with pytest.raises(InputError, match=r"vocabulary"):
        validate(str(tmp_path))


def test_a_form_and_an_override_name_from(tmp_path: Path) -> None:
    from flows.parameters.requests import PreprocessRequest

    path = tmp_path / "r.toml"
    path.write_text(f'[run]\nname = "x"\n[vocabulary]\nfrom = "{tmp_path}"\n')
    assert read_recipe(str(path), ["vocabulary.from=a"]).section("vocabulary", VocabularyConfig).origin == "a"
    request = PreprocessRequest(recipe=str(path), vocabulary={"from": "b", "extend": 2})
    assert request.all_overrides() == ('vocabulary.from="b"', "vocabulary.extend=2")
    assert PreprocessRequest(**request.model_dump()) == request
    for override, message in (
        ("vocabulary.from=3", r"vocabulary\.from = 3: must be text in quotes"),
        ("vocabulary.origin=3", r"vocabulary\.origin = 3: unknown key"),
        ("vocabulary.fro=x", r"did you mean 'from'"),
        ("vocabulary.extend=-1", r"vocabulary\.extend = -1: must be from 0"),
    ):
        with pytest.raises(InputError, match=message):
            read_recipe(str(path), [override]).section("vocabulary", VocabularyConfig)
