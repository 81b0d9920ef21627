"""What a model was scored on, as digests: the promotion gate compares only scores on the same data."""

from __future__ import annotations

from typing import Any

from flows.promotion import Evaluation
from flows.whole_recipe import WholeRecipe
from pipelines import storage
from pipelines.contract import Manifest, digest_of, length_directory, read_manifest
from training.finetune import DATA_DIRECTORY
from training.finetuning_config import SQUAD, TAGGING, WORD_ORDER
from training.glue.tasks import TASKS
from training.stages import EXAMPLES, FINETUNING, VOCABULARY

MLM_ACCURACY = "mlm_accuracy"


def finetuned_evaluation(whole: WholeRecipe, task: str, manifest: Manifest) -> Evaluation | None:
    """The score of a trial on its task's development files; None where the manifest or the files do not tell."""
    metric, score = manifest.statistics.get("metric"), manifest.statistics.get("score")
    paths = dev_files(whole, task)
    if not paths or metric is None or score is None or any(storage.file_size_bytes(path) is None for path in paths):
        return None
    # Contents only: the same file in another folder is the same data.
    return Evaluation(str(metric), float(score), digest_of([storage.sha256_of(path) for path in paths]))


def dev_files(whole: WholeRecipe, task: str) -> list[str]:
    """The development files that a task's score is from; MNLI's is from the matched ones."""
    config = whole.finetuning
    if task in (SQUAD, TAGGING):
        path = (config.squad if task == SQUAD else config.tagging).dev_file
        return [path] if path else []
    folder = storage.join(whole.run.workspace, FINETUNING, DATA_DIRECTORY) if task == WORD_ORDER else config.glue_dir
    return [storage.join(folder, TASKS[task].folder, TASKS[task].dev_files[0])] if folder else []


def encoder_evaluation(whole: WholeRecipe, manifest: Manifest) -> Evaluation | None:
    """Accuracy of a pre-trained encoder at held-out masked tokens."""
    pretraining = whole.pretraining
    heldout = {"max_seq_length": pretraining.phases[-1].max_seq_length, "masking": pretraining.masking}
    scores = manifest.statistics.get("heldout_after", {})
    return _heldout_evaluation(whole, scores, {**heldout, "eval_examples": pretraining.eval_examples})


def distilled_evaluation(whole: WholeRecipe, manifest: Manifest, eval_examples: int) -> Evaluation | None:
    """Accuracy of a student at held-out masked tokens."""
    heldout = {name: manifest.config.get(name) for name in ("max_seq_length", "masking")}
    scores = manifest.statistics.get("student", {}).get("heldout", {})
    return _heldout_evaluation(whole, scores, {**heldout, "eval_examples": eval_examples})


def _heldout_evaluation(whole: WholeRecipe, scores: dict[str, Any], heldout: dict[str, Any]) -> Evaluation | None:
    """None without a score, or where the held-out examples lie elsewhere."""
    examples = read_manifest(storage.join(whole.run.workspace, EXAMPLES))
    if examples is None or MLM_ACCURACY not in scores:
        return None
    files = examples.files_of("heldout", length_directory(heldout["max_seq_length"]))
    if not files:
        return None
    data = digest_of({**heldout, "files": [file.sha256 for file in files]})
    return Evaluation(MLM_ACCURACY, float(scores[MLM_ACCURACY]), data, examples.inputs.get(VOCABULARY, ""))
