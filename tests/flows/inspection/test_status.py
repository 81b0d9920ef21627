"""States and progress of a workspace, with stages that are complete, unfinished, or changed."""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from flows import status
from flows.inspection.workspace import StageStatus, in_words, statuses_of_recipe, statuses_of_workspace
from flows.parameters.whole_recipe import SECTION_MODELS, WholeRecipe
from flows.remove import remove
from pipelines.contract import storage
from pipelines.contract.errors import InputError, exit_code_of
from pipelines.contract.manifest import StageKey, record_of, write_manifest
from pipelines.contract.recipe import Section, read_recipe
from pipelines.results.builds import open_build
from pipelines.results.marks import building_directory, write_mark
from pipelines.results.unfinished import finish_unit
from pipelines.stage_keys import documents_key, vocabulary_key
from pipelines.statistics.preprocessing import ExamplesStatistics, LengthStatistics
from training.settings.pretraining import PretrainingConfig

PHASES = (
    {"max_seq_length": 32, "steps": 100, "global_batch_size": 8},
    {"max_seq_length": 64, "steps": 50, "global_batch_size": 4},
)


def complete(directory: str, key: StageKey) -> str:
    """Write a stage of one file; returns its digest."""
    storage.write_bytes(f"{directory}/data.txt", repr((key.config, key.inputs)).encode())
    manifest = key.manifest([record_of(directory, "data.txt", rows=1)], {}, "0")
    write_manifest(directory, manifest)
    return manifest.digest


def zeros(model: type[BaseModel]) -> dict[str, Any]:
    """Statistics of nothing."""
    found: dict[str, Any] = {}
    for name, field in model.model_fields.items():
        if field.is_required():
            kind: Any = field.annotation
            is_model = isinstance(kind, type) and issubclass(kind, BaseModel)
            found[name] = zeros(kind) if is_model else {} if "dict" in str(kind) or "Mapping" in str(kind) else 0
    return found


def states(statuses: list[StageStatus]) -> dict[str, str]:
    return {one.name: one.state for one in statuses}


def named(statuses: list[StageStatus], name: str) -> StageStatus:
    return next(one for one in statuses if one.name == name)


@pytest.fixture
def whole(write_recipe: Callable[..., str], tmp_path: Path) -> WholeRecipe:
    (tmp_path / "corpus.txt").write_text("A text.")
    os.makedirs(tmp_path / "ws")
    return WholeRecipe.check(read_recipe(write_recipe(("corpus.txt", f"{tmp_path}/corpus.txt"))))


def test_stages_become_complete_one_by_one_and_the_next_command_goes_on(whole: WholeRecipe) -> None:
    workspace = whole.run.workspace
    assert set(states(statuses_of_workspace(workspace)).values()) == {"missing"}
    complete(f"{workspace}/documents", documents_key(whole.documents, whole.run.workspace))
    complete(f"{workspace}/vocabulary", vocabulary_key(whole.vocabulary, whole.run.workspace))
    for statuses in (statuses_of_workspace(workspace), statuses_of_recipe(whole)):
        told = states(statuses)
        assert [told[name] for name in ("documents", "vocabulary", "examples", "pretraining")] == [
            *("complete", "complete", "missing", "missing")
        ]
        command = status.next_command(statuses, workspace, "r.toml")
        assert command == "clozeworks examples r.toml"
    assert "finetuning/cola/random" in states(statuses_of_recipe(whole))


def test_a_stage_is_stale_by_settings_by_what_it_read_and_by_damage(whole: WholeRecipe) -> None:
    workspace = whole.run.workspace
    complete(f"{workspace}/documents", documents_key(whole.documents, whole.run.workspace))
    complete(f"{workspace}/vocabulary", vocabulary_key(whole.vocabulary, whole.run.workspace))
    other = WholeRecipe.check(read_recipe(whole.recipe.path, ["vocabulary.size=4000"]))
    stale = named(statuses_of_recipe(other), "vocabulary")
    assert (stale.state, stale.detail) == ("stale", "size was 30522, is 4000")

    complete(f"{workspace}/documents", StageKey("documents", 2, {"other": 1}, {}))
    stale = named(statuses_of_workspace(workspace), "vocabulary")
    assert (stale.state, stale.detail) == ("stale", "input documents changed")

    storage.write_bytes(f"{workspace}/documents/data.txt", b"")
    assert "data.txt is not of the size" in named(statuses_of_workspace(workspace), "documents").detail
    storage.write_bytes(f"{workspace}/documents/manifest.json", b"{}")
    assert "not a manifest of this project" in named(statuses_of_workspace(workspace), "documents").detail


def test_a_corpus_that_is_elsewhere_does_not_make_documents_stale(whole: WholeRecipe, tmp_path: Path) -> None:
    complete(f"{whole.run.workspace}/documents", documents_key(whole.documents, whole.run.workspace))
    os.remove(tmp_path / "corpus.txt")
    assert named(statuses_of_recipe(whole), "documents").state == "complete"


def test_units_of_an_unfinished_job_are_counted(whole: WholeRecipe) -> None:
    directory = f"{whole.run.workspace}/documents"
    open_build(directory, documents_key(whole.documents, whole.run.workspace))
    directory = building_directory(directory)
    finish_unit(directory, "parts/000000", {})
    for number in range(3):
        finish_unit(directory, f"shards/train-{number:05d}-of-00016.arrow", {})
    assert named(statuses_of_workspace(whole.run.workspace), "documents").detail == "1 parts, 3 shards"
    told = named(statuses_of_recipe(whole), "documents")
    assert (told.state, told.detail) == ("unfinished", "1 of 1 parts, 3 of 17 shards")


def write_pretraining(directory: str, checkpoint_step: int, last_step: int, **settings: Any) -> StageKey:
    config = PretrainingConfig.model_validate(settings or {"phases": PHASES, "num_warmup_steps": 1})
    key = StageKey("pretraining", 2, {"model": {}, "pretraining": config.identity()}, {})
    complete(f"{directory}/checkpoints/step-{checkpoint_step:010d}", key)
    lines = [
        {"step": step, "tokens": 256.0 * step, "tokens_per_second": 512.0, "timestamp_ms": int(time.time() * 1000)}
        for step in (last_step - 10, last_step)
    ]
    heldout = {"step": last_step, "heldout_loss": 1.0, "timestamp_ms": int(time.time() * 1000)}
    text = "".join(json.dumps(line) + "\n" for line in [*lines, heldout])
    storage.write_bytes(f"{directory}/metrics.jsonl", text.encode() + b'{"step": 99')
    return key


def test_progress_of_pretraining_is_told_without_a_recipe(tmp_path: Path) -> None:
    key = write_pretraining(f"{tmp_path}/pretraining.building", checkpoint_step=50, last_step=60)
    write_mark(f"{tmp_path}/pretraining", key)
    told = named(statuses_of_workspace(str(tmp_path)), "pretraining")
    assert told.state == "unfinished"
    assert told.numbers["step"] == 60
    assert told.numbers["total_steps"] == 150
    # 40 steps of 8 rows of 32 and 50 of 4 rows of 64, all of 256 tokens, at two steps a second.
    assert told.numbers["seconds_left"] == pytest.approx(45.0)
    assert told.detail.startswith("step 60 of 150, 512 tokens/s, 45 s left, checkpoint of step 50, last update")


@pytest.mark.parametrize(
    ("measure", "amount", "detail"),
    [
        # 60 rows of 20 tokens: 2 epochs are 15 steps of 8 rows; 3,000 tokens are 150 rows.
        ("epochs", 2, "step 12 of about 15, 512 tokens/s, "),
        ("tokens", 3_000, "step 12 of about 19, 512 tokens/s, "),
        ("hours", 1.5, "step 12, of 1.5 hours, 512 tokens/s, checkpoint of step 10"),
    ],
)
def test_the_length_of_a_run_by_another_measure_is_derived_from_its_examples(
    tmp_path: Path, measure: str, amount: float, detail: str
) -> None:
    phases = ({"max_seq_length": 32, measure: amount, "global_batch_size": 8},)
    key = write_pretraining(f"{tmp_path}/pretraining.building", checkpoint_step=10, last_step=12, phases=phases)
    write_mark(f"{tmp_path}/pretraining", key)
    storage.write_bytes(f"{tmp_path}/examples/length32/train-00000-of-00001.arrow", b"rows")
    record = record_of(f"{tmp_path}/examples", "length32/train-00000-of-00001.arrow", rows=60)
    of_length = zeros(LengthStatistics) | {"mean_length": 20.0}
    statistics = zeros(ExamplesStatistics) | {"lengths": {"32": of_length}}
    write_manifest(f"{tmp_path}/examples", StageKey("examples", 2, {}, {}).manifest([record], statistics, "0"))
    shown = named(statuses_of_workspace(str(tmp_path)), "pretraining").detail
    assert shown.startswith(detail)


def test_checkpoints_of_another_run_are_told(whole: WholeRecipe) -> None:
    workspace = whole.run.workspace
    key = write_pretraining(f"{workspace}/pretraining.building", checkpoint_step=50, last_step=60)
    write_mark(f"{workspace}/pretraining", key)
    assert named(statuses_of_recipe(whole), "pretraining").state == "stale"


def test_a_run_of_a_release_that_trained_in_place_is_found(whole: WholeRecipe) -> None:
    write_pretraining(f"{whole.run.workspace}/pretraining", checkpoint_step=50, last_step=60)
    assert named(statuses_of_workspace(whole.run.workspace), "pretraining").state == "unfinished"


def test_a_new_run_and_kept_results_have_rows_of_their_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace = str(tmp_path)
    for name in ("pretraining", "pretraining.1", "pretraining.12"):
        complete(f"{workspace}/{name}", StageKey("pretraining", 2, {"seed": 1}, {}))
    key = write_pretraining(f"{workspace}/pretraining.building", checkpoint_step=50, last_step=60)
    write_mark(f"{workspace}/pretraining", key)
    rows = {status.name: status for status in statuses_of_workspace(workspace)}
    assert list(rows)[3:] == ["pretraining", "pretraining (new)", "pretraining.1", "pretraining.12"]
    assert rows["pretraining"].state == "complete"
    assert rows["pretraining (new)"].detail.startswith("step 60 of 150")
    assert rows["pretraining.12"].state == "kept"

    for name, problem in [("pretraining", "no kept result named"), ("pretraining.2", "there are: pretraining.1, pret")]:
        with pytest.raises(InputError, match=problem):
            remove(workspace, name, is_sure=True)
    with pytest.raises(InputError, match=r"pretraining\.1: not removed: no terminal for the confirmation; add --yes"):
        remove(workspace, "pretraining.1", is_sure=False)
    monkeypatch.setattr("sys.stdin.isatty", lambda: True)
    monkeypatch.setattr("builtins.input", lambda _: "n")
    with pytest.raises(InputError, match="not removed"):
        remove(workspace, "pretraining.1", is_sure=False)
    assert os.path.isdir(f"{workspace}/pretraining.1")
    with pytest.raises(InputError, match="nowhere: no such directory; give the workspace"):
        remove(f"{workspace}/nowhere", "pretraining.1", is_sure=True)
    remove(workspace, "pretraining.1", is_sure=True)
    assert not os.path.exists(f"{workspace}/pretraining.1")
    assert "pretraining.1: removed" in capsys.readouterr().out
    assert {"pretraining", "pretraining.12", "pretraining.building"} <= {*os.listdir(workspace)}


def test_results_of_a_linked_stage_are_named_by_the_stage(tmp_path: Path) -> None:
    workspace = f"{tmp_path}/run"
    for name in ("big", "big.1"):
        complete(f"{tmp_path}/disk/{name}", StageKey("pretraining", 2, {"seed": 1}, {}))
    os.mkdir(workspace)
    os.symlink(f"{tmp_path}/disk/big", f"{workspace}/pretraining")
    assert [status.name for status in statuses_of_workspace(workspace)][3:] == ["pretraining", "pretraining.1"]
    remove(workspace, "pretraining.1", is_sure=True)
    assert os.listdir(f"{tmp_path}/disk") == ["big"]


def test_trials_are_found_and_task_data_is_no_trial(tmp_path: Path) -> None:
    complete(f"{tmp_path}/finetuning/cola/pretrained", StageKey("finetuning", 1, {}, {}))
    complete(f"{tmp_path}/finetuning/data/word-order", StageKey("data", 1, {}, {}))
    storage.write_bytes(f"{tmp_path}/finetuning/rte/random/metrics.jsonl", b'{"step": 1250, "loss": 0.5}\n')
    told = states(statuses_of_workspace(str(tmp_path)))
    assert told["finetuning/cola/pretrained"] == "complete"
    assert told["finetuning/rte/random"] == "unfinished"
    assert len(told) == 6


def test_the_command_tells_a_table_and_json(whole: WholeRecipe, capsys: pytest.CaptureFixture[str]) -> None:
    workspace = whole.run.workspace
    assert status.main([workspace]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "next: clozeworks documents RECIPE.toml"
    capsys.readouterr()
    assert status.main([whole.recipe.path, "--json", "--set", "pretraining.seed=7"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["next"] == f"clozeworks documents {whole.recipe.path} --set pretraining.seed=7"
    assert {stage["state"] for stage in told["stages"]} == {"missing"}
    with pytest.raises(InputError, match="no such directory"):
        status.main([f"{workspace}/nowhere"])


def test_durations_in_words() -> None:
    assert [in_words(seconds) for seconds in (5, 600, 9000, 1e6)] == ["5 s", "10 min", "2.5 h", "11.6 days"]


def test_watching_needs_a_time(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code_of(lambda: status.main(["workspace", "--watch", "-1"])) == 2
    assert capsys.readouterr().err == "error: --watch -1: give seconds above 0\n"


def test_of_a_workspace_too_what_is_missing_after_the_last_result_comes_next(whole: WholeRecipe) -> None:
    workspace = whole.run.workspace
    complete(f"{workspace}/documents", documents_key(whole.documents, whole.run.workspace))
    complete(f"{workspace}/vocabulary", vocabulary_key(whole.vocabulary, whole.run.workspace))
    command = status.next_command(statuses_of_workspace(workspace), workspace, "RECIPE.toml")
    assert command == "clozeworks examples RECIPE.toml"


def test_every_section_is_parsed_once(whole: WholeRecipe, monkeypatch: pytest.MonkeyPatch) -> None:
    workspace = whole.run.workspace
    complete(f"{workspace}/documents", documents_key(whole.documents, workspace))
    complete(f"{workspace}/vocabulary", vocabulary_key(whole.vocabulary, workspace))
    parsed: Counter[str] = Counter()
    validate = Section.model_validate.__func__  # type: ignore[attr-defined]  # a class method's function

    def counted(model: type[Section], values: Any) -> Section:
        parsed[model.__name__] += 1
        return validate(model, values)  # type: ignore[no-any-return]

    monkeypatch.setattr(Section, "model_validate", classmethod(counted))
    assert status.main([whole.recipe.path]) == 0
    assert parsed == {model.__name__: 1 for model in SECTION_MODELS.values()}
