"""Files of pairs: BLiMP's and others', and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.training.minimal_pairs.conftest import PAIRS

from pipelines.contract.errors import InputError
from training.minimal_pairs.pairs import read_pairs


def test_a_directory_is_read_in_the_order_of_its_files(blimp_like: Path) -> None:
    pairs = read_pairs(str(blimp_like))
    assert list(zip(pairs.good, pairs.bad, strict=True)) == PAIRS
    assert pairs.group == ["agreement", "agreement", "order", "order"]
    assert pairs.field == ["syntax_semantics"] * 4
    assert pairs.places[3] == f"{blimp_like}/order.jsonl:2"


def test_a_sample_is_drawn_from_each_group_and_stays_the_same(tmp_path: Path) -> None:
    lines = [f'{{"good": "{n}", "bad": "b", "group": "{"xy"[n % 2]}"}}' for n in range(400)]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    pairs = read_pairs(str(tmp_path / "a.jsonl"))
    small, large = pairs.sample_of_each_group(20), pairs.sample_of_each_group(60)
    assert small == read_pairs(str(tmp_path / "a.jsonl")).sample_of_each_group(20)
    assert (small.group.count("x"), small.group.count("y")) == (20, 20)
    numbers = [int(each) for each in small.good]
    assert numbers == sorted(numbers)
    assert set(small.good) < set(large.good)
    # The mean of 20 of 0..399 at random has a standard error of 25.
    for group in "xy":
        drawn = [number for number, own in zip(numbers, small.group, strict=True) if own == group]
        assert abs(sum(drawn) / 20 - 200) < 100
    only_y = pairs.chosen([row for row in range(400) if row % 2])
    assert set(only_y.sample_of_each_group(20).good) < set(small.good), "the other groups do not matter"
    assert pairs.sample_of_each_group(1_000) == pairs


def test_a_table_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "own.tsv"
    path.write_text('good\tbad\tgroup\nIt "is".\tIs "it".\torder\nA\tB\t\n')
    pairs = read_pairs(str(path))
    assert pairs.good == ['It "is".', "A"]
    assert pairs.group == ["order", "own"]
    assert pairs.field == ["", ""]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.jsonl", "", "holds no pairs|has no column"),
        ("a.tsv", "good\tgroup\nA\tB\n", "a.tsv: has no column sentence_bad or bad, only good, group"),
        ("a.jsonl", '{"good": "A", "bad": ""}', "a.jsonl:1: bad is ''; a pair needs two sentences"),
        ("a.jsonl", '{"good": "A", "bad": "B"}\n{"good": 1, "bad": "B"}', "a.jsonl:2: good is 1; a pair needs two"),
        ("a.csv", "good,bad\nA,B\n", "its name must end in one of .tsv, .jsonl, .ndjson"),
    ],
)
def test_what_is_not_pairs_is_refused(name: str, text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(InputError, match=message):
        read_pairs(str(path))


def test_an_empty_directory_or_no_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no file of pairs"):
        read_pairs(str(tmp_path))
    with pytest.raises(InputError, match="no such file or directory"):
        read_pairs(str(tmp_path / "missing.jsonl"))
