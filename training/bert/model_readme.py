"""The README.md of an exported model: what it is and how to load it, derived from its files."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from pipelines.contract import storage
from pipelines.contract.workspace import CONFIG_NAME, TOKENIZER_CONFIG_NAME

README_NAME = "README.md"

FILL_MASK, TEXT_CLASSIFICATION = "fill-mask", "text-classification"
TOKEN_CLASSIFICATION, QUESTION_ANSWERING = "token-classification", "question-answering"

MULTI_LABEL = "multi_label_classification"
"""`problem_type` of a text classifier that gives a text any number of labels."""

PIPELINE_TASKS = {
    "BertForPreTraining": FILL_MASK,
    "BertForMaskedLM": FILL_MASK,
    "BertForSequenceClassification": TEXT_CLASSIFICATION,
    "BertForTokenClassification": TOKEN_CLASSIFICATION,
    "BertForQuestionAnswering": QUESTION_ANSWERING,
}
"""Pipeline tag of a model, by the architecture in its config.json."""

LEFT_TO_RIGHT = "BertLMHeadModel"
LEFT_TO_RIGHT_CLASSIFIER, BILSTM_CLASSIFIER = "LeftToRightForSequenceClassification", "BiLstmForSequenceClassification"
SEGMENT_MEANS_CLASSIFIER = "SegmentMeansForSequenceClassification"
FEATURES_TAGGER = "FeaturesForTokenClassification"
TWO_DIRECTIONS = "TwoDirections"
"""Begins the names of all architectures with two encoders."""
_OWN = {
    LEFT_TO_RIGHT_CLASSIFIER: "no class of transformers classifies by the last token of a left-to-right BERT",
    BILSTM_CLASSIFIER: "no class of transformers has an LSTM on a BERT",
    SEGMENT_MEANS_CLASSIFIER: "no class of transformers classifies by the means of a text's segments",
    FEATURES_TAGGER: "no class of transformers has an LSTM on a BERT's hidden states",
    TWO_DIRECTIONS: "no class of transformers has two encoders that read a text from opposite ends",
}


def own_reason(architecture: str) -> str | None:
    """Why only Clozeworks loads a model of this architecture; None if `transformers` does."""
    return next((reason for name, reason in _OWN.items() if architecture.startswith(name)), None)


def without_pipeline(architecture: str) -> str | None:
    """Why no pipeline of `transformers` runs a model of this architecture, one of this project's; None otherwise."""
    if architecture == LEFT_TO_RIGHT:
        return "no pipeline of transformers scores texts with a left-to-right BERT; its class BertLMHeadModel does"
    return own_reason(architecture)


def readme(directory: str, origin: Sequence[tuple[str, str]] = ()) -> str:
    """README.md of a Hugging Face directory, with the front matter read by Hugging Face's tools.

    `origin` are further rows of its table.
    """
    config, tokenizer = (_read(directory, name) for name in (CONFIG_NAME, TOKENIZER_CONFIG_NAME))
    (architecture,) = config["architectures"]
    task = PIPELINE_TASKS.get(architecture)
    tag = f"pipeline_tag: {task}\n" if task else ""
    rows = [
        ("architecture", architecture),
        ("layers, hidden size, heads", _sizes(config)),
        ("vocabulary", f"{config['vocab_size']:,} entries, {_casing(tokenizer)}"),
        ("longest text", f"{config['max_position_embeddings']} tokens with the special ones; longer ones are cut"),
    ]
    if "id2label" in config:
        rows.append(("labels", ", ".join(str(label) for label in config["id2label"].values())))
    if config.get("problem_type") == MULTI_LABEL:
        threshold = config.get("threshold", 0.5)
        rows.append(("labels of a text", f"all with a probability (sigmoid) of at least {threshold:g}"))
    table = "\n".join(f"| {name} | {_cell(value)} |" for name, value in (*rows, *origin))
    front_matter = f"---\nlibrary_name: transformers\n{tag}---\n"
    use = _use(architecture)
    if reason := own_reason(architecture):
        use = f"transformers does not load it: {reason}.\n"
    return f"{front_matter}\n# {architecture}\n\n| what | value |\n|---|---|\n{table}\n\n{use}"


def _read(directory: str, name: str) -> dict[str, Any]:
    contents: dict[str, Any] = json.loads(storage.read_bytes(storage.join(directory, name)))
    return contents


def _sizes(config: dict[str, Any]) -> str:
    return ", ".join(str(config[name]) for name in ("num_hidden_layers", "hidden_size", "num_attention_heads"))


def _casing(tokenizer: dict[str, Any]) -> str:
    if "do_lower_case" not in tokenizer:
        return "as tokenizer.json says"
    stripped = tokenizer["strip_accents"]
    stripped = tokenizer["do_lower_case"] if stripped is None else stripped
    return f"{'lower-cased' if tokenizer['do_lower_case'] else 'cased'}, accents {'stripped' if stripped else 'kept'}"


def _use(architecture: str) -> str:
    lines = (
        f"from transformers import AutoTokenizer, {architecture}",
        "",
        'tokenizer = AutoTokenizer.from_pretrained("this directory")',
        f'model = {architecture}.from_pretrained("this directory")',
        'model(**tokenizer("A text.", truncation=True, return_tensors="pt"))',
    )
    code = "\n".join(lines)
    return f"```python\n{code}\n```\n"


def _cell(value: str) -> str:
    return value.replace("|", "\\|").replace("\n", " ")
