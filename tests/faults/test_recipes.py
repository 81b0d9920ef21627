"""Thousands of wrong recipes: each is a valid recipe or one line, never another error, and never a hang."""

from __future__ import annotations

import copy
import os
import random
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.support import REPOSITORY
from tests.support.faults.scale import rounds

from flows.parameters.forms import form_of, toml_value
from flows.parameters.requests import RunRequest
from flows.parameters.tracking_config import TrackingConfig
from flows.parameters.whole_recipe import WholeRecipe
from pipelines.contract.bounds import Bounded, bounds_of
from pipelines.contract.recipe import RunConfig, Section, read_recipe
from pipelines.contract.recipe_text import RecipeError
from pipelines.contract.shown_text import shown
from pipelines.settings.documents import DocumentsConfig
from pipelines.settings.examples import ExamplesConfig
from pipelines.settings.vocabulary import VocabularyConfig
from training.settings.distillation import DistillationConfig
from training.settings.finetuning import FinetuningConfig
from training.settings.model import ModelConfig
from training.settings.pretraining import PretrainingConfig

RECIPES = REPOSITORY / "flows" / "recipes"
SECTIONS: tuple[type[Section], ...] = (
    *(RunConfig, DocumentsConfig, VocabularyConfig, ExamplesConfig, ModelConfig, PretrainingConfig),
    *(DistillationConfig, FinetuningConfig, TrackingConfig),
)
TEXTS = {path.name: path.read_bytes() for path in sorted(RECIPES.glob("*.toml"))}
NUMBERS: list[Any] = [
    *(
        0,
        -1,
        1,
        2,
        7,
        1 << 31,
        1 << 63,
        -(1 << 63),
        10**26,
        1e-320,
        -0.0,
        1e30,
        1e400,
        -1e400,
        float("nan"),
        0.5,
        1.0,
        3.0,
    ),
]
ODD_TEXTS = [
    *(
        "",
        " ",
        "1",
        "true",
        "nan",
        "~",
        "~/x",
        "~nobody-here/x",
        "\x00",
        "a\nb",
        "\x1b[31mred",
        "\u202eevil",
        "\u2028",
        "\x7f",
    ),
    *(
        "../..",
        "file://",
        "s3://",
        "javascript:alert(1)",
        "http://",
        "a" * 5_000,
        "\U0001f600",
        "2024-01-01",
        "\ud7ff",
        "{}",
    ),
]


@st.composite
def wrong_values(draw: st.DrawFn, depth: int = 0) -> Any:
    """A value of any type, with many unusual ones."""
    simple = st.one_of(
        st.sampled_from(NUMBERS),
        st.sampled_from(ODD_TEXTS),
        st.booleans(),
        st.integers(-(1 << 70), 1 << 70),
        st.floats(),
        st.text(st.characters(exclude_categories=["Cs"]), max_size=12),
        st.dates(),
        st.times(),
    )
    if depth > 2 or draw(st.integers(0, 3)):
        return draw(simple)
    nested = wrong_values(depth + 1)
    return draw(st.one_of(st.lists(nested, max_size=3), st.dictionaries(st.sampled_from(["a", "steps", ""]), nested)))


def places(tables: Any) -> Iterator[tuple[Any, Any]]:
    """Every container of a recipe with each of its keys."""
    for key, value in tables.items() if isinstance(tables, dict) else enumerate(tables):
        yield tables, key
        if isinstance(value, dict | list):
            yield from places(value)


@st.composite
def mutated_files(draw: st.DrawFn) -> bytes:
    """A shipped recipe with one to three errors in its values, keys or nesting, or in its bytes."""
    text = TEXTS[draw(st.sampled_from(sorted(TEXTS)))]
    if not draw(st.integers(0, 3)):
        return _damaged(draw, text)
    tables = copy.deepcopy(tomllib.loads(text.decode()))
    for _ in range(draw(st.integers(1, 3))):
        container, key = draw(st.sampled_from(list(places(tables))))
        kind = draw(st.sampled_from(("value", "value", "value", "key", "deep", "gone", "twin")))
        if kind == "value":
            container[key] = draw(wrong_values())
        elif kind == "gone":
            del container[key]
        elif kind == "twin" and isinstance(container, list):
            container.append(copy.deepcopy(container[key]))
        elif kind == "deep":
            for _ in range(draw(st.sampled_from((1, 5, 31, 40, 200)))):
                container[key] = draw(st.sampled_from(([container[key]], {"a": container[key]})))
        elif isinstance(container, dict):
            container[draw(st.sampled_from([*ODD_TEXTS, f"{key}s", key[::-1], key[1:]]))] = container.pop(key)
    return "\n".join(f"{toml(key)} = {toml(value)}" for key, value in tables.items()).encode()


def _damaged(draw: st.DrawFn, text: bytes) -> bytes:
    generator = random.Random(draw(st.integers(0, 1 << 32)))
    data = bytearray(text)
    for _ in range(generator.randint(1, 6)):
        place = generator.randrange(len(data))
        odd = (
            b"\x00",
            b"\xff",
            b"[",
            b"]",
            b"{",
            b'"',
            b"'''",
            b"=",
            b".",
            b"\n",
            b"\xef\xbb\xbf",
            b"9" * 5_000,
            b"\x1b",
        )
        data[place : place + generator.randint(0, 3)] = generator.choice(odd)
    return bytes(data)


def toml(value: Any) -> str:
    """TOML of values that sections do not use: dates, numbers that are not finite."""
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{toml(key)} = {toml(item)}" for key, item in value.items()) + " }"
    if isinstance(value, list):
        return "[" + ", ".join(map(toml, value)) + "]"
    return toml_value(value) if isinstance(value, str | bool) else str(value)


def outcome(path: Path, *overrides: str) -> str | None:
    """The error line of a rejected recipe, None for a valid one."""
    try:
        WholeRecipe.check(read_recipe(str(path), overrides))
    except RecipeError as error:
        line = str(error)
        assert line == shown(line), repr(line)
        assert len(line) < 3_000, line
        return line
    return None


@pytest.mark.slow
@settings(
    max_examples=rounds(200, 3_000),
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(data=mutated_files())
def test_a_wrong_recipe_is_one_line(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "wrong.toml"
    path.write_bytes(data)
    begin = time.monotonic()
    outcome(path)
    assert time.monotonic() - begin < 60


@settings(max_examples=rounds(100, 1_000), deadline=None, derandomize=True)
@given(
    key=st.sampled_from(
        ["run.name", "run.workspace", "documents.sources.0.inputs", "examples.lengths.0", "model.size.x.y"]
    )
    | st.text(max_size=30),
    value=wrong_values().map(toml) | st.text(max_size=60),
)
def test_a_wrong_override_is_one_line(key: str, value: str) -> None:
    outcome(RECIPES / "demo.toml", f"{key}={value}")


HOSTILE = {
    "brackets": b"[run]\nname = " + b"[" * 400_000,
    "tables": b"[run]\nname = " + b"{a=" * 200_000,
    "dots": b"run" + b".a" * 300_000 + b" = 1\n",
    "quoted dots": b"[run]\n" + b'"!".' * 200_000 + b"a = 1\n",
    "header": b"[" + b"run." * 200_000 + b"a]\n",
    "quotes": b"[run]\nname = " + b'"\\' * 400_000,
    "triple quotes": b'[run]\nname = """' + b'\\"""' * 200_000,
    "digits": b"[run]\nworkers = " + b"9" * 900_000,
    "hexadecimal": b"[run]\nworkers = 0x" + b"f" * 900_000,
    "long key": b"[run]\n" + b"k" * 900_000 + b" = 1\n",
    "nul": b"[run]\nname = 'a\x00b'\n",
    "escaped nul": b'[run]\nworkspace = "a\\u0000b"\n',
    "escape codes in a key": b'[run]\n"\\u001b[31m\\nerror: forged" = 1\n',
    "utf-16": "[run]\nname = 'x'\n".encode("utf-16"),
    "not text": bytes(range(256)) * 100,
    "too large": b"#" * 1_000_001,
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_file_is_refused_at_once(tmp_path: Path, name: str) -> None:
    path = tmp_path / "hostile.toml"
    path.write_bytes(HOSTILE[name])
    begin = time.monotonic()
    line = outcome(path)
    assert line is not None
    assert line.startswith(str(path))
    assert time.monotonic() - begin < 30


def test_what_is_no_regular_file_is_refused_without_waiting(tmp_path: Path) -> None:
    fifo, loop, folder = tmp_path / "fifo.toml", tmp_path / "loop.toml", tmp_path / "folder.toml"
    os.mkfifo(fifo)
    loop.symlink_to(loop)
    folder.mkdir()
    expected = {
        str(fifo): "is a pipe; a recipe is a regular file",
        str(folder): "is a directory; a recipe is a regular file",
        "/dev/zero": "is a device; a recipe is a regular file",
        str(loop): "cannot be read (Too many levels of symbolic links)",
        str(tmp_path / ("x" * 300)): "cannot be read (File name too long)",
        str(fifo / "x.toml"): "cannot be read (Not a directory)",
        "a\x00b": "not the path of a file",
    }
    for path, reason in expected.items():
        with pytest.raises(RecipeError) as caught:
            read_recipe(path)
        assert reason in str(caught.value)
        assert str(caught.value) == shown(str(caught.value))


def test_a_pipe_as_recipe_ends_the_command(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo.toml"
    os.mkfifo(fifo)
    command = [sys.executable, "-m", "training.finetune", str(fifo)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr == f"error: {fifo}: is a pipe; a recipe is a regular file, such as those in flows/recipes/\n"


def numeric_fields(section: type[Section]) -> Iterator[tuple[str, Any]]:
    """Every field with a number or a list of numbers, in a section and its nested ones."""
    for name, field in section.model_fields.items():
        found = list(_types_in(field.annotation))
        for nested in (part for part in found if issubclass(part, Section)):
            yield from ((f"{name}.{key}", inner) for key, inner in numeric_fields(nested))
        if any(part in (int, float) for part in found):
            yield name, field


def _types_in(annotation: Any) -> Iterator[type]:
    if isinstance(annotation, type) and not get_args(annotation):
        yield annotation
    for argument in get_args(annotation):
        if not isinstance(argument, str | Bounded):
            yield from _types_in(argument)


@pytest.mark.parametrize("section", SECTIONS)
def test_every_number_has_both_bounds_and_a_reason(section: type[Section]) -> None:
    fields = dict(numeric_fields(section))
    missing = [name for name, field in fields.items() if bounds_of(field) is None]
    assert not missing, f"without Bounded(low, high, reason): {missing}"
    for field in fields.values():
        bounds = bounds_of(field)
        assert bounds is not None
        assert bounds.low < bounds.high
        assert len(bounds.reason) > 10


@pytest.mark.parametrize("section", SECTIONS)
def test_every_text_has_a_shortest_and_a_longest_form(section: type[Section]) -> None:
    """An empty path is the current directory to some libraries and the root to others."""
    for name, field in section.model_fields.items():
        if str in _types_in(field.annotation) and "Literal" not in str(field.annotation):
            schema = str(section.model_json_schema()["properties"][field.alias or name])
            assert "minLength" in schema or "pattern" in schema, f"{section.__name__}.{name}"
            assert "maxLength" in schema, f"{section.__name__}.{name}"


STRICT = [
    ("pretraining.learning_rate=true", "pretraining.learning_rate = true: must be a number"),
    ("examples.passes=true", "examples.passes = true: must be a whole number"),
    ("examples.passes=2.0", "examples.passes = 2.0: must be a whole number"),
    ('pretraining.weight_decay="1"', 'pretraining.weight_decay = "1": must be a number without quotes'),
    ("vocabulary.lowercase=1", "vocabulary.lowercase = 1: must be true or false"),
    ("run.name=2024", 'run.name = 2024: must be text in quotes: "2024"'),
    ("run.workers=1_000_000_000", "run.workers = 1000000000: must be from 0 to 4_096: each is a process"),
    ("pretraining.ranks=2147483647", "pretraining.ranks = 2147483647: must be from 0 to 4_096"),
    (f"model.num_hidden_layers={10**26}", "model.num_hidden_layers = 0x"),
    (
        "model.num_hidden_layers=1_000_000",
        "model.num_hidden_layers = 1000000: must be from 1 to 1_000: BERT-large has 24",
    ),
    ("pretraining.learning_rate=5e-324", "pretraining.learning_rate = 5e-324: must be from 1e-10 to 10"),
    ("pretraining.learning_rate=1e30", "pretraining.learning_rate = 1e+30: must be from 1e-10 to 10"),
    ("documents.heldout_share=1.0", "documents.heldout_share = 1.0: must be from 0 to 0.9"),
    ("finetuning.sweep.learning_rates=[1e-3, 20.0]", "finetuning.sweep.learning_rates.1 = 20.0: must be from"),
    ('finetuning.glue_dir=""', 'finetuning.glue_dir = "": must not be empty'),
    ("tracking.mlflow_tracking_uri=javascript:alert(1)", "must begin with one of http://, https://, sqlite://"),
    ("run.name='a'\nworkers=5", r"--set run.name='a'\nworkers=5: holds a line break"),
    ("run.workspace=~nobody-here/x", 'run.workspace = "~nobody-here/x": no home directory is known for it'),
    ("documents.languages=[2024-01-01]", "2024-01-01: is a date or a time to TOML"),
    ("vocabulary.layout=brt", "vocabulary.layout = \"brt\": must be 'compact' or 'bert'; did you mean 'bert'?"),
    ("vocabulary.size=1e400", "vocabulary.size = Infinity: must be a whole number"),
]


@pytest.mark.parametrize(("override", "message"), STRICT)
def test_a_slip_of_the_pen_is_named(override: str, message: str) -> None:
    assert message in (outcome(RECIPES / "demo.toml", override) or "accepted")


FILES = "finetuning.tagging={train_file='a', dev_file='b'}"
CONTRADICTIONS = [
    (["examples.masking=whole_word", "pretraining.masking=dynamic"], "pretraining.masking = 'dynamic' masks single"),
    (["examples.masking=whole_word", "distillation.masking=dynamic"], "distillation.masking = 'dynamic' masks single"),
    (["pretraining.phases.0.masked_lm_prob=0.3"], "pretraining.phases.0.masked_lm_prob = 0.3, but the examples are"),
    (
        ["pretraining.phases.0.examples=law"],
        "pretraining.phases.0.examples = 'law': examples.sets is empty; add the set",
    ),
    (
        [
            "examples.sets=[{name='law', lengths=[{max_seq_length=64, max_predictions_per_seq=9}]}]",
            "pretraining.phases.0.examples=law",
        ],
        "pretraining.phases.0.max_seq_length = 32: the set 'law' of examples.sets makes only 64",
    ),
    (
        [
            "examples.sets=[{name='law', masking='whole_word'}]",
            "pretraining.phases.1.examples=law",
            "pretraining.masking=dynamic",
        ],
        "pretraining.masking = 'dynamic' masks single tokens, but examples.masking = 'whole_word'",
    ),
    (["examples.sources=[{name='law'}]"], "examples.sources.0.name = 'law': no source of documents.sources has a name"),
    (["pretraining.phases.1.global_batch_size=1", "pretraining.ranks=2"], "pretraining.phases.1: a step of 1 full"),
    (
        ["pretraining.ranks=3", "pretraining.micro_batch_size=1", "pretraining.phases.1.global_batch_size=16"],
        "micro-batch",
    ),
    (["finetuning.max_seq_length=256"], "finetuning.max_seq_length = 256 exceeds model.max_position_embeddings = 128"),
    (["finetuning.ranks=64"], "finetuning.batch_size = 32 is below finetuning.ranks = 64"),
    (["documents.heldout_share=0"], "documents.heldout_share = 0; raise the latter"),
    (["distillation.max_seq_length=64"], "distillation.max_seq_length = 64: examples.lengths makes only 32, 128"),
    (
        ["finetuning.tasks=['tagging']", FILES, "finetuning.tagging.feature_layers=[3]"],
        "finetuning.tagging.feature_layers names 3, but",
    ),
    (["distillation.teacher_layers=[0, 2]"], "distillation.teacher_layers names layer 2, but model.num_hidden_layers"),
    (["documents.max_characters=10"], "max_characters = 10 splits all texts into documents below min_characters = 20"),
    (["vocabulary.layout=bert", "vocabulary.size=999"], "size = 999 has no room besides the 999 reserved tokens"),
]


@pytest.mark.parametrize(("overrides", "message"), CONTRADICTIONS)
def test_what_sections_cannot_do_together_is_known_from_the_recipe(overrides: list[str], message: str) -> None:
    assert message in (outcome(RECIPES / "demo.toml", *overrides) or "accepted")


def test_what_people_write_is_understood(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/somebody")
    overrides = [
        "run.workspace=~/runs/x",
        'documents.sources.0.inputs=["~/texts/*.txt", "stdlib"]',
        "finetuning.glue_dir=~/glue",
        "finetuning.encoder=~/bert",
        "finetuning.squad.train_file=~/train.json",
        "finetuning.tagging.train_file=~/train.conll",
        "distillation.teacher=~/bert",
        "pretraining.initial_encoder=~/bert",
        "pretraining.learning_rate=1",
        "examples.seed=0x10",
    ]
    whole = WholeRecipe.check(read_recipe(str(RECIPES / "demo.toml"), overrides))
    assert whole.run.workspace == "/home/somebody/runs/x"
    assert whole.documents.sources[0].inputs == ("/home/somebody/texts/*.txt", "stdlib")
    assert whole.pretraining.initial_encoder == "/home/somebody/bert"
    found = (whole.finetuning.glue_dir, whole.finetuning.encoder, whole.distillation.teacher)
    assert found == ("/home/somebody/glue", "/home/somebody/bert", "/home/somebody/bert")
    assert whole.finetuning.squad.train_file == "/home/somebody/train.json"
    assert whole.finetuning.tagging.train_file == "/home/somebody/train.conll"
    assert whole.pretraining.learning_rate == 1.0
    dated = read_recipe(str(RECIPES / "demo.toml"), ["run.workspace=2024-01-01"]).section("run", RunConfig)
    assert dated.workspace == "2024-01-01"


def test_a_recipe_of_another_editor_is_read(tmp_path: Path) -> None:
    path = tmp_path / "notepad.toml"
    path.write_bytes(b"\xef\xbb\xbf" + TEXTS["demo.toml"].replace(b"\n", b"\r\n"))
    assert outcome(path) is None


def test_forms_take_json_and_are_as_strict_as_recipes() -> None:
    path = str(RECIPES / "demo.toml")
    request = RunRequest.model_validate(
        {
            "recipe": path,
            "overrides": ["pretraining.seed=3"],
            "examples": {"lengths": [{"max_seq_length": 32, "max_predictions_per_seq": 5}]},
            "pretraining": {"phases": [{"max_seq_length": 32, "steps": 300}], "learning_rate": 1},
            "finetuning": {"tasks": ["word-order"], "max_seq_length": 32, "sweep": {"learning_rates": [1e-3]}},
        }
    )
    whole = request.read()
    assert (whole.pretraining.phases[0].steps, whole.finetuning.sweep.learning_rates) == (300, (1e-3,))
    assert RunRequest.model_validate_json(request.model_dump_json()).read().sections() == whole.sections()
    for wrong in ({"learning_rate": True}, {"seed": "7"}, {"seed": 7.0}, {"ranks": 1 << 31}, {"learning_rate": 1e30}):
        with pytest.raises(ValueError, match="validation error"):
            form_of(PretrainingConfig)(**wrong)
    with pytest.raises(ValueError, match="stage_retries"):
        RunRequest(recipe=path, stage_retries=True)
