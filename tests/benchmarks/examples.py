"""Documents to masked examples, passes 5, length 128, one core: ours against LDDL's own functions on the same text.

The peer is `lddl` 0.1.0, installed by this script (without its dependencies) into build/, with `BertTokenizerFast`:
its `create_pairs_from_document` with masking. Both count output tokens per CPU second, tokenising included. The random
draws differ, so what is compared is what does not depend on them: the token ids of the documents.
"""

from __future__ import annotations

import itertools
import random

import pyarrow as pa
from tests.support.measuring import cpu_seconds, english_paragraphs, medians, report
from tests.support.preprocessing.lddl import lddl_functions
from transformers import BertTokenizerFast

from pipelines.contract.schemas import DOCUMENTS_SCHEMA, examples_schema
from pipelines.documents.document import document_id
from pipelines.documents.sentences import sentences_of
from pipelines.examples.arrow_rows import examples_batch
from pipelines.examples.masking import build_examples
from pipelines.examples.planning import ShardNumber, deal_shard, masking_rules, read_documents
from pipelines.settings.examples import ExampleLengthConfig, ExamplesConfig
from pipelines.wordpiece.tokenizer import WordPieceTokenizer
from pipelines.wordpiece.trainer import train
from pipelines.wordpiece.word_counts import count_words

RUNS = 3
PASSES, LENGTH, MASKED_SHARE = 5, 128, 0.15
PARAGRAPHS_PER_DOCUMENT = 40
PEER_DOCUMENTS = 60
SHARD_DOCUMENTS = 600


def main() -> None:
    paragraphs = english_paragraphs(60_000_000)
    groups = [
        paragraphs[start : start + PARAGRAPHS_PER_DOCUMENT]
        for start in range(0, len(paragraphs), PARAGRAPHS_PER_DOCUMENT)
    ]
    documents = [sentences_of(group, "en").sentences for group in groups[: 6 * SHARD_DOCUMENTS]]
    counts = count_words(pa.array(paragraphs), lowercase=True, strip_accents=None)
    vocabulary = train(counts["word"].combine_chunks(), counts["count"].to_numpy(), 30_522)
    length = ExampleLengthConfig(max_seq_length=LENGTH, max_predictions_per_seq=20)
    config = ExamplesConfig(seed=1, passes=PASSES, lengths=(length,), masked_lm_prob=MASKED_SHARE)
    rules, schema = masking_rules(config, length, vocabulary), examples_schema(len(vocabulary), {})
    columns = [[document_id(sentences) for sentences in documents], ["novels"] * len(documents), documents]
    table = pa.table(
        [pa.array(column, field.type) for column, field in zip(columns, DOCUMENTS_SCHEMA, strict=True)],
        schema=DOCUMENTS_SCHEMA,
    )
    shards = [table.slice(start, SHARD_DOCUMENTS) for start in range(0, len(documents), SHARD_DOCUMENTS)]
    ours = WordPieceTokenizer(vocabulary, lowercase=True)
    theirs = BertTokenizerFast(vocab={token: index for index, token in enumerate(vocabulary)})
    lddl = lddl_functions()

    def our_rate() -> float:
        tokens = 0

        def work() -> None:
            nonlocal tokens
            for number, shard in enumerate(shards):
                text = read_documents(shard, ours)
                read = text.documents
                plan, dealt = deal_shard(text, ShardNumber("train", number, len(shards)), config, LENGTH)
                for rows in itertools.chain.from_iterable(dealt):
                    batch = examples_batch(build_examples(read.input_ids, plan.take(rows), rules), schema)
                    tokens += len(batch["input_ids"].flatten())

        seconds = cpu_seconds(work)
        return tokens / seconds / 1e6

    def peer_rate() -> float:
        tokens = 0
        words = tuple(theirs.vocab)
        random.seed(1)

        def work() -> None:
            nonlocal tokens
            tokenized = [
                lddl.Document(
                    number,
                    tuple(
                        lddl.Sentence(tuple(theirs.tokenize(text, max_length=512, truncation=True)))
                        for text in document
                    ),
                )
                for number, document in enumerate(documents[:PEER_DOCUMENTS])
            ]
            for _ in range(PASSES):
                for number in range(len(tokenized)):
                    pairs = lddl.create_pairs_from_document(
                        tokenized, number, LENGTH, masking=True, masked_lm_ratio=MASKED_SHARE, vocab_words=words
                    )
                    tokens += sum(pair["num_tokens"] for pair in pairs)

        seconds = cpu_seconds(work)
        return tokens / seconds / 1e6

    our_rate()
    value, peer_value, ratio = medians(our_rate, peer_rate, RUNS)
    sample = documents[:PEER_DOCUMENTS]
    expected = [
        index for document in sample for text in document for index in theirs(text, add_special_tokens=False).input_ids
    ]
    found = read_documents(table.slice(0, PEER_DOCUMENTS), ours).documents.input_ids.tolist()
    report(
        "examples",
        value,
        "M tokens/s of CPU",
        peer="lddl 0.1.0 create_pairs_from_document with BertTokenizerFast",
        peer_value=peer_value,
        ratio=ratio,
        identical=found == expected,
        runs=RUNS,
    )


if __name__ == "__main__":
    main()
