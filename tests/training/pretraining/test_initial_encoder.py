"""Pre-training from an initial encoder: equal to transformers on the same batch, and changed by training only."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from pydantic import ValidationError
from tests.support.training.released_encoder import write_in_old_form, write_released
from tests.support.training.trainer import Trainer
from transformers import BertForPreTraining as ReferenceBert
from transformers import BertModel as ReferenceEncoder

from pipelines.contract.errors import InputError
from pipelines.contract.manifest import read_manifest
from pipelines.contract.recipe import read_recipe
from pipelines.statistics.training import PretrainingStatistics
from training.data.batches import MicroBatch
from training.engine.processes import Processes
from training.engine.training_engine import EngineSettings, TrainingEngine
from training.optimizers.building import build_optimizer
from training.pretraining.bert_objective import BertObjective
from training.pretraining.row_feed import RowFeed
from training.pretraining.run import TrainingRun
from training.resuming.process_end import StopRequest
from training.settings.pretraining import PretrainingConfig
from training.stages.pretraining import pretraining_inputs
from training.stages.sections import PretrainingSections

pytestmark = [pytest.mark.timeout(300), pytest.mark.usefixtures("one_thread")]

TOLERANCE = 1e-5
NO_DROPOUT = ("model.hidden_dropout_prob=0.0", "model.attention_probs_dropout_prob=0.0")


def objective_of(workspace: Any, encoder: str, *overrides: str) -> BertObjective:
    settings = [f"run.workspace={json.dumps(workspace.path)}", f"pretraining.initial_encoder={json.dumps(encoder)}"]
    recipe = read_recipe(workspace.recipe, [*settings, *overrides])
    return BertObjective(pretraining_inputs(PretrainingSections.of(recipe)), Processes(0, 1, torch.device("cpu")))


def padded(batch: MicroBatch) -> dict[str, torch.Tensor]:
    """The same batch as `transformers` takes it."""
    sequences, ends = batch.sequences, batch.sequences.cu_seqlens.tolist()
    shape = (sequences.num_sequences, sequences.max_seqlen)
    targets_T = torch.full((sequences.num_tokens,), -100)
    targets_T[batch.masked_lm_positions_M] = batch.masked_lm_ids_M
    flat = {
        "input_ids": (sequences.input_ids_T, 0),
        "token_type_ids": (sequences.token_type_ids_T, 0),
        "attention_mask": (torch.ones_like(targets_T), 0),
        "labels": (targets_T, -100),
    }
    result = {name: torch.full(shape, filler) for name, (_, filler) in flat.items()}
    for row, (start, end) in enumerate(pairwise(ends)):
        for name, (values, _) in flat.items():
            result[name][row, : end - start] = values[start:end]
    return result | {"next_sentence_label": batch.next_sentence_label_B}


@pytest.fixture(scope="module")
def workspace(make_workspace: Callable[[str], Any]) -> Any:
    return make_workspace("initial")


@pytest.fixture(scope="module")
def released(workspace: Any, tmp_path_factory: pytest.TempPathFactory) -> str:
    directory = str(tmp_path_factory.mktemp("released") / "bert")
    write_released(directory, f"{workspace.path}/vocabulary")
    return directory


@pytest.mark.slow
def test_a_step_equals_transformers_and_no_step_changes_no_bit(
    workspace: Any, released: str, single_process: Processes, tmp_path: Path
) -> None:
    objective = objective_of(workspace, released, *NO_DROPOUT, "pretraining.optimizer='adamw'")
    objective.check()
    config, model = objective.settings, objective.build()
    settings = EngineSettings(0, "fp32", config.max_grad_norm, 16, 1)
    engine = TrainingEngine(model, build_optimizer(model, config), settings, single_process)

    objective.export(str(tmp_path), engine.full_precision_state())
    before, source = (safetensors.torch.load_file(f"{each}/model.safetensors") for each in (tmp_path, released))
    source.pop("cls.predictions.decoder.bias", None)
    assert before.keys() == source.keys()
    assert all(torch.equal(before[name], source[name]) for name in before)
    assert f"started from | initial encoder {released}" in Path(tmp_path, "README.md").read_text()

    reference = ReferenceBert.from_pretrained(released)
    named = list(reference.named_parameters())
    decays = {name: not name.endswith(("bias", "LayerNorm.weight")) for name, _ in named}
    groups = [
        {"params": [p for name, p in named if decays[name] is decay], "weight_decay": config.weight_decay * decay}
        for decay in (True, False)
    ]
    optimizer = torch.optim.AdamW(groups, lr=1e-3, betas=(config.adam_beta1, config.adam_beta2), eps=config.adam_eps)
    (step,) = RowFeed(objective, single_process).reader(0).steps(0, 1)
    (batch,) = step.micro_batches
    loss, _ = objective.learn(engine, batch, step)
    expected = reference(**padded(batch)).loss
    assert loss.item() == pytest.approx(expected.item(), abs=TOLERANCE)
    engine.backward(loss, is_last=True)
    expected.backward()
    gradients = {name: parameter.grad for name, parameter in named}
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[name], atol=TOLERANCE, rtol=TOLERANCE, msg=name)
    engine.step(1e-3)
    torch.nn.utils.clip_grad_norm_(reference.parameters(), config.max_grad_norm)
    optimizer.step()
    trained = dict(reference.named_parameters())
    for name, tensor in engine.full_precision_state().items():
        torch.testing.assert_close(tensor, trained[name].detach(), atol=TOLERANCE, rtol=TOLERANCE, msg=name)
        assert not torch.equal(tensor, source[name]), name


def test_every_form_of_a_directory_gives_the_same_weights(workspace: Any, released: str, tmp_path: Path) -> None:
    write_in_old_form(released, f"{tmp_path}/old")
    expected = objective_of(workspace, released).build().state_dict()
    found = objective_of(workspace, f"{tmp_path}/old").build().state_dict()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_missing_heads_are_initialized_and_named(workspace: Any, tmp_path: Path) -> None:
    bare = partial(ReferenceEncoder, add_pooling_layer=False)
    source = write_released(f"{tmp_path}/bare", f"{workspace.path}/vocabulary", bare)
    objective = objective_of(workspace, f"{tmp_path}/bare")
    model = objective.build()
    (record,) = objective.lineage
    heads = ["masked-LM head", "pooler", "next-sentence head"]
    assert (record.initialized, record.extended, record.dropped) == (heads, {}, [])
    assert "masked-LM head initialized, pooler initialized" in objective.introduction().splitlines()[1]
    for name, tensor in source.named_parameters():
        if not name.startswith("pooler"):
            assert torch.equal(model.state_dict()[f"bert.{name}"], tensor), name
    # New weights are those that the seed gives a run without an encoder.
    assert 0 < model.cls.predictions.transform.dense.weight.abs().max() <= 0.04


def test_positions_are_tiled_and_padding_rows_stay(workspace: Any, tmp_path: Path) -> None:
    source = write_released(
        f"{tmp_path}/bert", f"{workspace.path}/vocabulary", max_position_embeddings=40, vocab_size=208
    )
    objective = objective_of(workspace, f"{tmp_path}/bert", "model.max_position_embeddings=100")
    objective.check()
    state = objective.build().state_dict()
    old = source.state_dict()["bert.embeddings.position_embeddings.weight"]
    expected = torch.cat([old, old, old[:20]])
    assert torch.equal(state["bert.embeddings.position_embeddings.weight"], expected)
    assert torch.equal(state["cls.predictions.bias"], source.state_dict()["cls.predictions.bias"])
    assert objective.vocab_size == 208
    assert objective.lineage[0].extended == {"positions": 60}
    objective.export(f"{tmp_path}/export", state)
    exported = ReferenceBert.from_pretrained(f"{tmp_path}/export")
    assert (exported.config.vocab_size, exported.config.max_position_embeddings) == (208, 100)


def test_added_words_are_counted(workspace: Any, tmp_path: Path) -> None:
    encoder, vocabulary = tmp_path / "bert", Path(workspace.path, "vocabulary")
    words = Path(vocabulary, "vocab.txt").read_text().splitlines()
    assert words[-2:] == ["w198", "w199"]
    source = write_released(str(encoder), str(vocabulary), vocab_size=len(words) - 1)
    Path(encoder, "vocab.txt").write_text("".join(f"{word}\n" for word in [*words[:-2], "[unused0]"]))
    os.remove(encoder / "tokenizer.json")
    objective = objective_of(workspace, str(encoder))
    objective.check()
    state = objective.build().state_dict()
    assert objective.lineage[0].extended == {"vocabulary entries": 2}
    assert "2 vocabulary entries added" in objective.introduction()
    old = source.state_dict()["bert.embeddings.word_embeddings.weight"]
    new = state["bert.embeddings.word_embeddings.weight"]
    # Neither word has pieces there: both were [UNK], the entry 1.
    assert torch.equal(new, torch.cat([old[:-1], old[1:2], old[1:2]]))


def test_nothing_is_written_before_a_refusal(
    workspace: Any, released: str, single_process: Processes, tmp_path: Path
) -> None:
    def stages() -> list[str]:
        return sorted(name for name in os.listdir(workspace.path) if not name.startswith("."))

    def refused(encoder: str, message: str) -> None:
        before = stages()
        with pytest.raises(InputError, match=message) as caught:
            TrainingRun(objective_of(workspace, encoder), single_process, StopRequest()).run(restart="again")
        assert "\n" not in str(caught.value)
        assert stages() == before

    other = shutil.copytree(released, tmp_path / "other")
    for name in ("vocab.txt", "tokenizer.json"):
        (other / name).write_text((other / name).read_text().replace("w17", "x17"))
    refused(
        str(other), rf"vocabulary: the vocabulary of the examples is not that of the initial encoder {other}: entry 23"
    )

    state = safetensors.torch.load_file(f"{released}/model.safetensors")
    damaged = shutil.copytree(released, tmp_path / "damaged")
    state["bert.encoder.layer.1.output.dense.bias"][3] = float("nan")
    safetensors.torch.save_file(state, f"{damaged}/model.safetensors", metadata={"format": "pt"})
    refused(str(damaged), r"layer\.1\.output\.dense\.bias has 1 of 32 numbers that are not finite")


@pytest.mark.slow
def test_a_continued_run_states_both_origins(
    make_workspace: Callable[[str], Any], released: str, single_process: Processes
) -> None:
    train = Trainer(make_workspace("origins"), single_process)
    source = f"pretraining.initial_encoder={json.dumps(released)}"
    assert train(source) == 0
    longer = "pretraining.phases=[{max_seq_length=32, steps=6, global_batch_size=8}]"
    assert train(source, longer, continued="") == 0
    manifest = read_manifest(train.directory)
    assert manifest is not None
    assert {"initial_encoder", "continued_from"} <= manifest.inputs.keys()
    lineage = manifest.statistics_as(PretrainingStatistics).lineage
    assert [record.relation for record in lineage] == ["initial_encoder", "checkpoint"]
    assert lineage[0].digest == manifest.inputs["initial_encoder"]


def said_by_two_ranks(workspace: Any, settings: tuple[str, ...]) -> str:
    processes = workspace.start_ranks(workspace.command("training.pretrain", *settings), 2)
    output = "".join(process.communicate(timeout=240)[0] for process in processes)
    assert [process.returncode for process in processes] == [0, 0], output
    return output


@pytest.mark.slow
def test_two_ranks_resume_to_the_same_weights(
    make_workspace: Callable[[str], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ZeRO-3, stopped after its first checkpoint; result and last checkpoint are encoders of a second workspace."""
    monkeypatch.setenv("CLOZEWORKS_CACHE", f"{tmp_path}/cache")
    workspace = make_workspace("continued")
    write_released(f"{tmp_path}/bert", f"{workspace.path}/vocabulary", ReferenceEncoder)
    recipe = Path(workspace.recipe)
    text = recipe.read_text()
    recipe.write_text(text[: text.index("[model]")] + text[text.index("[pretraining]") :])
    settings = (
        *("--set", f"pretraining.initial_encoder={tmp_path}/bert", "--set", "pretraining.zero_stage=3"),
        *("--set", "pretraining.phases=[{max_seq_length=32, steps=8, global_batch_size=16}]"),
        *("--set", "pretraining.checkpoint_every_steps=4"),
    )
    said = said_by_two_ranks(workspace, settings)
    assert f"pretraining: initial encoder {tmp_path}/bert (digest " in said
    assert "masked-LM head initialized, next-sentence head initialized" in said
    manifest = read_manifest(f"{workspace.path}/pretraining")
    assert manifest is not None
    statistics = manifest.statistics_as(PretrainingStatistics)
    assert statistics.lineage[0].digest == manifest.inputs["initial_encoder"]
    assert manifest.config["model"]["hidden_size"] == 32
    assert "initial_encoder" not in manifest.config["pretraining"]
    assert statistics.heldout_after["mlm_loss"] < statistics.heldout_before["mlm_loss"]

    resumed = workspace.stopped_after(4, "resumed")
    assert "resumed from checkpoint step-0000000004" in said_by_two_ranks(resumed, settings)
    assert resumed.has_weights_of(workspace)
    assert read_manifest(f"{resumed.path}/pretraining") == manifest
    skipped = resumed.run("training.pretrain", *settings)
    assert skipped.stdout.startswith("pretraining: complete and up to date")

    following = make_workspace("following")
    for source in (workspace.path, f"{workspace.path}@step-8"):
        objective = objective_of(following, source)
        state, weights = objective.build().state_dict(), workspace.weights()
        assert all(torch.equal(state[name], weights[name]) for name in weights)
        assert objective.lineage[0].initialized == []


@pytest.mark.parametrize("share", [0.0, 0.25])
def test_exported_weights_are_the_mean_with_the_initial_encoder(
    workspace: Any, tmp_path: Path, single_process: Processes, share: float
) -> None:
    """What the encoder lacks, here both heads and the pooler, stays as trained."""
    bare = partial(ReferenceEncoder, add_pooling_layer=False)
    initial = dict(write_released(f"{tmp_path}/bare", f"{workspace.path}/vocabulary", bare).named_parameters())
    objective = objective_of(workspace, f"{tmp_path}/bare", f"pretraining.initial_encoder_share={share}")
    model = objective.build()
    engine = TrainingEngine(
        model, build_optimizer(model, objective.settings), EngineSettings(0, "fp32", 1.0, 16, 1), single_process
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape))
    trained = engine.full_precision_state()
    exported = objective.conclude(engine)
    assert exported.keys() == trained.keys()
    for name, value in trained.items():
        source = initial.get(name.removeprefix("bert."))
        assert (source is None) == name.startswith(("cls.", "bert.pooler."))
        expected = value if source is None else (1 - share) * value + share * source.detach()
        torch.testing.assert_close(exported[name], expected)
    # The last evaluation is of these weights.
    assert all(torch.equal(value, exported[name]) for name, value in engine.full_precision_state().items())


@pytest.mark.parametrize("settings", [{"initial_encoder": None}, {"initial_encoder": "bert", "zero_stage": 3}])
def test_a_mean_needs_an_encoder_and_weights_at_hand(settings: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="initial_encoder_share needs an initial_encoder, and a zero_stage below"):
        PretrainingConfig(initial_encoder_share=0.5, **settings)
