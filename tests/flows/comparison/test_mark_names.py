"""Names marked by their capital letters, for the study on features."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from tests.support import REPOSITORY

from flows.studies.mark_names import labels_of, sentences_of

SCRIPT = REPOSITORY / "flows" / "studies" / "mark_names.py"


@pytest.mark.parametrize(
    ("sentence", "labels"),
    [
        ("The mayor of New York met Ann.", "O O O B-NAME I-NAME O B-NAME O"),
        ("Today I'm told that I left Rome", "O O O O O O B-NAME"),
        ('"Yes, Ann and Bob agree', "O O O B-NAME O B-NAME O"),
    ],
)
def test_capital_letters_within_a_sentence_are_names(sentence: str, labels: str) -> None:
    (tokens,) = sentences_of([sentence])
    assert labels_of(tokens) == labels.split()


def test_lines_are_split_into_sentences() -> None:
    line = 'They met Mr Hill at 5 p.m. today. "It was late," he said! Short one. Then they all went home again.'
    assert [" ".join(tokens) for tokens in sentences_of([line])] == [
        "They met Mr Hill at 5 p . m . today .",
        '" It was late , " he said !',
        "Then they all went home again .",
    ]


def test_files_are_columns_of_lower_case_words(tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("We saw that Ann went home.\n" * 30)
    command = [sys.executable, str(SCRIPT), str(text), "--output", str(tmp_path / "names"), "--sentences", "20"]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert said == f"{tmp_path}/names: 20 of 30 sentences, 20 names\n"
    dev = (tmp_path / "names" / "dev.txt").read_text()
    assert dev == "we O\nsaw O\nthat O\nann B-NAME\nwent O\nhome O\n. O\n\n" * 2
    assert (tmp_path / "names" / "train.txt").read_text().count("ann B-NAME") == 18
    # The files of an earlier call are not written over.
    for arguments, problem in ((command, "names: exists"), ([*command[:-1], "0"], "--sentences 0: give at least 1")):
        refused = subprocess.run(arguments, capture_output=True, text=True, check=False)
        assert refused.returncode == 2
        assert problem in refused.stderr.splitlines()[-1]
    assert (tmp_path / "names" / "dev.txt").read_text() == dev
