"""Readers: what is found, what is read, and what becomes of invalid files."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.support.preprocessing.reading import files_of, read_all, texts_of

from pipelines.contract.errors import InputError
from pipelines.documents.sentences import paragraphs_of, pieces_of, sentences_of
from pipelines.inputs.file_patterns import find_files
from pipelines.reading.source import RawDocument, Reject
from pipelines.settings.documents import SourceConfig


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for name in ["b.txt", "a.txt", "sub/c.txt", "sub/deep/d.txt", "sub/e.md", ".hidden.txt", "x[1].txt"]:
        path = tmp_path / "corpus" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    return tmp_path / "corpus"


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("*.txt", ["corpus/a.txt", "corpus/b.txt", "corpus/x[1].txt"]),
        ("**/*.txt", ["corpus/a.txt", "corpus/b.txt", "corpus/sub/c.txt", "corpus/sub/deep/d.txt", "corpus/x[1].txt"]),
        ("sub/*", ["sub/c.txt", "sub/e.md"]),
        ("[!b].txt", ["corpus/a.txt"]),
        ("?.txt", ["corpus/a.txt", "corpus/b.txt"]),
        ("sub", ["sub/c.txt", "sub/deep/d.txt", "sub/e.md"]),
        ("sub/c.txt", ["c.txt"]),
    ],
)
def test_patterns(tree: Path, pattern: str, names: list[str]) -> None:
    assert [file.name for file in find_files((f"{tree}/{pattern}",))] == names


def test_a_file_named_twice_is_read_once_and_nothing_is_an_error(tree: Path) -> None:
    assert len(find_files((f"{tree}/a.txt", f"{tree}/*.txt"))) == 3
    with pytest.raises(InputError, match=r"inputs = '.*/\*\.csv' matches no file"):
        find_files((f"{tree}/*.csv",))
    with pytest.raises(InputError, match="matches no file"):
        find_files((f"{tree}/absent.txt",))


def test_plain_text_with_bom_and_windows_line_ends(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfOne line\r\nwrapped.\r\n\r\nTwo.")
    (tmp_path / "b.txt").write_bytes(b"fine \xff not")
    documents = read_all(SourceConfig(inputs=(str(tmp_path),)))
    assert documents[0] == RawDocument(f"{tmp_path.name}/a.txt", "One line\nwrapped.\n\nTwo.")
    assert documents[1] == Reject(f"{tmp_path.name}/b.txt", "undecodable", "not UTF-8 at byte 5: invalid start byte")


def test_blank_lines_as_document_separator(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("First sentence.\nSecond one.\n\n \n\nOther document.\n")
    documents = read_all(SourceConfig(inputs=(str(tmp_path),), document_separator="blank-line"))
    assert [document.source.rpartition("#")[2] for document in documents] == ["0", "32"]
    assert paragraphs_of(texts_of(documents)[0]) == ["First sentence.", "Second one."]


def test_docstrings_are_parsed_and_never_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "pkg"
    package.mkdir()
    (package / "mod.py").write_text(
        '"""A module.\n\nIt has\nprose.\n\n>>> code()\n----\n"""\nraise SystemExit\ndef f():\n    "Does f."\n'
    )
    (package / "broken.py").write_text("def (")
    (package / "silent.py").write_text("x = 1\n")
    monkeypatch.setattr("sysconfig.get_paths", lambda: {"stdlib": str(package)})
    items = read_all(SourceConfig(format="python-docstrings", inputs=("stdlib",)))
    assert [type(item).__name__ for item in items] == ["Reject", "RawDocument", "Reject"]
    assert [item.source for item in items] == ["stdlib/broken.py", "stdlib/mod.py", "stdlib/silent.py"]
    assert isinstance(items[1], RawDocument)
    assert paragraphs_of(items[1].text) == ["A module.", "It has prose.", "Does f."]


def test_unknown_distribution_is_one_clear_line() -> None:
    with pytest.raises(InputError, match="no installed distribution is called 'no-such-thing'"):
        files_of(SourceConfig(format="python-docstrings", inputs=("no-such-thing",)))


def test_docstrings_of_installed_distributions_have_stable_names() -> None:
    names = [file.name for file in files_of(SourceConfig(format="python-docstrings", inputs=("pydantic",)))]
    assert "pydantic/main.py" in names
    assert names == sorted(names)


def test_inputs_are_cut_to_a_size(tree: Path) -> None:
    config = SourceConfig(inputs=(f"{tree}/**/*.txt",), max_input_bytes=6)
    assert [file.name for file in files_of(config)] == ["corpus/a.txt", "corpus/b.txt"]


def test_sentences_do_not_cross_paragraphs() -> None:
    paragraphs = paragraphs_of("Dr. Smith went\nhome. He slept.\n\nand then\n")
    assert sentences_of(paragraphs, "en").sentences == ["Dr. Smith went home.", "He slept.", "and then"]


def test_long_texts_are_cut_between_paragraphs() -> None:
    paragraphs = ["a" * 6, "b" * 3, "c" * 20, "d"]
    assert list(pieces_of(paragraphs, 10)) == [["a" * 6, "b" * 3], ["c" * 20], ["d"]]
    assert list(pieces_of(paragraphs, None)) == [paragraphs]
    assert list(pieces_of([], 10)) == list(pieces_of([], None)) == [[]]
