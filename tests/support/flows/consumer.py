"""Run in a fresh environment by test_consumers.py: answers of a consumer's own tools, without this project.

python consumer.py <tracking URI> <file that says which models are asked what>
"""

from __future__ import annotations

import importlib.util
import json
import os
import socket
import sys
from typing import Any, NoReturn

for name in ("pipelines", "training", "flows", "prefect", "apache_beam", "deepspeed"):
    assert importlib.util.find_spec(name) is None, name


def refuse(_: socket.socket, address: object) -> NoReturn:
    raise OSError(f"no network here: {address}")


socket.socket.connect = refuse  # type: ignore[method-assign,assignment]

import mlflow  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402


def plain(answers: Any) -> list[Any]:
    if hasattr(answers, "to_dict"):
        return answers.to_dict("records")  # type: ignore[no-any-return]
    return [answer.model_dump() if hasattr(answer, "model_dump") else answer for answer in answers]


def answered(kind: str, model: str, tokenizer: str, inputs: list[Any], texts: list[str]) -> Any:
    """By transformers alone, from a directory."""
    parts = {"model": model, "tokenizer": tokenizer}
    if kind == "encoder":
        return {"words": words(parts, inputs), "features": features(model, tokenizer, texts)}
    if kind == "tagging":
        return tagged(parts, inputs)
    if kind.startswith("squad"):
        return logits_shape(model, tokenizer, inputs)
    if "means" in kind:
        return refusal(model)
    more = {"top_k": None} if kind == "multi" else {}
    return transformers.pipeline("text-classification", **parts, **more)(inputs, truncation=True)


def refusal(model_path: str) -> str:
    """What transformers says of a model that it has no class for."""
    try:
        transformers.AutoModelForSequenceClassification.from_pretrained(model_path)
    except ValueError as error:
        return str(error)
    return "loaded"


def words(parts: dict[str, str], texts: list[str]) -> list[str]:
    answers = transformers.pipeline("fill-mask", **parts)(texts, tokenizer_kwargs={"truncation": True})
    return [answer[0]["token_str"] for answer in answers]


def features(model_path: str, tokenizer_path: str, texts: list[str]) -> list[list[float]]:
    model = transformers.AutoModel.from_pretrained(model_path)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tokenizer_path)
    with torch.no_grad():
        rows = [model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0, 1:-1] for text in texts]
    return [row.mean(0).tolist() for row in rows]


def tagged(parts: dict[str, str], texts: list[str]) -> dict[str, Any]:
    classify = transformers.pipeline("token-classification", **parts)

    def at_words(text: str) -> list[str]:
        starts = {0, *(index + 1 for index, character in enumerate(text) if character == " ")}
        return [each["entity"] for each in classify(text, ignore_labels=[]) if each["start"] in starts]

    return {"first": at_words(texts[0]), "longest": len(at_words(max(texts, key=len)))}


def logits_shape(model_path: str, tokenizer_path: str, questions: list[dict[str, str]]) -> list[int]:
    model = transformers.AutoModelForQuestionAnswering.from_pretrained(model_path)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tokenizer_path)
    asked, contexts = ([question[name] for question in questions] for name in ("question", "context"))
    rows = tokenizer(asked, contexts, truncation=True, padding=True, return_tensors="pt")
    return list(model(**rows).start_logits.shape)


def main() -> None:
    mlflow.set_tracking_uri(sys.argv[1])
    with open(sys.argv[2]) as stream:
        asked = json.load(stream)
    found: dict[str, Any] = {"python": sys.prefix, "pyfunc": {}, "registered": {}, "directories": {}}
    for key, each in asked["models"].items():
        uri, inputs = f"models:/{each['name']}@champion", each["inputs"]
        found["pyfunc"][key] = plain(mlflow.pyfunc.load_model(uri).predict(inputs))
        stored = mlflow.artifacts.download_artifacts(uri)
        folders = (f"{stored}/model", f"{stored}/components/tokenizer")
        if not os.path.isdir(folders[0]):
            folders = (f"{stored}/artifacts/model",) * 2
        for place, (model, tokenizer) in {"registered": folders, "directories": (each["directory"],) * 2}.items():
            found[place][key] = answered(each["kind"], model, tokenizer, inputs, asked["features"])
    print(json.dumps(found))


main()
