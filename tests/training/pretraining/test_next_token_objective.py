"""Next-token objectives from examples to a fine-tuned encoder, and what is refused."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file
from tests.support.training.synthetic_run import Workspace, write_workspace
from tests.support.training.trainer import Trainer

from pipelines.contract.errors import InputError
from pipelines.contract.manifest import read_manifest
from pipelines.statistics.metrics import MINIMAL_PAIRS
from pipelines.statistics.training import PretrainingStatistics
from training import blimp, finetune
from training.bert.config_file import OWN_TYPE
from training.engine.processes import Processes
from training.settings.model import Attention, ModelConfig
from training.settings.pretraining import PretrainingConfig, model_problem
from training.stages.encoders import encoder_directory
from training.stages.objectives import PRETRAINING_OBJECTIVES

pytestmark = [pytest.mark.timeout(600), pytest.mark.usefixtures("one_thread")]

LEFT_TO_RIGHT = 'model.attention="left_to_right"'
WITHOUT_DROPOUT = ("--set", "model.hidden_dropout_prob=0.0", "--set", "model.attention_probs_dropout_prob=0.0")


@pytest.fixture
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    return write_workspace(str(tmp_path_factory.mktemp("left_to_right")), pairs=False)


def statistics_of(workspace: Workspace) -> PretrainingStatistics:
    manifest = read_manifest(workspace.stage())
    assert manifest is not None
    return manifest.statistics_as(PretrainingStatistics)


def test_each_kind_of_attention_has_an_objective() -> None:
    assert set(PRETRAINING_OBJECTIVES) == set(Attention.__args__)  # type: ignore[attr-defined]


@pytest.mark.parametrize("attention", ["left_to_right", "two_directions"])
def test_a_run_learns_and_is_scored_on_pairs(
    attention: str,
    workspace: Workspace,
    tmp_path: Path,
    single_process: Processes,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pairs = tmp_path / "pairs.tsv"
    pairs.write_text("good\tbad\tgroup\nw1 w2 w3\tw3 w1\tone\nw4 w5\tw5 w4 w6\tone\n")
    train = Trainer(workspace, single_process)
    settings = (
        f'model.attention="{attention}"',
        "pretraining.phases=[{max_seq_length=32, steps=30, global_batch_size=16}]",
        "pretraining.checkpoint_every_steps=30",
        "pretraining.learning_rate=5e-3",
        f'pretraining.minimal_pairs={{data="{pairs}"}}',
    )
    assert train(*settings) == 0
    printed = capsys.readouterr().out
    assert f"attention {attention} (BERT: bidirectional)" in printed
    assert "next-token accuracy" in printed
    assert "MLM" not in printed
    assert f"minimal pairs (2 pairs, {attention}): " in printed

    found = statistics_of(workspace)
    names = ["next_token_accuracy", "next_token_perplexity", "loss", MINIMAL_PAIRS.name]
    assert [metric.name for metric in found.heldout_metrics] == names
    assert found.judged_by.name == "next_token_accuracy"
    before, after = found.heldout_before, found.heldout
    assert before["loss"] == pytest.approx(math.log(206), abs=0.2)
    assert after["loss"] < before["loss"] - 0.3
    assert after["next_token_perplexity"] == pytest.approx(math.exp(after["loss"]))

    output = tmp_path / "found.json"
    assert blimp.main([workspace.path, "--data", str(pairs), "--output", str(output)]) == 0
    report = json.loads(output.read_bytes())
    assert report["method"] == attention
    assert report["overall"]["accuracy"] == after[MINIMAL_PAIRS.name]
    with pytest.raises(InputError, match=f"is a {attention} model, which masks nothing; remove it"):
        blimp.main([workspace.path, "--data", str(pairs), "--method", "original"])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("attention", "classifier"),
    [
        ("left_to_right", "LeftToRightForSequenceClassification"),
        ("two_directions", "TwoDirectionsForSequenceClassification"),
    ],
)
def test_ranks_give_the_same_losses_and_the_encoder_is_fine_tuned(
    attention: str, classifier: str, workspace: Workspace
) -> None:
    losses = []
    setting = ("--set", f'model.attention="{attention}"')
    for ranks, stage in ((1, 0), (2, 2)):
        zero = ("--set", f"pretraining.zero_stage={stage}", "--restart")
        done = workspace.run("training.pretrain", *setting, *zero, *WITHOUT_DROPOUT, ranks=ranks)
        assert done.returncode == 0, done.stdout + done.stderr
        losses.append(workspace.losses())
    assert losses[0].keys() == losses[1].keys()
    assert list(losses[0].values()) == pytest.approx(list(losses[1].values()), abs=2e-4)

    for more, architecture in (
        ((), classifier),
        (("finetuning.classifier_head=bilstm",), "BiLstmForSequenceClassification"),
        (("finetuning.classifier_head=segment_means",), "SegmentMeansForSequenceClassification"),
    ):
        done = workspace.run("training.finetune", *setting, *(word for each in more for word in ("--set", each)))
        assert done.returncode == 0, done.stdout + done.stderr
        for start in ("pretrained", "random"):
            model = Path(workspace.path, "finetuning", "word-order", start, "model")
            config = json.loads((model / "config.json").read_bytes())
            assert config["architectures"][0].endswith(architecture)
            assert config["model_type"] == OWN_TYPE


@pytest.mark.slow
def test_a_checkpoint_is_exported_and_a_bidirectional_run_starts_from_the_encoder(
    workspace: Workspace,
) -> None:
    done = workspace.run("training.pretrain", "--set", LEFT_TO_RIGHT, *WITHOUT_DROPOUT)
    assert done.returncode == 0, done.stdout + done.stderr
    exported = encoder_directory(f"{workspace.path}@latest")
    encoder = f"{workspace.stage()}/encoder"
    first, second = (load_file(f"{directory}/model.safetensors") for directory in (exported, encoder))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)

    other = write_workspace(f"{workspace.path}-continued", pairs=False)
    start = ("--set", f"pretraining.initial_encoder={json.dumps(encoder)}")
    done = other.run("training.pretrain", *start, "--set", 'model.attention="bidirectional"', *WITHOUT_DROPOUT)
    assert done.returncode == 0, done.stdout + done.stderr
    assert statistics_of(other).judged_by.name == "mlm_accuracy"
    turned = transformers.AutoModelForMaskedLM.from_pretrained(f"{other.stage()}/encoder")
    assert type(turned).__name__ == "BertForMaskedLM"


def test_two_encoders_do_not_start_from_one() -> None:
    problem = model_problem(ModelConfig(attention="two_directions"), PretrainingConfig(initial_encoder="somewhere"))
    assert problem is not None
    assert "two encoders cannot start from one" in problem


@pytest.mark.parametrize(
    ("setting", "named"),
    [
        ('pretraining.masking="dynamic"', "masking"),
        ("pretraining.mask_shares={mask=1.0, random=0.0}", "mask_shares"),
        (
            "pretraining.phases=[{max_seq_length=32, steps=4, global_batch_size=8, masked_lm_prob=0.2}]",
            "phases.masked_lm_prob",
        ),
        ('pretraining.minimal_pairs={data="heldout", method="original"}', "minimal_pairs.method"),
    ],
)
def test_settings_of_masks_are_refused(
    setting: str, named: str, workspace: Workspace, single_process: Processes
) -> None:
    with pytest.raises(InputError, match=f"pretraining.{named} has no effect with model.attention = 'left_to_right'"):
        Trainer(workspace, single_process).inputs(LEFT_TO_RIGHT, setting)


def test_pairs_of_segments_are_refused(make_workspace: Callable[[str], Any], single_process: Processes) -> None:
    with pytest.raises(InputError, match="the examples are pairs of segments, half of them at random"):
        Trainer(make_workspace("pairs"), single_process).inputs(LEFT_TO_RIGHT)


def test_a_bilstm_on_single_tokens_is_refused(workspace: Workspace) -> None:
    settings = ('classifier_head="bilstm"', 'tasks=["tagging"]', 'tagging={train_file="a", dev_file="b"}')
    words = [word for each in settings for word in ("--set", f"finetuning.{each}")]
    with pytest.raises(InputError, match="classifier_head = 'bilstm', but tagging predicts tokens"):
        finetune.main([workspace.recipe, "--workspace", workspace.path, *words])
