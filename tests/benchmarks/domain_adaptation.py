"""Held-out masked-LM loss on Wikipedia: an encoder of novels, the same continued on Wikipedia, and random weights.

A BERT of 2 layers and 128 units is trained on novels. It is then continued on Wikipedia extracts from
`pretraining.initial_encoder`; random weights get the same steps, rate, rows and vocabulary (that of the novels). All
three are scored on the same held-out Wikipedia articles. One thread, one rank, minutes of CPU time.

    make bench NAME=domain_adaptation
    .venv/bin/python tests/benchmarks/domain_adaptation.py --steps 50 --novels 2 --articles 2
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.support import REPOSITORY
from tests.support.measuring import NOVELS, report

from pipelines.contract.manifest import read_manifest
from pipelines.statistics.training import PretrainingStatistics

WIKIPEDIA = REPOSITORY.parent / "shared" / "data" / "corpora" / "enwiki_extract" / "vibhas_AA"

RECIPE = """
[run]
workspace = {workspace}
workers = 1
[documents]
max_characters = 20_000
num_shards = 2
heldout_share = 0.05
[[documents.sources]]
format = "{format}"
inputs = {inputs}
document_separator = {separator}
[vocabulary]
size = 8_192
[examples]
next_sentence = false
masking = "dynamic"
passes = 1
lengths = [{{ max_seq_length = 64, max_predictions_per_seq = 10 }}]
{model}
[pretraining]
phases = [{{ max_seq_length = 64, steps = {steps}, global_batch_size = 16 }}]
learning_rate = {learning_rate}
num_warmup_steps = {warmup_steps}
adam_bias_correction = true
adam_beta2 = 0.98
zero_stage = 0
eval_every_steps = 1_000_000
eval_examples = 1_024
checkpoint_every_steps = 1_000_000
log_every_steps = 500
"""
MODEL = """
[model]
hidden_size = 128
num_hidden_layers = 2
num_attention_heads = 4
intermediate_size = 512
max_position_embeddings = 64
initializer_range = 0.06
hidden_dropout_prob = 0.0
attention_probs_dropout_prob = 0.0
"""
WITHOUT_DROPOUT = "[model]\nhidden_dropout_prob = 0.0\nattention_probs_dropout_prob = 0.0\n"


def write_recipe(path: Path, files: list[Path], steps: int, learning_rate: float, model: str) -> str:
    is_wiki = WIKIPEDIA in files[0].parents
    text = RECIPE.format(
        workspace=json.dumps(str(path.with_suffix(""))),
        format="wikiextractor" if is_wiki else "text",
        inputs=json.dumps([str(file) for file in files]),
        separator=json.dumps("file"),
        model=model,
        steps=steps,
        learning_rate=learning_rate,
        warmup_steps=steps * 6 // 100,
    )
    path.write_text(text if not is_wiki else text.replace('document_separator = "file"\n', ""))
    return str(path)


def run(module: str, *arguments: str) -> None:
    environment = {**os.environ, "DS_ACCELERATOR": "cpu", "PYTHONPATH": str(REPOSITORY)}
    subprocess.run([sys.executable, "-m", module, *arguments], env=environment, stdout=sys.stderr, check=True)


def trained(recipe: str, *arguments: str) -> PretrainingStatistics:
    run("training.pretrain", recipe, *arguments)
    manifest = read_manifest(f"{Path(recipe).with_suffix('')}/pretraining")
    assert manifest is not None
    return manifest.statistics_as(PretrainingStatistics)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--novels", type=int, default=12, help="files of novels")
    parser.add_argument("--articles", type=int, default=10, help="files of Wikipedia extracts, 1 MB each")
    parser.add_argument("--novel-steps", type=int, default=1_800)
    parser.add_argument("--steps", type=int, default=400, help="on Wikipedia")
    parser.add_argument("--learning-rate", type=float, default=1e-3, help="on Wikipedia; 2e-3 on novels")
    parsed = parser.parse_args()
    if not NOVELS.is_dir() or not WIKIPEDIA.is_dir():
        raise SystemExit(f"the corpora are not in {NOVELS.parent}")
    with tempfile.TemporaryDirectory() as scratch:
        place = Path(scratch)
        novels = write_recipe(
            place / "novels.toml", sorted(NOVELS.glob("*.txt"))[: parsed.novels], parsed.novel_steps, 2e-3, MODEL
        )
        for job in ("shard_corpus", "train_vocabulary", "build_examples"):
            run(f"pipelines.{job}", novels)
        source = trained(novels)
        articles = sorted(WIKIPEDIA.glob("wiki_*"))[: parsed.articles]
        rate, steps = parsed.learning_rate, parsed.steps
        continued = write_recipe(place / "continued.toml", articles, steps, rate, WITHOUT_DROPOUT)
        run("pipelines.shard_corpus", continued)
        shutil.copytree(place / "novels" / "vocabulary", place / "continued" / "vocabulary")
        run("pipelines.build_examples", continued)
        scratch_recipe = write_recipe(place / "scratch.toml", articles, steps, rate, MODEL)
        shutil.copytree(place / "continued", place / "scratch")
        encoder = json.dumps(str(place / "novels"))
        adapted = trained(continued, "--set", f"pretraining.initial_encoder={encoder}")
        random = trained(scratch_recipe)
    losses = {
        "on_novels": source.heldout_after["mlm_loss"],
        "before": adapted.heldout_before["mlm_loss"],
        "after": adapted.heldout_after["mlm_loss"],
        "random_before": random.heldout_before["mlm_loss"],
        "from_scratch": random.heldout_after["mlm_loss"],
        "unigram": adapted.unigram_baseline["loss"],
        "accuracy_before": adapted.heldout_before["mlm_accuracy"],
        "accuracy_after": adapted.heldout_after["mlm_accuracy"],
        "accuracy_from_scratch": random.heldout_after["mlm_accuracy"],
    }
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    report(
        "domain_adaptation",
        losses["after"],
        "nats",
        peer="from scratch",
        peer_value=losses["from_scratch"],
        ratio=losses["from_scratch"] / losses["after"],
        **{name: round(value, 3) for name, value in losses.items()},
        cpu_seconds=round(used.ru_utime + used.ru_stime),
    )


if __name__ == "__main__":
    main()
