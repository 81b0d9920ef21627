"""The code that is copied into registered models, against training's own windows, spans and rows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from flows.registry import answering_model, labelling_model, tagging_model
from pipelines.contract.schemas import SPECIAL_TOKENS
from pipelines.wordpiece.word_counts import tokenizer_files
from training.finetuning.text import TextEncoder, truncated_lengths
from training.squad.answers import best_spans
from training.squad.windows import _with_dropped_characters
from training.squad.windows import cut as training_cut
from training.tagging.encoding import _runs, _with_context

IntArray = npt.NDArray[np.int64]


@given(st.integers(1, 200), st.integers(1, 40), st.data())
def test_windows_are_those_of_training(num_tokens: int, room: int, data: st.DataObject) -> None:
    stride = data.draw(st.integers(1, room))
    found, expected = answering_model.cut(num_tokens, room, stride), training_cut(num_tokens, room, stride)
    assert [(start, end, own.tolist()) for start, end, own in found] == [
        (start, end, own.tolist()) for start, end, own in expected
    ]


@given(st.integers(0, 2**32 - 1), st.integers(1, 30), st.integers(1, 8))
def test_the_best_span_is_that_of_training(seed: int, num_tokens: int, max_length: int) -> None:
    generator = np.random.default_rng(seed)
    # Few distinct values: spans tie, and the first of them must win.
    logits = generator.integers(-2, 3, (num_tokens, 2)).astype(np.float32)
    may_start = generator.random(num_tokens) < 0.7
    may_start[generator.integers(num_tokens)] = True
    (first,), (last,) = best_spans(logits, may_start, 1, max_length)
    found = answering_model.best_span(logits.astype(np.float64), may_start, max_length)
    assert (found.first, found.last) == (first, last)
    assert found.score == float(logits[first, 0]) + float(logits[last, 1])


@given(st.text("ab \u0301\u200b\t", max_size=30), st.data())
def test_dropped_characters_go_where_training_puts_them(context: str, data: st.DataObject) -> None:
    edges = sorted(data.draw(st.sets(st.integers(0, len(context)))))
    starts, ends = (np.array(part, dtype=np.int64) for part in (edges[:-1:2], edges[1::2]))
    found, expected = (
        widened(context, starts, ends)
        for widened in (answering_model.with_dropped_characters, _with_dropped_characters)
    )
    assert [part.tolist() for part in found] == [part.tolist() for part in expected]


@given(st.lists(st.integers(1, 5), min_size=1, max_size=60), st.integers(5, 20))
def test_a_sentence_is_laid_out_as_in_training(lengths: list[int], room: int) -> None:
    offsets: IntArray = np.cumsum([0, *lengths])
    expected = [
        (first, last, *_with_context(offsets, first, last, room))
        for first, last in _runs(offsets, 0, len(lengths), room)
    ]
    found = list(tagging_model.rows(offsets, room))
    assert found == expected
    assert [word for first, last, _, _ in found for word in range(first, last)] == list(range(len(lengths)))


@given(st.integers(0, 50), st.integers(0, 50), st.integers(0, 60))
def test_a_pair_is_truncated_as_in_training(length_a: int, length_b: int, room: int) -> None:
    assert labelling_model.truncated_lengths(length_a, length_b, room) == truncated_lengths(length_a, length_b, room)


@pytest.mark.parametrize("model_code", [answering_model, labelling_model, tagging_model])
@pytest.mark.parametrize("splits", [True, False])
def test_texts_are_tokenised_as_in_training(tmp_path: Path, model_code: Any, splits: bool) -> None:
    words = [*SPECIAL_TOKENS, "<ent>", "[", "]", "mask", "<", "ent", ">", "caf", "##é", "中文"]
    for name, content in tokenizer_files(words, lowercase=True, strip_accents=False).items():
        (tmp_path / name).write_bytes(content)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    config |= {"additional_special_tokens": ["<ent>"], "split_special_tokens": splits, "tokenize_chinese_chars": False}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config | {"model_max_length": 4}))
    texts = ["[MASK] <ent> Café 中文", "caf " * 20]
    tokenizer = model_code.text_tokenizer(AutoTokenizer.from_pretrained(str(tmp_path), local_files_only=True))
    expected = TextEncoder(str(tmp_path)).encode(texts, None, 99).input_ids
    assert [tokenizer.encode(text).ids for text in texts] == [ids.tolist() for ids in expected]
    assert ("<ent>" in tokenizer.encode(texts[0]).tokens) is not splits
    assert "[MASK]" not in tokenizer.encode(texts[0]).tokens
