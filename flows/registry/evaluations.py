"""What a model was scored on, as digests: the promotion gate compares only scores on the same data."""

from __future__ import annotations

import math
from typing import Any

from flows.parameters.whole_recipe import WholeRecipe
from flows.registry.criteria import Evaluation
from pipelines.contract import storage
from pipelines.contract.manifest import Manifest, digest_of, read_manifest
from pipelines.contract.statistics import TrialStatistics
from pipelines.contract.workspace import EXAMPLES, FINETUNING, VOCABULARY, length_directory
from training.stages.finetuning import data_folder

MLM_ACCURACY = "mlm_accuracy"


def finetuned_evaluation(whole: WholeRecipe, task: str, manifest: Manifest) -> Evaluation | None:
    """The score of a trial on its task's development files; None where these are not there."""
    trial = manifest.statistics_as(TrialStatistics)
    paths = dev_files(whole, task)
    if not paths or any(storage.file_size_bytes(path) is None for path in paths):
        return None
    # Contents only: the same file in another folder is the same data.
    data = digest_of([storage.sha256_of(path) for path in paths])
    return Evaluation(trial.metric, trial.score, data, chance=trial.chance)


def dev_files(whole: WholeRecipe, task: str) -> list[str]:
    """The development files that a task's score is from; MNLI's is from the matched ones."""
    config = whole.finetuning
    return config.family(task).dev_files(config, task, data_folder(whole.run.workspace, config, task))


def encoder_evaluation(whole: WholeRecipe, manifest: Manifest) -> Evaluation | None:
    """Accuracy of a pre-trained encoder at held-out masked tokens."""
    pretraining = whole.pretraining
    heldout = {"max_seq_length": pretraining.phases[-1].max_seq_length, "masking": pretraining.masking}
    before, after = (manifest.statistics.get(f"heldout_{when}") or {} for when in ("before", "after"))
    # What it scored before training, or what the commonest token as the only answer scores: the better of the two.
    constant = (manifest.statistics.get("unigram_baseline") or {}).get("accuracy", 0.0)
    chance = max(float(before.get(MLM_ACCURACY, 0.0)), float(constant))
    return _heldout_evaluation(whole, chance, after, {**heldout, "eval_examples": pretraining.eval_examples})


def distilled_evaluation(whole: WholeRecipe, manifest: Manifest, eval_examples: int) -> Evaluation | None:
    """Accuracy of a student at held-out masked tokens."""
    heldout = {name: manifest.config.get(name) for name in ("max_seq_length", "masking")}
    after = manifest.statistics.get("student", {}).get("heldout") or {}
    # Its own scores before are no chance: it begins with layers of its teacher.
    return _heldout_evaluation(whole, 0.0, after, {**heldout, "eval_examples": eval_examples})


def score_in_words(evaluation: Evaluation | None, manifest: Manifest, data: str) -> str:
    """A version's score in one sentence: metric, data, rows, seed and what chance gives."""
    if evaluation is None:
        return "It states no score on development data."
    rows = manifest.statistics_as(TrialStatistics).num_dev_rows if manifest.stage == FINETUNING else None
    config = manifest.config.get(manifest.stage, manifest.config)
    rows = manifest.config.get("eval_examples", config.get("eval_examples")) if rows is None else rows
    of_rows = "" if rows is None else f", {rows:,} rows"
    seed = manifest.config.get("seed", config.get("seed"))
    of_seed = "" if seed is None else f", seed {seed}"
    metric = evaluation.metric.replace("_", " ")
    return (
        f"Score: {metric} {evaluation.score:.4f} on {data} (digest {evaluation.data[:12]}){of_rows}{of_seed}; "
        f"chance gives {evaluation.chance:.4f}."
    )


def _heldout_evaluation(
    whole: WholeRecipe, chance: float, after: dict[str, Any], heldout: dict[str, Any]
) -> Evaluation | None:
    """None without a score, or where the held-out examples lie elsewhere."""
    examples = read_manifest(storage.join(whole.run.workspace, EXAMPLES))
    if examples is None or MLM_ACCURACY not in after:
        return None
    files = examples.files_of("heldout", length_directory(heldout["max_seq_length"]))
    if not files:
        return None
    data = digest_of({**heldout, "files": [file.sha256 for file in files]})
    # A loss that diverged says more than the accuracy beside it.
    numbers = [value for value in after.values() if isinstance(value, (int, float))]
    score = float(after[MLM_ACCURACY]) if all(map(math.isfinite, numbers)) else math.nan
    return Evaluation(MLM_ACCURACY, score, data, examples.inputs.get(VOCABULARY, ""), chance)
