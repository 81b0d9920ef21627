"""Log a Hugging Face directory as an MLflow model that loads with `mlflow` and `transformers` alone.

The architecture in config.json decides how. Fill-mask and text classification use MLflow's transformers flavour. For
tagging that flavour returns the labels only, with several labels per text only the first one, it cannot load the head
`segment_means`, and transformers 5 has no question-answering pipeline. So these are models from code (tagging_model.py,
labelling_model.py, answering_model.py) with the Hugging Face directory as an artifact.
"""

from __future__ import annotations

import importlib
import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from pipelines.contract import storage
from pipelines.contract.errors import InputError
from pipelines.contract.schemas import MASK
from pipelines.contract.workspace import CONFIG_NAME
from training.bert.model_readme import (
    FILL_MASK,
    MULTI_LABEL,
    PIPELINE_TASKS,
    QUESTION_ANSWERING,
    SEGMENT_MEANS_CLASSIFIER,
    TEXT_CLASSIFICATION,
    TOKEN_CLASSIFICATION,
    without_pipeline,
)

if TYPE_CHECKING:
    from mlflow.models.model import ModelInfo

MODEL_ARTIFACT, SETTINGS_NAME, CARD_NAME = "model", "settings.json", "model_card.md"

_TEXT = "It returns the number of items in the list."
_PAIR = [{"text": _TEXT, "text_pair": "It returns a number."}]
_INPUT_EXAMPLES: dict[str, list[Any]] = {
    FILL_MASK: [f"It returns the {MASK} of the list."],
    TEXT_CLASSIFICATION: [_TEXT],
    TOKEN_CLASSIFICATION: [_TEXT],
    QUESTION_ANSWERING: [{"question": "What does it return?", "context": _TEXT}],
}
_CODE = {TOKEN_CLASSIFICATION: "tagging_model.py", QUESTION_ANSWERING: "answering_model.py"}
_LABELLING_CODE = "labelling_model.py"
_ANSWER_SETTINGS = ("max_seq_length", "doc_stride", "max_query_length", "max_answer_length")


@dataclass(frozen=True)
class ModelFiles:
    """A Hugging Face directory to be logged as a model.

    settings: of its fine-tuning, from its manifest; empty for an encoder. takes_pairs: whether it was fine-tuned on
    pairs of texts. null_threshold: of a question answerer that may return no answer.
    """

    name: str
    directory: str
    settings: Mapping[str, Any]
    takes_pairs: bool = False
    null_threshold: float | None = None

    @property
    def pipeline_task(self) -> str:
        """Its pipeline task, from the architecture in config.json.

        Raises:
            InputError: this architecture cannot be registered.
        """
        path = storage.join(self.directory, CONFIG_NAME)
        name = self._architecture
        if self.compares_segments:
            return TEXT_CLASSIFICATION
        if name not in PIPELINE_TASKS:
            raise InputError(
                f"{path}: architectures = ['{name}']: models of this kind cannot be registered; expected one of "
                + ", ".join(PIPELINE_TASKS)
            )
        return PIPELINE_TASKS[name]

    @property
    def obstacle(self) -> str | None:
        """Why a model that this project trained cannot be registered; None if it can."""
        if self.compares_segments:
            return None
        if self._architecture == SEGMENT_MEANS_CLASSIFIER:
            return f"{_LABELLING_CODE} computes this head on a bidirectional encoder, and this one reads left to right"
        return without_pipeline(self._architecture)

    @property
    def compares_segments(self) -> bool:
        """Whether it has the head `segment_means` on a bidirectional encoder, which labelling_model.py loads."""
        return self._architecture == SEGMENT_MEANS_CLASSIFIER and not self._config().get("is_decoder")

    @property
    def _architecture(self) -> str:
        return str((self._config().get("architectures") or [""])[0])

    @property
    def threshold(self) -> float | None:
        """Probability from which a label is given, if a text may have several; None for other models."""
        config = self._config()
        return config.get("threshold", 0.5) if config.get("problem_type") == MULTI_LABEL else None

    @property
    def input_example(self) -> list[Any]:
        if self.takes_pairs:
            return _PAIR
        return [{"text": _TEXT}] if self.code == _LABELLING_CODE else _INPUT_EXAMPLES[self.pipeline_task]

    @property
    def code(self) -> str | None:
        """The file that answers for it; None if MLflow's flavour does."""
        labels = self.threshold is not None or self.compares_segments
        return _LABELLING_CODE if labels else _CODE.get(self.pipeline_task)

    def _config(self) -> dict[str, Any]:
        config: dict[str, Any] = json.loads(storage.read_bytes(storage.join(self.directory, CONFIG_NAME)))
        return config


def log_model(files: ModelFiles, card_text: str, metadata: Mapping[str, Any]) -> ModelInfo:
    """Log a model into the active run.

    Its signature is inferred from its output for the input example.

    Raises:
        InputError: its architecture cannot be registered.
    """
    task = files.pipeline_task
    _hide_progress()
    if files.code is not None:
        return _log_code(files, files.code, card_text, metadata)
    import mlflow
    from huggingface_hub import ModelCard

    is_text = task == TEXT_CLASSIFICATION
    logged: ModelInfo = mlflow.transformers.log_model(
        _load_pipeline(files, task),
        name=files.name,
        task=task,
        # Without a card MLflow would request one from the model hub.
        model_card=ModelCard(card_text),
        input_example=files.input_example,
        # Longer texts are truncated as in training, at the tokenizer's `model_max_length`.
        model_config={"truncation": True} if is_text else {"tokenizer_kwargs": {"truncation": True}},
        pip_requirements=requirements(),
        metadata=dict(metadata),
    )
    return logged


def _log_code(files: ModelFiles, code: str, card_text: str, metadata: Mapping[str, Any]) -> ModelInfo:
    import mlflow

    settings = {name: files.settings[name] for name in _ANSWER_SETTINGS if name in files.settings}
    if files.threshold is not None:
        settings["threshold"] = files.threshold
    if files.pipeline_task == QUESTION_ANSWERING:
        settings["null_threshold"] = files.null_threshold
    with tempfile.TemporaryDirectory() as scratch:
        # MLflow writes these paths into the version: relative ones reveal nothing about this machine.
        names = (MODEL_ARTIFACT, SETTINGS_NAME, CARD_NAME, code)
        model, settings_file, card, script = (os.path.join(scratch, name) for name in names)
        # A copy, because MLflow does not follow links.
        shutil.copytree(storage.local_path(files.directory), model)
        _write_tokenizer(files, model)
        # A file, not `model_config`: MLflow logs that as parameters, and the models of a stage share a run.
        storage.write_bytes(settings_file, json.dumps(settings).encode())
        storage.write_bytes(card, card_text.encode())
        shutil.copyfile(os.path.join(os.path.dirname(os.path.abspath(__file__)), code), script)
        logged: ModelInfo = mlflow.pyfunc.log_model(
            name=files.name,
            python_model=script,
            artifacts={MODEL_ARTIFACT: model, "settings": settings_file, "model_card": card},
            input_example=files.input_example,
            pip_requirements=requirements(),
            metadata=dict(metadata),
        )
    return logged


def _load_pipeline(files: ModelFiles, task: str) -> Any:
    # `Any`: transformers types its loaders by overloads on literal task names.
    transformers: Any = importlib.import_module("transformers")
    model_type = (
        transformers.AutoModelForMaskedLM if task == FILL_MASK else transformers.AutoModelForSequenceClassification
    )
    directory = storage.local_path(files.directory)
    # A pre-training checkpoint also has the next-sentence head, which the masked-language model does not use.
    model = model_type.from_pretrained(directory, local_files_only=True)
    with tempfile.TemporaryDirectory() as scratch:
        shutil.copyfile(os.path.join(directory, CONFIG_NAME), os.path.join(scratch, CONFIG_NAME))
        _write_tokenizer(files, scratch)
        tokenizer = transformers.AutoTokenizer.from_pretrained(scratch, local_files_only=True)
    tokenizer.model_max_length = files.settings.get("max_seq_length", model.config.max_position_embeddings)
    # MLflow writes these names into the version; they would be paths on this machine.
    model.name_or_path = files.name
    tokenizer.name_or_path = files.name
    return transformers.pipeline(task, model=model, tokenizer=tokenizer, device="cpu")


def _write_tokenizer(files: ModelFiles, directory: str) -> None:
    """Write a model's tokenizer as in exports: earlier releases did not write tokenizer_config.json."""
    from training.tokenizing.export import write_tokenizer  # seconds to import

    path = storage.join(files.directory, CONFIG_NAME)
    positions = int(json.loads(storage.read_bytes(path))["max_position_embeddings"])
    write_tokenizer(directory, files.directory, positions)


def _hide_progress() -> None:
    """Hide progress bars: models are logged in the flow's process, whose console shows its own lines."""
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    transformers_logging: Any = importlib.import_module("transformers").utils.logging
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()


def requirements() -> list[str]:
    """Packages that a consumer installs: exact versions, without the local part (`+cpu`), which other indexes lack."""
    return [f"{name}=={version(name).partition('+')[0]}" for name in ("mlflow", "transformers", "torch")]
