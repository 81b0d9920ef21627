"""What `write_model` writes is complete for its consumers and has the tokenizer of training."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken
from tokenizers.normalizers import Lowercase

from pipelines.contract.errors import InputError
from pipelines.contract.schemas import SPECIAL_TOKENS
from pipelines.wordpiece.reference_tokenizer import build_tokenizer
from pipelines.wordpiece.word_counts import tokenizer_files
from training.bert.heads import BertForPreTraining
from training.bert.huggingface import huggingface_config, write_model
from training.bert.modeling import initialize_weights
from training.finetuning.text import TextEncoder
from training.settings.model import ModelConfig

WORDS = [
    *SPECIAL_TOKENS,
    "Daniel",
    "daniel",
    "da",
    "##niel",
    "Caf",
    "caf",
    "##é",
    "##e",
    "中",
    "文",
    "中文",
    "##文",
    ".",
]
TEXTS = ["Daniel", "DANIEL Café cafe\u0301.", "中文 中 Caf\u200bé", "<ent> daniel <ent>", "\u0000 İ"]
POSITIONS = 16
MODEL = ModelConfig.model_validate(
    {
        "hidden_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 8,
        "max_position_embeddings": POSITIONS,
    }
)
FILES = ("vocab.txt", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "config.json", "README.md")


def export(directory: Path, source: Path, **more: Any) -> list[str]:
    model = BertForPreTraining(MODEL, 24)
    initialize_weights(model, 0.02, 1)
    config = huggingface_config(MODEL, 24, "BertForPreTraining", **more)
    return write_model(str(directory), model.state_dict(), config, str(source))


def write_vocabulary(directory: Path, lowercase: bool, strip_accents: bool | None) -> Path:
    """As pipelines.train_vocabulary writes it."""
    directory.mkdir(exist_ok=True)
    for name, content in tokenizer_files(WORDS, lowercase, strip_accents).items():
        (directory / name).write_bytes(content)
    return directory


def ids_by_training(directory: Path, texts: Sequence[str] = TEXTS) -> list[list[int]]:
    return [ids.tolist() for ids in TextEncoder(str(directory)).encode(list(texts), None, 99).input_ids]


def loaded(directory: Path) -> Any:
    return transformers.AutoTokenizer.from_pretrained(str(directory), local_files_only=True)


@pytest.mark.parametrize("lowercase", [True, False])
@pytest.mark.parametrize("strip_accents", [True, False, None])
@pytest.mark.parametrize("of_older_release", [True, False])
def test_a_consumer_gets_the_ids_of_training(
    tmp_path: Path, lowercase: bool, strip_accents: bool | None, of_older_release: bool
) -> None:
    vocabulary = write_vocabulary(tmp_path / "vocabulary", lowercase, strip_accents)
    if of_older_release:
        (vocabulary / "tokenizer_config.json").unlink()
    names = export(tmp_path / "encoder", vocabulary)
    assert set(names) == {*FILES, "model.safetensors"} == {path.name for path in (tmp_path / "encoder").iterdir()}
    tokenizer = loaded(tmp_path / "encoder")
    expected = [encoding.ids for encoding in build_tokenizer(WORDS, lowercase, strip_accents).encode_batch(TEXTS)]
    assert [tokenizer(text)["input_ids"] for text in TEXTS] == expected == ids_by_training(vocabulary)
    assert tokenizer.model_max_length == POSITIONS
    for name in ("vocab.txt", "tokenizer.json"):
        assert (tmp_path / "encoder" / name).read_bytes() == (vocabulary / name).read_bytes()
    again = export(tmp_path / "fine-tuned", tmp_path / "encoder")
    assert all(
        (tmp_path / "fine-tuned" / name).read_bytes() == (tmp_path / "encoder" / name).read_bytes() for name in again
    )


def test_a_text_longer_than_the_positions_is_cut(tmp_path: Path) -> None:
    export(tmp_path / "encoder", write_vocabulary(tmp_path / "vocabulary", False, None))
    fill = transformers.pipeline("fill-mask", str(tmp_path / "encoder"), device="cpu")
    answers = fill("[MASK] " + "Daniel " * 90, tokenizer_kwargs={"truncation": True})
    assert len(answers) == 5
    tokenizer, model = loaded(tmp_path / "encoder"), transformers.AutoModel.from_pretrained(str(tmp_path / "encoder"))
    with torch.no_grad():
        output = model(**tokenizer(["Daniel " * 90, "da"], truncation=True, padding=True, return_tensors="pt"))
    assert output.last_hidden_state.shape == (2, POSITIONS, 8)


def test_the_vocabulary_stage_alone_loads_as_it_was_made(tmp_path: Path) -> None:
    vocabulary = write_vocabulary(tmp_path, False, None)
    for kind in (transformers.AutoTokenizer, transformers.BertTokenizerFast):
        assert kind.from_pretrained(str(vocabulary)).tokenize("Daniel Café") == ["Daniel", "Caf", "##é"]


def test_the_page_beside_a_model_says_what_it_is(tmp_path: Path) -> None:
    vocabulary = write_vocabulary(tmp_path / "vocabulary", False, None)
    export(tmp_path / "model", vocabulary, id2label={"0": "a|b", "1": "intact"})
    page = (tmp_path / "model" / "README.md").read_text()
    assert page.startswith("---\nlibrary_name: transformers\npipeline_tag: fill-mask\n---\n")
    for row in (
        "| vocabulary | 24 entries, cased, accents kept |",
        "| labels | a\\|b, intact |",
        "| longest text | 16 ",
    ):
        assert row in page


@pytest.mark.slow
@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    lowercase=st.booleans(),
    chinese=st.booleans(),
    special=st.booleans(),
    normalized=st.booleans(),
    splits=st.booleans(),
    with_vocabulary=st.booleans(),
)
def test_an_export_of_a_foreign_tokenizer_gives_its_ids(
    tmp_path_factory: pytest.TempPathFactory,
    lowercase: bool,
    chinese: bool,
    special: bool,
    normalized: bool,
    splits: bool,
    with_vocabulary: bool,
) -> None:
    place = tmp_path_factory.mktemp("foreign")
    tokenizer = build_tokenizer(WORDS, not lowercase, None)
    tokenizer.add_tokens([AddedToken("<ent>", special=special, normalized=normalized, single_word=True)])
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding()
    source = place / "source"
    source.mkdir()
    (source / "tokenizer.json").write_text(tokenizer.to_str())
    if with_vocabulary:
        (source / "vocab.txt").write_text("".join(f"{word}\n" for word in WORDS))
    config = {
        "tokenizer_class": "BertTokenizerFast",
        "do_lower_case": lowercase,
        "tokenize_chinese_chars": chinese,
        "split_special_tokens": splits,
        "model_max_length": 5,
        "auto_map": {"AutoTokenizer": ["evil.Evil", None]},
        "name_or_path": "/home/somebody/model",
    }
    (source / "tokenizer_config.json").write_text(json.dumps(config))
    (source / "config.json").write_text('{"model_type": "bert", "vocab_size": 24}')
    export(place / "model", source)
    assert ids_by_training(place / "model") == ids_by_training(source)
    written, original = loaded(place / "model"), loaded(source)
    assert [written(text)["input_ids"] for text in TEXTS] == [original(text)["input_ids"] for text in TEXTS]
    assert written.model_max_length == POSITIONS
    assert written("Daniel " * 9, padding=False)["input_ids"] == written("Daniel " * 9)["input_ids"]
    assert len(written.backend_tokenizer.encode("daniel " * 9).ids) == 11
    text = (place / "model" / "tokenizer_config.json").read_text()
    assert "auto_map" not in text
    assert "somebody" not in text


def test_what_is_no_bert_tokenizer_is_exported_as_it_is(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    tokenizer = build_tokenizer(WORDS, False, None)
    tokenizer.normalizer = Lowercase()
    (source / "tokenizer.json").write_text(tokenizer.to_str())
    (source / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    export(tmp_path / "model", source)
    config = json.loads((tmp_path / "model" / "tokenizer_config.json").read_text())
    assert config["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert ids_by_training(tmp_path / "model") == ids_by_training(source)
    assert loaded(tmp_path / "model").tokenize("DANIEL") == ["daniel"]


def test_the_padding_of_a_foreign_vocabulary_is_the_configurations(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "vocab.txt").write_text("\n".join([*WORDS[1:], "[PAD]"]) + "\n")
    export(tmp_path / "model", source)
    config = transformers.AutoConfig.from_pretrained(str(tmp_path / "model"))
    assert config.pad_token_id == loaded(tmp_path / "model").pad_token_id == len(WORDS) - 1


def test_a_stage_without_its_tokenizer_is_not_exported(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"neither tokenizer\.json nor vocab\.txt"):
        export(tmp_path / "model", tmp_path)


def test_a_real_encoder_keeps_its_tokenizer(tmp_path: Path, real_encoder: Path) -> None:
    from training.bert.config_file import read_config
    from training.tokenizing.export import write_tokenizer

    config, _ = read_config(str(real_encoder))
    target = tmp_path / "model"
    target.mkdir()
    (target / "config.json").write_bytes((real_encoder / "config.json").read_bytes())
    write_tokenizer(str(target), str(real_encoder), config.max_position_embeddings)
    texts = ["Café MÜNCHEN 中文", "unbelievable!", "a\u0301 ﬁ"]
    assert [loaded(target)(text).input_ids for text in texts] == [
        loaded(real_encoder)(text).input_ids for text in texts
    ]
    assert loaded(target).model_max_length == config.max_position_embeddings
