"""Chooses the checkpoint of a finished run from which a run with other settings continues. Must not import torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from pydantic import ValidationError

from pipelines.contract import storage
from pipelines.contract.errors import InputError
from pipelines.contract.manifest import Manifest, StageKey, read_manifest
from pipelines.contract.workspace import (
    CHECKPOINT_PREFIX,
    CHECKPOINTS_DIRECTORY,
    EXAMPLES,
    PRETRAINING,
    VOCABULARY,
)
from pipelines.results.kept import kept_directories, kept_result
from pipelines.results.marks import building_directory, read_mark
from pipelines.statistics.training import Lineage, PretrainingStatistics
from training.bert.sizes import num_parameters
from training.settings.pretraining import PretrainingConfig
from training.stages.checkpoint_source import checkpoint_names
from training.stages.initial_encoder import INITIAL_ENCODER
from training.stages.pretraining import PRETRAINING_VERSION, PretrainingInputs

_FREE_MODEL_SETTINGS = ("hidden_dropout_prob", "attention_probs_dropout_prob", "initializer_range")
"""Settings of the model that a checkpoint of other weights does not depend on."""
_FIXED_SETTINGS = ("optimizer", "offload_optimizer", "precision")
"""Settings of pre-training that decide what a checkpoint's files hold; `zero_stage` is one more."""
_ALIKE_ZERO_STAGES = (1, 2)
"""ZeRO 1 and 2 partition the optimizer's state alike, so each reads the other's files."""
_FIXED_INPUTS = (VOCABULARY, INITIAL_ENCODER)
_FROM_WEIGHTS = "train from the finished encoder's weights instead, by pretraining.initial_encoder in another workspace"


@dataclass(frozen=True)
class Place:
    """Where a run continues: finished steps over all phases, then the next step's phase, and its step and sample."""

    step: int
    phase: int
    phase_step: int
    position: int

    @property
    def is_other_order(self) -> bool:
        """Whether the phase continues with the first sample of other rows, or of another order."""
        return self.phase_step > 0 and not self.position


@dataclass(frozen=True)
class Continuation:
    """A run's start from a checkpoint of a finished run.

    Attributes:
        source: directory of the finished run; `source_name` is what commands call it, such as `pretraining.1`.
        name: of the checkpoint's directory; `manifest` is its manifest.
        old: settings of the finished run.
        place: where the recipe continues.
        differences: of the recipe from the finished run, in words.
        is_same_heldout: whether the finished run's held-out scores are of the same rows.
    """

    source: str
    source_name: str
    name: str
    manifest: Manifest
    old: PretrainingConfig
    place: Place
    differences: tuple[str, ...]
    is_same_heldout: bool

    @property
    def checkpoint(self) -> str:
        """Directory of the checkpoint."""
        return storage.join(self.source, CHECKPOINTS_DIRECTORY, self.name)

    @property
    def lineage(self) -> Lineage:
        """What the manifest states."""
        return Lineage(
            relation="checkpoint",
            source=self.source_name,
            digest=self.manifest.digest,
            step=self.place.step,
            differences=list(self.differences),
        )


def planned_start(
    inputs: PretrainingInputs, continued: str | None, restart: str | None
) -> tuple[PretrainingInputs, Continuation | None]:
    """How a run starts: the inputs with their final key, and the checkpoint of a finished run that it must adopt.

    Args:
        inputs: of the recipe.
        continued: None without `--continue`, else the kept result that it names; empty for the stage's result.
        restart: see `open_build`.

    Raises:
        InputError: `--continue` is not possible; the line has the reason and the remedy.
    """
    directory = inputs.directory
    plain = replace(inputs, continued_from=None)
    if continued is None:
        if restart is not None:
            return plain, None
        return inputs, _unadopted(inputs)
    if inputs.key.difference(directory) is None:
        if restart is not None:
            raise InputError(
                f"{directory}: complete with exactly these settings, so nothing differs that --continue could train; "
                "--restart without --continue trains again from step 0"
            )
        return inputs, None
    if restart is None and inputs.continued_from is not None:
        return inputs, _unadopted(inputs)
    if restart is None and kept_result(directory, plain.key) is not None:
        return inputs, None
    source = _source(directory, continued)
    mark = read_mark(directory)
    begun = _checkpoints(building_directory(directory))
    if restart is None and mark is not None and mark["key"] == plain.key.digest and begun:
        if read_manifest(source) is None:
            return plain, None
        raise InputError(
            f"{building_directory(directory)}: an unfinished run of this recipe from step 0, now at step "
            f"{_step_of(begun[-1]):,}; finish it without --continue, or add --restart, which keeps it under a "
            "numbered name"
        )
    found = continuation_of(plain, source)
    return replace(plain, continued_from=found.manifest.digest), found


def possible_continuation(inputs: PretrainingInputs) -> Continuation | None:
    """Where `--continue` would start a run that would start from step 0 without it; None if it would not."""
    directory = inputs.directory
    mark = read_mark(directory)
    if inputs.continued_from is not None or (mark is not None and mark["key"] == inputs.key.digest):
        return None
    try:
        if inputs.key.difference(directory) is None or kept_result(directory, inputs.key) is not None:
            return None
        return continuation_of(inputs, directory)
    except InputError:
        return None


def _source(directory: str, name: str) -> str:
    """The directory of the result that `--continue` names."""
    if not name:
        return directory
    known = {_name_of(kept, directory): kept for kept in kept_directories(directory)}
    if name not in known:
        there = f"there are: {', '.join(known)}" if known else "there are none"
        raise InputError(f"--continue {name}: no kept result of this name in {directory.rpartition('/')[0]}; {there}")
    return known[name]


def _name_of(source: str, directory: str) -> str:
    # The stage may be a link to a directory of another name.
    return PRETRAINING if source == directory else f"{PRETRAINING}.{source.rpartition('.')[2]}"


def _unadopted(inputs: PretrainingInputs) -> Continuation | None:
    """The start of a continued build in progress that was killed before it had its checkpoint; None for any other."""
    digest, directory = inputs.continued_from, inputs.directory
    mark = read_mark(directory)
    if digest is None or mark is None or mark["key"] != inputs.key.digest:
        return None
    if _checkpoints(building_directory(directory)):
        return None
    for source in (directory, *kept_directories(directory)):
        try:
            return continuation_of(inputs, source, digest)
        except InputError:
            continue
    raise InputError(
        f"{building_directory(directory)}: continues from a checkpoint (digest {digest[:12]}) that neither the result "
        "nor a kept one has any more; add --restart to train from step 0"
    )


def continuation_of(inputs: PretrainingInputs, source: str, digest: str | None = None) -> Continuation:
    """The newest checkpoint of a finished run that a recipe can share.

    Args:
        inputs: of the recipe.
        source: directory of the finished run.
        digest: only the checkpoint with this digest.

    Raises:
        InputError: there is no finished run, it has another model, or none of its checkpoints can be shared.
    """
    finished = read_manifest(source)
    if finished is None:
        raise InputError(f"{source}: no finished run to continue; run without --continue")
    key = replace(inputs, continued_from=None).key
    if finished.stage != key.stage or finished.stage_version != PRETRAINING_VERSION:
        raise InputError(f"{source}: built by another version of this stage, so it cannot be continued")
    if fault := _fault(inputs, finished):
        raise InputError(f"{source}: cannot be continued by this recipe: {fault}; {_FROM_WEIGHTS}")
    try:
        old = PretrainingConfig.model_validate(finished.config["pretraining"])
    except ValidationError as error:
        raise InputError(f"{source}: its settings are of another release, so it cannot be continued") from error
    new = inputs.pretraining
    if old.num_train_steps is None or new.num_train_steps is None:
        raise InputError(
            f"{source}: its phases are by {old.measure}, those of the recipe by {new.measure}; --continue shares the "
            f"schedule of phases by steps only; {_FROM_WEIGHTS}"
        )
    is_same_data = finished.inputs.get(EXAMPLES) == inputs.examples.digest
    is_same_order = is_same_data and old.seed == new.seed
    problems = []
    for checkpoint in reversed(_checkpoints(source)):
        manifest = _readable(checkpoint)
        place = "damaged" if manifest is None else place_of_checkpoint(old, new, manifest.statistics, is_same_order)
        if manifest is None or isinstance(place, str):
            problems.append(f"step {_step_of(checkpoint):,}: {place}")
        elif digest is None or manifest.digest == digest:
            rows = old.phases[-1].examples_directory
            plain = finished.model_copy(update={"inputs": {name: finished.inputs.get(name, "") for name in key.inputs}})
            return Continuation(
                source,
                _name_of(source, inputs.directory),
                checkpoint.rpartition("/")[2],
                manifest,
                old,
                place,
                tuple(key.changes(plain)),
                is_same_data and rows == new.phases[-1].examples_directory,
            )
    why = "; ".join(problems) or "it has none"
    raise InputError(f"{source}: none of its checkpoints can be shared by this recipe ({why}); {_FROM_WEIGHTS}")


def _fault(inputs: PretrainingInputs, finished: Manifest) -> str | None:
    """Why no checkpoint of a finished run fits the recipe's model and optimizer."""

    def fixed(model: Mapping[str, Any], pretraining: Mapping[str, Any]) -> dict[str, Any]:
        return {
            "model": {name: value for name, value in model.items() if name not in _FREE_MODEL_SETTINGS},
            "pretraining": {name: pretraining.get(name) for name in _FIXED_SETTINGS},
        }

    def fixed_inputs(values: Mapping[str, str]) -> dict[str, str]:
        return {name: values[name] for name in _FIXED_INPUTS if name in values}

    key = inputs.key
    wanted = StageKey(
        key.stage, key.stage_version, fixed(key.config["model"], key.config["pretraining"]), fixed_inputs(key.inputs)
    )
    had = fixed(finished.config.get("model", {}), finished.config.get("pretraining", {}))
    if change := next(
        wanted.changes(finished.model_copy(update={"config": had, "inputs": fixed_inputs(finished.inputs)})), None
    ):
        return change
    stages = {finished.config["pretraining"]["zero_stage"], inputs.pretraining.zero_stage}
    if len(stages) > 1 and not stages <= {*_ALIKE_ZERO_STAGES}:
        was = finished.config["pretraining"]["zero_stage"]
        return f"pretraining.zero_stage was {was}, is {inputs.pretraining.zero_stage}"
    parameters = finished.statistics_as(PretrainingStatistics).parameters
    if parameters not in (None, num_parameters(inputs.model, inputs.vocab_size, inputs.next_sentence)):
        return "its examples and those of the recipe do not agree in whether rows are sentence pairs"
    return None


def place_of_checkpoint(
    old: PretrainingConfig, new: PretrainingConfig, progress: Mapping[str, Any], is_same_order: bool
) -> Place | str:
    """Where new settings continue from a checkpoint of old ones, or why they cannot.

    The phases until the checkpoint must be equal in length and steps. A run with `warmup_stable_decay` continues from
    before its decay (Hu et al., 2024, section 4.2), except where both settings have equal rates until the checkpoint.

    Args:
        old: settings of the finished run.
        new: settings of the recipe.
        progress: a checkpoint's `Progress`, as JSON.
    """
    step, phase, phase_step = progress["step"], progress["phase"], progress["phase_step"]
    position: int | None = progress["position"]
    if step >= _steps_of(new):
        return f"the recipe has {_steps_of(new):,} steps, so nothing is left to train"
    start = old.decay_start_step
    if start is not None and step > max(start, steps_of_equal_rate(old, new)):
        return f"the rate decays from step {start:,}"
    if phase and not phase_step:
        phase, phase_step = phase - 1, old.phases[phase - 1].steps
        position = _position_at_end(old, phase, progress)
    # The recipe has the checkpoint's phase: it has more steps, and those of all phases before it.
    for index, (before, after) in enumerate(zip(old.phases[: phase + 1], new.phases, strict=False)):
        if after.max_seq_length != before.max_seq_length:
            return f"phase {index} had max_seq_length {before.max_seq_length}, has {after.max_seq_length}"
        if after.steps != before.steps and (index < phase or after.steps < phase_step):
            return f"phase {index} had {before.steps:,} steps, has {after.steps:,}"
    if phase_step == new.phases[phase].steps:
        return Place(step, phase + 1, 0, 0)
    if not is_same_order or old.phases[phase].examples_directory != new.phases[phase].examples_directory:
        return Place(step, phase, phase_step, 0)
    if position is None:
        return f"its position in the data of phase {phase} is not recorded"
    return Place(step, phase, phase_step, position)


def _position_at_end(old: PretrainingConfig, phase: int, progress: Mapping[str, Any]) -> int | None:
    """Sample at which a phase ended; None if a checkpoint of an earlier release does not have it."""
    if recorded := progress.get("phase_end"):
        return int(recorded)
    if old.phases[phase].global_batch_tokens is not None or progress["health"]["rollbacks"]:
        return None
    return (old.phases[phase].steps or 0) * old.phases[phase].global_batch_size


def steps_of_equal_rate(old: PretrainingConfig, new: PretrainingConfig) -> int:
    """Number of first steps in which two schedules have equal rates, up to the shorter run's last step."""
    if (old.schedule, old.learning_rate) != (new.schedule, new.learning_rate):
        return 0
    if old.num_warmup_steps != new.num_warmup_steps:
        return 0
    both = min(_steps_of(old), _steps_of(new))
    if old.decay_start_step is None or new.decay_start_step is None:
        return both if old.num_train_steps == new.num_train_steps else min(both, old.num_warmup_steps)
    is_equal = (old.num_train_steps, old.decay_start_step) == (new.num_train_steps, new.decay_start_step)
    return both if is_equal else min(old.decay_start_step, new.decay_start_step)


def _steps_of(config: PretrainingConfig) -> int:
    assert config.num_train_steps is not None, "phases by another measure are refused before"
    return config.num_train_steps


def _checkpoints(directory: str) -> list[str]:
    """Finished checkpoints of a run, oldest first."""
    folder = storage.join(directory, CHECKPOINTS_DIRECTORY)
    return [storage.join(folder, name) for name in checkpoint_names(folder)]


def _step_of(checkpoint: str) -> int:
    return int(checkpoint.rpartition(CHECKPOINT_PREFIX)[2])


def _readable(checkpoint: str) -> Manifest | None:
    """The manifest of a checkpoint whose files have their sizes; None for a damaged one."""
    try:
        manifest = read_manifest(checkpoint)
    except InputError:
        return None
    if manifest is None:
        return None
    sizes = [storage.file_size_bytes(storage.join(checkpoint, file.name)) for file in manifest.files]
    return manifest if sizes == [file.size_bytes for file in manifest.files] else None
