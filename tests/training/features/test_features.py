"""Features: words and their characters, windows, hidden states against transformers, and the Arrow stream."""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import sys
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import BertWordPieceTokenizer
from transformers import BertModel as ReferenceBert

from pipelines.contract import storage
from pipelines.contract.errors import InputError
from pipelines.contract.schemas import SPECIAL_TOKENS
from training import extract_features
from training.bert.huggingface import huggingface_config, write_model
from training.bert.modeling import BertModel, chosen_layers, initialize_weights
from training.features import extractor as features
from training.features.extractor import FeatureExtractor, LineTokenizer, load_encoder, windows_of
from training.settings.model import ModelConfig

TOLERANCE = 1e-5
CONFIG = ModelConfig.model_validate(
    {
        "hidden_size": 16,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "max_position_embeddings": 16,
    }
)
PIECES = ["a", "b", "c", "e", "ca", "##fe", "##a", "##b", "##c", "##s", "w", "##or", "##d", ".", ",", "[", "]", "mask"]
WORDS = [*SPECIAL_TOKENS, *PIECES, "漢", "ᄒ", "##ᅡ", "##ᆫ", "é", "İ"]
# Every way in which a tokenizer changes text: accents, composed and not, signs that it drops, wide and narrow scripts.
CHARACTERS = st.sampled_from(
    "abcesword"
    + "ÉéİßñΩя"
    + "\u0301\u0302\u0308"
    + "漢字한국"
    + ".,[]!¿"
    + "👩❤\ufe0f\u200d"
    + " \t\u3000\u00a0\x00\u00ad"
)
LINES = st.text(CHARACTERS, max_size=40)


def write_vocabulary(directory: str, lowercase: bool) -> str:
    storage.write_bytes(f"{directory}/vocab.txt", "".join(f"{word}\n" for word in WORDS).encode())
    vocabulary = {word: index for index, word in enumerate(WORDS)}
    tokenizer = BertWordPieceTokenizer(vocabulary, lowercase=lowercase)
    storage.write_bytes(f"{directory}/tokenizer.json", tokenizer.to_str().encode())
    return directory


@pytest.fixture(scope="module")
def encoder_path(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A random BERT of three layers with 16 positions, as a Hugging Face directory."""
    vocabulary = write_vocabulary(str(tmp_path_factory.mktemp("vocabulary")), lowercase=True)
    model = BertModel(CONFIG, len(WORDS))
    initialize_weights(model, 0.3, 1)
    directory = str(tmp_path_factory.mktemp("encoder"))
    state = {f"bert.{name}": tensor for name, tensor in model.state_dict().items()}
    write_model(directory, state, huggingface_config(CONFIG, len(WORDS), "BertModel"), vocabulary)
    return directory


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> dict[bool, LineTokenizer]:
    return {
        lowercase: LineTokenizer(write_vocabulary(str(tmp_path_factory.mktemp("words")), lowercase))
        for lowercase in (True, False)
    }


@pytest.fixture(scope="module")
def reference(encoder_path: str) -> ReferenceBert:
    return ReferenceBert.from_pretrained(encoder_path).eval()


def extractor_of(path: str, pool: features.Pool, layers: list[int], length: int = 16) -> FeatureExtractor:
    encoder = load_encoder(path)
    return FeatureExtractor(encoder.model, encoder.tokenizer, chosen_layers(layers, 3), pool, length)


def table_of(extractor: FeatureExtractor, lines: list[str]) -> pa.Table:
    return pa.Table.from_batches(extractor.batches(lines), extractor.schema)


def vectors_of(table: pa.Table) -> np.ndarray:
    return np.array(table["vector"].to_pylist(), dtype=np.float32)


def reference_states(reference: ReferenceBert, ids: list[int], layers: list[int]) -> np.ndarray:
    with torch.no_grad():
        states = reference(torch.tensor([ids]), output_hidden_states=True).hidden_states
    return torch.cat([states[layer][0] for layer in layers], dim=1).numpy()


def slow_words(line: str) -> list[tuple[int, int]]:
    """Spans of words as split by the released BasicTokenizer, in characters of the line itself."""
    spans: list[tuple[int, int]] = []
    open_word = False
    for index, character in enumerate(line):
        category = unicodedata.category(character)
        if character in "\t\n\r" or category == "Zs":
            open_word = False
        elif category.startswith("C"):
            continue  # dropped, and what stands on both sides grows together
        elif category in ("Mn", "Me"):
            # Stripped; it belongs to the letter that it stands behind.
            if spans and spans[-1][1] == index:
                spans[-1] = (spans[-1][0], index + 1)
        elif category.startswith("P") or character in "$+<=>^`|~" or "\u4e00" <= character <= "\u9fff":
            spans.append((index, index + 1))
            open_word = False
        elif open_word:
            spans[-1] = (spans[-1][0], index + 1)
        else:
            spans.append((index, index + 1))
            open_word = True
    return spans


def spans_of(line: Any) -> list[tuple[int, int]]:
    last = np.append(line.word_starts[1:], len(line.input_ids)) - 1 if len(line.word_starts) else line.word_starts
    return list(zip(line.starts[line.word_starts].tolist(), line.ends[last].tolist(), strict=True))


@settings(max_examples=150, deadline=None)
@given(line=LINES)
def test_words_are_those_of_the_line(tokenizers: dict[bool, LineTokenizer], line: str) -> None:
    (uncased,) = tokenizers[True].tokenize([line])
    assert spans_of(uncased) == slow_words(line)


@settings(max_examples=150, deadline=None)
@given(line=st.one_of(LINES, st.text(max_size=60)), lowercase=st.booleans())
def test_spans_of_any_text_are_in_order_and_hold_no_space(
    tokenizers: dict[bool, LineTokenizer], line: str, lowercase: bool
) -> None:
    (tokenized,) = tokenizers[lowercase].tokenize([line])
    spans = spans_of(tokenized)
    edges = [edge for span in spans for edge in span]
    assert edges == sorted(edges)
    assert all(start < end and not any(character in " \t\n\r" for character in line[start:end]) for start, end in spans)
    assert all(start < end for start, end in zip(tokenized.starts, tokenized.ends, strict=True))
    # Nothing readable is lost: between words there are only spaces, dropped signs and marks without a letter.
    between = [line[start:end] for start, end in zip([0, *edges[1::2]], [*edges[::2], len(line)], strict=True)]
    assert not any(character.isalnum() and character.isascii() for text in between for character in text)


def test_words_of_known_lines(tokenizers: dict[bool, LineTokenizer]) -> None:
    def words(line: str, lowercase: bool = True) -> list[str]:
        (tokenized,) = tokenizers[lowercase].tokenize([line])
        return [line[start:end] for start, end in spans_of(tokenized)]

    assert words("Cafe\u0301, Café s") == ["Cafe\u0301", ",", "Café", "s"]
    assert words("[MASK] 漢字") == ["[", "MASK", "]", "漢", "字"]
    assert words("한국 ❤\ufe0f!", lowercase=False) == ["한국", "❤\ufe0f", "!"]
    assert words("") == words(" \u200d\u0301 ") == []


@settings(max_examples=150, deadline=None)
@given(num_tokens=st.integers(0, 200), room=st.integers(2, 30))
def test_each_token_has_the_window_with_most_context(num_tokens: int, room: int) -> None:
    windows = windows_of(num_tokens, room)
    assert all(0 <= window.end - window.start <= room for window in windows)
    owned = [token for window in windows for token in range(window.own_start, window.own_end)]
    assert owned == list(range(num_tokens))
    for token in range(num_tokens):
        # run_squad.py, _check_is_max_context; the first of equal ones.
        context = [
            min(token - window.start, window.end - 1 - token) if window.start <= token < window.end else -1
            for window in windows
        ]
        owner = next(window for window in windows if window.own_start <= token < window.own_end)
        assert windows[int(np.argmax(context))] == owner
        if len(windows) > 1 and room // 4 <= token < num_tokens - room // 4:
            assert max(context) >= (room - room // 2 - 1) // 2


@pytest.mark.parametrize("layers", [[3], [0], [3, 2, 1, 0], [1, 3]])
def test_sub_tokens_equal_the_reference(encoder_path: str, reference: ReferenceBert, layers: list[int]) -> None:
    lines = ["cafe a b, c", "words", "", "[MASK] a b c a b c a"]
    table = table_of(extractor_of(encoder_path, "concat", layers), lines)
    tokenizer = LineTokenizer(encoder_path)
    expected, rows = [], []
    for row, line in enumerate(tokenizer.tokenize(lines)):
        expected.append(reference_states(reference, tokenizer.framed(line.input_ids).tolist(), layers)[1:-1])
        rows += [row] * len(line.input_ids)
    assert table["line"].to_pylist() == rows
    np.testing.assert_allclose(vectors_of(table), np.concatenate(expected), atol=TOLERANCE, rtol=0)


def slow_long_line(
    reference: ReferenceBert, tokenizer: LineTokenizer, ids: list[int], room: int, layers: list[int]
) -> tuple[np.ndarray, np.ndarray]:
    """Vectors of all tokens from their windows of most context, and the mean of the windows' [CLS], one by one."""
    starts = [0]
    while starts[-1] + room < len(ids):
        starts.append(min(starts[-1] + room // 2, len(ids) - room))
    states = [
        reference_states(reference, tokenizer.framed(np.array(ids[s : s + room], np.uint32)).tolist(), layers)
        for s in starts
    ]
    rows = []
    for token in range(len(ids)):
        context = [min(token - start, start + room - 1 - token) for start in starts]
        best = context.index(max(context))
        rows.append(states[best][1 + token - starts[best]])
    return np.array(rows), np.mean([state[0] for state in states], axis=0)


def test_long_lines_are_whole_and_equal_the_slow_reference(
    encoder_path: str, reference: ReferenceBert, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Small groups: a line's windows are in several of them.
    monkeypatch.setattr(features, "GROUP_TOKENS", 40)
    monkeypatch.setattr(features, "BATCH_TOKENS", 20)
    generator = np.random.default_rng(1)
    lines = [
        " ".join(generator.choice(["cafe", "a", "b", "words", ",", "É"], count)) for count in (3, 120, 0, 14, 15, 57)
    ]
    layers = [3, 2]
    tokenizer = LineTokenizer(encoder_path)
    tables = {pool: table_of(extractor_of(encoder_path, pool, layers), lines) for pool in features.POOLS}
    assert [tables[pool].num_rows for pool in ("mean", "cls")] == [len(lines)] * 2
    for row, line in enumerate(tokenizer.tokenize(lines)):
        ids = line.input_ids.tolist()
        token_vectors, cls_vector = slow_long_line(reference, tokenizer, ids, 14, layers)
        here = {pool: table.filter(pa.compute.equal(table["line"], row)) for pool, table in tables.items()}
        np.testing.assert_allclose(vectors_of(here["cls"])[0], cls_vector, atol=TOLERANCE, rtol=0)
        if not ids:
            assert here["concat"].num_rows == here["tokens"].num_rows == 0
            assert here["mean"]["vector"].to_pylist() == [None]
            continue
        np.testing.assert_allclose(vectors_of(here["concat"]), token_vectors, atol=TOLERANCE, rtol=0)
        np.testing.assert_allclose(vectors_of(here["mean"])[0], token_vectors.mean(axis=0), atol=TOLERANCE, rtol=0)
        words = token_vectors[line.word_starts]
        np.testing.assert_allclose(vectors_of(here["tokens"]), words, atol=TOLERANCE, rtol=0)
        assert here["tokens"]["text"].to_pylist() == lines[row].split()
        for pool in ("concat", "tokens"):
            columns = here[pool].select(["text", "start", "end"]).to_pylist()
            assert all(lines[row][each["start"] : each["end"]] == each["text"] for each in columns)


def test_line_vectors_have_zeros_for_nothing(encoder_path: str) -> None:
    extractor = extractor_of(encoder_path, "mean", [3])
    lines = ["a b", "", "c"]
    vectors = extractor.line_vectors(lines)
    assert not vectors[1].any()
    expected = vectors_of(table_of(extractor, ["a b", "c"]))
    np.testing.assert_allclose(vectors[[0, 2]], expected, atol=TOLERANCE, rtol=0)


def test_memory_is_bound_by_groups_not_by_the_input(encoder_path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features, "GROUP_TOKENS", 64)
    taken = 0

    def lines() -> Iterator[str]:
        nonlocal taken
        for _ in range(1_000):
            taken += 1
            yield "a b c"

    sizes = []
    for batch in extractor_of(encoder_path, "tokens", [3]).batches(lines()):
        if not sizes:
            # Lines are read when they are needed.
            assert taken <= 2 * features._LINES_AT_ONCE
        sizes.append(batch.num_rows)
    assert sum(sizes) == 3_000
    assert max(sizes) <= 64


def run(encoder_path: str, tmp_path: Path, data: bytes, *arguments: str) -> pa.Table:
    (tmp_path / "in.txt").write_bytes(data)
    command = ["--model", encoder_path, "--input", f"{tmp_path}/in.txt", "--output", f"{tmp_path}/out.arrow"]
    assert extract_features.main([*command, *arguments]) == 0
    with pa.memory_map(f"{tmp_path}/out.arrow") as source:
        return pa.ipc.open_file(source).read_all()


def test_the_command_writes_what_it_says(
    encoder_path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data = "\ufeffCafé a.\r\n\r\nb".encode()
    table = run(encoder_path, tmp_path, data, "--layers", "-1,-2", "--pool", "tokens")
    assert [tuple(row.values()) for row in table.drop_columns("vector").to_pylist()] == [
        (0, "Café", 0, 4),
        (0, "a", 5, 6),
        (0, ".", 6, 7),
        (2, "b", 0, 1),
    ]
    assert table.schema.field("vector").type == pa.list_(pa.float32(), 32)
    told = {key.decode().removeprefix("clozeworks."): value.decode() for key, value in table.schema.metadata.items()}
    assert (told["model"], told["layers"], told["pool"], told["max_seq_length"]) == (
        encoder_path,
        "3,2",
        "tokens",
        "16",
    )
    vocabulary = Path(encoder_path, "vocab.txt").read_bytes()
    assert told["vocabulary_sha256"] == hashlib.sha256(vocabulary).hexdigest()
    assert "3 lines, 4 rows" in capsys.readouterr().out

    first = (tmp_path / "out.arrow").read_bytes()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
    run(encoder_path, tmp_path, data, "--layers", "-1,-2", "--pool", "tokens", "--input", "-")
    assert (tmp_path / "out.arrow").read_bytes() == first

    assert run(encoder_path, tmp_path, b"", "--pool", "mean").num_rows == 0


@pytest.mark.parametrize(
    ("data", "arguments", "message"),
    [
        (b"a\nb \xff c\n", [], "in.txt:2: not UTF-8 at byte 2 of the line"),
        (b"a", ["--layers", "-5"], "--layers names -5; this encoder has 0"),
        (b"a", ["--layers", "1,-3"], "names a layer twice"),
        (b"a", ["--layers", "last"], "--layers last: give numbers"),
        (b"a", ["--max-seq-length", "17"], "--max-seq-length 17: give 4 to 16"),
        (b"a", ["--input", "absent.txt"], "--input absent.txt: cannot be read"),
        (b"a", ["--model", "absent"], "absent: no such directory"),
    ],
)
def test_mistakes_are_one_line_and_leave_no_output(
    encoder_path: str, tmp_path: Path, data: bytes, arguments: list[str], message: str
) -> None:
    with pytest.raises(InputError, match=r"\S") as caught:
        run(encoder_path, tmp_path, data, *arguments)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert os.listdir(tmp_path) == ["in.txt"]


def test_the_text_is_not_replaced_by_its_features(encoder_path: str, tmp_path: Path) -> None:
    os.symlink("in.txt", tmp_path / "link.txt")
    for output in ("in.txt", "link.txt"):
        with pytest.raises(InputError, match="is the file of --input"):
            run(encoder_path, tmp_path, b"mine", "--output", f"{tmp_path}/{output}")
        assert (tmp_path / "in.txt").read_bytes() == b"mine"


def test_a_vocabulary_of_another_model_is_refused(encoder_path: str, tmp_path: Path) -> None:
    for name in os.listdir(encoder_path):
        storage.write_bytes(f"{tmp_path}/{name}", storage.read_bytes(f"{encoder_path}/{name}"))
    more = BertWordPieceTokenizer({word: index for index, word in enumerate([*WORDS, "more"])})
    storage.write_bytes(f"{tmp_path}/tokenizer.json", more.to_str().encode())
    with pytest.raises(InputError, match="different models"):
        load_encoder(str(tmp_path))


def test_an_encoder_with_a_nan_is_refused_before_it_computes(encoder_path: str, tmp_path: Path) -> None:
    directory = f"{tmp_path}/encoder"
    shutil.copytree(encoder_path, directory)
    weights = safetensors.torch.load_file(f"{directory}/model.safetensors")
    weights["bert.encoder.layer.1.output.dense.weight"][2, 3] = float("nan")
    safetensors.torch.save_file(weights, f"{directory}/model.safetensors", metadata={"format": "pt"})
    with pytest.raises(
        InputError, match=r"encoder: weight encoder\.layer\.1\.output\.dense\.weight has 1 of \d+ numbers"
    ):
        run(directory, tmp_path, b"a text")
    assert sorted(os.listdir(tmp_path)) == ["encoder", "in.txt"]
