"""SQuAD's files: the real one, and mistakes that are reported in one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pipelines.contract.errors import InputError
from training.settings.squad import SquadConfig, data_files
from training.squad.reading import read_squad

REAL_FILE = Path("squad") / "half_A_24articles.json"


def squad_file(question: dict[str, Any], context: str = "Blue whales sing.") -> dict[str, Any]:
    question = {"id": "q1", "question": "Who sings?", **question}
    return {"data": [{"title": "Whales", "paragraphs": [{"context": context, "qas": [question]}]}]}


def write(path: Path, content: Any) -> str:
    path.write_text(json.dumps(content), encoding="utf-8")
    return str(path)


def test_the_real_file_is_read_whole(shared_data: Path) -> None:
    file = read_squad(str(shared_data / REAL_FILE))
    assert (len(file.questions), len(file.contexts)) == (4961, 913)
    assert sum(len(question.answers) for question in file.questions) == 17778
    assert not file.is_version_2
    assert len({question.article for question in file.questions}) == 24
    for question in file.questions:
        for answer in question.answers:
            assert file.contexts[question.context][answer.start : answer.end] == answer.text


def test_offsets_count_characters_beyond_16_bits(tmp_path: Path) -> None:
    context = "\U0001d54f\U0001f40b e\u0301te\u0301 \u6d77"
    answers = [{"text": "\u6d77", "answer_start": 9}]
    path = tmp_path / "dev.json"
    path.write_text("\ufeff" + json.dumps(squad_file({"answers": answers}, context), ensure_ascii=False), "utf-8")
    assert read_squad(str(path)).questions[0].answers[0].start == 9
    utf_16 = write(tmp_path / "utf16.json", squad_file({"answers": [{"text": "\u6d77", "answer_start": 11}]}, context))
    with pytest.raises(InputError, match="offsets count Unicode characters"):
        read_squad(utf_16)


def test_version_2_is_read_from_the_questions(tmp_path: Path) -> None:
    impossible = write(tmp_path / "2.json", squad_file({"is_impossible": True, "answers": [], "plausible_answers": []}))
    file = read_squad(impossible)
    assert file.is_version_2
    assert file.questions[0].is_impossible
    answer = {"answers": [{"text": "Blue whales", "answer_start": 0}], "is_impossible": False}
    assert not read_squad(write(tmp_path / "1.json", squad_file(answer))).is_version_2


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([], r"dev\.json: no list under 'data'"),
        ({"data": []}, r"dev\.json: has no questions"),
        ({"data": ["x"]}, r"dev\.json: article '1': no list under 'paragraphs'"),
        ({"data": [{"title": "W", "paragraphs": [{"qas": []}]}]}, r"article 'W': no text under 'context'"),
        (squad_file({"id": 7}), r"article 'Whales': no text under 'id'"),
        (squad_file({"question": None}), r"article 'Whales', question q1: no text under 'question'"),
        (squad_file({}), r"question q1: no list under 'answers'"),
        (squad_file({"answers": []}), r"question q1: has no answers; add one"),
        (squad_file({"answers": [{"text": "Blue"}]}), r"question q1: answer_start = None must be an integer"),
        (squad_file({"answers": [{"text": "Blue", "answer_start": "0"}]}), r"answer_start = '0' must be"),
        (
            squad_file({"answers": [{"text": "whales", "answer_start": 4}]}),
            r"question q1: answer 'whales' is not at answer_start = 4 of the context, but ' whale' is",
        ),
        (squad_file({"answers": [{"text": "sing.", "answer_start": -5}]}), r"is not at answer_start = -5"),
        (squad_file({"answers": [{"text": "", "answer_start": 0}]}), r"answer '' is not at"),
        (squad_file({"is_impossible": "yes", "answers": []}), r"is_impossible = 'yes' must be true or false"),
        (
            squad_file({"is_impossible": True, "answers": [{"text": "Blue", "answer_start": 0}]}),
            r"is_impossible, but has answers",
        ),
        ({"data": squad_file({"is_impossible": True})["data"] * 2}, r"question id 'q1' occurs twice"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, content: Any, message: str) -> None:
    path = write(tmp_path / "dev.json", content)
    with pytest.raises(InputError, match=message) as caught:
        read_squad(path)
    assert str(caught.value).startswith(path)
    assert "\n" not in str(caught.value)


def test_what_is_no_json_is_named(tmp_path: Path) -> None:
    path = tmp_path / "dev.json"
    path.write_text('{"data": [')
    with pytest.raises(InputError, match=r"dev\.json: not JSON \(Expecting value: line 1 column 11"):
        read_squad(str(path))
    path.write_bytes(b'{"data": "\xff"}')
    with pytest.raises(InputError, match="not UTF-8 at byte 10"):
        read_squad(str(path))
    with pytest.raises(InputError, match="missing; expected a SQuAD JSON file"):
        read_squad(str(tmp_path / "absent.json"))


def test_files_of_a_recipe(tmp_path: Path) -> None:
    path = write(tmp_path / "dev.json", squad_file({"is_impossible": True}))
    assert data_files(SquadConfig(train_file=path, dev_file=path)) == {"train_file": path, "dev_file": path}
    with pytest.raises(InputError, match=r"finetuning\.squad\.dev_file is not set"):
        data_files(SquadConfig(train_file=path))
    with pytest.raises(InputError, match=r"absent\.json: missing"):
        data_files(SquadConfig(train_file=path, dev_file=str(tmp_path / "absent.json")))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_seq_length": 66}, "leaves no room for text after a question of max_query_length = 64"),
        ({"max_seq_length": 192, "doc_stride": 126}, "doc_stride = 126 exceeds the 125 context tokens"),
        ({"null_threshold": float("nan")}, "finite"),
    ],
)
def test_windows_that_would_leave_text_out_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SquadConfig(**settings)
