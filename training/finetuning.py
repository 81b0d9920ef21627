"""One fine-tuning trial: an encoder, a classifier on its pooled output, a task's rows, and the best epoch kept."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from pipelines import storage
from pipelines.contract import StageKey, clear_stage, record_of, write_manifest
from training.attention import flash_attention_applies
from training.config import FinetuningConfig, ModelConfig
from training.engine import TORCH_TYPES, EngineSettings, Processes, TrainingEngine, resolved_precision, seed_dropout
from training.glue.metrics import Values, majority_baseline, scores
from training.glue.reading import LabelledText, read_examples
from training.glue.tasks import TASKS, Task, task_files
from training.heads import BertForSequenceClassification
from training.interchange import huggingface_config, load_into, read_config, read_weights, write_model
from training.modeling import initialize_weights
from training.optimizer import build_optimizer
from training.ordering import IntArray, keyed_permutation, keyed_seed
from training.packing import PackedSequences, pack
from training.schedule import learning_rate_at
from training.stages import MODEL_DIRECTORY, RANDOM, code_version
from training.text import EncodedText, TextEncoder
from training.tracking import Tracker

EVALUATION_BATCH_SIZE = 64


@dataclass(frozen=True)
class TaskRows:
    """Encoded rows of one file with their labels."""

    text: EncodedText
    labels: Values

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, rows: IntArray, device: torch.device, with_plan: bool) -> tuple[PackedSequences, IntArray]:
        """Pack rows, longest first; the second result tells in which order they stand."""
        rows = rows[np.argsort(-self.text.lengths[rows], kind="stable")]
        tokens = np.concatenate([self.text.input_ids[row] for row in rows])
        packed = pack(tokens, self.text.lengths[rows], self.text.segment_b_starts[rows], device, with_plan)
        return packed.to(device), rows


@dataclass(frozen=True)
class TaskData:
    train: TaskRows
    dev: tuple[TaskRows, ...]


def load_task(name: str, glue_dir: str, encoder: TextEncoder, max_seq_length: int) -> TaskData:
    """Read and tokenise a task's training and development files."""

    def encoded(examples: LabelledText) -> TaskRows:
        text = encoder.encode(examples.sentences_a, examples.sentences_b, max_seq_length)
        return TaskRows(text, np.array(examples.labels, dtype=np.float64))

    rows = [encoded(read_examples(TASKS[name], path)) for path in task_files(name, glue_dir)]
    return TaskData(rows[0], tuple(rows[1:]))


@dataclass(frozen=True)
class Trial:
    """What one run of fine-tuning is: a task, the weights that it begins from, and where its result goes.

    encoder_directory: a Hugging Face directory; with `start` random only its architecture is taken, from `model`.
    """

    task: Task
    start: str
    directory: str
    key: StageKey
    model: ModelConfig
    vocab_size: int
    encoder_directory: str | None
    vocabulary_directory: str

    def say(self, line: str) -> None:
        print(f"finetuning: {self.task.name}/{self.start}: {line}", flush=True)


class FinetuningRun:
    """Trains one trial and writes its model."""

    def __init__(self, trial: Trial, config: FinetuningConfig, data: TaskData, processes: Processes) -> None:
        self._trial, self._config, self._data, self._processes = trial, config, data, processes
        self._precision = resolved_precision(config.precision, processes.device)
        self._with_plan = not flash_attention_applies(
            processes.device.type, TORCH_TYPES[self._precision], trial.model.attention_probs_dropout_prob
        )

    def run(self) -> dict[str, float]:
        """Train all epochs, keep the best one; its metrics on the first development file."""
        trial, config = self._trial, self._config
        clear_stage(trial.directory)
        engine = self._build_engine()
        steps_per_epoch = -(-len(self._data.train) // config.batch_size)
        total_steps = steps_per_epoch * config.num_train_epochs
        best: tuple[int, dict[str, float], dict[str, torch.Tensor]] | None = None
        started = time.monotonic()
        with Tracker(trial.directory, True, f"{trial.task.name}.{trial.start}.", -1) as tracker:
            for epoch in range(config.num_train_epochs):
                loss = self._train_epoch(engine, epoch, steps_per_epoch, total_steps, tracker)
                metrics = self._evaluate(engine, self._data.dev[0])
                tracker.log((epoch + 1) * steps_per_epoch, {f"dev_{name}": value for name, value in metrics.items()})
                shown = ", ".join(f"{name} {value:.4f}" for name, value in metrics.items())
                trial.say(f"epoch {epoch + 1}/{config.num_train_epochs}: training loss {loss:.4f}, dev {shown}")
                if best is None or metrics[trial.task.metric] > best[1][trial.task.metric]:
                    best = (epoch + 1, metrics, engine.full_precision_state())
        assert best is not None
        more = {}
        if len(self._data.dev) > 1:
            # The second file (MNLI mismatched) is scored with the last epoch's weights unless the best are put back.
            engine.load_full_precision_state(best[2])
            more = {"mismatched": self._evaluate(engine, self._data.dev[1])}
        engine.close()
        self._write(best[0], best[1], best[2], more, time.monotonic() - started)
        return best[1]

    def _build_engine(self) -> TrainingEngine:
        trial, config = self._trial, self._config
        model = BertForSequenceClassification(trial.model, trial.vocab_size, trial.task.num_labels)
        initialize_weights(model, trial.model.initializer_range, config.seed)
        if trial.start != RANDOM:
            assert trial.encoder_directory is not None
            weights = {
                name: tensor
                for name, tensor in read_weights(trial.encoder_directory).items()
                if name.startswith("bert.")
            }
            load_into(model, weights, trial.encoder_directory, optional=("classifier.", "bert.pooler."))
        optimizer = build_optimizer(model, config)
        # With 16 bits a ZeRO stage keeps the fp32 master weights; in fp32 on one process it would only add work.
        zero_stage = 0 if self._precision == "fp32" else 2
        settings = EngineSettings(zero_stage, self._precision, config.max_grad_norm, config.batch_size, 1)
        return TrainingEngine(model, optimizer, settings, self._processes)

    def _train_epoch(
        self, engine: TrainingEngine, epoch: int, steps_per_epoch: int, total_steps: int, tracker: Tracker
    ) -> float:
        config, rows = self._config, self._data.train
        order = keyed_permutation(len(rows), config.seed, self._trial.task.name, "epoch", epoch)
        num_warmup_steps = int(total_steps * config.warmup_proportion)
        engine.train()
        total, since_line, steps_since_line, clock = 0.0, 0.0, 0, time.monotonic()
        for index in range(steps_per_epoch):
            step = epoch * steps_per_epoch + index
            seed_dropout(keyed_seed(config.seed, "dropout", step))
            packed, chosen = rows.batch(
                order[index * config.batch_size : (index + 1) * config.batch_size],
                self._processes.device,
                self._with_plan,
            )
            labels_B = torch.from_numpy(rows.labels[chosen]).to(self._processes.device)
            logits_BC = engine(packed)
            loss = BertForSequenceClassification.loss(
                logits_BC, labels_B if self._trial.task.is_regression else labels_B.long()
            )
            engine.backward(loss, is_last=True)
            engine.step(learning_rate_at(step, config.learning_rate, num_warmup_steps, total_steps))
            value = float(loss.detach())
            total, since_line, steps_since_line = total + value, since_line + value, steps_since_line + 1
            if (step + 1) % config.log_every_steps == 0:
                mean, seconds = since_line / steps_since_line, time.monotonic() - clock
                left_seconds = (total_steps - step - 1) * seconds / steps_since_line
                tracker.log(step + 1, {"loss": mean})
                self._trial.say(f"step {step + 1}/{total_steps}: loss {mean:.4f}, {left_seconds:.0f} s left")
                since_line, steps_since_line, clock = 0.0, 0, time.monotonic()
        return total / steps_per_epoch

    def _evaluate(self, engine: TrainingEngine, rows: TaskRows) -> dict[str, float]:
        predictions = np.empty(len(rows), dtype=np.float64)
        engine.eval()
        with torch.no_grad():
            for batch in _by_length(rows):
                packed, chosen = rows.batch(batch, self._processes.device, self._with_plan)
                logits_BC = engine(packed).float().cpu()
                answers = logits_BC.squeeze(1) if self._trial.task.is_regression else logits_BC.argmax(1)
                predictions[chosen] = answers.double().numpy()
        return scores(self._trial.task, rows.labels, predictions)

    def _write(
        self,
        epoch: int,
        metrics: dict[str, float],
        state: dict[str, torch.Tensor],
        more: dict[str, dict[str, float]],
        seconds: float,
    ) -> None:
        trial = self._trial
        names = write_model(
            storage.join(trial.directory, MODEL_DIRECTORY), state, _model_config(trial), trial.vocabulary_directory
        )
        records = [record_of(trial.directory, f"{MODEL_DIRECTORY}/{name}", 0) for name in names]
        statistics = {
            "task": trial.task.name,
            "start": trial.start,
            "metric": trial.task.metric,
            "score": metrics[trial.task.metric],
            "dev": metrics,
            **more,
            "majority_baseline": majority_baseline(trial.task, self._data.train.labels, self._data.dev[0].labels),
            "train_rows": len(self._data.train),
            "dev_rows": len(self._data.dev[0]),
            "best_epoch": epoch,
        }
        write_manifest(trial.directory, trial.key.manifest(records, statistics, code_version()))
        trial.say(
            f"complete: best epoch {epoch}, {trial.task.metric} {metrics[trial.task.metric]:.4f}, {seconds:.0f} s"
        )


def _model_config(trial: Trial) -> dict[str, object]:
    task = trial.task
    labels = task.labels or ("score",)
    return huggingface_config(
        trial.model,
        trial.vocab_size,
        "BertForSequenceClassification",
        finetuning_task=task.name,
        problem_type="regression" if task.is_regression else "single_label_classification",
        id2label={str(index): label for index, label in enumerate(labels)},
        label2id={label: index for index, label in enumerate(labels)},
    )


def _by_length(rows: TaskRows) -> Iterator[IntArray]:
    order = np.argsort(-rows.text.lengths, kind="stable")
    for start in range(0, len(order), EVALUATION_BATCH_SIZE):
        yield order[start : start + EVALUATION_BATCH_SIZE]


def architecture_of(encoder_directory: str) -> tuple[ModelConfig, int]:
    """Architecture and vocabulary size of the encoder that a trial begins from."""
    return read_config(encoder_directory)
