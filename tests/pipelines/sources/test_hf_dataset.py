"""Directories in the form of `datasets.save_to_disk`: the data files are those that `state.json` names."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest
from tests.support.preprocessing.reading import files_of, read, reasons_of, texts_of

from pipelines.contract.errors import InputError
from pipelines.settings.documents import SourceConfig
from pipelines.sources.formats import split_file

TEXTS = [f"Text {number} ñ." for number in range(10)]


def save(directory: Path, texts: list[str | None], num_files: int = 2) -> None:
    """As `Dataset.save_to_disk` of datasets 5.2 with `num_shards` does."""
    directory.mkdir(parents=True)
    names = [f"data-{number:05d}-of-{num_files:05d}.arrow" for number in range(num_files)]
    rows = pa.table({"id": list(range(len(texts))), "text": pa.array(texts, pa.string())})
    for number, name in enumerate(names):
        per_file = -(-len(texts) // num_files)
        part = rows.slice(number * per_file, per_file)
        with pa.ipc.new_stream(directory / name, part.schema) as writer:
            writer.write_table(part, 2)
    state = {
        "_data_files": [{"filename": name} for name in names],
        "_fingerprint": "c9f1e0a5b8d7a3f2",
        "_format_columns": None,
        "_format_kwargs": {},
        "_format_type": None,
        "_output_all_columns": False,
        "_split": directory.name,
    }
    (directory / "state.json").write_text(json.dumps(state))
    (directory / "dataset_info.json").write_text(json.dumps({"features": {}}))


def test_a_saved_data_set_gives_its_rows_and_only_these(tmp_path: Path) -> None:
    save(tmp_path / "corpus/train", [*TEXTS, None])
    (tmp_path / "corpus/train/cache-0123456789abcdef.arrow").write_bytes(b"of an earlier map")
    items = read(tmp_path / "corpus/train", format="hf-dataset")
    assert texts_of(items) == TEXTS
    assert reasons_of(items) == ["not-a-string"]
    assert items[0].source == "train/data-00000-of-00002.arrow#0.0"
    assert len({item.source for item in items}) == 11
    source = SourceConfig(inputs=(f"{tmp_path}/corpus/train/",), format="hf-dataset")
    (first, _) = files_of(source)
    assert split_file(first, source, 100) == [first]


def test_two_splits_are_two_inputs_and_a_dictionary_is_refused_with_its_splits(tmp_path: Path) -> None:
    save(tmp_path / "d/train", [*TEXTS])
    save(tmp_path / "d/validation", ["Held out."], num_files=1)
    (tmp_path / "d/dataset_dict.json").write_text('{"splits": ["train", "validation"]}')
    source = SourceConfig(inputs=(f"{tmp_path}/d/validation", f"{tmp_path}/d/train"), format="hf-dataset")
    assert [file.name.partition("/")[0] for file in files_of(source)] == ["train", "train", "validation"]
    with pytest.raises(InputError, match=r"a DatasetDict with the splits train, validation; name .*'.*/d/train'$"):
        read(tmp_path / "d", format="hf-dataset")


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda path: (path / "state.json").unlink(), "no state.json there; name a directory that"),
        (lambda path: (path / "state.json").write_text("{"), "its state.json is not JSON"),
        (lambda path: (path / "state.json").write_text("[]"), "its state.json is not a JSON object"),
        (lambda path: (path / "state.json").write_text("{}"), "its state.json names no data files"),
        (
            lambda path: (path / "state.json").write_text('{"_indices_data_files": [{"filename": "indices.arrow"}]}'),
            "its rows are chosen by an index",
        ),
        (
            lambda path: (path / "data-00001-of-00002.arrow").unlink(),
            "names data-00001-of-00002.arrow, which is not there",
        ),
    ],
)
def test_what_is_no_complete_data_set_is_one_clear_line(
    tmp_path: Path, damage: Callable[[Path], object], said: str
) -> None:
    save(tmp_path / "a", [*TEXTS])
    damage(tmp_path / "a")
    with pytest.raises(InputError, match=said):
        read(tmp_path / "a", format="hf-dataset")
    with pytest.raises(InputError, match=r"no state\.json there"):
        read(tmp_path / "b", format="hf-dataset")


def test_a_wrong_column_is_one_clear_line(tmp_path: Path) -> None:
    save(tmp_path / "a", [*TEXTS])
    with pytest.raises(InputError, match=r"text_field = 'body': .* has no columns of this name; columns there: id"):
        read(tmp_path / "a", format="hf-dataset", text_field="body")
