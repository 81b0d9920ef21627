"""CoNLL files as they are found: both separators, documents, comments, stray bytes, and what is refused."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from pipelines.contract.errors import InputError
from training.settings.tagging import TaggingConfig, data_files
from training.tagging.reading import TaggedText, read_conll

CONLL = """-DOCSTART- -X- -X- O

EU NNP I-NP I-ORG
rejects VBZ I-VP O
German JJ I-NP I-MISC
call NN I-NP O

Peter NNP I-NP I-PER
Blackburn NNP I-NP I-PER

-DOCSTART- -X- O O

BRUSSELS NNP I-NP I-LOC
Paris NNP I-NP B-LOC
"""


def read(path: Path, content: str | bytes, **settings: object) -> TaggedText:
    file = path / "train.txt"
    file.write_bytes(content.encode() if isinstance(content, str) else content)
    chosen = {"token_column": 0, "label_column": -1, "scheme": "auto", **settings}
    return read_conll(str(file), **chosen)  # type: ignore[arg-type]  # settings of a test, checked by what they do


def test_conll_2003(tmp_path: Path) -> None:
    text = read(tmp_path, CONLL)
    assert [sentence.words for sentence in text.sentences] == [
        ("EU", "rejects", "German", "call"),
        ("Peter", "Blackburn"),
        ("BRUSSELS", "Paris"),
    ]
    assert [sentence.labels for sentence in text.sentences] == [
        ("B-ORG", "O", "B-MISC", "O"),
        ("B-PER", "I-PER"),
        ("B-LOC", "B-LOC"),
    ]
    assert [sentence.document for sentence in text.sentences] == [1, 1, 2]
    assert (text.scheme, text.irregular_labels, text.has_documents, text.num_words) == ("iob1", 0, True, 8)
    assert text.types == ["LOC", "MISC", "ORG", "PER"]
    assert text.in_words().endswith("train.txt: 3 sentences, 8 words, labels in iob1")


@pytest.mark.parametrize("scheme", ["iob1", "iob2", "bioes"])
def test_three_schemes_give_the_same_labels(tmp_path: Path, scheme: str) -> None:
    spelled = {
        "iob1": ["I-A", "I-A", "B-A", "O", "I-B"],
        "iob2": ["B-A", "I-A", "B-A", "O", "B-B"],
        "bioes": ["B-A", "E-A", "S-A", "O", "S-B"],
    }[scheme]
    content = "".join(f"w{index} {label}\n" for index, label in enumerate(spelled))
    for setting in ("auto", scheme):
        text = read(tmp_path, content, scheme=setting)
        assert text.scheme == scheme
        assert text.sentences[0].labels == ("B-A", "I-A", "B-A", "O", "B-B")


def test_tabs_keep_spaces_within_a_word(tmp_path: Path) -> None:
    text = read(tmp_path, "1\tNew York\tB-LOC\n2\t\u2028\tO\n", token_column=1)
    assert text.sentences[0].words == ("New York", "\u2028")
    assert text.separator == "\t"


def test_spaces_may_be_many_and_other_white_space_is_part_of_a_word(tmp_path: Path) -> None:
    text = read(tmp_path, " EU   NNP\tx  B-ORG \n \nno\u00a0break  X O\n".replace("\t", "\u2003"))
    assert [sentence.words for sentence in text.sentences] == [("EU",), ("no\u00a0break",)]


def test_byte_order_mark_carriage_returns_and_no_last_line_end(tmp_path: Path) -> None:
    text = read(tmp_path, b"\xef\xbb\xbfEU B-ORG\r\nx O\r\n\r\n\r\n\r\ny O")
    assert [sentence.words for sentence in text.sentences] == [("EU", "x"), ("y",)]


@pytest.mark.parametrize("end", [b"\r", b"\r\n"])
def test_lines_may_end_in_carriage_returns(tmp_path: Path, end: bytes) -> None:
    data = b"EU B-ORG\nx O\n\ny O\n"
    assert read(tmp_path, data.replace(b"\n", end)).sentences == read(tmp_path, data).sentences


def test_comments_before_a_sentence_and_the_word_number_sign(tmp_path: Path) -> None:
    content = "# id 1 domain=en\n# the text ends in O\nEU _ _ B-ORG\n# _ _ O\n\n#\n# _ _ O\n#tag _ _ B-TAG\n"
    text = read(tmp_path, content)
    assert [sentence.words for sentence in text.sentences] == [("EU", "#"), ("#", "#tag")]


def test_a_document_ends_a_sentence_without_an_empty_line(tmp_path: Path) -> None:
    text = read(tmp_path, "a B-X\n-DOCSTART- O\nb O\n")
    assert [(sentence.words, sentence.document) for sentence in text.sentences] == [(("a",), 0), (("b",), 1)]


def test_irregular_labels_are_counted_and_read_as_conlleval_does(tmp_path: Path) -> None:
    text = read(tmp_path, "a O\nb I-PER\nc I-LOC\nd B-LOC\n", scheme="iob2")
    assert text.sentences[0].labels == ("O", "B-PER", "B-LOC", "B-LOC")
    assert text.irregular_labels == 2
    assert "2, which are read as by conlleval" in text.in_words()


@pytest.mark.parametrize(
    ("content", "settings", "message"),
    [
        ("", {}, "has no sentences"),
        ("\n-DOCSTART- O\n\n# comment\n", {}, "has no sentences"),
        ("a X O\nb O\n", {}, "train.txt:2: has 2 columns, but the rows before it have 3"),
        ("a\tO\n\tO\n", {}, "train.txt:2: its word is empty"),
        ("a O\nb NN\n", {}, "train.txt:2: label 'NN' is none of O, B-type"),
        ("a O\n\nb E-X\n", {"scheme": "iob2"}, "train.txt:3: label 'E-X' is none of iob2"),
        ("a O\n", {"token_column": 2}, "train.txt:1: has 2 columns, so there is no token_column = 2"),
        ("a O\n", {"label_column": -3}, "train.txt:1: has 2 columns, so there is no label_column = -3"),
        ("a O\n", {"token_column": 1}, "train.txt:1: has 2 columns, so token_column = 1 and label_column = -1 are"),
        (b"a O\nb\xff O\n", {}, "train.txt: not UTF-8 at byte 5"),
    ],
)
def test_refusals_name_file_and_row(
    tmp_path: Path, content: str | bytes, settings: dict[str, object], message: str
) -> None:
    with pytest.raises(InputError, match=re.escape(message)) as refusal:
        read(tmp_path, content, **settings)
    assert "\n" not in str(refusal.value)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="missing; expected a CoNLL file"):
        read_conll(str(tmp_path / "none.txt"), 0, -1, "auto")


def test_data_files_are_named_and_there(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("a O\n")
    file = str(tmp_path / "a")
    assert data_files(TaggingConfig(train_file=file, dev_file=file)) == {"train_file": file, "dev_file": file}
    roles = dict.fromkeys(("train_file", "dev_file", "test_file"), file)
    assert data_files(TaggingConfig(**roles)) == roles
    with pytest.raises(InputError, match=r"finetuning\.tagging\.dev_file is not set"):
        data_files(TaggingConfig(train_file=file))
    with pytest.raises(InputError, match=r"finetuning\.tagging\.test_file must name"):
        data_files(TaggingConfig(train_file=file, dev_file=file, test_file=file + "b"))
    with pytest.raises(ValueError, match="token_column and label_column are both -1"):
        TaggingConfig(token_column=-1)


def test_labels_without_a_type_and_with_any(tmp_path: Path) -> None:
    text = read(tmp_path, "a B\nb I\nc O\nd B\n")
    assert (text.scheme, text.types, text.sentences[0].labels) == ("iob2", [""], ("B", "I", "O", "B"))
    text = read(tmp_path, "a S\nb B\nc E\n")
    assert (text.scheme, text.sentences[0].labels) == ("bioes", ("B", "B", "I"))
    text = read(tmp_path, "a B-\u00e9v\u00e9nement.2-x\nb I-\u00e9v\u00e9nement.2-x\n")
    assert text.types == ["\u00e9v\u00e9nement.2-x"]


def test_plain_labels_are_found_or_named(tmp_path: Path) -> None:
    text = read(tmp_path, "# newdoc NN\nthe DT\nEU NNP\n\n# NN\n# SYM\n# DT\n")
    assert (text.scheme, text.types, text.is_plain) == ("tokens", ["DT", "NNP"], True)
    assert [sentence.words for sentence in text.sentences] == [("the", "EU"), ("#",)]
    assert text.sentences[0].labels == ("DT", "NNP")
    assert "2 plain labels" in text.in_words()
    text = read(tmp_path, "a O\nb COMMA\n", scheme="tokens")
    assert (text.types, text.scheme) == (["COMMA", "O"], "tokens")
    with pytest.raises(InputError, match=r"txt:2: label 'COMMA' is none of O, .* Set scheme = 'tokens' for plain"):
        read(tmp_path, "a O\nb COMMA\n")
    with pytest.raises(InputError, match=r"txt:1: label 'DT' is none of O, B-type"):
        read(tmp_path, "a DT\nb NN\n", scheme="iob2")


def test_multiword_tokens_and_empty_nodes_of_conll_u_are_no_words(tmp_path: Path) -> None:
    rows = ["1-2\tdu\t_", "1\tde\tADP", "2\tle\tDET", "2.1\tx\t_", "3\tchat\tNOUN"]
    content = "# text = du chat\n" + "".join(row + "\t_" * 7 + "\n" for row in rows)
    text = read(tmp_path, content, token_column=1, label_column=2)
    assert text.sentences[0].words == ("de", "le", "chat")
    assert text.types == ["ADP", "DET", "NOUN"]
    assert "2 rows of CoNLL-U for several words or for none are left out" in text.in_words()
