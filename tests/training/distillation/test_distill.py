"""Distillation: a step against transformers' models, and complete runs that stop, resume and are skipped."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from tests.support.training.stop_at import Stop
from torch import nn
from transformers import AutoModelForMaskedLM, BertConfig
from transformers import BertForMaskedLM as ReferenceBert

from pipelines.contract.errors import InputError, exit_code_of
from pipelines.contract.manifest import read_manifest
from pipelines.contract.recipe import read_recipe
from training import distill
from training.alarms import rules as alarms
from training.bert.heads import BertForPreTraining
from training.bert.huggingface import huggingface_config, write_model
from training.bert.modeling import initialize_weights
from training.data.arrow_examples import ArrowExamples
from training.data.batches import MicroBatch, StepBatch
from training.data.step_reader import heldout_batches
from training.distillation.objective import DistillationObjective
from training.distillation.student import Student, lesson_of, read_teacher, student_weights
from training.engine.processes import Processes
from training.pretraining.objective import Forward, Tally
from training.pretraining.run import EXIT_INTERRUPTED, TrainingRun
from training.resuming.progress import Progress
from training.settings.model import ModelConfig
from training.stages.distillation import DistillationInputs, distillation_inputs
from training.stages.sections import DistillationSections

MODEL = ModelConfig(
    hidden_size=32,
    num_hidden_layers=4,
    num_attention_heads=2,
    intermediate_size=64,
    max_position_embeddings=64,
    hidden_dropout_prob=0.1,
    attention_probs_dropout_prob=0.1,
)

RECIPE = """
[run]
name = "distilled"
workspace = "{workspace}"

[distillation]
teacher = "{workspace}/teacher"
max_seq_length = 32
global_batch_size = 16
num_train_epochs = 0.5
learning_rate = 5e-3
checkpoint_every_steps = 5
log_every_steps = 1
"""
STEPS = 13


pytestmark = pytest.mark.usefixtures("one_thread")


def write_teacher(directory: str, vocabulary: str, model: ModelConfig, next_sentence: bool = True) -> None:
    """A teacher whose random weights are large enough for its distributions to differ from token to token."""
    vocab_size = len((Path(vocabulary) / "vocab.txt").read_text().splitlines())
    teacher = BertForPreTraining(model, vocab_size, next_sentence)
    initialize_weights(teacher, 0.2, 3)
    config = huggingface_config(model, vocab_size, teacher.architecture)
    write_model(directory, teacher.state_dict(), config, vocabulary)


@pytest.fixture(scope="module")
def workspace(make_workspace: Callable[[str], Any]) -> Any:
    made = make_workspace("distilled")
    write_teacher(os.path.join(made.path, "teacher"), os.path.join(made.path, "vocabulary"), MODEL)
    Path(made.recipe).write_text(RECIPE.format(workspace=made.path))
    return made


def inputs_of(workspace: Any, name: str, **settings: Any) -> DistillationInputs:
    """A separate run, in a directory next to the workspace's."""
    overrides = [f"distillation.{key}={json.dumps(value)}" for key, value in settings.items()]
    found = distillation_inputs(DistillationSections.of(read_recipe(workspace.recipe, overrides)))
    target = os.path.join(workspace.path, "runs", name)
    os.makedirs(target, exist_ok=True)
    if not os.path.exists(os.path.join(target, "examples")):
        os.symlink(os.path.join(workspace.path, "examples"), os.path.join(target, "examples"))
    return replace(found, workspace=target)


def run(inputs: DistillationInputs, processes: Processes, stop_at: int = 0) -> int:
    stop: Any = Stop(stop_at)
    return TrainingRun(DistillationObjective(inputs, processes), processes, stop).run(restart=None)


def weights(inputs: DistillationInputs) -> bytes:
    return (Path(inputs.directory) / "encoder" / "model.safetensors").read_bytes()


def metrics(inputs: DistillationInputs) -> list[dict[str, float]]:
    building = Path(f"{inputs.directory}.building")
    lines = ((building if building.exists() else Path(inputs.directory)) / "metrics.jsonl").read_text().splitlines()
    return [values for values in map(json.loads, lines) if "loss" in values]


def reference_of(model: BertForPreTraining, config: ModelConfig, vocab_size: int) -> ReferenceBert:
    expected = ReferenceBert(BertConfig(**huggingface_config(config, vocab_size, "BertForMaskedLM"))).eval()
    missing, unexpected = expected.load_state_dict(model.state_dict(), strict=False)
    assert set(missing) <= {"cls.predictions.decoder.bias"}
    assert not unexpected
    return expected


@pytest.mark.slow
@pytest.mark.parametrize("is_masked_only", [False, True])
def test_all_three_losses_on_padded_batches_by_transformers(workspace: Any, is_masked_only: bool) -> None:
    """DistilBERT's own way (its distiller's step): padded rows, full logits, masks by boolean indexing."""
    inputs = inputs_of(workspace, "losses")
    teacher, config, vocab_size = read_teacher(inputs.teacher_directory)
    shallow = config.model_copy(update={"num_hidden_layers": 2})
    model = BertForPreTraining(shallow, vocab_size, next_sentence=False).eval()
    model.load_state_dict(student_weights(teacher.state_dict(), (0, 2)))
    examples = ArrowExamples(inputs.examples_directory, inputs.examples, "train", 32)
    (batch,) = heldout_batches(examples, 9, 9)
    student = Student(model, 2.0, is_masked_only)
    learnt = student(
        batch.sequences, batch.masked_lm_positions_M, batch.masked_lm_ids_M, lesson_of(teacher, batch, is_masked_only)
    )

    padded, attention_mask, token_types, labels = padded_of(batch)
    arguments = {"input_ids": padded, "attention_mask": attention_mask, "token_type_ids": token_types}
    outputs = [
        reference_of(each, own, vocab_size)(**arguments, output_hidden_states=True)
        for each, own in ((model, shallow), (teacher, config))
    ]
    chosen = labels > -1 if is_masked_only else attention_mask.bool()
    logits, teacher_logits = (output.logits[chosen] for output in outputs)
    soft = nn.KLDivLoss(reduction="sum")(
        torch.log_softmax(logits / 2.0, dim=-1), torch.softmax(teacher_logits / 2.0, dim=-1)
    )
    torch.testing.assert_close(learnt.soft_target_loss_sum, soft * 4.0, atol=1e-3, rtol=1e-5)
    mlm = nn.CrossEntropyLoss(reduction="sum", ignore_index=-100)(
        outputs[0].logits.view(-1, vocab_size), labels.view(-1)
    )
    torch.testing.assert_close(learnt.mlm_loss_sum, mlm, atol=1e-3, rtol=1e-5)
    states = [output.hidden_states[-1][attention_mask.bool()] for output in outputs]
    cosine = nn.CosineEmbeddingLoss(reduction="sum")(*states, torch.ones(len(states[0])))
    torch.testing.assert_close(learnt.cosine_loss_sum, cosine, atol=1e-4, rtol=1e-5)
    correct = (outputs[0].logits.argmax(-1) == labels).sum()
    assert int(learnt.mlm_correct) == int(correct)

    ours = torch.autograd.grad(5 * learnt[0] + 2 * learnt[1] + learnt[2], list(model.bert.parameters()))
    reference = reference_of(model, shallow, vocab_size)
    output = reference(**arguments, output_hidden_states=True)
    log_probabilities = torch.log_softmax(output.logits[chosen] / 2.0, dim=-1)
    targets = torch.softmax(teacher_logits.detach() / 2.0, dim=-1)
    slow = 5 * 4 * nn.KLDivLoss(reduction="sum")(log_probabilities, targets)
    slow = slow + 2 * nn.CrossEntropyLoss(reduction="sum")(output.logits.view(-1, vocab_size), labels.view(-1))
    slow = slow + nn.CosineEmbeddingLoss(reduction="sum")(
        output.hidden_states[-1][attention_mask.bool()], states[1].detach(), torch.ones(len(states[0]))
    )
    slow.backward()
    theirs = dict(reference.bert.named_parameters())
    # Of the largest gradient: that of the keys' biases is nothing but rounding.
    tolerance = 1e-5 * max(float(gradient.abs().max()) for gradient in ours)
    for (name, _), gradient in zip(model.bert.named_parameters(), ours, strict=True):
        torch.testing.assert_close(gradient, theirs[name].grad, atol=tolerance, rtol=0.0, msg=name)


def padded_of(batch: MicroBatch) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """input_ids, attention_mask, token_type_ids and labels [B, S]; -100 where nothing is masked."""
    sequences = batch.sequences
    flat_labels = torch.full((sequences.num_tokens,), -100)
    flat_labels[batch.masked_lm_positions_M] = batch.masked_lm_ids_M
    shape = (sequences.num_sequences, sequences.max_seqlen)
    ids, mask, types = (torch.zeros(shape, dtype=torch.int64) for _ in range(3))
    labels = torch.full(shape, -100)
    borders = sequences.cu_seqlens.tolist()
    for row, (first, last) in enumerate(pairwise(borders)):
        ids[row, : last - first] = sequences.input_ids_T[first:last]
        types[row, : last - first] = sequences.token_type_ids_T[first:last]
        labels[row, : last - first] = flat_labels[first:last]
        mask[row, : last - first] = 1
    return ids, mask, types, labels


@pytest.mark.slow
def test_a_run_learns_reports_and_is_deterministic(
    workspace: Any, single_process: Processes, capsys: pytest.CaptureFixture[str]
) -> None:
    inputs = inputs_of(workspace, "whole")
    assert run(inputs, single_process) == 0
    said = capsys.readouterr().out
    assert "student of 2 layers" in said
    assert "from the teacher's 0, 2 of 4" in said
    lines = metrics(inputs)
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
    for name in ("loss", "soft_target_loss", "mlm_loss"):
        assert sum(line[name] for line in lines[-3:]) < 0.9 * sum(line[name] for line in lines[:3])
    first = lines[0]
    whole = 5.0 * first["soft_target_loss"] + 2.0 * first["mlm_loss"] + first["cosine_loss"]
    assert first["loss"] == pytest.approx(whole)

    manifest = read_manifest(inputs.directory)
    assert manifest is not None
    statistics = manifest.statistics
    assert statistics["teacher_layers"] == [0, 2]
    assert statistics["steps"] == STEPS
    assert statistics["sequences"] == STEPS * 16
    student, teacher = statistics["student"], statistics["teacher"]
    assert (student["num_hidden_layers"], teacher["num_hidden_layers"]) == (2, 4)
    assert student["parameters"] < teacher["parameters"]
    assert student["bytes"] == len(weights(inputs))
    assert student["tokens_per_second"] > 0 < teacher["tokens_per_second"]
    assert student["heldout"]["mlm_loss"] < statistics["heldout_before"]["mlm_loss"]
    model = AutoModelForMaskedLM.from_pretrained(os.path.join(inputs.directory, "encoder"))
    assert sum(parameter.numel() for parameter in model.parameters()) == student["parameters"]
    assert {file.name for file in manifest.files} >= {"encoder/config.json", "encoder/vocab.txt"}

    again = inputs_of(workspace, "again")
    assert run(again, single_process) == 0
    assert weights(again) == weights(inputs)


@pytest.mark.slow
def test_a_stopped_and_a_killed_run_go_on_to_the_same_bytes(
    workspace: Any, single_process: Processes, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, stopped = inputs_of(workspace, "undisturbed"), inputs_of(workspace, "stopped")
    assert run(whole, single_process) == 0
    assert run(stopped, single_process, stop_at=7) == EXIT_INTERRUPTED
    assert read_manifest(stopped.directory) is None
    assert "stopped by a signal after step 7" in capsys.readouterr().out
    assert run(stopped, single_process) == 0
    assert "resumed from checkpoint step-0000000007" in capsys.readouterr().out
    assert weights(stopped) == weights(whole)
    statistics = [read_manifest(each.directory).statistics for each in (whole, stopped)]  # type: ignore[union-attr]  # complete
    assert statistics[0]["student"]["heldout"] == statistics[1]["student"]["heldout"]
    assert statistics[0]["heldout_before"] == statistics[1]["heldout_before"]

    # As a kill leaves it: no manifest, the last checkpoint half written, lines beyond the one before.
    os.remove(os.path.join(stopped.directory, "manifest.json"))
    shutil.rmtree(os.path.join(stopped.directory, "encoder"))
    checkpoints = os.path.join(stopped.directory, "checkpoints")
    os.remove(os.path.join(checkpoints, f"step-{STEPS:010d}", "manifest.json"))
    assert run(stopped, single_process) == 0
    assert "resumed from checkpoint step-0000000010" in capsys.readouterr().out
    assert weights(stopped) == weights(whole)
    assert [line["step"] for line in metrics(stopped)] == list(range(1, STEPS + 1))


@pytest.mark.slow
def test_micro_batches_and_soft_targets_at_masked_tokens(workspace: Any, single_process: Processes) -> None:
    # Dropout draws other numbers for other micro-batches.
    plain = MODEL.model_copy(update={"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0})
    teacher = os.path.join(workspace.path, "plain_teacher")
    write_teacher(teacher, os.path.join(workspace.path, "vocabulary"), plain)
    states = []
    for name, settings in (("once", {}), ("in_parts", {"micro_batch_size": 5})):
        inputs = inputs_of(workspace, name, teacher=teacher, soft_targets="masked", num_train_epochs=0.1, **settings)
        assert run(inputs, single_process) == 0
        states.append(AutoModelForMaskedLM.from_pretrained(os.path.join(inputs.directory, "encoder")).state_dict())
    for name, tensor in states[0].items():
        torch.testing.assert_close(tensor, states[1][name], atol=1e-5, rtol=0.0, msg=name)


@pytest.mark.slow
def test_sixteen_bits_under_zero_2_learn_and_go_on_to_the_same_bytes(workspace: Any, single_process: Processes) -> None:
    whole, stopped = (
        inputs_of(workspace, f"{name}_bf16", precision="bf16", num_train_epochs=0.2) for name in ("whole", "stopped")
    )
    assert run(whole, single_process) == 0
    assert run(stopped, single_process, stop_at=2) == EXIT_INTERRUPTED
    assert run(stopped, single_process) == 0
    assert weights(stopped) == weights(whole)
    losses = [line["loss"] for line in metrics(whole)]
    assert losses[-1] < losses[0]


class PoisonedObjective(DistillationObjective):
    """Gives a loss that is no number in every step that reads a sample from 64 to 95."""

    def learn(self, engine: Forward, batch: MicroBatch, step: StepBatch) -> tuple[torch.Tensor, Tally]:
        loss, tally = super().learn(engine, batch, step)
        is_poisoned = 64 < step.next_position <= 96
        return (loss * float("nan") if is_poisoned else loss), tally


@pytest.mark.slow
def test_bad_steps_evaluations_and_alarms_are_those_of_the_loop(
    workspace: Any, single_process: Processes, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(alarms, "HELDOUT_RISE", 0.0)
    monkeypatch.setattr(alarms, "HELDOUT_OBSERVATIONS", 1)
    settings = {"max_bad_steps": 2, "checkpoint_every_steps": 3, "eval_every_steps": 3, "schedule": "cosine"}
    inputs = inputs_of(workspace, "poisoned", **settings)
    stop: Any = Stop()
    assert TrainingRun(PoisonedObjective(inputs, single_process), single_process, stop).run(restart=None) == 0
    said = capsys.readouterr().out
    assert "step 5: loss or gradient not finite, no update (1 bad steps in a row" in said
    assert "returning to checkpoint step-0000000003, continuing from sample 96 of phase 0" in said
    assert "ALARM at step 9: held-out MLM loss has been above its best" in said
    lines = [json.loads(line) for line in (Path(inputs.directory) / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "heldout_mlm_loss" in line] == [0, 3, 6, 9, 12, STEPS]
    assert {"rollbacks": 1.0, "skipped_steps": 2.0}.items() <= next(
        line for line in lines if "rollbacks" in line
    ).items()
    assert all(0 < line["model_flops_utilization"] < 1.5 for line in lines if "loss" in line)
    manifest = read_manifest(inputs.directory)
    assert manifest is not None
    assert {metric["name"] for metric in manifest.statistics["metrics"]} >= {"mlm_accuracy", "soft_target_loss"}


@pytest.mark.slow
def test_keys_and_checkpoints_of_earlier_releases_stay(workspace: Any, single_process: Processes) -> None:
    inputs = inputs_of(workspace, "earlier")
    assert "schedule" not in inputs.key.config
    assert inputs_of(workspace, "earlier", schedule="cosine").key.config["schedule"] == "cosine"
    objective = DistillationObjective(inputs, single_process)
    statistics = {"teacher": {"mlm_loss": 1.0}, "before": {"mlm_loss": 2.0}}
    read = objective.restored(Progress(step=5, position=80, statistics=statistics))
    assert (read.phase, read.phase_step, read.position) == (0, 5, 80)
    assert read.statistics == {"teacher": {"mlm_loss": 1.0}, "heldout_before": {"mlm_loss": 2.0}}
    assert objective.restored(read) == read
    last = objective.restored(Progress(step=STEPS, statistics=statistics))
    assert (last.phase, last.phase_step) == (1, 0)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_two_ranks_by_the_command_equal_one_and_a_complete_stage_is_skipped(
    make_workspace: Callable[[str], Any], single_process: Processes
) -> None:
    workspace = make_workspace("distilled_by_ranks")
    # Dropout draws other numbers for other ranks.
    plain = MODEL.model_copy(update={"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0})
    write_teacher(os.path.join(workspace.path, "teacher"), os.path.join(workspace.path, "vocabulary"), plain)
    Path(workspace.recipe).write_text(RECIPE.format(workspace=workspace.path))
    alone = inputs_of(workspace, "alone", num_train_epochs=0.1)
    assert run(alone, single_process) == 0

    arguments = ("--set", "distillation.num_train_epochs=0.1", "--set", "distillation.micro_batch_size=3")
    processes = workspace.start_ranks(workspace.command("training.distill", *arguments), 2)
    outputs = [process.communicate(timeout=240)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], "".join(outputs)
    assert "2 ranks on cpu" in outputs[0]
    assert "times as fast" in outputs[0]
    assert "times as fast" not in outputs[1]
    states = [
        AutoModelForMaskedLM.from_pretrained(os.path.join(path, "distillation", "encoder")).state_dict()
        for path in (alone.workspace, workspace.path)
    ]
    for name, tensor in states[0].items():
        torch.testing.assert_close(tensor, states[1][name], atol=1e-5, rtol=0.0, msg=name)

    result = workspace.run("training.distill", *arguments)
    assert result.returncode == 0
    assert result.stdout.startswith("distillation: complete and up to date in")


@pytest.mark.slow
def test_mistakes_give_one_line(
    workspace: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], single_process: Processes
) -> None:
    def line(*overrides: str) -> str:
        settings = [part for override in overrides for part in ("--set", f"distillation.{override}")]
        capsys.readouterr()
        assert exit_code_of(lambda: distill.main([workspace.recipe, *settings])) == 2
        (only,) = capsys.readouterr().err.splitlines()
        return str(only)

    assert "did you mean 'temperature'" in line("temperatur=2")
    assert "has examples of lengths 32, 64 only" in line("max_seq_length=128")
    assert "no such directory; give the directory of a Hugging Face BERT" in line(f"teacher={tmp_path}/none")
    other = tmp_path / "other"
    shutil.copytree(os.path.join(workspace.path, "teacher"), other)
    with open(other / "vocab.txt", "a") as stream:
        stream.write("more\n")
    assert "other/vocab.txt: missing, or different from the vocabulary" in line(f"teacher={other}")

    vocabulary = os.path.join(workspace.path, "vocabulary")
    headless = os.path.join(tmp_path, "headless")
    shutil.copytree(os.path.join(workspace.path, "teacher"), headless)
    stored = safetensors.torch.load_file(os.path.join(headless, "model.safetensors"))
    encoder_only = {name: tensor for name, tensor in stored.items() if name.startswith("bert.")}
    safetensors.torch.save_file(encoder_only, os.path.join(headless, "model.safetensors"))
    with pytest.raises(InputError, match=r"headless: weight cls\.predictions"):
        run(inputs_of(workspace, "headless", teacher=headless), single_process)
    for name, model in (
        ("shallow", MODEL.model_copy(update={"num_hidden_layers": 1})),
        ("short", MODEL.model_copy(update={"max_position_embeddings": 16})),
    ):
        write_teacher(str(tmp_path / name), vocabulary, model)
    with pytest.raises(InputError, match="the student would have 1 layers, as many as its teacher"):
        run(inputs_of(workspace, "shallow", teacher=str(tmp_path / "shallow")), single_process)
    with pytest.raises(InputError, match="max_seq_length = 32 exceeds the teacher's 16 positions"):
        run(inputs_of(workspace, "short", teacher=str(tmp_path / "short")), single_process)
    inputs = inputs_of(workspace, "small", global_batch_size=1, micro_batch_size=1)
    with pytest.raises(InputError, match=r"distillation: a step of 1 full sequences .* is too small for 2 ranks"):
        run(inputs, replace(single_process, world_size=2))
