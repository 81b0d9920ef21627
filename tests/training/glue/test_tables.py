"""GLUE's table of tasks, its files read as they are, metrics against their definitions, averages against the paper."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.contract.errors import InputError
from training.glue import reading
from training.glue.metrics import leaderboard_average, paper_average, scores
from training.glue.reading import read_examples, read_test
from training.settings.finetuning import FinetuningConfig
from training.settings.glue import GLUE_TASKS, TASKS, task_files
from training.stages.finetuning import require_task_data

COMPLETE = ("cola", "mrpc", "sts-b", "rte", "wnli")
"""Tasks whose full files are in the shared data."""


@pytest.mark.parametrize("name", [*COMPLETE, "sst-2"])
def test_full_files_have_the_published_rows_and_majority(shared_data: Path, name: str) -> None:
    task = TASKS[name]
    folder = shared_data / "glue" / task.folder
    for file, rows in task.published_rows.items():
        if name == "sst-2" and file == "test.tsv":
            continue
        path = str(folder / file)
        assert len(read_test(task, path) if file in task.test_files else read_examples(task, path)) == rows, file
    labels = read_examples(task, str(folder / "train.tsv")).labels
    assert labels is not None
    if task.is_regression:
        assert task.majority == f"{np.mean(labels):.3f}"
    else:
        assert task.majority == task.labels[int(np.bincount(np.array(labels, dtype=int)).argmax())]


def test_mnli_rows_with_parse_trees(shared_data: Path) -> None:
    path = shared_data / "glue" / "MNLI" / "kshot_official_columns.tsv"
    task = TASKS["mnli"]
    examples = read_examples(task, str(path))
    assert len(examples) == 480
    assert examples.sentences_a[0] == "Well, he showed them."
    assert examples.sentences_b is not None
    assert examples.sentences_b[0] == "He beat them up."
    assert examples.labels is not None
    assert [examples.labels.count(number) for number in range(3)] == [160, 160, 160]
    rows = [line.split("\t") for line in path.read_text(encoding="utf-8").split("\n")[1:-1]]
    assert [task.labels[int(label)] for label in examples.labels] == [row[11] for row in rows]


def test_every_dev_file_of_mnli_and_qqp_is_read(shared_data: Path) -> None:
    matched, mismatched = (
        read_examples(TASKS["mnli"], path) for path in task_files("mnli", str(shared_data / "glue"))[1:]
    )
    assert (len(matched), len(mismatched)) == (500, 500)
    assert len(read_examples(TASKS["qqp"], str(shared_data / "glue" / "QQP" / "kshot_official_columns.tsv"))) == 320


def test_the_table_names_each_submission_once() -> None:
    names = [name for task in GLUE_TASKS for name in task.submissions]
    assert names == ["CoLA", "SST-2", "MRPC", "STS-B", "QQP", "MNLI-m", "MNLI-mm", "QNLI", "RTE", "WNLI", "AX"]
    assert TASKS["mnli"].submission_files == {"MNLI-m": "test_matched.tsv", "MNLI-mm": "test_mismatched.tsv"}
    assert TASKS["ax"].submission_files == {"AX": "diagnostic.tsv"}
    assert TASKS["word-order"].submission_files == {}
    assert [task.name for task in TASKS.values() if task.predicted_by] == ["ax"]
    for task in GLUE_TASKS:
        assert task.metric in task.metrics
        assert task.is_regression or task.majority in task.labels
        assert len(task.files) == len(task.rows)


def test_qqp_leaves_out_broken_rows_and_others_refuse_them(tmp_path: Path) -> None:
    path = tmp_path / "train.tsv"
    path.write_text(
        "id\tquestion1\tquestion2\tis_duplicate\n0\ta\tb\t1\n1\tcut\n off\tc\t0\n3\td\te\tf\t0\n4\tg\th\t0\n"
    )
    examples = read_examples(TASKS["qqp"], str(path))
    assert examples.sentences_a == ["a", "g"]
    assert examples.labels == [1.0, 0.0]
    path.write_text("index\tsentence1\tsentence2\tlabel\n0\ta\tb\tc\tentailment\n")
    with pytest.raises(InputError, match=r"train\.tsv:2: has 5 columns; expected 4"):
        read_examples(TASKS["rte"], str(path))


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("sst-2", b"sentence\tlabel\nfine\t1\nbad \xff\t0\n", r"dev\.tsv:3: b'bad \\xff' is not UTF-8"),
        ("sts-b", b"sentence1\tsentence2\tscore\na\tb\t5.5\n", r"dev\.tsv:2: label '5\.5' is outside 0 to 5"),
        ("sts-b", b"sentence1\tsentence2\tscore\na\tb\tnan\n", r"dev\.tsv:2: label 'nan' is outside 0 to 5"),
        ("rte", b"", r"dev\.tsv: is empty; expected a header with 'sentence1'"),
        ("cola", b"", r"dev\.tsv: has no rows"),
        ("sst-2", b"sentence\tlabel\n\na\t1\n", r"dev\.tsv:2: has 1 columns; expected 2"),
    ],
)
def test_bad_files_are_one_line(tmp_path: Path, name: str, data: bytes, message: str) -> None:
    path = tmp_path / "dev.tsv"
    path.write_bytes(data)
    with pytest.raises(InputError, match=message) as caught:
        read_examples(TASKS[name], str(path))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("end", [b"\n", b"\n\n\n", b"\r\n\r\n"])
def test_empty_lines_at_the_end_are_none_and_within_are_refused(tmp_path: Path, end: bytes) -> None:
    path = tmp_path / "train.tsv"
    rows = b"x\t1\t\tGood.\nx\t0\t*\tBad."
    path.write_bytes(rows + end)
    assert read_examples(TASKS["cola"], str(path)).labels == [1.0, 0.0]
    path.write_bytes(rows.replace(b"\n", b"\n\n"))
    with pytest.raises(InputError, match=r"train\.tsv:2: has 1 columns; expected 4"):
        read_examples(TASKS["cola"], str(path))


def test_bad_test_files_are_one_line(tmp_path: Path) -> None:
    path = tmp_path / "test.tsv"
    with pytest.raises(InputError, match=r"test\.tsv: missing; expected GLUE's own file for RTE"):
        read_test(TASKS["rte"], str(path))
    path.write_text("index\ttext\n0\ta\n")
    with pytest.raises(InputError, match=r"test\.tsv: no column 'sentence'; its header has index, text"):
        read_test(TASKS["cola"], str(path))
    path.write_text("index\tsentence\n0\ta\n1\n")
    with pytest.raises(InputError, match=r"test\.tsv:3: has 1 columns; expected 2"):
        read_test(TASKS["cola"], str(path))
    path.write_text("index\tsentence\n")
    with pytest.raises(InputError, match=r"test\.tsv: has no rows"):
        read_test(TASKS["cola"], str(path))
    with pytest.raises(InputError, match=r"CoLA/train\.tsv: missing; .* clozeworks glue fetch"):
        task_files("cola", str(tmp_path))
    with pytest.raises(InputError, match=r"CoLA/train\.tsv: missing"):
        require_task_data(FinetuningConfig(tasks=("word-order", "cola"), glue_dir=str(tmp_path)))
    require_task_data(FinetuningConfig(tasks=("word-order",)))


CELLS = st.text(st.characters(exclude_characters="\t\n\r", exclude_categories=("Cs",)), max_size=6)


@settings(deadline=None)
@given(
    rows=st.lists(st.tuples(CELLS, CELLS), min_size=1), crlf=st.booleans(), last=st.booleans(), block=st.integers(1, 9)
)
def test_lines_end_at_line_feeds_alone_wherever_a_block_is_cut(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, str]], crlf: bool, last: bool, block: int
) -> None:
    end = "\r\n" if crlf else "\n"
    text = end.join(["index\tsentence1\tsentence2", *("0\t" + "\t".join(row) for row in rows)]) + (end if last else "")
    path = tmp_path_factory.mktemp("table") / "test.tsv"
    path.write_bytes(b"\xef\xbb\xbf" + text.encode())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reading, "_BLOCK_BYTES", block)
        examples = read_test(TASKS["rte"], str(path))
    assert examples.sentences_a == [row[0].strip() for row in rows]
    assert examples.sentences_b == [row[1].strip() for row in rows]


def ratio(above: float, below: float) -> float:
    return above / below if below else 0.0


def mean_ranks(values: list[float]) -> list[float]:
    """Ranks from 1, where equal values share the mean of their places."""
    places = {value: [place for place, other in enumerate(sorted(values), 1) if other == value] for value in values}
    return [sum(places[value]) / len(places[value]) for value in values]


def plain_pearson(a: list[float], b: list[float]) -> float:
    mean_a, mean_b = sum(a) / len(a), sum(b) / len(b)
    together = sum((x - mean_a) * (y - mean_b) for x, y in zip(a, b, strict=True))
    return ratio(together, math.sqrt(sum((x - mean_a) ** 2 for x in a) * sum((y - mean_b) ** 2 for y in b)))


@pytest.mark.filterwarnings("ignore:A single label was found")
@settings(deadline=None)
@given(pairs=st.lists(st.tuples(st.integers(0, 1), st.integers(0, 1)), min_size=2, max_size=40))
def test_class_metrics_are_as_defined(pairs: list[tuple[int, int]]) -> None:
    labels, predictions = np.array(pairs, dtype=np.float64).T
    both, only_predicted, only_true, neither = (pairs.count(pair) for pair in ((1, 1), (0, 1), (1, 0), (0, 0)))
    assert scores(TASKS["qqp"], labels, predictions) == pytest.approx(
        {
            "f1": ratio(2 * both, 2 * both + only_predicted + only_true),
            "accuracy": (both + neither) / len(pairs),
        }
    )
    sums = (both + only_predicted) * (both + only_true) * (neither + only_predicted) * (neither + only_true)
    matthews = ratio(both * neither - only_predicted * only_true, math.sqrt(sums))
    assert scores(TASKS["cola"], labels, predictions)["matthews_correlation"] == pytest.approx(matthews)


@settings(deadline=None)
@given(pairs=st.lists(st.tuples(st.integers(0, 20), st.integers(0, 20)), min_size=2, max_size=40))
def test_correlations_are_as_defined(pairs: list[tuple[int, int]]) -> None:
    labels, predictions = ([number / 4 for number in column] for column in zip(*pairs, strict=True))
    found = scores(TASKS["sts-b"], np.array(labels), np.array(predictions))
    assert found["pearson"] == pytest.approx(plain_pearson(labels, predictions), abs=1e-9)
    assert found["spearman"] == pytest.approx(plain_pearson(mean_ranks(labels), mean_ranks(predictions)), abs=1e-9)


PAPER_COLUMNS = [
    ("MNLI-m", "accuracy"), ("MNLI-mm", "accuracy"), ("QQP", "f1"), ("QNLI", "accuracy"), ("SST-2", "accuracy"),
    ("CoLA", "matthews_correlation"), ("STS-B", "spearman"), ("MRPC", "f1"), ("RTE", "accuracy"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("row", "average"),
    [
        ((80.6, 80.1, 66.1, 82.3, 93.2, 35.0, 81.0, 86.0, 61.7), 74.0),
        ((82.1, 81.4, 70.3, 87.4, 91.3, 45.4, 80.0, 82.3, 56.0), 75.1),
        ((84.6, 83.4, 71.2, 90.5, 93.5, 52.1, 85.8, 88.9, 66.4), 79.6),
        ((86.7, 85.9, 72.1, 92.7, 94.9, 60.5, 86.5, 89.3, 70.1), 82.1),
    ],
)
def test_the_papers_average(row: tuple[float, ...], average: float) -> None:
    """Table 1 of Devlin et al. 2019: the pre-OpenAI best, OpenAI GPT, BERT-base and BERT-large."""
    results = {name: {metric: value} for (name, metric), value in zip(PAPER_COLUMNS, row, strict=True)}
    assert round(paper_average(results), 1) == average
    with pytest.raises(InputError, match="needs accuracy of WNLI, which has no result"):
        paper_average(results, with_wnli=True)
    assert paper_average({**results, "WNLI": {"accuracy": 65.1}}, with_wnli=True) == pytest.approx(
        (9 * paper_average(results) + 65.1) / 10
    )


@pytest.mark.parametrize(
    ("row", "score"),
    [
        ((60.5, 94.9, 89.3, 85.4, 87.6, 86.5, 72.1, 89.3, 86.7, 85.9, 92.7, 70.1, 65.1), 80.5),
        ((62.5, 95.6, 91.1, 88.2, 89.5, 88.8, 72.7, 89.6, 86.7, 86.0, 93.1, 81.4, 65.1), 82.7),
    ],
)
def test_the_leaderboards_average(row: tuple[float, ...], score: float) -> None:
    """Rows of BERT-large and MT-DNN on the leaderboard (Liu et al. 2019, table 2)."""
    columns = [
        ("CoLA", "matthews_correlation"), ("SST-2", "accuracy"), ("MRPC", "f1"), ("MRPC", "accuracy"),
        ("STS-B", "pearson"), ("STS-B", "spearman"), ("QQP", "f1"), ("QQP", "accuracy"), ("MNLI-m", "accuracy"),
        ("MNLI-mm", "accuracy"), ("QNLI", "accuracy"), ("RTE", "accuracy"), ("WNLI", "accuracy"),
    ]  # fmt: skip
    results: dict[str, dict[str, float]] = {}
    for (name, metric), value in zip(columns, row, strict=True):
        results.setdefault(name, {})[metric] = value
    results["CoLA"]["accuracy"] = 0.0
    assert round(leaderboard_average(results), 1) == score
    assert leaderboard_average(results, with_wnli=False) == pytest.approx(
        (9 * leaderboard_average(results) - row[-1]) / 8
    )
