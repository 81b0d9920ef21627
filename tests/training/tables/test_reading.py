"""Tables in every format: cells as they are, rows as users count them, and one line for each kind of bad row."""

from __future__ import annotations

import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.contract.errors import InputError
from training.settings.tables import TableConfig, dev_files, files_of
from training.tables.reading import Splits, read_splits

ROWS = [
    {"text": 'a "quoted", text', "label": "spam"},
    {"text": "two\nlines\r\nand three", "label": "ham"},
    {"text": "caf\u00e9 \u2028 separator\tand tab", "label": "spam"},
    {"text": " spaces kept ", "label": "ham"},
]


def table_of(train: Path, dev: Path | None = None, **settings: Any) -> TableConfig:
    if "dev_share" not in settings:
        settings["dev_file"] = str(dev or train)
    return TableConfig(name="mail", train_file=str(train), **settings)


def quoted(cell: str) -> str:
    return '"' + cell.replace('"', '""') + '"'


def write_csv(path: Path, rows: list[dict[str, str]], end: str = "\n", delimiter: str = ",", mark: bytes = b"") -> Path:
    lines = [delimiter.join(rows[0]), *(delimiter.join(map(quoted, row.values())) for row in rows)]
    path.write_bytes(mark + (end.join(lines) + end).encode())
    return path


def write_json_lines(path: Path, rows: list[dict[str, Any]], end: str = "\n") -> Path:
    path.write_bytes("".join(json.dumps(row, ensure_ascii=False) + end for row in rows).encode())
    return path


def features_of(class_names: list[str]) -> dict[str, Any]:
    return {
        "text": {"dtype": "string", "_type": "Value"},
        "label": {"names": class_names, "_type": "ClassLabel"},
    }


def write_directory(path: Path, tables: list[pa.Table], features: dict[str, Any]) -> Path:
    """A split in the layout of `datasets.save_to_disk` (4.0), which is not installed here."""
    path.mkdir(parents=True)
    names = [f"data-{number:05}-of-{len(tables):05}.arrow" for number in range(len(tables))]
    for name, table in zip(names, tables, strict=True):
        with pa.OSFile(str(path / name), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
    state = {"_data_files": [{"filename": name} for name in names], "_fingerprint": "0", "_split": "train"}
    (path / "state.json").write_text(json.dumps(state))
    (path / "dataset_info.json").write_text(json.dumps({"features": features}))
    return path


def texts_and_labels(splits: Splits) -> list[tuple[str, str]]:
    assert splits.train.targets is not None
    labels = [splits.names[int(target)] for target in splits.train.targets]
    return list(zip(splits.train.texts[0], labels, strict=True))


EXPECTED = [(row["text"], row["label"]) for row in ROWS]


def test_csv_as_spreadsheets_write_it(tmp_path: Path) -> None:
    for number, (end, mark) in enumerate((("\n", b""), ("\r\n", b"\xef\xbb\xbf"))):
        splits = read_splits(table_of(write_csv(tmp_path / f"{number}.csv", ROWS, end, mark=mark)))
        assert texts_and_labels(splits) == EXPECTED
        assert splits.names == ("ham", "spam")
        # The second row has line ends within quotes: the third begins two lines later, as an editor counts.
        assert list(splits.train.columns.numbers) == [2, 3, 6, 7]
    semicolons = write_csv(tmp_path / "semicolons.csv", ROWS, delimiter=";")
    assert texts_and_labels(read_splits(table_of(semicolons, delimiter=";"))) == EXPECTED


def test_tsv_has_no_quotes_unless_told(tmp_path: Path) -> None:
    path = tmp_path / "rows.tsv"
    path.write_text('label\ttext\nx\t"open\ny\tinches: 3"\n\n')
    assert texts_and_labels(read_splits(table_of(path))) == [('"open', "x"), ('inches: 3"', "y")]
    written = write_csv(tmp_path / "written.tsv", ROWS, delimiter="\t")
    assert texts_and_labels(read_splits(table_of(written, quotes=True))) == EXPECTED


def test_json_lines_and_parquet_and_directories(tmp_path: Path) -> None:
    json_lines = write_json_lines(tmp_path / "rows.jsonl", ROWS, "\r\n")
    assert texts_and_labels(read_splits(table_of(json_lines))) == EXPECTED
    parquet = tmp_path / "rows.parquet"
    pq.write_table(pa.Table.from_pylist(ROWS).append_column("other", [range(4)]), parquet, row_group_size=2)
    splits = read_splits(table_of(parquet))
    assert texts_and_labels(splits) == EXPECTED
    assert list(splits.train.columns.numbers) == [1, 2, 3, 4]

    # Class numbers with names in an order of their own, in two files.
    numbered = pa.table({"text": [row["text"] for row in ROWS], "label": [0, 1, 0, 1]})
    features = features_of(["spam", "ham", "other"])
    directory = write_directory(tmp_path / "all" / "train", [numbered.slice(0, 3), numbered.slice(3)], features)
    splits = read_splits(table_of(directory))
    assert texts_and_labels(splits) == EXPECTED
    assert splits.names == ("spam", "ham", "other")
    keys = [f"train_file/{name}" for name in sorted(path.name for path in directory.iterdir())]
    assert [key for key in files_of(table_of(directory)) if key.startswith("train")] == keys
    assert len(dev_files(table_of(directory))) == 4

    stated = json.dumps({"info": {"features": features}}).encode()
    pq.write_table(numbered.replace_schema_metadata({b"huggingface": stated}), parquet)
    splits = read_splits(table_of(parquet))
    assert (texts_and_labels(splits), splits.names) == (EXPECTED, ("spam", "ham", "other"))

    (tmp_path / "all" / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    with pytest.raises(
        InputError, match=r"all: has the splits train, test; name the directory of one, such as .*train"
    ):
        read_splits(table_of(tmp_path / "all"))


def test_labels_are_named_as_in_the_file_and_sorted(tmp_path: Path) -> None:
    def names(values: list[Any]) -> tuple[str, ...]:
        rows = [{"text": "x", "label": value} for value in values]
        return read_splits(table_of(write_json_lines(tmp_path / "rows.jsonl", rows))).names

    assert names(["b", "a", " b "]) == ("a", "b")
    assert names([10, 9, -1]) == ("-1", "9", "10")
    assert names(["10", "9", "x"]) == ("10", "9", "x")
    assert names([True, False]) == ("false", "true")
    assert names([1.0, 0.0]) == ("0", "1")


def test_several_labels_in_a_row(tmp_path: Path) -> None:
    rows = [{"text": "x", "label": ["b", "a"]}, {"text": "y", "label": []}, {"text": "z", "label": ["c"]}]
    expected = [[1, 1, 0], [0, 0, 0], [0, 0, 1]]
    parquet = tmp_path / "rows.parquet"
    pq.write_table(pa.Table.from_pylist(rows), parquet)
    text = tmp_path / "rows.csv"
    text.write_text("text,label\nx,b; a\ny,\nz,c\n")
    for table in (
        table_of(write_json_lines(tmp_path / "rows.jsonl", rows), kind="multi"),
        table_of(parquet, kind="multi"),
        table_of(text, kind="multi", label_separator=";"),
    ):
        splits = read_splits(table)
        assert splits.names == ("a", "b", "c")
        np.testing.assert_array_equal(splits.train.targets, expected)


def test_dev_share_depends_on_the_text_alone(tmp_path: Path) -> None:
    rows = [{"text": f"text {number % 200}", "label": "ab"[number % 2]} for number in range(400)]
    share = read_splits(table_of(write_json_lines(tmp_path / "rows.jsonl", rows), dev_share=0.25))
    train, dev = (set(each.texts[0]) for each in (share.train, share.dev))
    assert not train & dev
    assert len(share.train) + len(share.dev) == 400
    assert 0.15 < len(share.dev) / 400 < 0.35
    again = write_json_lines(tmp_path / "again.jsonl", [*reversed(rows), {"text": "new", "label": "a"}])
    assert set(read_splits(table_of(again, dev_share=0.25)).dev.texts[0]) - {"new"} == dev
    with pytest.raises(InputError, match=r"dev_share = 0.001 leaves no development rows of 400; change it"):
        read_splits(table_of(tmp_path / "rows.jsonl", dev_share=0.001))


def test_a_test_file_may_have_no_labels(tmp_path: Path) -> None:
    train = write_csv(tmp_path / "train.csv", ROWS)
    for text, labelled in (("text\nx\n", False), ("text,label\nx,\ny,\n", False), ("text,label\nx,ham\n", True)):
        path = tmp_path / "test.csv"
        path.write_text(text)
        test = read_splits(table_of(train, test_file=str(path))).test
        assert test is not None
        assert (test.targets is not None) == labelled
    path.write_text("text,label\nx,ham\ny,\n")
    with pytest.raises(InputError, match=r"test\.csv:3: no label in column 'label'"):
        read_splits(table_of(train, test_file=str(path)))


GOOD = "text,label\nx,a\ny,b\n"


@pytest.mark.parametrize(
    ("dev", "settings", "message"),
    [
        ("text,label\nx,a\n\ny,c\n", {}, r"dev\.csv:4: label 'c' is in no row of .*train\.csv, which has 'a', 'b'"),
        ('text,label\n"x\n1",a\ny,\n', {}, r"dev\.csv:4: no label in column 'label'; give each row a label"),
        ("text,label\n,a\n", {}, r"dev\.csv:2: column 'text' is empty; give each row a text"),
        ("text,label\n  ,a\n", {}, r"dev\.csv:2: column 'text' is blank"),
        ("text,label\nx,a,b\n", {}, r"dev\.csv:2: has 3 cells, and the header has 2; put a cell with a delimiter in"),
        ('text,label\nx,a\n"y,b\n', {}, r"dev\.csv:3: the row that begins here cannot be read \(unexpected end"),
        ("text;label\nx;a\n", {}, r"dev\.csv: no column 'text'; it has text;label: set text or label"),
        ("text,label,text\nx,a,y\n", {}, r"dev\.csv:1: its header has 'text' twice"),
        ("", {}, r"dev\.csv: is empty; expected a header"),
        ("text,label\n", {}, r"dev\.csv: has no rows"),
        ("text,label\nx,1\ny,high\n", {"kind": "regression"}, r"dev\.csv:3: 'high' in column 'label' is not a finite"),
        ("text,label\nx,nan\n", {"kind": "regression"}, r"dev\.csv:2: 'nan' in column 'label' is not a finite"),
        ("text,label\nx,\n", {"kind": "regression"}, r"dev\.csv:2: no label in column 'label'"),
        (
            'text,label\nx,"a,,b"\n',
            {"kind": "multi"},
            r"dev\.csv:2: column 'label' has an empty label between or after",
        ),
        ('text,label\nx,"a,"\n', {"kind": "multi"}, r"dev\.csv:2: .* separators ','; remove the separator"),
    ],
)
def test_a_bad_row_is_one_line(tmp_path: Path, dev: str, settings: dict[str, Any], message: str) -> None:
    train, path = tmp_path / "train.csv", tmp_path / "dev.csv"
    train.write_text("text,label\nx,1\ny,2\n" if settings.get("kind") == "regression" else GOOD)
    path.write_text(dev)
    with pytest.raises(InputError, match=message) as caught:
        read_splits(table_of(train, path, **settings))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("train", "settings", "message"),
    [
        ("text,label\nx,a\ny,a\n", {}, r"column 'label' has only the label 'a'; a classifier needs two"),
        (
            "text,label\n" + "".join(f"x,id {n}\n" for n in range(30)),
            {},
            r"has 30 different values in 30 rows, 'id 0', .* and 20 more; name the column with the labels, or set kind",
        ),
        (
            "text,label\nx,1.5\ny,2.25\nz,1.5\n",
            {},
            r"numbers with a fraction, '1\.5', '2\.25'; set kind = 'regression'",
        ),
        (GOOD, {"metric": "f1", "positive_label": "c"}, r"no label 'c', which positive_label names; it has 'a', 'b'"),
        (GOOD, {"class_weights": ({"label": "A", "weight": 2.0},)}, r"no label 'A', which class_weights names"),
    ],
)
def test_wrong_labels_are_refused(tmp_path: Path, train: str, settings: dict[str, Any], message: str) -> None:
    path = tmp_path / "train.csv"
    path.write_text(train)
    with pytest.raises(InputError, match=message):
        read_splits(table_of(path, **settings))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"text": "y", "label": "b"', r"rows\.jsonl:3: not JSON \(Expecting ',' delimiter at character 26\)"),
        ('["y", "b"]', r"rows\.jsonl:3: not an object"),
        ('{"label": "b"}', r"rows\.jsonl:3: column 'text' is empty"),
        ('{"text": 7, "label": "b"}', r"rows\.jsonl:3: column 'text' has a int"),
        ('{"text": "y"}', r"rows\.jsonl:3: no label in column 'label'"),
        ('{"text": "y", "label": NaN}', r"rows\.jsonl:3: no label in column 'label'"),
        ('{"text": "y", "label": ["b"]}', r"rows\.jsonl:3: column 'label' is a list; set kind = 'multi' for lists"),
        ('{"text": "y", "label": {"b": 1}}', r"rows\.jsonl:3: column 'label' has a dict"),
        ('{"text": "y", "label": "\\ud800"}', r"rows\.jsonl:3: column 'label' has half a surrogate pair"),
        ('{"text": "\\ud800", "label": "b"}', r"rows\.jsonl:3: column 'text' has half a surrogate pair"),
    ],
)
def test_a_bad_line_of_json(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(f'{{"text": "x", "label": "a"}}\n\n{line}\n')
    with pytest.raises(InputError, match=message):
        read_splits(table_of(path))


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    latin = tmp_path / "latin.csv"
    latin.write_bytes("text,label\nx,a\ncaf\u00e9,b\n".encode("latin-1"))
    with pytest.raises(InputError, match=r"latin\.csv:3: not UTF-8 at b'\\xe9,b"):
        read_splits(table_of(latin))
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(InputError, match=r"broken\.parquet: cannot be read as Parquet \("):
        read_splits(table_of(tmp_path / "broken.parquet"))
    with pytest.raises(InputError, match=r"none\.csv: missing; train_file of the table 'mail' must name a file"):
        read_splits(table_of(tmp_path / "none.csv"))
    (tmp_path / "rows.txt").write_text(GOOD)
    with pytest.raises(InputError, match=r"rows\.txt: its name does not end in one of \.csv, .*; set format"):
        read_splits(table_of(tmp_path / "rows.txt"))
    assert read_splits(table_of(tmp_path / "rows.txt", format="csv")).names == ("a", "b")
    table = pa.table({"text": ["x", "y", None], "label": [1, 2, 3]})
    pq.write_table(table, tmp_path / "rows.parquet")
    with pytest.raises(InputError, match=r"rows\.parquet: row 3: column 'text' is empty"):
        read_splits(table_of(tmp_path / "rows.parquet"))
    directory = write_directory(tmp_path / "cut", [table], {})
    (directory / "data-00000-of-00001.arrow").unlink()
    with pytest.raises(InputError, match=r"data-00000-of-00001\.arrow: missing, and state\.json lists it"):
        read_splits(table_of(directory))
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "rows.csv").write_text(GOOD)
    with pytest.raises(InputError, match=r"empty: has no state\.json"):
        read_splits(table_of(tmp_path / "empty"))


def test_damaged_binary_files_are_one_line(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    rows = pa.table({"text": ["x", "y"] * 5_000, "label": ["a", "b"] * 5_000})
    pq.write_table(rows, path)
    damaged = bytearray(path.read_bytes())
    damaged[4:60] = bytes(each ^ 0xFF for each in damaged[4:60])
    path.write_bytes(damaged)
    with pytest.raises(InputError, match=r"rows\.parquet: cannot be read as Parquet \("):
        read_splits(table_of(path))
    pq.write_table(pa.Table.from_arrays([pa.array(["x"]), *[pa.array(["a"])] * 2], ["text", "label", "label"]), path)
    with pytest.raises(InputError, match=r"rows\.parquet: has the column 'label' twice; rename one"):
        read_splits(table_of(path))
    pq.write_table(pa.table({"text": ["x"], "label": pa.array([2**30], pa.date32())}), path)
    with pytest.raises(InputError, match=r"column 'label' is of type date32\[day\], with a value that cannot be read"):
        read_splits(table_of(path))
    for stated in ("{", "[]", '{"info": null}', '{"info": {"features": []}}'):
        pq.write_table(rows.replace_schema_metadata({"huggingface": stated}), path)
        assert read_splits(table_of(path)).names == ("a", "b")
    directory = write_directory(tmp_path / "parts", [rows, pa.table({"text": ["x"], "label": [1]})], {})
    with pytest.raises(InputError, match=r"parts: its files have columns of different types"):
        read_splits(table_of(directory))
    for listed in ("{}", "[]", '{"_data_files": [{}]}', '{"_data_files": ["data.arrow"]}'):
        (directory / "state.json").write_text(listed)
        with pytest.raises(InputError, match=r"parts: state\.json lists no files"):
            read_splits(table_of(directory))


def test_numbers_of_any_size_and_type(tmp_path: Path) -> None:
    rows = pa.table({"text": ["x", "y", "z"], "label": [Decimal("2.00"), Decimal("10.00"), Decimal("2.00")]})
    pq.write_table(rows, tmp_path / "rows.parquet")
    assert read_splits(table_of(tmp_path / "rows.parquet")).names == ("2", "10")
    long = "1" * 5_000
    (tmp_path / "long.csv").write_text(f"text,label\nx,{long}\ny,2\n")
    assert read_splits(table_of(tmp_path / "long.csv")).names == (long, "2")
    (tmp_path / "rows.jsonl").write_text(f'{{"text": "x", "label": {10**400}}}\n')
    with pytest.raises(InputError, match=r"rows\.jsonl:1: 1000.* in column 'label' is not a finite number"):
        read_splits(table_of(tmp_path / "rows.jsonl", kind="regression"))
