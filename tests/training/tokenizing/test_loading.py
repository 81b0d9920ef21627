"""The tokenizer of a directory gives the ids of `transformers.AutoTokenizer`, or is refused by name."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import transformers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.support.faults.scale import rounds
from tests.support.tokenizer_directories import TEXTS, WORDS, directories

from pipelines.contract.errors import InputError
from pipelines.contract.manifest import StageKey, record_of, write_manifest
from pipelines.contract.schemas import SPECIAL_TOKENS
from pipelines.wordpiece.reference_tokenizer import build_tokenizer
from training.finetuning.text import TextEncoder
from training.tokenizing.loading import load_tokenizer


def encoder_or_reason(directory: Path) -> TextEncoder | str:
    try:
        return TextEncoder(str(directory))
    except InputError as error:
        return str(error)


@pytest.mark.slow
@settings(max_examples=rounds(120, 3_000), deadline=None, suppress_health_check=list(HealthCheck))
@given(files=directories(), texts=st.lists(TEXTS, min_size=1, max_size=6))
def test_ids_are_those_of_auto_tokenizer_or_the_directory_is_refused(
    tmp_path: Path, files: dict[str, Any], texts: list[str]
) -> None:
    shutil.rmtree(tmp_path)
    tmp_path.mkdir()
    for name, text in {**files, "config.json": '{"model_type": "bert", "vocab_size": 99}'}.items():
        (tmp_path / name).write_text(text)
    ours = encoder_or_reason(tmp_path)
    if isinstance(ours, str):
        # Refused is only what transformers cannot load, or what it would load otherwise than it says.
        if "without a tokenizer_config.json" in ours:
            assert "tokenizer_config.json" not in files
        else:
            assert "transformers cannot load" in ours
            with pytest.raises(Exception):  # noqa: B017, PT011
                transformers.AutoTokenizer.from_pretrained(str(tmp_path), local_files_only=True)
        return
    theirs = transformers.AutoTokenizer.from_pretrained(str(tmp_path), local_files_only=True)
    encoded = ours.encode(texts, None, 10_000)
    for text, ids in zip(texts, encoded.input_ids, strict=True):
        if not any(token in text for token in SPECIAL_TOKENS):
            assert ids.tolist() == theirs(text)["input_ids"], text


def write(directory: Path, lowercase: bool = True, **config: Any) -> Path:
    directory.mkdir(exist_ok=True)
    (directory / "vocab.txt").write_text("".join(f"{word}\n" for word in WORDS))
    (directory / "tokenizer.json").write_text(build_tokenizer(WORDS, lowercase, None).to_str())
    (directory / "config.json").write_text('{"model_type": "bert", "vocab_size": 60}')
    if config:
        (directory / "tokenizer_config.json").write_text(json.dumps(config))
    return directory


def tokens_of(directory: Path, text: str) -> list[str]:
    (ids,) = TextEncoder(str(directory)).encode([text], None, 99).input_ids
    return [WORDS[index] for index in ids[1:-1]]


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"do_lower_case": True}, ["caf", "##e", "中", "文"]),
        ({"do_lower_case": True, "strip_accents": False}, ["caf", "##é", "中", "文"]),
        ({"do_lower_case": False}, ["Caf", "##é", "中", "文"]),
        ({"do_lower_case": False, "tokenize_chinese_chars": False}, ["Caf", "##é", "中文"]),
    ],
)
def test_every_setting_counts(tmp_path: Path, config: dict[str, Any], expected: list[str]) -> None:
    assert tokens_of(write(tmp_path, True, **config), "Café 中文") == expected


def test_a_special_token_in_a_text_is_text_and_an_added_one_a_token(tmp_path: Path) -> None:
    write(tmp_path, do_lower_case=False, additional_special_tokens=["[unused1]"])
    assert tokens_of(tmp_path, "[MASK] [unused1]") == ["[", "MASK", "]", "[unused1]"]


def test_code_of_a_directory_is_not_run(tmp_path: Path) -> None:
    write(tmp_path, do_lower_case=False, tokenizer_class="Evil", auto_map={"AutoTokenizer": ["evil.Evil", "evil.E"]})
    (tmp_path / "evil.py").write_text("raise SystemExit('it ran')\n")
    theirs = transformers.AutoTokenizer.from_pretrained(str(tmp_path), local_files_only=True)
    assert (
        TextEncoder(str(tmp_path)).encode(["Café 中文"], None, 99).input_ids[0].tolist()
        == theirs("Café 中文").input_ids
    )


def test_a_tokenizer_that_is_no_fast_one_is_refused(tmp_path: Path) -> None:
    write(tmp_path, tokenizer_class="BertJapaneseTokenizer", word_tokenizer_type="mecab")
    with pytest.raises(InputError, match=r"transformers cannot load its tokenizer .*save it again"):
        TextEncoder(str(tmp_path))


def test_a_cased_tokenizer_without_its_config_is_refused_unless_it_is_of_an_older_release(tmp_path: Path) -> None:
    stage = tmp_path / "pretraining"
    stage.mkdir()
    directory = write(stage / "encoder", lowercase=False)
    with pytest.raises(InputError, match=r"without a tokenizer_config\.json .*\"lowercase\": false.*add the"):
        TextEncoder(str(directory))
    record = record_of(str(stage), "encoder/vocab.txt", 0)
    write_manifest(str(stage), StageKey("pretraining", 1, {}, {}).manifest([record], {}, "0.1.0"))
    assert tokens_of(directory, "Daniel") == ["Daniel"]
    assert tokens_of(write(tmp_path / "uncased", lowercase=True), "Daniel") == ["daniel"]


def test_an_edited_vocabulary_is_refused_and_the_way_to_edit_one_works(tmp_path: Path) -> None:
    write(tmp_path, do_lower_case=True)
    edited = ["zebra" if word == "[unused1]" else word for word in WORDS]
    (tmp_path / "vocab.txt").write_text("".join(f"{word}\n" for word in edited))
    with pytest.raises(InputError, match=r"vocab\.txt: line 48 is 'zebra', but .* '\[unused1\]' at 47; .*delete"):
        TextEncoder(str(tmp_path))
    (tmp_path / "tokenizer.json").unlink()
    assert load_tokenizer(str(tmp_path)).backend.encode("Zebra", add_special_tokens=False).ids == [47]


def test_a_stage_without_its_tokenizer_json_is_refused(tmp_path: Path) -> None:
    (tmp_path / "vocab.txt").write_text("".join(f"{word}\n" for word in WORDS))
    record = record_of(str(tmp_path), "vocab.txt", len(WORDS))
    write_manifest(str(tmp_path), StageKey("vocabulary", 1, {}, {}).manifest([record], {}, "0.1.0"))
    with pytest.raises(InputError, match=r"tokenizer\.json is missing, and nothing else records the casing"):
        TextEncoder(str(tmp_path))


def test_a_vocabulary_larger_than_the_embeddings_is_refused(tmp_path: Path) -> None:
    write(tmp_path, do_lower_case=True, additional_special_tokens=[f"<{index}>" for index in range(20)])
    with pytest.raises(InputError, match=r"has the id 67 .*vocab_size = 60"):
        TextEncoder(str(tmp_path))
