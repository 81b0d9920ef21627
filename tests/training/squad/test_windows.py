"""Windows and character offsets: against the released code's loops, transformers' own windows, and real answers."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from transformers import BertTokenizer

from pipelines.contract.errors import InputError
from training.settings.squad import SquadConfig
from training.squad.reading import Answer, Question, SquadFile, read_squad
from training.squad.scoring import score
from training.squad.windows import SquadEncoder, cut, make_targets, make_windows

LETTERS = "abcdeist\u1100\u1161\u11a8\u4e2d\u03b9\u092f\u0301"
PUNCTUATION = ".,'-\u2013"


def vocabulary(directory: Path) -> str:
    """A vocabulary of single letters and their continuations; anything else is [UNK]."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *LETTERS, *(f"##{letter}" for letter in LETTERS)]
    (directory / "vocab.txt").write_text("\n".join([*words, *PUNCTUATION, "cat", "sat"]) + "\n", "utf-8")
    return str(directory)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> SquadEncoder:
    return SquadEncoder(vocabulary(tmp_path_factory.mktemp("letters")))


def one_file(context: str, *answers: str, text: str = "cat") -> SquadFile:
    found = tuple(Answer(context.index(answer), answer) for answer in answers)
    return SquadFile("dev.json", [context], [Question("q", "article", 0, text, found)])


def slow_windows(num_tokens: int, room: int, stride: int) -> list[tuple[int, int, list[bool]]]:
    """Windows and max context as run_squad.py describes them, token by token."""
    bounds, start = [], 0
    while True:
        end = min(start + room, num_tokens)
        bounds.append((start, end))
        if end == num_tokens:
            break
        start += stride
    owners = []
    for token in range(num_tokens):
        merits = [
            min(token - start, end - 1 - token) + 0.01 * (end - start) if start <= token < end else -1.0
            for start, end in bounds
        ]
        owners.append(merits.index(max(merits)))
    return [(start, end, [owners[t] == index for t in range(start, end)]) for index, (start, end) in enumerate(bounds)]


@settings(deadline=None, derandomize=True)
@given(st.integers(1, 90), st.integers(1, 30), st.data())
def test_windows_are_those_of_the_released_code(num_tokens: int, room: int, data: st.DataObject) -> None:
    stride = data.draw(st.integers(1, room))
    found = [(start, end, own.tolist()) for start, end, own in cut(num_tokens, room, stride)]
    assert found == slow_windows(num_tokens, room, stride)
    assert sum(sum(own) for _, _, own in found) == num_tokens


def test_a_much_longer_window_is_preferred() -> None:
    # By context alone the last window would own tokens 450 to 569; its 170 tokens to 300 cost it 1.3 tokens of context.
    found = [(start, end, own.tolist()) for start, end, own in cut(570, 300, 200)]
    assert found == slow_windows(570, 300, 200)
    assert [sum(own) for _, _, own in found] == [250, 201, 119]


@pytest.mark.parametrize("lowercase", [True, False])
def test_rows_and_offsets_are_those_of_transformers(shared_data: Path, tmp_path: Path, lowercase: bool) -> None:
    name = f"bert-base-{'uncased' if lowercase else 'cased'}-vocab.txt"
    (tmp_path / "vocab.txt").write_bytes((shared_data / "vocab" / name).read_bytes())
    (tmp_path / "tokenizer_config.json").write_text(f'{{"do_lower_case": {str(lowercase).lower()}}}')
    encoder = SquadEncoder(str(tmp_path))
    file = read_squad(str(shared_data / "squad" / "half_A_24articles.json"))
    file = SquadFile(file.path, file.contexts, file.questions[::37])
    config = SquadConfig(max_seq_length=128, max_query_length=50, doc_stride=50)
    windows = make_windows(file, encoder, config)
    reference = BertTokenizer(vocab=str(tmp_path / "vocab.txt"), do_lower_case=lowercase)
    for number, question in enumerate(file.questions):
        query = reference(question.text, add_special_tokens=False).input_ids
        encoded = reference(
            question.text,
            file.contexts[question.context],
            truncation="only_second",
            max_length=128,
            stride=128 - len(query) - 3 - 50,
            return_overflowing_tokens=True,
            return_offsets_mapping=True,
        )
        rows = range(windows.rows_of[number], windows.rows_of[number + 1])
        assert [windows.text.input_ids[row].tolist() for row in rows] == encoded.input_ids
        tokens = windows.contexts[question.context]
        for row, types, places in zip(rows, encoded.token_type_ids, encoded.offset_mapping, strict=True):
            begin = windows.text.segment_b_starts[row]
            assert types == [0] * begin + [1] * (len(types) - begin)
            first, count = windows.first_tokens[row], len(windows.belongs[row])
            assert begin + count + 1 == len(places)
            for token, (start, end) in zip(range(first, first + count), places[begin:-1], strict=True):
                assert tokens.starts[token] == start
                # Beyond transformers' offsets there are only characters that the tokenizer drops.
                assert tokens.ends[token] == end or not tokens.context[end : tokens.ends[token]].isspace()


@pytest.mark.slow
@pytest.mark.parametrize(("name", "inside"), [("uncased", 56), ("cased", 53)])
def test_every_real_answer_comes_back_from_its_own_tokens(
    shared_data: Path, tmp_path: Path, name: str, inside: int
) -> None:
    (tmp_path / "vocab.txt").write_bytes((shared_data / "vocab" / f"bert-base-{name}-vocab.txt").read_bytes())
    (tmp_path / "tokenizer_config.json").write_text(f'{{"do_lower_case": {str(name == "uncased").lower()}}}')
    file = read_squad(str(shared_data / "squad" / "half_A_24articles.json"))
    windows = make_windows(file, SquadEncoder(str(tmp_path)), SquadConfig())
    targets = make_targets(file, windows)
    cut_words = 0
    for number, question in enumerate(file.questions):
        tokens = windows.contexts[question.context]
        for answer in question.answers:
            span = tokens.span(answer)
            assert span is not None
            if tokens.recovers(answer):
                assert tokens.text(*span) == answer.text
                continue
            # The annotation begins or ends inside a token: "gold" in "golden", "Japan" in "Japanese".
            cut_words += 1
            assert tokens.starts[span[0]] < answer.start or answer.end < tokens.ends[span[1]]
            assert answer.text in tokens.text(*span)
        # What training aims at, read back from a row: an exact match for each question.
        rows = np.arange(windows.rows_of[number], windows.rows_of[number + 1])
        seen = rows[targets.starts[rows] > 0]
        assert len(seen)
        for row in seen:
            shift = windows.first_tokens[row] - windows.text.segment_b_starts[row]
            text = tokens.text(targets.starts[row] + shift, targets.ends[row] + shift)
            assert score(question, text, False).exact_match == 1.0
    assert cut_words == inside
    assert targets.inexact == 0


def test_targets_by_hand(encoder: SquadEncoder) -> None:
    file = one_file("a b c cat sat d e cat .", "cat sat", "sat d")
    # 3 places for [CLS] and [SEP], 1 for the question: windows of 4 tokens, every 2.
    config = SquadConfig(max_seq_length=8, max_query_length=1, doc_stride=2)
    windows = make_windows(file, encoder, config)
    assert windows.first_tokens.tolist() == [0, 2, 4, 6]
    assert windows.text.lengths.tolist() == [8, 8, 8, 7]
    assert windows.text.segment_b_starts.tolist() == [3, 3, 3, 3]
    targets = make_targets(file, windows)
    # Tokens 3 and 4 are both in the window that starts at 2; elsewhere [CLS] is the target.
    assert targets.starts.tolist() == [0, 4, 0, 0]
    assert targets.ends.tolist() == [0, 5, 0, 0]


def test_an_answer_inside_a_token_is_widened_only_if_no_other_fits(encoder: SquadEncoder) -> None:
    config = SquadConfig(max_seq_length=32, max_query_length=4, doc_stride=8)
    several = one_file("sat cat b", "at", "ca", "cat b")
    windows = make_windows(several, encoder, config)
    targets = make_targets(several, windows)
    assert (targets.starts[0], targets.ends[0], targets.inexact) == (4, 5, 0)
    alone = one_file("sat cat b", "ca")
    targets = make_targets(alone, windows)
    assert (targets.starts[0], targets.ends[0], targets.inexact) == (4, 4, 1)


def test_special_tokens_in_a_text_are_text(encoder: SquadEncoder) -> None:
    file = one_file("a [MASK] b [SEP]", "a", text="[CLS] cat")
    row = make_windows(file, encoder, SquadConfig()).text.input_ids[0].tolist()
    assert row.count(2) == 1
    assert row.count(3) == 2
    assert 4 not in row


def test_long_questions_are_cut(encoder: SquadEncoder) -> None:
    config = SquadConfig(max_seq_length=16, max_query_length=3, doc_stride=8)
    windows = make_windows(one_file("a b c", "a", text="cat sat cat sat cat"), encoder, config)
    assert windows.text.segment_b_starts.tolist() == [5]
    assert windows.text.lengths.tolist() == [9]


@pytest.mark.parametrize(
    ("context", "answer"),
    [
        ("e\u0301te\u0301 a", "e\u0301te\u0301"),
        ("b e\u0301te\u0301", "e\u0301te\u0301"),
        ("a\u0323\u0301 b", "a\u0323\u0301"),
        ("\uac01\uac01 a", "\uac01\uac01"),
        ("\u4e2d\u4e2d\u4e2d", "\u4e2d\u4e2d"),
        ("\u0130s a", "\u0130s"),
        ("\u0390 \u01c5", "\u0390"),
        ("a \U0001f40b\ufe0f, b", "\U0001f40b\ufe0f"),
        ("a \U0001d54f b", "\U0001d54f"),
        ("a\u200bb c", "a\u200bb"),
        ("\ue000b \ufffdc", "\ue000b \ufffdc"),
        ("'it's'", "it's"),
        ("a\u2013b", "b"),
        ("x" * 200 + " a", "x" * 200),
        ("a\u00a0b\u3000c", "a\u00a0b\u3000c"),
    ],
)
def test_answers_survive_unicode(encoder: SquadEncoder, context: str, answer: str) -> None:
    tokens = encoder.context_tokens([context])[0]
    span = tokens.span(Answer(context.index(answer), answer))
    assert span is not None
    assert tokens.text(*span) == answer


WORDS = st.lists(
    st.text(
        st.one_of(
            st.sampled_from(LETTERS + PUNCTUATION + "\uac01\u00e9\u0130\u0323\ufe0f\ufffd"),
            st.characters(exclude_categories=("Z", "Cc", "Cf", "Cs", "Cn")),
        ),
        min_size=1,
        max_size=6,
    ),
    min_size=1,
    max_size=6,
)


@settings(deadline=None, derandomize=True)
@given(WORDS, st.data())
@example(["a\u0301", "\u0301b"], None)
def test_runs_of_words_come_back_whatever_they_are_written_with(
    encoder: SquadEncoder, words: list[str], data: st.DataObject | None
) -> None:
    first, last = (0, len(words) - 1)
    if data is not None:
        first = data.draw(st.integers(0, len(words) - 1))
        last = data.draw(st.integers(first, len(words) - 1))
    context = " ".join(words)
    start = len(" ".join([*words[:first], ""]))
    answer = Answer(start, " ".join(words[first : last + 1]))
    tokens = encoder.context_tokens([context])[0]
    assert (np.diff(tokens.starts) >= 0).all()
    assert (np.diff(tokens.ends) >= 0).all()
    ends = [words[first], words[last]]
    if not all(len(alone) for alone in encoder.context_tokens(ends)):
        # A word of nothing but marks leaves no token.
        assert any(unicodedata.category(character) in ("Mn", "Mc", "Co", "So") for character in "".join(ends))
        return
    span = tokens.span(answer)
    assert span is not None
    assert tokens.text(*span) == answer.text


def test_texts_without_tokens_are_named(encoder: SquadEncoder) -> None:
    with pytest.raises(InputError, match=r"dev\.json: article 'article', question q: its context has no words"):
        make_windows(one_file(" \u200b ", " "), encoder, SquadConfig())
    file = one_file("a \u200b b", "\u200b")
    with pytest.raises(InputError, match=r"question q: the tokenizer drops all of the answer '\\u200b'"):
        make_targets(file, make_windows(file, encoder, SquadConfig()))
