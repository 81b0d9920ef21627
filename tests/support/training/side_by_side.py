"""One GLUE task set up twice, for our loop and for a plain one: the same weights, rows, orders and learning rates."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from tests.support.training.plain_loop import PlainLoop, train

from training.bert.config_file import read_config
from training.bert.modeling import initialize_weights
from training.data.ordering import keyed_permutation
from training.engine.processes import Processes
from training.finetuning.loop import Beginning, Fitting
from training.finetuning.text import TextEncoder
from training.glue.metrics import scores
from training.glue.problem import GlueProblem
from training.glue.reading import LabelledText, read_examples
from training.optimizers.schedule import Schedule
from training.settings.finetuning import FinetuningConfig
from training.settings.glue import TASKS, Task, task_files


@dataclass(frozen=True)
class SideBySide:
    """Both loops over one task; neither has taken a step yet."""

    task: Task
    config: FinetuningConfig
    problem: GlueProblem
    fitting: Fitting
    loop: PlainLoop
    train_examples: LabelledText
    dev_examples: LabelledText

    @classmethod
    def set_up(
        cls, name: str, encoder: str, glue_dir: str, config: FinetuningConfig, processes: Processes
    ) -> SideBySide:
        """Both from the encoder of a Hugging Face directory, with the dropout that `config` names."""
        assert config.dropout is not None
        task = TASKS[name]
        model, vocab_size = read_config(encoder)
        model = model.model_copy(
            update={"hidden_dropout_prob": config.dropout, "attention_probs_dropout_prob": config.dropout}
        )
        problem = GlueProblem(task, glue_dir, TextEncoder(encoder), config.max_seq_length)
        beginning = Beginning(model, vocab_size, encoder)
        fitting = Fitting(problem, beginning, config, config, processes, _silent)
        fresh = problem.build_model(model, vocab_size)
        initialize_weights(fresh, model.initializer_range, config.seed)
        head = {key: value for key, value in fresh.state_dict().items() if key.startswith("classifier.")}
        loop = PlainLoop.begin(
            encoder,
            task.num_labels,
            head,
            config.max_seq_length,
            config.adam_eps,
            config.weight_decay,
            config.dropout,
        )
        examples = [read_examples(task, path) for path in task_files(name, glue_dir)]
        return cls(task, config, problem, fitting, loop, examples[0], examples[1])

    def train_plain_loop(self) -> list[float]:
        """Losses of all steps of the plain loop."""
        config, count = self.config, len(self.train_examples)
        total_steps = -(-count // config.batch_size) * config.num_train_epochs
        num_warmup_steps = int(total_steps * config.warmup_proportion)
        encoded = self.loop.encode(self.train_examples.sentences_a, self.train_examples.sentences_b)
        for row, ids in enumerate(encoded["input_ids"]):
            assert len(ids) == self.problem.train_text.lengths[row]
        return train(
            self.loop,
            encoded,
            _labels_of(self.train_examples),
            [keyed_permutation(count, config.seed, "fine-tuning", "epoch", n) for n in range(config.num_train_epochs)],
            config.batch_size,
            Schedule(config.learning_rate, num_warmup_steps, total_steps).rate_at,
        )

    def plain_loop_scores(self) -> dict[str, float]:
        """Scores of the plain loop's model on the development rows."""
        logits = self.loop.outputs(self.loop.encode(self.dev_examples.sentences_a, self.dev_examples.sentences_b))
        answers = logits.squeeze(1) if self.task.is_regression else logits.argmax(1)
        return scores(self.task, _labels_of(self.dev_examples), answers.to(torch.float64).numpy())


def _labels_of(examples: LabelledText) -> npt.NDArray[np.float64]:
    return np.array(examples.labels, dtype=np.float64)


def _silent(_line: str) -> None:
    """Takes our loop's lines of progress."""
