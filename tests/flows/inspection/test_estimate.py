"""Estimates of cost: formulas against the real model, a counter of its operations, and files of real builds."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.support.preprocessing.small_run import MODEL, RECIPE, run_all, write_corpus
from torch.utils.flop_counter import FlopCounterMode

from flows import estimate as command
from flows.inspection.costs import Estimate, estimate
from flows.inspection.rates import default_rates, measured_rates, text_bytes
from flows.parameters.whole_recipe import WholeRecipe
from pipelines.contract.errors import InputError, exit_code_of
from pipelines.contract.manifest import read_manifest
from pipelines.contract.recipe import read_recipe
from pipelines.jobs.sizes import (
    MEGABYTE,
    disk_bytes_documents,
    disk_bytes_examples,
    disk_bytes_vocabulary,
    masked_per_row,
    row_bytes,
)
from pipelines.settings.examples import ExampleLengthConfig, ExampleSetConfig
from training.bert.heads import BertForPreTraining
from training.bert.modeling import parameter_count
from training.bert.packing import pack
from training.bert.sizes import checkpoint_bytes, model_states, num_parameters, step_flops
from training.pretraining.bert_objective import pretraining_loss
from training.settings.model import SHAPES, ModelConfig
from training.settings.pretraining import PhaseConfig, PretrainingConfig

TRAINING = (
    MODEL
    + """
[pretraining]
phases = [{ max_seq_length = 32, steps = 10, global_batch_size = 8 }]
num_warmup_steps = 1
"""
)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> WholeRecipe:
    """A recipe whose three jobs have run."""
    directory = tmp_path_factory.mktemp("estimate")
    write_corpus(directory / "corpus", num_documents=300)  # so that file headers matter little
    recipe = directory / "recipe.toml"
    recipe.write_text(RECIPE.format(workspace=directory / "ws", corpus=directory / "corpus") + TRAINING)
    run_all(str(recipe))
    return WholeRecipe.check(read_recipe(str(recipe)))


def product_flops(_: tuple[int, int], left: tuple[int, int], right: tuple[int, int], **__: object) -> int:
    return 2 * left[0] * left[1] * right[1]


@pytest.mark.parametrize("next_sentence", [True, False])
def test_operations_equal_those_that_pytorch_counts(next_sentence: bool) -> None:
    model = ModelConfig(
        hidden_size=32, num_hidden_layers=3, num_attention_heads=4, intermediate_size=80, max_position_embeddings=24
    )
    vocab_size, lengths, masked = 97, np.array([20, 20, 20, 20]), 9  # without padding
    network = BertForPreTraining(model, vocab_size, next_sentence)
    sequences = pack(np.arange(lengths.sum()), lengths, lengths // 2)
    labels = torch.zeros(masked, dtype=torch.int64)
    # PyTorch's counter omits the in-place product with which the loss computes its gradient.
    counter = FlopCounterMode(display=False, custom_mapping={torch.ops.aten.addmm_: product_flops})
    with counter:
        output = network(sequences, torch.arange(masked), labels, torch.zeros(4, dtype=torch.int64))
        pretraining_loss(output.mlm_loss_sum, output.nsp_loss_sum, masked, len(lengths)).backward()
    pairs = len(lengths) if next_sentence else 0
    tokens, squares = int(lengths.sum()), int((lengths**2).sum())
    # The attention computes its scores again backward, which are no operations of the model.
    recomputed = 2 * squares * model.hidden_size * model.num_hidden_layers
    assert counter.get_total_flops() - recomputed == step_flops(model, vocab_size, tokens, squares, masked, pairs)


@pytest.mark.parametrize("next_sentence", [True, False])
@pytest.mark.parametrize("size", ["tiny", "base", "large"])
def test_parameters_are_the_real_models(size: str, next_sentence: bool) -> None:
    model = ModelConfig.model_validate(SHAPES[size])
    with torch.device("meta"):
        network = BertForPreTraining(model, 30_522, next_sentence)
    assert num_parameters(model, 30_522, next_sentence) == parameter_count(network)


def test_memory_is_that_of_the_zero_paper() -> None:
    # Rajbhandari et al., 2020, figure 1: 7.5 G parameters on 64 GPUs.
    gigabytes = [model_states(7_500_000_000, "bf16", stage, 64).total / 1e9 for stage in range(4)]
    assert [round(value, 1) for value in gigabytes] == [120.0, 31.4, 16.6, 1.9]
    assert checkpoint_bytes(1000, "fp32", 2) == 16_000


def test_bytes_of_examples_are_those_of_really_built_files(built: WholeRecipe) -> None:
    manifest = read_manifest(f"{built.run.workspace}/examples")
    assert manifest is not None
    for length in (32, 64):
        statistics = manifest.statistics["lengths"][str(length)]
        size_bytes = sum(file.size_bytes for file in manifest.files if file.name.startswith(f"length{length}/"))
        masked = masked_per_row(built.examples, length, statistics["mean_length"])
        expected = statistics["examples"] * row_bytes(statistics["mean_length"], masked, built.vocabulary.size)
        # Each file also has a schema and a footer, about 3 kB.
        assert size_bytes == pytest.approx(expected, rel=0.1)


def test_rates_of_a_workspace_give_that_workspace_back(built: WholeRecipe) -> None:
    documents, examples = (read_manifest(f"{built.run.workspace}/{stage}") for stage in ("documents", "examples"))
    assert documents is not None
    assert examples is not None
    rates = measured_rates(built, built.run.workspace)
    result = estimate(built, rates, text_bytes(documents), ranks=1)
    for cost in result.lengths:
        statistics = examples.statistics["lengths"][str(cost.max_seq_length)]
        assert cost.rows == pytest.approx(statistics["examples"])
        assert cost.tokens == pytest.approx(statistics["tokens"])
    assert text_bytes(documents) == pytest.approx(documents.statistics["characters"], rel=0.05)
    assert result.phases[0].sequences == 80
    assert result.phases[0].row_epochs == pytest.approx(80 / result.lengths[0].train_rows)


def test_phases_by_other_measures_are_estimated_in_steps(built: WholeRecipe) -> None:
    """With the data's own rates: 2 epochs read all training rows twice, tokens as many rows as they fill."""
    rates = measured_rates(built, built.run.workspace)
    documents = read_manifest(f"{built.run.workspace}/documents")
    assert documents is not None

    def cost(**phase: Any) -> Estimate:
        phases = ({"max_seq_length": 32, "global_batch_size": 8, **phase},)
        whole = replace(built, pretraining=PretrainingConfig.model_validate({"phases": phases}))
        return estimate(whole, rates, text_bytes(documents), ranks=1)

    rows, mean_length = cost(epochs=2).lengths[0].train_rows, rates.shapes[32].mean_length
    assert cost(epochs=2).phases[0].row_epochs == pytest.approx(2.0)
    assert cost(epochs=2).phases[0].steps == math.ceil(2 * rows / 8)
    assert cost(tokens=9_000).phases[0].tokens == pytest.approx(9_000)
    assert cost(tokens=9_000).phases[0].steps == math.ceil(9_000 / mean_length / 8)
    grown = cost(tokens=9_000, batch_warmup={"start": 4, "steps": 10})
    assert grown.phases[0].steps > cost(tokens=9_000).phases[0].steps
    by_hours = cost(hours=3)
    assert (by_hours.tokens, by_hours.phases[0].steps) == (0.0, 0)
    assert by_hours.warnings[0].startswith("pretraining.phases are by hours, 3 hours: steps, tokens and operations")


def test_bert_base_costs_what_is_known(repository: Path) -> None:
    whole = WholeRecipe.check(read_recipe(str(repository / "flows/recipes/bert-base.toml")))
    result = estimate(whole, default_rates(whole), 16e9, ranks=8)
    assert result.parameters == 110_106_428  # 110 M in the paper; with the pre-training heads
    assert sum(phase.sequences for phase in result.phases) == 256e6
    assert 25e9 < result.tokens < 256e6 * 512
    # Most of it are 6 operations for each parameter of the encoder and each token.
    assert 6 * 85e6 * result.tokens < result.flops < 1.5 * 6 * 85e6 * result.tokens
    # The rate of the growth benchmark, for 16 GB and two lengths of ten passes: more than one length of five.
    assert result.cpu_seconds > 0.116 * 16e9 / MEGABYTE
    assert result.gpu_seconds(200, 0.5) == pytest.approx(result.gpu_seconds(100, 1.0))


def test_repeated_and_unused_data_are_told(built: WholeRecipe) -> None:
    rates = default_rates(built)
    few, many = (estimate(built, rates, size_bytes, ranks=1).warnings for size_bytes in (1e2, 1e9))
    assert any("times with the same masks" in line for line in few)
    assert any("of the rows; lower" in line for line in many)


def test_the_command_prints_tables_and_json(built: WholeRecipe, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = built.recipe.path
    assert command.main([recipe, "--from-workspace", built.run.workspace, "--gpu", "l4"]) == 0
    table = capsys.readouterr().out
    assert "one L4" in table
    assert "one T4" not in table
    assert command.main([recipe, "--json", "--tokens-per-second", "100", "--corpus-bytes", "1e6"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["text_bytes"] == 1e6
    assert told["hours"][0]["hours"] == pytest.approx(told["tokens"] / 100 / 3600)
    assert set(told["memory"]) == {"zero_0", "zero_1", "zero_2", "zero_3"}


def test_mistakes_are_told_in_one_line(built: WholeRecipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = built.recipe.path
    with pytest.raises(InputError, match="documents, vocabulary, examples not finished"):
        command.main([recipe, "--from-workspace", str(tmp_path)])
    with pytest.raises(InputError, match="--corpus-bytes"):
        command.main([recipe, "--set", f'documents.sources.0.inputs=["{tmp_path}/none"]'])
    assert exit_code_of(lambda: command.main([recipe, "--utilization", "2"])) == 2
    assert capsys.readouterr().err.startswith("error: --utilization 2")


def test_disk_of_every_stage_is_that_of_really_built_files(built: WholeRecipe) -> None:
    """With the corpus's own ratio of tokens to text, and the overhead of headers in small files."""
    manifests = {
        stage: read_manifest(f"{built.run.workspace}/{stage}") for stage in ("documents", "vocabulary", "examples")
    }
    sizes = {
        stage: sum(file.size_bytes for file in manifest.files) for stage, manifest in manifests.items() if manifest
    }
    assert manifests["documents"] is not None
    size_bytes = text_bytes(manifests["documents"])
    assert disk_bytes_documents(size_bytes) == pytest.approx(sizes["documents"], rel=0.3)
    shapes = measured_rates(built, built.run.workspace).shapes
    expected = disk_bytes_examples(built.examples, built.vocabulary.size, size_bytes, shapes)
    assert expected == pytest.approx(sizes["examples"], rel=0.1)
    assert sizes["vocabulary"] < 2 * disk_bytes_vocabulary(built.vocabulary.size)


def test_a_recipe_without_the_files_of_its_tasks_is_estimated_too(
    repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    novels = str(repository / "flows/recipes/novels.toml")
    assert command.main([novels, "--corpus-bytes", "5.2e7"]) == 0
    printed = capsys.readouterr().out
    lines = {line.split("  ")[0]: line for line in printed.splitlines()}
    assert "this machine's CPU" in printed
    assert "2 tasks, from the encoder and from random weights" in lines["finetuning"]
    (cpu,) = (line for line in printed.splitlines() if line.startswith("this machine's CPU"))
    assert re.search(r" \d+ (s|min)  ", cpu), cpu
    assert re.search(r"one H100 SXM +under 1 s  ", printed)
    for stage in ("documents", "vocabulary", "examples", "pretraining", "finetuning", "mlartifacts", "together"):
        assert "B" in lines[stage], stage
    assert command.main([novels, "--corpus-bytes", "5.2e7", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert set(told["disk_bytes"]) == {
        *("documents", "vocabulary", "examples", "pretraining", "finetuning", "mlartifacts")
    }
    assert told["hours"][0]["on"].startswith("this machine's CPU")
    with pytest.raises(InputError, match="tasks names 'colla'"):
        command.main([novels, "--corpus-bytes", "5.2e7", "--set", 'finetuning.tasks=["colla"]'])


@pytest.mark.parametrize(
    ("seconds", "words"), [(0.0, "under 1 s"), (0.4, "under 1 s"), (41, "41 s"), (720, "12 min"), (18_720, "5.2 h")]
)
def test_durations_are_never_none(seconds: float, words: str) -> None:
    assert command.duration_in_words(seconds) == words


def test_sets_of_examples_cost_their_passes_and_are_read_by_their_phases(built: WholeRecipe) -> None:
    short = ExampleLengthConfig(max_seq_length=32, max_predictions_per_seq=5)
    one = ExampleSetConfig(name="law", passes=6, lengths=(short,), masking="dynamic")
    phase = PhaseConfig(max_seq_length=32, steps=10, global_batch_size=8, examples="law", masked_lm_prob=0.3)
    whole = replace(
        built,
        examples=built.examples.model_copy(update={"sets": (one,)}),
        pretraining=built.pretraining.model_copy(update={"phases": (phase,)}),
    )
    before, after = (estimate(each, default_rates(each), 10e6, ranks=1) for each in (built, whole))
    own, of_set = after.lengths[0], after.lengths[-1]
    assert [cost.label for cost in after.lengths] == ["32", "64", "law/32"]
    assert of_set.rows == pytest.approx(own.rows * 6 / built.examples.passes)
    assert of_set.size_bytes < own.size_bytes * 6 / built.examples.passes
    assert after.examples_bytes == pytest.approx(before.examples_bytes + of_set.size_bytes)
    assert after.phases[0].row_epochs == pytest.approx(80 / of_set.train_rows)
    assert after.phases[0].masked_tokens == pytest.approx(0.3 * after.phases[0].tokens)
    assert any("length 32: training reads 0%" in line for line in after.warnings)


def test_a_vocabulary_that_is_brought_decides_its_size(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    entries = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[unused0]", *(f"##{number}" for number in range(500))]
    (tmp_path / "vocab.txt").write_text("".join(f"{entry}\n" for entry in entries))
    lines = f'[run]\nworkspace = "{tmp_path}"\n[documents]\nsources = [{{ inputs = ["x"] }}]\n[vocabulary]\n'
    printed = []
    for name, text in (("trained", "size = 508"), ("brought", f'from = "{tmp_path}/vocab.txt"\nextend = 3')):
        recipe = tmp_path / f"{name}.toml"
        recipe.write_text(lines + text + "\n")
        assert command.main([str(recipe), "--corpus-bytes", "1e6", "--json"]) == 0
        printed.append(json.loads(capsys.readouterr().out))
    assert printed[0] == printed[1]
    with pytest.raises(InputError, match=r"its size is 508, the recipe has vocabulary\.size = 400"):
        command.main([str(recipe), "--corpus-bytes", "1e6", "--set", "vocabulary.size=400"])
