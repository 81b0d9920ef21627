"""Named sums, and a small objective that trains by the loop through nothing but the protocol."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from pipelines.contract import storage
from pipelines.contract.manifest import read_manifest
from pipelines.contract.recipe import read_recipe
from pipelines.contract.workspace import vocabulary_size
from pipelines.results.verification import Verification
from pipelines.statistics.metrics import LOSS, Metric
from pipelines.statistics.training import TrainingStatistics
from training.bert.packing import PackedSequences
from training.data.batches import MicroBatch, StepBatch
from training.engine.processes import Processes
from training.pretraining.objective import Forward, Objective, Say, Tally
from training.pretraining.run import TrainingRun
from training.resuming.progress import Progress
from training.stages.pretraining import PretrainingInputs, pretraining_inputs, shard_verification
from training.stages.sections import PretrainingSections

NAMES = ("loss", "rows")
STEPS = 12


class ThreeEqualRanks(Processes):
    """As if two other ranks had the same values."""

    reductions = 0

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        type(self).reductions += 1
        return values.mul_(3)


def test_a_tally_adds_up_and_reduces_with_its_flags_in_one_all_reduce() -> None:
    first = Tally.of(NAMES, {"loss": torch.tensor(0.5, requires_grad=True), "rows": 2})
    tally = Tally.of(NAMES) + first + Tally.of(NAMES, {"rows": 1})
    assert (tally["loss"], tally["rows"]) == (0.5, 3.0)
    reduced, counts = tally.reduced(ThreeEqualRanks(0, 3, torch.device("cpu")), True, False)
    assert (reduced["loss"], reduced["rows"], counts) == (1.5, 9.0, (3, 0))
    assert ThreeEqualRanks.reductions == 1
    assert tally["rows"] == 3.0
    with pytest.raises(ValueError, match="tuple"):
        tally["columns"]
    with pytest.raises(AssertionError):
        tally + Tally.of(("loss",))


class Bigrams(nn.Module):
    """Logits of the next token, from the token alone."""

    def __init__(self, vocab_size: int) -> None:
        super().__init__()
        self.table = nn.Embedding(vocab_size, vocab_size)

    def forward(self, sequences: PackedSequences) -> torch.Tensor:
        logits_TV: torch.Tensor = self.table(sequences.input_ids_T[:-1])
        return functional.cross_entropy(logits_TV, sequences.input_ids_T[1:].long(), reduction="sum")


class BigramObjective(Objective):
    """The next token; across the borders of sequences too, which is good enough here."""

    def __init__(self, inputs: PretrainingInputs) -> None:
        self.inputs: PretrainingInputs = inputs
        self.settings, self.model = inputs.pretraining, inputs.model
        self.vocab_size = vocabulary_size(inputs.vocabulary_directory)
        self.num_parameters = self.vocab_size**2
        self.sums, self.metrics = NAMES, (LOSS, Metric("surprise", "surprise", "number"))

    def check(self) -> None:
        pass

    def shard_verification(self) -> Verification:
        return shard_verification(self.inputs)

    def build(self) -> nn.Module:
        torch.manual_seed(self.settings.seed)
        return Bigrams(self.vocab_size)

    def learn(self, engine: Forward, batch: MicroBatch, step: StepBatch) -> tuple[torch.Tensor, Tally]:
        loss = engine(batch.sequences)
        return loss / step.global_tokens, self._tally(loss, batch)

    def measure(self, engine: Forward, batch: MicroBatch) -> Tally:
        return self._tally(engine(batch.sequences), batch)

    def _tally(self, loss: torch.Tensor, batch: MicroBatch) -> Tally:
        return Tally.of(NAMES, {"loss": loss, "rows": batch.sequences.num_tokens})

    def means(self, tally: Tally) -> dict[str, float]:
        loss = tally["loss"] / tally["rows"]
        return {"loss": loss, "surprise": 2.0**loss}

    def export(self, directory: str, state: Mapping[str, torch.Tensor]) -> list[str]:
        storage.write_bytes(storage.join(directory, "table.json"), json.dumps(state["table.weight"].tolist()).encode())
        return ["table.json"]

    def statistics(self, _directory: str, progress: Progress, after: Mapping[str, float], _say: Say) -> dict[str, Any]:
        return {**progress.statistics, "heldout_after": after}


class NoStop:
    received = False


def test_another_objective_needs_the_protocol_alone(
    make_workspace: Callable[[str], Any], single_process: Processes, capsys: pytest.CaptureFixture[str]
) -> None:
    workspace = make_workspace("bigrams")
    overrides = [
        f"run.workspace={json.dumps(workspace.path)}",
        f"pretraining.phases=[{{max_seq_length=32, steps={STEPS}, global_batch_size=16}}]",
        "pretraining.learning_rate=0.05",
        "pretraining.eval_every_steps=5",
    ]
    inputs = pretraining_inputs(PretrainingSections.of(read_recipe(workspace.recipe, overrides)))
    stop: Any = NoStop()
    assert TrainingRun(BigramObjective(inputs), single_process, stop).run(restart=None) == 0
    said = capsys.readouterr().out
    assert f"step {STEPS}/{STEPS}: loss " in said
    assert ", surprise " in said

    manifest = read_manifest(inputs.directory)
    assert manifest is not None
    assert [file.name for file in manifest.files] == ["encoder/table.json"]
    assert manifest.statistics_as(TrainingStatistics).metrics == BigramObjective(inputs).metrics
    assert manifest.statistics["heldout_after"]["loss"] < manifest.statistics["heldout_before"]["loss"] - 0.1
    heldout_steps = [line["step"] for line in workspace.metrics() if "heldout_surprise" in line]
    assert heldout_steps == [0, 5, 10, STEPS]
    assert os.listdir(os.path.join(inputs.directory, "checkpoints"))
