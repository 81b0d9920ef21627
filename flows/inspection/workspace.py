"""Progress of the stages of a workspace, read from their files: manifests, records, checkpoints, metrics.

A stage that is built next to an earlier result has two rows: the result, and `NAME (new)`. Kept results follow it.

Must not import Beam or torch: `status` calls this. Writes nothing, so it can be called during a run.
"""

from __future__ import annotations

import itertools
import json
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from pydantic import ValidationError

from flows.inspection.kept_results import kept_in_words, size_bytes_of
from flows.inspection.stage_results import result_in_words
from flows.parameters.whole_recipe import WholeRecipe
from flows.running.plan import (
    StageOutput,
    finetuning_stages,
    possible_place,
    preprocessing_stages,
    pretraining_stage,
)
from pipelines.contract import storage
from pipelines.contract.errors import InputError
from pipelines.contract.manifest import StageKey, read_manifest
from pipelines.contract.workspace import (
    BUILDING_SUFFIX,
    CHECKPOINT_PREFIX,
    CHECKPOINTS_DIRECTORY,
    DISTILLATION,
    DOCUMENTS,
    EXAMPLES,
    FILES_GROUP,
    FINETUNING,
    MANIFEST_NAME,
    METRICS_NAME,
    PARTS_GROUP,
    PRETRAINING,
    ROWS_GROUP,
    SHARDS_GROUP,
    TRASH_DIRECTORY,
    VOCABULARY,
)
from pipelines.results.kept import kept_directories
from pipelines.results.marks import building_directory, is_open
from pipelines.results.unfinished import count_finished
from training.settings.pretraining import PhaseConfig, PretrainingConfig
from training.stages.budgets import about_steps, amount_in_words

State = Literal["complete", "stale", "unfinished", "missing", "kept"]

NEW = " (new)"
"""Suffix of the row for a build that will replace a result."""

UNITS = {DOCUMENTS: (PARTS_GROUP, SHARDS_GROUP), EXAMPLES: (ROWS_GROUP, FILES_GROUP)}
"""Groups of finished units that two jobs record."""

_UNITS_IN_WORDS = {"parts": "parts", "shards": "shards", "rows": "shards split into rows", "files": "sets of files"}
_CHAIN = (DOCUMENTS, VOCABULARY, EXAMPLES, PRETRAINING)
_TASK_DATA = "data/"
_TAIL_BYTES = 1 << 17


@dataclass(frozen=True)
class StageStatus:
    """A stage, or one trial of fine-tuning: `detail` in words, `numbers` for programs."""

    name: str
    state: State
    directory: str
    detail: str = ""
    numbers: dict[str, float] = field(default_factory=dict)


def statuses_of_workspace(workspace: str) -> list[StageStatus]:
    """Statuses from manifests alone: a stage is stale if a file is damaged or a stage that it read has changed.

    Raises:
        InputError: the directory does not exist.
    """
    if storage.is_local(workspace) and not os.path.isdir(storage.local_path(workspace)):
        raise InputError(f"{workspace}: no such directory; give a workspace or a recipe (.toml)")
    directories = {name: storage.join(workspace, name) for name in _CHAIN}
    directories |= _distillation(workspace)
    directories |= {f"{FINETUNING}/{trial}": storage.join(workspace, FINETUNING, trial) for trial in _trials(workspace)}
    digests = _digests(directories)
    statuses: list[StageStatus] = []
    for name, directory in directories.items():
        statuses.append(_status(name, directory, _own_difference(directory, digests), None))
        statuses += _others(statuses[-1], None)
    return statuses


def statuses_of_recipe(whole: WholeRecipe) -> list[StageStatus]:
    """Statuses of the stages of a recipe, each compared with the recipe's current settings and inputs."""
    plans = [*preprocessing_stages(whole), pretraining_stage(whole), *finetuning_stages(whole)]
    outputs = {
        f"{FINETUNING}/{output.name}" if plan.name == FINETUNING else output.name: output
        for plan in plans
        for output in plan.outputs
    }
    directories = {name: output.directory for name, output in outputs.items()}
    digests = _digests(directories)
    statuses = []
    for name, output in outputs.items():
        status = _status(name, output.directory, _difference(output, digests), whole)
        if name == PRETRAINING and status.state == "stale":
            status = _with_continuation(status, whole)
        for each in [status, *_others(status, whole)]:
            is_run = name == PRETRAINING and each.state == "unfinished"
            statuses.append(_compared_with_checkpoint(each, output) if is_run else each)
    for name, directory in _distillation(whole.run.workspace).items():
        statuses.append(_status(name, directory, _own_difference(directory, digests), whole))
        statuses += _others(statuses[-1], whole)
    return statuses


def _with_continuation(status: StageStatus, whole: WholeRecipe) -> StageStatus:
    """Add where `--continue` would start."""
    try:
        place = possible_place(whole)
    except InputError:
        return status
    if place is None or whole.pretraining.num_train_steps is None:
        return status
    left = whole.pretraining.num_train_steps - place.step
    detail = f"with --continue {left:,} steps after step {place.step:,}: {status.detail}"
    return replace(status, detail=detail, numbers={**status.numbers, "continue_step": float(place.step)})


def _distillation(workspace: str) -> dict[str, str]:
    """The stage's directory if it has a result or a run; a recipe does not say whether to distil."""
    directory = storage.join(workspace, DISTILLATION)
    there = storage.list_files(directory) or is_open(directory) or kept_directories(directory)
    return {DISTILLATION: directory} if there else {}


def _others(status: StageStatus, whole: WholeRecipe | None) -> list[StageStatus]:
    """Rows below that of a stage's result: the build that will replace it, and kept earlier results."""
    found = []
    if status.state in ("complete", "stale") and is_open(status.directory):
        building = _unfinished(status.name, status.directory, whole)
        detail = building.detail or "started"
        found.append(replace(building, name=status.name + NEW, state="unfinished", detail=detail))
    for kept in kept_directories(status.directory):
        # The stage may be a link to a directory of another name.
        row = kept_status(kept, status.directory)
        found.append(replace(row, name=f"{status.name}.{kept.rpartition('.')[2]}"))
    return found


def kept_status(directory: str, result_directory: str) -> StageStatus:
    """The row of an earlier result kept under a numbered name: when it was completed, its size, what differs."""
    name = directory.rstrip("/").rpartition("/")[2]
    try:
        manifest = read_manifest(directory)
    except InputError as error:
        return StageStatus(name, "kept", directory, str(error))
    if manifest is None:
        checkpoint = _newest_checkpoint(directory)
        detail = f"an unfinished run, checkpoint of step {_step_of(checkpoint):,}" if checkpoint else "no result"
        detail += f", {storage.in_units(size_bytes_of(directory))}"
        return StageStatus(name, "kept", directory, detail)
    detail, numbers = kept_in_words(directory, manifest, result_directory)
    return StageStatus(name, "kept", directory, detail, _numbers(manifest.statistics) | numbers)


def _status(name: str, directory: str, difference: str | None, whole: WholeRecipe | None) -> StageStatus:
    """Status of one stage. difference: why a stage with a manifest must be built again."""
    try:
        manifest = read_manifest(directory)
    except InputError as error:
        return StageStatus(name, "stale", directory, str(error))
    if manifest is not None:
        numbers = _numbers(manifest.statistics)
        if difference is not None:
            return StageStatus(name, "stale", directory, difference, numbers)
        return StageStatus(name, "complete", directory, result_in_words(name, manifest), numbers)
    return _unfinished(name, directory, whole)


def _unfinished(name: str, result_directory: str, whole: WholeRecipe | None) -> StageStatus:
    """Progress of the build of a stage."""
    directory = building_directory(result_directory)
    if not is_open(result_directory):
        # Releases without build directories trained in the stage's own.
        directory = result_directory
    if name in UNITS:
        return _unfinished_job(name, directory, whole)
    if name == PRETRAINING:
        return _unfinished_pretraining(directory, whole)
    if name.startswith((f"{FINETUNING}/", DISTILLATION)) and (lines := _last_lines(directory)):
        return StageStatus(
            name, "unfinished", directory, f"step {lines[-1]['step']:,}{_age(lines)}", _numbers(lines[-1])
        )
    return StageStatus(name, "missing", directory)


def _difference(output: StageOutput, digests: Mapping[str, str]) -> str | None:
    try:
        return output.difference()
    except InputError:
        # An input of the recipe is missing, such as the corpus on a GPU node: compare with the files that exist.
        return _own_difference(output.directory, digests)


def _own_difference(directory: str, digests: Mapping[str, str]) -> str | None:
    """Compare a stage's files with its manifest, and the digests of its input stages with their current ones."""
    try:
        manifest = read_manifest(directory)
    except InputError as error:
        return str(error)
    if manifest is None:
        return None
    inputs = {name: digests.get(name, digest) for name, digest in manifest.inputs.items()}
    return StageKey(manifest.stage, manifest.stage_version, manifest.config, inputs).difference(directory)


def _digests(directories: Mapping[str, str]) -> dict[str, str]:
    """Digests of the chain's stages that are complete and readable."""
    digests = {}
    for name in _CHAIN:
        try:
            manifest = read_manifest(directories[name])
        except InputError:
            continue
        if manifest is not None:
            digests[name] = manifest.digest
    return digests


def _trials(workspace: str) -> list[str]:
    """Directories of trials, finished or started, at any depth below finetuning/."""
    directory = storage.join(workspace, FINETUNING)
    found = {
        os.path.dirname(name).removesuffix(BUILDING_SUFFIX)
        for name in storage.list_files(directory)
        if os.path.basename(name) in (MANIFEST_NAME, METRICS_NAME)
        and not name.startswith(_TASK_DATA)
        and TRASH_DIRECTORY not in name
    }
    return sorted(found - {""})


def _numbers(values: Mapping[str, Any]) -> dict[str, float]:
    return {key: value for key, value in values.items() if isinstance(value, (int, float))}


def _unfinished_job(name: str, directory: str, whole: WholeRecipe | None) -> StageStatus:
    if not directory.endswith(BUILDING_SUFFIX):
        return StageStatus(name, "missing", directory)
    totals = _totals(name, whole) if whole is not None else {}
    words, numbers = [], {}
    for group in UNITS[name]:
        numbers[group] = float(count_finished(directory, group))
        of_total = ""
        if group in totals:
            numbers[f"{group}_total"] = float(totals[group])
            of_total = f" of {totals[group]:,}"
        words.append(f"{numbers[group]:,.0f}{of_total} {_UNITS_IN_WORDS[group]}")
    return StageStatus(name, "unfinished", directory, ", ".join(words), numbers)


def _totals(name: str, whole: WholeRecipe) -> dict[str, int]:
    """Number of units of a job of this recipe, as the job itself counts them."""
    # Imports the readers and the sentence splitter (a second), needed only while a job is unfinished.
    from pipelines.documents.document import plan_parts, shards_of

    shards = len(shards_of(whole.documents))
    if name == EXAMPLES:
        return {"rows": shards, "files": shards * len(whole.examples.parts())}
    try:
        return {"parts": len(plan_parts(whole.documents, whole.run.workspace)), "shards": shards}
    except InputError:
        return {"shards": shards}


def _unfinished_pretraining(directory: str, whole: WholeRecipe | None) -> StageStatus:
    checkpoint = _newest_checkpoint(directory)
    lines = [line for line in _last_lines(directory) if "tokens_per_second" in line]
    if checkpoint is None and not lines:
        return StageStatus(PRETRAINING, "missing", directory)
    config = whole.pretraining if whole is not None else _config_of(checkpoint)
    saved_step = _step_of(checkpoint) if checkpoint else 0
    step = int(lines[-1]["step"]) if lines else saved_step
    numbers = {"step": float(step), "checkpoint_step": float(saved_step)}
    steps = _steps_of_phases(config, directory) if config else None
    words = [f"step {step:,}"]
    if config and steps:
        numbers["total_steps"] = float(sum(steps))
        words = [f"step {step:,} of {'' if config.measure == 'steps' else 'about '}{sum(steps):,}"]
    elif config:
        words.append(f"of {amount_in_words(sum(phase.amount for phase in config.phases), config.measure)}")
    if lines:
        numbers["tokens_per_second"] = lines[-1]["tokens_per_second"]
        words.append(f"{lines[-1]['tokens_per_second']:,.0f} tokens/s")
    if config and steps and (seconds := _seconds_left(config, steps, lines)) is not None:
        numbers["seconds_left"] = seconds
        words.append(f"{in_words(seconds)} left")
    words.append(f"checkpoint of step {saved_step:,}" if checkpoint else "no checkpoint yet")
    return StageStatus(PRETRAINING, "unfinished", directory, ", ".join(words) + _age(lines), numbers)


def _compared_with_checkpoint(status: StageStatus, output: StageOutput) -> StageStatus:
    checkpoint = _newest_checkpoint(status.directory)
    try:
        difference = output.key().difference(checkpoint) if checkpoint else None
    except InputError as error:
        difference = str(error)
    return status if difference is None else replace(status, state="stale", detail=f"its checkpoints: {difference}")


def _newest_checkpoint(directory: str) -> str | None:
    """Directory of the newest complete checkpoint: its manifest is written before it is renamed."""
    folder = storage.join(directory, CHECKPOINTS_DIRECTORY)
    names = {name.split("/")[0] for name in storage.list_files(folder) if name.endswith(f"/{MANIFEST_NAME}")}
    finished = sorted(name for name in names if name.startswith(CHECKPOINT_PREFIX))
    return storage.join(folder, finished[-1]) if finished else None


def _step_of(checkpoint: str) -> int:
    return int(checkpoint.rpartition(CHECKPOINT_PREFIX)[2])


def _config_of(checkpoint: str | None) -> PretrainingConfig | None:
    """The settings of a checkpoint; None if another version wrote them."""
    try:
        manifest = read_manifest(checkpoint) if checkpoint else None
        return PretrainingConfig.model_validate(manifest.config["pretraining"]) if manifest else None
    except (InputError, ValidationError, KeyError):
        return None


def _steps_of_phases(config: PretrainingConfig, directory: str) -> list[int] | None:
    """Steps of each phase, by epochs and tokens about; None if they depend on the machine or there are no examples."""
    try:
        return about_steps(config, read_manifest(storage.join(directory.rpartition("/")[0], EXAMPLES)))
    except InputError:
        return None


def _seconds_left(config: PretrainingConfig, steps_of: list[int], lines: list[dict[str, Any]]) -> float | None:
    """From the last two lines: current tokens per step, scaled to later phases by the tokens of their full steps."""
    if len(lines) < 2:
        return None
    before, last = lines[-2:]
    step, steps = int(last["step"]), last["step"] - before["step"]
    ends, total = list(itertools.accumulate(steps_of)), sum(steps_of)
    if steps <= 0 or last["tokens_per_second"] <= 0 or step > total:
        return None
    now = next(phase for phase, end in zip(config.phases, ends, strict=True) if step <= end)
    tokens_per_full_token = (last["tokens"] - before["tokens"]) / steps / _full_tokens(now)
    left = sum(
        min(of_phase, max(0, end - step)) * _full_tokens(phase)
        for phase, of_phase, end in zip(config.phases, steps_of, ends, strict=True)
    )
    return float(left * tokens_per_full_token / last["tokens_per_second"])


def _full_tokens(phase: PhaseConfig) -> int:
    return phase.full_sequences * phase.max_seq_length


def _last_lines(directory: str) -> list[dict[str, Any]]:
    """The complete lines at the end of a stage's metrics; empty without any."""
    path = storage.join(directory, METRICS_NAME)
    if storage.file_size_bytes(path) is None:
        return []
    filesystem, inner_path = storage.filesystem_of(path)
    # Not memory-mapped: a run may truncate the file meanwhile.
    with filesystem.open_input_file(inner_path) as stream:
        size_bytes = stream.size()
        stream.seek(max(0, size_bytes - _TAIL_BYTES))
        tail: bytes = stream.read()
    # The first line may be cut by our read, the last by its writer.
    lines = tail.split(b"\n")[1 if size_bytes > _TAIL_BYTES else 0 : -1]
    return [json.loads(line) for line in lines]


def _age(lines: list[dict[str, Any]]) -> str:
    if not lines or "timestamp_ms" not in lines[-1]:
        return ""
    return f", last update {in_words(max(0.0, time.time() - lines[-1]['timestamp_ms'] / 1000))} ago"


def in_words(seconds: float) -> str:
    """A duration in words: `41 s`, `12 min`, `5.2 h`, `3.1 days`."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 48 * 3600 else f"{seconds / 86_400:,.1f} days"
