"""Weights of sources, across the sections `[documents]` and `[examples]`."""

from __future__ import annotations

from pipelines.settings.documents import DocumentsConfig
from pipelines.settings.examples import ExamplesConfig, SourceShareConfig


def with_weights(examples: ExamplesConfig, documents: DocumentsConfig) -> ExamplesConfig:
    """The examples' settings with the weights of `documents.sources`, unless they name sources themselves."""
    if examples.sources or not any(source.weight for source in documents.sources):
        return examples
    shares = tuple(SourceShareConfig(name=source.name or "", weight=source.weight) for source in documents.sources)
    return examples.model_copy(update={"sources": shares})


def mixture_problem(examples: ExamplesConfig, documents: DocumentsConfig) -> str | None:
    """The error for a source that the examples name and the documents do not have; None if all are known."""
    known = documents.source_names
    lists = {"examples.sources": examples.sources}
    lists |= {f"examples.sets.{index}.sources": one.sources for index, one in enumerate(examples.sets)}
    for key, shares in lists.items():
        for index, share in enumerate(shares):
            if share.name not in known:
                found = (
                    f"documents.sources are {', '.join(known)}"
                    if known
                    else "no source of documents.sources has a name"
                )
                return f"{key}.{index}.name = {share.name!r}: {found}; name one of these, or set its name there"
    return None
