"""The card of a registered model: data, recipe, scores and limits, from the manifests and the recipe."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from flows.parameters.whole_recipe import WholeRecipe
from flows.registry.logged_models import ModelFiles
from pipelines.contract import storage
from pipelines.contract.manifest import Manifest, read_manifest
from pipelines.contract.workspace import (
    DISTILLATION,
    DOCUMENTS,
    ENCODER_DIRECTORY,
    EXAMPLES,
    FINETUNING,
    PRETRAINING,
    VOCABULARY,
)
from pipelines.statistics.metrics import Metric
from pipelines.statistics.preprocessing import DocumentsStatistics, VocabularyStatistics
from pipelines.statistics.training import PretrainingStatistics, TrainingStatistics, TrialStatistics
from training.bert.model_readme import FILL_MASK, QUESTION_ANSWERING, TEXT_CLASSIFICATION, TOKEN_CLASSIFICATION
from training.settings.glue import MNLI
from training.tracking.flattening import numbers_of

_LICENSE_UNKNOWN = "unknown"
_CALLS = {
    FILL_MASK: 'mlflow.transformers.load_model(uri)("It returns the [MASK] of the list.")',
    TEXT_CLASSIFICATION: 'mlflow.pyfunc.load_model(uri).predict(["It returns a list."])',
    TOKEN_CLASSIFICATION: 'mlflow.pyfunc.load_model(uri).predict(["words apart by spaces"])',
    QUESTION_ANSWERING: 'mlflow.pyfunc.load_model(uri).predict([{"question": "Who?", "context": "She did."}])',
}
_LABELLER_CALL = 'mlflow.pyfunc.load_model(uri).predict([{"text": "It returns a list."}])'
_PAIR_CALL = 'mlflow.pyfunc.load_model(uri).predict([{"text": "One text.", "text_pair": "Another."}])'


@dataclass(frozen=True)
class CardFacts:
    """Facts shown on a card.

    manifest: of the stage or trial that made the model. origin: manifests of the stages that its encoder came from, by
    stage; empty if it came from elsewhere, which `begun_from` then names. threshold: of a model that gives a text
    several labels. compares_segments: as in `ModelFiles`.
    """

    name: str
    pipeline_task: str
    takes_pairs: bool
    manifest: Manifest
    origin: Mapping[str, Manifest]
    begun_from: str
    recipe_text: str
    overrides: Sequence[str]
    threshold: float | None = None
    compares_segments: bool = False


def card_facts(whole: WholeRecipe, files: ModelFiles, manifest: Manifest) -> CardFacts:
    """Gather the facts of a card from the model's workspace."""
    found = {
        stage: read_manifest(storage.join(whole.run.workspace, stage))
        for stage in (DOCUMENTS, VOCABULARY, EXAMPLES, PRETRAINING)
    }
    manifests = {stage: each for stage, each in found.items() if each is not None}
    origin, begun_from = manifests, ""
    if ENCODER_DIRECTORY in manifest.inputs:
        origin, begun_from = {}, f"{whole.finetuning.encoder} (digest {manifest.inputs[ENCODER_DIRECTORY][:12]})"
    elif MNLI in manifest.inputs:
        begun_from = "the workspace's encoder, fine-tuned on mnli"
    with open(whole.recipe.path, encoding="utf-8") as stream:
        text = stream.read()
    kind, pairs, overrides = files.pipeline_task, files.takes_pairs, whole.recipe.overrides
    of_labels = files.threshold, files.compares_segments
    return CardFacts(files.name, kind, pairs, manifest, origin, begun_from, text, overrides, *of_labels)


def card_text(facts: CardFacts) -> str:
    """The card in Markdown, with front matter for Hugging Face's tools."""
    manifest = facts.manifest
    library = "mlflow" if facts.compares_segments else "transformers"
    front_matter = (
        f"---\nlicense: {_LICENSE_UNKNOWN}\nlibrary_name: {library}\npipeline_tag: {facts.pipeline_task}\n---\n"
    )
    parts = [
        f"# {facts.name}\n\n{summary(facts)}",
        _use(facts),
        f"## Data\n\n{_table(_data_rows(facts))}",
        f"## Scores\n\n{_table(_score_rows(manifest))}",
        "## Limits\n\n" + "\n".join(f"- {limit}" for limit in _limits(facts)),
        _fenced("Settings", "json", json.dumps(manifest.config, indent=1, sort_keys=True)),
        _recipe(facts),
    ]
    return front_matter + "\n" + "\n\n".join(parts) + "\n"


def summary(facts: CardFacts) -> str:
    """One sentence: the kind of model, and what it was initialized from."""
    made = f"made with Clozeworks {facts.manifest.code_version}"
    if facts.begun_from:
        return f"BERT for {facts.pipeline_task}, {made}; fine-tuned from {facts.begun_from}."
    if PRETRAINING in facts.origin:
        lineage = facts.origin[PRETRAINING].statistics_as(PretrainingStatistics).lineage
        if lineage and lineage[0].relation == "initial_encoder":
            return f"BERT for {facts.pipeline_task}, {made}; pre-training started from {lineage[0].source}."
    return f"BERT for {facts.pipeline_task}, pre-trained from raw text, {made}."


def _use(facts: CardFacts) -> str:
    by_code = facts.threshold is not None or facts.compares_segments
    of_one_text = _LABELLER_CALL if by_code else _CALLS[facts.pipeline_task]
    call = _PAIR_CALL if facts.takes_pairs else of_one_text
    return f'## Use\n\n```python\nimport mlflow\n\nuri = "models:/{facts.name}@champion"\n{call}\n```'


def _data_rows(facts: CardFacts) -> list[tuple[str, Any]]:
    rows: list[tuple[str, Any]] = []
    if facts.begun_from:
        rows.append(("initialized from", facts.begun_from))
    documents = facts.origin.get(DOCUMENTS)
    if documents is not None:
        for source in documents.config.get("sources", []):
            inputs = ", ".join(map(str, source.get("inputs", [])))
            rows.append(("source", f"{inputs} ({source.get('format', 'format by name')})"))
        corpus = documents.statistics_as(DocumentsStatistics)
        rows += [
            ("documents kept", corpus.documents_kept),
            ("sentences", corpus.sentences),
            ("characters", corpus.characters),
            ("heldout documents", corpus.heldout_documents),
        ]
    if VOCABULARY in facts.origin:
        rows.append(("vocabulary entries", facts.origin[VOCABULARY].statistics_as(VocabularyStatistics).size))
    if PRETRAINING in facts.origin:
        trained = facts.origin[PRETRAINING].statistics_as(PretrainingStatistics)
        counts = {"steps": trained.steps, "sequences": trained.sequences, "tokens": trained.tokens}
        rows += [(f"pre-training {name}", value) for name, value in counts.items()]
        rows += [("pre-training started from", record.in_words()) for record in trained.lineage]
    own = {name: value for name, value in facts.manifest.statistics.items() if _is_count(name)}
    rows += [(name.replace("_", " "), value) for name, value in sorted(own.items())]
    rows += [(f"digest of {name}", digest) for name, digest in sorted(facts.manifest.inputs.items())]
    return [(name, value) for name, value in rows if value is not None]


def _is_count(name: str) -> bool:
    return name.startswith(("train_", "dev_")) and not name.endswith("by_type")


def _score_rows(manifest: Manifest) -> list[tuple[str, Any]]:
    is_trial = manifest.stage == FINETUNING
    rows: list[tuple[str, Any]] = [("chosen by", manifest.statistics_as(TrialStatistics).metric)] if is_trial else []
    left_out = ("seconds", "lineage", "minimal_pairs")
    scores = {
        name: value for name, value in manifest.statistics.items() if not _is_count(name) and name not in left_out
    }
    rows += [(_labelled(manifest, name), f"{value:.6g}") for name, value in sorted(numbers_of(scores).items())]
    return rows + _pairs_rows(manifest)


def _pairs_rows(manifest: Manifest) -> list[tuple[str, Any]]:
    """Accuracies on minimal pairs with standard errors; none for a model that was not scored on them."""
    pairs = manifest.statistics_as(PretrainingStatistics).minimal_pairs if manifest.stage == PRETRAINING else None
    if pairs is None:
        return []
    parts = (*pairs.parts.items(), (f"all {pairs.overall.pairs:,} pairs of {pairs.data}", pairs.overall))
    return [
        (f"minimal pairs, {name}", f"{part.accuracy:.3f}, standard error {part.standard_error:.3f}")
        for name, part in parts
    ]


def _labelled(manifest: Manifest, name: str) -> str:
    """The name of a score; for a metric of an encoder with its label, unit and direction."""
    part_of, _, last = name.rpartition(".")
    if manifest.stage not in (PRETRAINING, DISTILLATION) or not part_of:
        return name
    metrics = manifest.statistics_as(TrainingStatistics).metrics
    better = (f"{part_of}: {each.label}, {_explained(each)}" for each in metrics if each.name == last)
    return next(better, name)


def _explained(metric: Metric) -> str:
    return f"{metric.unit}, {'more' if metric.more_is_better else 'less'} is better"


def _limits(facts: CardFacts) -> list[str]:
    length = facts.manifest.config.get("max_seq_length")
    limits = {
        FILL_MASK: ["It is the masked-language model alone: no pooler, no next-sentence head."],
        TEXT_CLASSIFICATION: [
            f"Texts are truncated to {length} tokens, as in training; with `transformers.pipeline` pass "
            "`truncation=True`.",
            "When it truncates a pair of texts, transformers may keep one token more of the second and one less "
            "of the first than training did.",
        ],
        TOKEN_CLASSIFICATION: ["Words are separated by white space; separate punctuation as in the training text."],
        QUESTION_ANSWERING: ["An answer is always a slice of the context."],
    }[facts.pipeline_task]
    if facts.compares_segments:
        limits = [
            f"Texts are truncated to {length} tokens, as in training.",
            "It classifies by the means of the two segments. transformers has no class for that: `mlflow.pyfunc` loads "
            "it, by code that the model contains.",
        ]
    if facts.threshold is not None:
        limits = [
            f"It returns each label with a probability of at least {facts.threshold:g}, and the probability of every "
            "label"
            + (
                "."
                if facts.compares_segments
                else "; `transformers.pipeline` does with `top_k=None`, and applies no threshold."
            ),
            *limits,
        ]
    if facts.pipeline_task in (FILL_MASK, TEXT_CLASSIFICATION) and not facts.compares_segments:
        limits = [*limits, "transformers reads a literal [MASK] or [SEP] in a text as that token; training did not."]
    return [
        *limits,
        "It reflects the language and the views of its training text; no bias mitigation was applied.",
        "Scores are on development data, which also selected the best epoch: expect less on other data.",
        "The licence of the training text, and so of the model, has not been determined.",
    ]


def _recipe(facts: CardFacts) -> str:
    # A fence must be longer than any fence within the text.
    shown = _fenced("Recipe", "toml", facts.recipe_text.rstrip("\n"))
    overrides = "".join(f"\n--set {override}" for override in facts.overrides)
    return f"{shown}\n\nOverridden:\n\n```\n{overrides.strip()}\n```" if overrides else shown


def _fenced(title: str, language: str, text: str) -> str:
    fence = "```" if "```" not in text else "`````"
    return f"## {title}\n\n{fence}{language}\n{text}\n{fence}"


def _table(rows: Sequence[tuple[str, Any]]) -> str:
    if not rows:
        return "The manifests state none."
    lines = [f"| {name} | {_cell(value)} |" for name, value in rows]
    return "\n".join(["| what | value |", "|---|---|", *lines])


def _cell(value: Any) -> str:
    shown = f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
    return shown.replace("|", "\\|").replace("\n", " ")
