"""The data of a run: the batches of its steps, and the held-out rows of its evaluations."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property

import torch

from pipelines.contract import storage
from pipelines.contract.errors import InputError
from pipelines.contract.schemas import Split
from pipelines.contract.workspace import VOCABULARY_NAME
from training.data.arrow_examples import ArrowExamples
from training.data.batches import MicroBatch
from training.data.next_tokens import Targets
from training.data.ordering import GlobalOrder
from training.data.step_reader import Deal, StepReader, heldout_batches
from training.engine.precision import TORCH_TYPES, resolved_precision
from training.engine.processes import Processes
from training.kernels.packed_attention import flash_attention_applies
from training.pretraining.objective import Objective, Tally
from training.settings.pretraining import PhaseConfig
from training.stages.budgets import Budget


class RowFeed:
    """Reads the examples of a stage for one rank, by the objective's settings."""

    def __init__(self, objective: Objective, processes: Processes) -> None:
        self._objective, self._processes = objective, processes
        self._inputs, self._config = objective.inputs, objective.settings
        self.use_precision(resolved_precision(self._config.precision, processes.device))

    def use_precision(self, precision: str) -> None:
        """Prepare batches for a model in this precision; at first it is that of the settings on this device."""
        device, head_size = self._processes.device, self._objective.model.head_size
        self._with_plan = not flash_attention_applies(device.type, TORCH_TYPES[precision], head_size)

    def require_rows(self) -> None:
        """Check that each phase has training rows, and that they can be masked by the settings.

        Raises:
            InputError: they do not.
        """
        for phase in self._config.phases:
            examples = self.examples("train", phase)
            if not examples.num_rows:
                raise InputError(
                    f"{self._inputs.examples_directory}: no training examples of length {phase.max_seq_length}; "
                    "add more text to the documents stage"
                )
            self.targets(examples, phase)

    def budget(self) -> Budget:
        """How much each phase trains; by epochs, of all its training rows."""
        phases = self._config.phases if self._config.measure == "epochs" else ()
        return Budget.of(self._config, [self.examples("train", phase).num_rows for phase in phases])

    def require_rows_for_ranks(self, phase: PhaseConfig) -> None:
        """Check that every step of a phase has rows for all ranks.

        Raises:
            InputError: a step, or the first one of a growing batch, is too small.
        """
        self.share(phase)
        if phase.batch_warmup is not None and phase.batch_warmup.start < self._processes.world_size:
            raise InputError(
                f"{self._inputs.recipe.path}: {self._inputs.key.stage}: batch_warmup.start = "
                f"{phase.batch_warmup.start} is too small for {self._processes.world_size} ranks; raise it, or use "
                "fewer ranks"
            )

    def _micro_batches(self, sequences: int) -> int:
        """Micro-batches of a rank in a step of this many sequences; the smaller steps of a batch warm-up have fewer."""
        own = -(-sequences // self._processes.world_size)
        return max(1, min(-(-own // (self._config.micro_batch_size or own)), sequences // self._processes.world_size))

    def share(self, phase: PhaseConfig) -> tuple[int, int]:
        """Sequences of the largest micro-batch of a rank, and the number of micro-batches per step."""
        world_size = self._processes.world_size
        own = -(-phase.full_sequences // world_size)
        micro_batches = -(-own // (self._config.micro_batch_size or own))
        if phase.full_sequences < world_size * micro_batches:
            raise InputError(
                f"{self._inputs.recipe.path}: {self._inputs.key.stage}: a step of {phase.full_sequences} full "
                f"sequences (global_batch_size, global_batch_tokens) is too small for {world_size} ranks with "
                f"{micro_batches} micro-batches each; raise it, or use fewer ranks"
            )
        return -(-own // micro_batches), micro_batches

    def deal(self, micro_batches: int = 1) -> Deal:
        """How rows are distributed over the ranks."""
        processes = self._processes
        return Deal(processes.rank, processes.world_size, processes.device, self._with_plan, micro_batches)

    def examples(self, split: Split, phase: PhaseConfig) -> ArrowExamples:
        """The rows of a phase's set and length."""
        inputs = self._inputs
        return ArrowExamples(
            inputs.examples_directory,
            inputs.examples,
            split,
            phase.max_seq_length,
            phase.examples,
            inputs.example_copies,
        )

    def targets(self, examples: ArrowExamples, phase: PhaseConfig) -> Targets | None:
        """What is predicted, if that is chosen at reading; None uses the written masks."""
        return self._objective.targets(examples.metadata, self._tokens, phase)

    @cached_property
    def _tokens(self) -> list[str]:
        # Read once, before the first step: later a store may be away.
        vocabulary_uri = storage.join(self._inputs.tokenizer_directory, VOCABULARY_NAME)
        return storage.read_bytes(vocabulary_uri).decode().split("\n")[:-1]

    def prefetch(self, phase_number: int, position: int) -> None:
        """Start to copy the first shards of a remote workspace that the steps from a position on read."""
        if phase_number < len(self._config.phases):
            self.reader(phase_number).prefetch(position)

    def reader(self, phase_number: int) -> StepReader:
        """The training rows of a phase, in their order."""
        phase = self._config.phases[phase_number]
        examples = self.examples("train", phase)

        def batch_at(phase_step: int) -> tuple[int, int]:
            sequences = phase.batch_size_at(phase_step)
            return sequences, self._micro_batches(sequences)

        return StepReader(
            examples,
            GlobalOrder(examples.num_rows, self._config.seed, self._objective.order_stream(phase_number)),
            phase.global_batch_size if phase.global_batch_tokens is None else None,
            self.deal(self.share(phase)[1]),
            global_batch_tokens=phase.global_batch_tokens,
            targets=self.targets(examples, phase),
            batch_at=None if phase.batch_warmup is None else batch_at,
        )

    def heldout(self, measure: Callable[[MicroBatch], Tally], phase: PhaseConfig) -> dict[str, float]:
        """Metrics of the first held-out rows, shared among the ranks; equal on every rank, empty without rows."""
        files = self._inputs.examples.files_of("heldout", phase.examples_directory)
        if not sum(file.rows for file in files):
            return {}
        examples, device = self.examples("heldout", phase), self._processes.device
        size, most = self.share(phase)[0], self._config.eval_examples
        tally = Tally.of(self._objective.sums, device=device)
        with torch.no_grad():
            for batch in heldout_batches(examples, most, size, self.deal(), self.targets(examples, phase)):
                tally += measure(batch.to(device))
        return self._objective.means(tally.reduced(self._processes)[0])
