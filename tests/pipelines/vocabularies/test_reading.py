"""A vocabulary that is brought gives the ids of `transformers`, or is refused by name."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import transformers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.support.faults.scale import rounds
from tests.support.tokenizer_directories import ADDED, TEXTS, WORDS, directories
from tokenizers import AddedToken, Tokenizer

from pipelines.contract.errors import InputError
from pipelines.contract.schemas import SPECIAL_TOKENS
from pipelines.settings.vocabulary import VocabularyConfig
from pipelines.vocabularies.locating import AbsentVocabularyError
from pipelines.vocabularies.reading import BroughtVocabulary, read_vocabulary
from pipelines.wordpiece.tokenizer import WordPieceTokenizer
from pipelines.wordpiece.word_counts import tokenizer_files

IGNORED_BY_TRANSFORMERS = ("never_split", "do_basic_tokenize", "split_special_tokens")


def config_of(origin: Path | str, **values: Any) -> VocabularyConfig:
    return VocabularyConfig.model_validate({"from": str(origin), **values})


def ids_of_ours(vocabulary: BroughtVocabulary, texts: list[str]) -> list[list[int]]:
    tokenized, counts = WordPieceTokenizer(vocabulary.tokens, *vocabulary.settings).tokenize_and_count(
        pa.array(texts, pa.string())
    )
    assert counts.tokens == len(tokenized.input_ids)
    return [part.tolist() for part in np.split(tokenized.input_ids, tokenized.offsets[1:-1])]


def ids_of_transformers(directory: Path, texts: Iterable[str]) -> list[list[int]]:
    own = {} if (directory / "config.json").exists() else {"config": transformers.BertConfig()}
    tokenizer = transformers.AutoTokenizer.from_pretrained(str(directory), local_files_only=True, **own)
    return [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]


def as_saved(files: dict[str, Any]) -> dict[str, Any]:
    """Without the settings that are refused and that transformers ignores."""
    if "tokenizer_config.json" in files:
        config = json.loads(files["tokenizer_config.json"])
        kept = {name: value for name, value in config.items() if name not in IGNORED_BY_TRANSFORMERS}
        files = {**files, "tokenizer_config.json": json.dumps(kept)}
    return {name: text.replace('"clean_text": false', '"clean_text": true') for name, text in files.items()}


@pytest.mark.slow
@settings(max_examples=rounds(100, 3_000), deadline=None, suppress_health_check=list(HealthCheck))
@given(files=directories(), texts=st.lists(TEXTS, min_size=1, max_size=6), is_model=st.booleans())
def test_ids_are_those_of_auto_tokenizer_or_the_directory_is_refused(
    tmp_path: Path, files: dict[str, Any], texts: list[str], is_model: bool
) -> None:
    shutil.rmtree(tmp_path)
    tmp_path.mkdir()
    config = {"config.json": '{"model_type": "bert", "vocab_size": 99}'} if is_model else {}
    for name, text in {**as_saved(files), **config}.items():
        (tmp_path / name).write_text(text)
    try:
        vocabulary = read_vocabulary(config_of(tmp_path))
    except InputError:
        return
    texts = [text for text in texts if not any(token in text for token in SPECIAL_TOKENS)]
    if "tokenizer_config.json" in files or "tokenizer.json" not in files or is_model:
        expected = ids_of_transformers(tmp_path, texts)
    else:
        tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
        tokenizer.no_truncation()
        expected = [tokenizer.encode(text, add_special_tokens=False).ids for text in texts]
    if texts:
        assert ids_of_ours(vocabulary, texts) == expected


FLAGS = st.fixed_dictionaries(
    {name: st.booleans() for name in ("special", "single_word", "lstrip", "rstrip", "normalized")}
)


@pytest.mark.slow
@settings(max_examples=rounds(60, 1_000), deadline=None, suppress_health_check=list(HealthCheck))
@given(
    added=st.dictionaries(st.sampled_from([*ADDED, "[unused1]"]), FLAGS, max_size=3),
    casing=st.tuples(st.booleans(), st.sampled_from([True, False, None]), st.booleans()),
    texts=st.lists(TEXTS, min_size=1, max_size=6),
)
def test_what_save_pretrained_writes_is_read_from_each_of_its_files(
    tmp_path: Path, added: dict[str, dict[str, bool]], casing: tuple[bool, bool | None, bool], texts: list[str]
) -> None:
    shutil.rmtree(tmp_path)
    tokenizer = transformers.BertTokenizer(
        {word: index for index, word in enumerate(WORDS)},
        do_lower_case=casing[0],
        strip_accents=casing[1],
        tokenize_chinese_chars=casing[2],
    )
    tokenizer.add_tokens([AddedToken(content, **flags) for content, flags in added.items()])
    tokenizer.save_pretrained(str(tmp_path))
    brought = read_vocabulary(config_of(tmp_path))
    assert brought.settings[:3] == casing
    assert {token.content for token in brought.settings.added_tokens} == {*added}
    texts = [text for text in texts if not any(token in text for token in SPECIAL_TOKENS)]
    if texts:
        assert ids_of_ours(brought, texts) == ids_of_transformers(tmp_path, texts)
    # tokenizer.json alone states all, and what the stage writes is the same tokenizer for transformers.
    alone, written = tmp_path / "alone" / "tokenizer.json", tmp_path / "written"
    for directory in (alone.parent, written):
        directory.mkdir()
    shutil.copy(tmp_path / "tokenizer.json", alone)
    assert read_vocabulary(config_of(alone)).digest == brought.digest
    for name, content in tokenizer_files(brought.tokens, *brought.settings).items():
        (written / name).write_bytes(content)
    assert read_vocabulary(config_of(written)).digest == brought.digest
    if texts:
        assert ids_of_transformers(written, texts) == ids_of_transformers(tmp_path, texts)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["cased", "uncased"])
def test_released_vocabularies_in_every_form_on_real_texts(shared_data: Path, tmp_path: Path, kind: str) -> None:
    text_file = shared_data / "vocab" / f"bert-base-{kind}-vocab.txt"
    words = text_file.read_text("utf-8").split("\n")[:-1]
    is_lower = kind == "uncased"
    tokenizer = transformers.BertTokenizer({word: index for index, word in enumerate(words)}, do_lower_case=is_lower)
    tokenizer.save_pretrained(str(tmp_path / "saved"))
    brought = [
        read_vocabulary(config_of(text_file, lowercase=is_lower)),
        read_vocabulary(config_of(tmp_path / "saved" / "tokenizer.json")),
        read_vocabulary(config_of(tmp_path / "saved")),
    ]
    assert len({one.digest for one in brought}) == 1
    assert list(brought[0].tokens) == words
    texts = []
    for path in sorted(shared_data.rglob("*"))[::5]:
        if path.is_file():
            texts += path.read_bytes()[:8_000].decode("utf-8", "replace").splitlines()
    texts = [text for text in texts if not any(token in text for token in SPECIAL_TOKENS)]
    assert len(texts) > 2_000
    expected = [one.ids for one in tokenizer.backend_tokenizer.encode_batch_fast(texts, add_special_tokens=False)]
    assert ids_of_ours(brought[0], texts) == expected


def test_a_bare_vocabulary_has_the_recipes_casing_and_says_so(tmp_path: Path) -> None:
    path = tmp_path / "vocab.txt"
    path.write_bytes("".join(f"{word}\r\n" for word in WORDS).encode())
    assumed = read_vocabulary(config_of(path))
    assert assumed.tokens == tuple(WORDS)
    assert assumed.settings == (True, None, True, ())
    assert assumed.assumed == f"{path} states no casing: vocabulary.lowercase = true, the default, applies to it"
    cased = read_vocabulary(config_of(path, lowercase=False))
    assert cased.settings.lowercase is False
    assert cased.assumed == f"{path} states no casing: vocabulary.lowercase = false, applies to it".replace(
        "e, a", "e, a"
    )
    assert cased.digest != assumed.digest


def write(directory: Path, **changes: Any) -> Path:
    """A saved tokenizer; `json`, `config` and `vocab` change its files, None removes one, `others` adds some."""
    directory.mkdir(exist_ok=True)
    for name, content in tokenizer_files(WORDS, True, None).items():
        (directory / name).write_bytes(content)
    for name, key in (("tokenizer.json", "json"), ("tokenizer_config.json", "config")):
        if key in changes and changes[key] is None:
            (directory / name).unlink()
        elif key in changes:
            contents = json.loads((directory / name).read_text())
            changes[key](contents)
            (directory / name).write_text(json.dumps(contents))
    if "vocab" in changes:
        (directory / "vocab.txt").write_text("".join(f"{line}\n" for line in changes["vocab"]))
    for name, content in changes.get("others", {}).items():
        (directory / name).write_text(json.dumps(content))
    return directory


def put(part: str, name: str, value: Any) -> Any:
    return lambda contents: (contents[part] if part else contents).__setitem__(name, value)


ENTITY = {
    "content": "<e>",
    "special": False,
    "single_word": False,
    "lstrip": False,
    "rstrip": False,
    "normalized": True,
}

ROBERTA = {"type": "BertProcessing", "sep": ["</s>", 1], "cls": ["<s>", 2]}
LEVEL = {"type": "WordLevel", "vocab": {"[UNK]": 0}, "unk_token": "[UNK]"}
MODEL_OF_BERT = {"config.json": {"model_type": "bert"}}
SMALL_MODEL = {"config.json": {"model_type": "bert", "vocab_size": 7}}
SIZE = len(WORDS)


def in_text(*lines: str) -> dict[str, Any]:
    return {"vocab": lines, "json": None}


def in_json(part: str, name: str, value: Any, **more: Any) -> dict[str, Any]:
    return {"json": put(part, name, value), **more}


def in_config(name: str, value: Any, part: str = "", **more: Any) -> dict[str, Any]:
    return {"config": put(part, name, value), **more}


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "missing-special": (in_text(*(word for word in WORDS if word != "[MASK]")), r"lacks \[MASK\]; it is not"),
    "duplicate": (in_text(*WORDS, "da"), rf"'da' is on line 8 and on line {SIZE + 1} of vocab"),
    "empty-line": (in_text(*WORDS[:7], "", *WORDS[7:]), r"line 8 of vocab\.txt is empty"),
    "white-space": (in_text(*WORDS, "a "), rf"entry {SIZE} is 'a ', with white space"),
    "no-continuation": (in_text(*SPECIAL_TOKENS, "a", "b"), "no entry begins with ##"),
    "edited": ({"vocab": [*WORDS[:9], "new", *WORDS[10:]]}, r"line 10 of vocab\.txt is 'new', which has the id None"),
    "shorter": ({"vocab": WORDS[:-1]}, r"vocab\.txt lacks '\[unused1\]', which has the id \d+ in tokenizer\.json"),
    "not-wordpiece": (in_json("", "model", LEVEL), "model.type = 'WordLevel'"),
    "prefix": (in_json("model", "continuing_subword_prefix", "@@"), "continuing_subword_prefix = '@@'; only '##'"),
    "unk": (in_json("model", "unk_token", "x"), "model.unk_token = 'x'"),
    "long-words": (in_json("model", "max_input_chars_per_word", 200), "max_input_chars_per_word = 200; only 100"),
    "clean": (in_json("normalizer", "clean_text", False), "normalizer.clean_text = False"),
    "normalizer": (in_json("", "normalizer", {"type": "Lowercase"}), "normalizer.type = 'Lowercase'"),
    "splitter": (in_json("", "pre_tokenizer", {"type": "Whitespace"}), "pre_tokenizer.type = 'Whitespace'"),
    "frame": (in_json("", "post_processor", ROBERTA), "does not put a text between"),
    "casing": (in_config("do_lower_case", False), r"lower_case = True, and tokenizer_config\.json means False"),
    "default-casing": (
        in_json("normalizer", "lowercase", False, config=None, others=MODEL_OF_BERT),
        r"no tokenizer_config\.json, which means True",
    ),
    "accents": (in_config("strip_accents", False), r"strip_accents = None, and tokenizer_config\.json means False"),
    "class": (in_config("tokenizer_class", "RobertaTokenizer"), "tokenizer_class = 'RobertaTokenizer'; only"),
    "class-of-json": (
        in_config("tokenizer_class", "PreTrainedTokenizerFast", json=None),
        r"tokenizer\.json is missing, and",
    ),
    "role": (in_config("mask_token", "<mask>"), r"mask_token = '<mask>'; a BERT vocabulary has \[MASK\]"),
    "never-split": (in_config("never_split", ["x"]), r"never_split = \['x'\], which is not supported"),
    "added": (in_config(f"{SIZE}", ENTITY, "added_tokens_decoder"), "differ in the added token '<e>'"),
    "added-id": (
        in_config(f"{SIZE + 3}", ENTITY, "added_tokens_decoder", json=None),
        rf"the id {SIZE + 3}, and vocab\.txt {SIZE}",
    ),
    "added-unknown": ({"others": {"added_tokens.json": {"<x>": SIZE}}}, r"added_tokens\.json names '<x>'"),
    "size": ({"others": SMALL_MODEL}, "vocab_size = 7; they belong to different"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_adopted_is_refused_by_name(tmp_path: Path, name: str) -> None:
    changes, message = REFUSED[name]
    directory = write(tmp_path / "brought", **changes)
    with pytest.raises(InputError, match=message) as caught:
        read_vocabulary(config_of(directory))
    assert str(caught.value).startswith(f"vocabulary.from = {directory}: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"size": 100}, rf"its size is {len(WORDS)}, the recipe has vocabulary\.size = 100; remove the latter"),
        ({"lowercase": False}, r"its lowercase is true, the recipe has vocabulary\.lowercase = false"),
        ({"strip_accents": False}, r"its strip_accents is None, the recipe has vocabulary\.strip_accents = false"),
    ],
)
def test_a_recipe_must_not_contradict_what_it_brings(tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    directory = write(tmp_path / "brought")
    with pytest.raises(InputError, match=message):
        read_vocabulary(config_of(directory, **settings))
    read_vocabulary(config_of(directory, lowercase=True, strip_accents=True))


@pytest.mark.parametrize("name", ["layout", "min_count", "alphabet_size"])
def test_settings_of_training_mean_nothing_for_a_vocabulary_that_is_brought(name: str) -> None:
    default = getattr(VocabularyConfig(), name)
    with pytest.raises(ValueError, match=rf"{name} = .* is for training a vocabulary and means nothing with from"):
        config_of("x", **{name: default})
    with pytest.raises(ValueError, match=r"extend = 3 adds words to a vocabulary that is brought with from"):
        VocabularyConfig(extend=3)


def test_what_is_not_there_or_not_a_vocabulary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.md").write_text("x")
    for origin, kind, message in (
        (tmp_path / "absent", AbsentVocabularyError, "no such file or directory; give a vocab.txt"),
        ("models:/encoder@champion", AbsentVocabularyError, "MLFLOW_TRACKING_URI is not set"),
        (tmp_path / "other", InputError, "holds neither vocab.txt nor tokenizer.json"),
        (tmp_path / "other" / "notes.md", InputError, "neither a .txt nor a .json file"),
    ):
        with pytest.raises(kind, match=re.escape(message)) as caught:
            read_vocabulary(config_of(origin))
        assert str(caught.value).startswith(f"vocabulary.from = {origin}: ")


def test_a_casing_beside_a_named_vocabulary_is_not_overlooked(tmp_path: Path) -> None:
    path = write(tmp_path / "brought") / "vocab.txt"
    with pytest.raises(InputError, match=r"tokenizer_config\.json next to it states the casing; name the directory"):
        read_vocabulary(config_of(path))
    assert read_vocabulary(config_of(path, lowercase=False)).settings.lowercase is False


def test_the_same_vocabulary_has_one_digest_in_every_form(tmp_path: Path) -> None:
    directory = write(tmp_path / "brought")
    digest = read_vocabulary(config_of(directory)).digest
    assert digest == read_vocabulary(config_of(directory / "tokenizer.json")).digest
    assert digest == read_vocabulary(config_of(write(tmp_path / "text", json=None))).digest
    assert digest == read_vocabulary(config_of(write(tmp_path / "bare", json=None, config=None))).digest
    assert digest != read_vocabulary(config_of(directory / "vocab.txt", lowercase=False)).digest
