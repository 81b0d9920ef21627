"""Make the vocabulary from the word counts of the training documents, by training one or by adopting one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import apache_beam as beam
import pyarrow as pa

from pipelines import __version__
from pipelines.contract import storage
from pipelines.contract.errors import InputError
from pipelines.contract.manifest import Manifest, StageKey, record_of, require_manifest, write_manifest
from pipelines.contract.workspace import VOCABULARY
from pipelines.results.builds import install_build
from pipelines.results.coverage import ratio
from pipelines.results.marks import building_directory, is_open
from pipelines.settings.vocabulary import VocabularyConfig
from pipelines.statistics.preprocessing import VocabularyExtension, VocabularyStatistics
from pipelines.vocabularies.extension import extend
from pipelines.vocabularies.reading import BroughtVocabulary
from pipelines.wordpiece.statistics import UNK_SHARE_REFUSED, count_pieces, statistics_of, unk_remedy
from pipelines.wordpiece.tokenizer_settings import TokenizerSettings
from pipelines.wordpiece.trainer import train
from pipelines.wordpiece.word_counts import marks_stripped, tokenizer_files

_EXAMPLES = 20


class VocabularyMaker(Protocol):
    """How a vocabulary comes from word counts; `pipelines.validate` makes it again."""

    @property
    def settings(self) -> TokenizerSettings: ...

    def make(self, words: pa.Table) -> tuple[list[str], VocabularyStatistics]:
        """The tokens by id, and what the manifest states.

        Args:
            words: distinct words and their counts, as from `pipelines.wordpiece.word_counts`.
        """
        ...

    def unk_remedy(self, statistics: VocabularyStatistics) -> str:
        """What to change where characters have no entry."""
        ...


@dataclass(frozen=True)
class Training:
    """Train a vocabulary on the words."""

    config: VocabularyConfig

    @property
    def settings(self) -> TokenizerSettings:
        return TokenizerSettings(self.config.lowercase, self.config.strip_accents)

    def make(self, words: pa.Table) -> tuple[list[str], VocabularyStatistics]:
        config, counts = self.config, words["count"].to_numpy()
        distinct = words["word"].combine_chunks()
        tokens = train(distinct, counts, config.size, config.min_count, config.alphabet_size, config.layout)
        return tokens, statistics_of(words, marks_stripped(words), tokens, self.settings, self.unk_remedy)

    def unk_remedy(self, statistics: VocabularyStatistics) -> str:
        return (
            f"the corpus has {statistics.distinct_characters:,} different characters, of which "
            f"vocabulary.alphabet_size = {self.config.alphabet_size:,} get an entry; raise it, and vocabulary.size by "
            "as much"
        )


@dataclass(frozen=True)
class Adoption:
    """Take a vocabulary as it is, and add `extend` of the words."""

    vocabulary: BroughtVocabulary
    extend: int

    @property
    def settings(self) -> TokenizerSettings:
        return self.vocabulary.settings

    def make(self, words: pa.Table) -> tuple[list[str], VocabularyStatistics]:
        before, settings = list(self.vocabulary.tokens), self.settings
        if not len(words):
            raise InputError(
                "vocabulary: the training documents hold no word; check what the documents stage kept and rejected, "
                "and documents.sources, documents.languages and documents.heldout_share"
            )
        counts, distinct = words["count"].to_numpy(), words["word"].combine_chunks()
        result = extend(before, settings, distinct, counts, self.extend)
        statistics = statistics_of(words, marks_stripped(words), result.tokens, settings, self.unk_remedy)
        facts: dict[str, object] = {"origin": self.vocabulary.origin}
        if self.extend:
            earlier = count_pieces(distinct, counts, before, settings)
            added = [*result.replaced.values(), *result.tokens[len(before) :]]
            facts["extension"] = VocabularyExtension(
                words_added=len(added),
                into_unused=len(result.replaced),
                appended=result.appended,
                pieces_per_word_before=ratio(earlier.tokens, int(counts.sum())),
                unk_share_before=ratio(earlier.unk, earlier.tokens),
                examples=added[:_EXAMPLES],
                replaced=result.replaced,
            )
        return result.tokens, statistics.model_copy(update=facts)

    def unk_remedy(self, statistics: VocabularyStatistics) -> str:
        return (
            f"the vocabulary of vocabulary.from = {self.vocabulary.origin} does not fit these texts, with "
            f"{statistics.distinct_characters:,} different characters; raise vocabulary.extend = {self.extend:,}, or "
            "train a vocabulary without vocabulary.from"
        )


class CompleteVocabulary(beam.DoFn):
    """Table of all word counts -> `Manifest`: make the vocabulary, write the tokenizer's files, complete the stage."""

    def __init__(self, directory: str, key: StageKey, maker: VocabularyMaker):
        self._result_directory = directory
        self._directory = building_directory(directory)
        self._key = key
        self._maker = maker

    def process(self, words: pa.Table) -> Iterator[Manifest]:
        # A runner may repeat this step after it succeeded, when the build is installed.
        if is_open(self._result_directory):
            self._complete(words)
        install_build(self._result_directory, self._key)
        yield require_manifest(self._result_directory, VOCABULARY, "pipelines.train_vocabulary")

    def _complete(self, words: pa.Table) -> None:
        tokens, statistics = self._maker.make(words)
        if statistics.unk_share > UNK_SHARE_REFUSED:
            raise InputError(
                f"vocabulary: [UNK] would be {statistics.unk_share:.1%} of all tokens, and a model would learn "
                f"nothing else: {unk_remedy(statistics, self._maker.unk_remedy)}"
            )
        contents = tokenizer_files(tokens, *self._maker.settings)
        for name, content in contents.items():
            storage.write_bytes(storage.join(self._directory, name), content)
        files = [record_of(self._directory, name, len(tokens)) for name in contents]
        write_manifest(self._directory, self._key.manifest(files, statistics, __version__))
