"""Score an encoder on minimal pairs (BLiMP): does it give the grammatical sentence the higher probability?

    clozeworks blimp workspaces/demo --data blimp/data

A sentence's score is its pseudo-log-likelihood: the sum over its tokens of the log-probability that the masked-LM head
gives to the token when it is masked. --method word-l2r also masks the later pieces of the same word (Kauf & Ivanova,
2023); original does not (Salazar et al., 2020). The score of a left-to-right model is the log-likelihood. Equal scores
count half, so chance is 0.5. --data is a directory or a file, JSON lines or TSV, with columns sentence_good,
sentence_bad, UID and field, or good, bad and group.
"""

from __future__ import annotations

import argparse
import json
import time

from pipelines.commands.command_line import CommandParser
from pipelines.commands.process_exit import run_and_leave
from pipelines.contract import storage
from pipelines.contract.errors import InputError, exit_code_of
from training.bert.config_file import read_config
from training.settings.pretraining import WORD_L2R
from training.stages.encoders import encoder_digest, encoder_directory

_PROGRESS_SECONDS = 10.0


def main(arguments: list[str] | None = None) -> int:
    parser = CommandParser(
        prog="clozeworks blimp",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="example: clozeworks blimp workspaces/demo@latest --data blimp/data --output blimp.json",
    )
    parser.add_argument(
        "encoder",
        metavar="ENCODER",
        help="Hugging Face directory with a masked-LM head, workspace, checkpoint such as WORKSPACE@step-1000 or "
        "WORKSPACE@latest, or models:/NAME@ALIAS at MLFLOW_TRACKING_URI",
    )
    parser.add_argument("--data", required=True, metavar="PATH", help="directory or file of pairs")
    parser.add_argument(
        "--method",
        choices=("word-l2r", "original"),
        help="what a masked language model masks (default: word-l2r); a left-to-right model has no such choice",
    )
    parser.add_argument(
        "--pairs-per-group", type=int, metavar="N", help="score N pairs of each paradigm, drawn once (default: all)"
    )
    parser.add_argument("--output", metavar="FILE", help="also write all figures as JSON")
    parsed = parser.parse_args(arguments)
    if parsed.pairs_per_group is not None and parsed.pairs_per_group < 1:
        raise InputError(f"--pairs-per-group {parsed.pairs_per_group}: give a number of pairs, 1 or more")
    _score(parsed)
    return 0


def _score(parsed: argparse.Namespace) -> None:
    from training.minimal_pairs.pairs import read_pairs

    pairs = read_pairs(parsed.data)
    if parsed.pairs_per_group is not None:
        pairs = pairs.sample_of_each_group(parsed.pairs_per_group)
    directory = encoder_directory(parsed.encoder)
    config, _ = read_config(directory)
    if parsed.method is not None and config.predicts_next_tokens:
        raise InputError(
            f"--method {parsed.method}: {parsed.encoder} is a {config.attention} model, which masks nothing; remove it"
        )
    # torch takes seconds to load: only after the arguments and the pairs have been checked.
    from training.engine.devices import device_of_one_process
    from training.minimal_pairs.accuracies import accuracies, table
    from training.minimal_pairs.scorer import SentenceScorer, SentenceTokenizer, load_language_model, method_in_words

    tokenizer = SentenceTokenizer(directory)
    model = load_language_model(directory, device_of_one_process())
    method = parsed.method or WORD_L2R
    sentences = tokenizer.tokenize_pairs(pairs, config.max_position_embeddings)
    if unknown := tokenizer.unknown_tokens(sentences):
        print(f"blimp: {unknown} tokens of the sentences are unknown to the vocabulary", flush=True)
    started = told = time.monotonic()

    def progress(share: float) -> None:
        nonlocal told
        if time.monotonic() - told >= _PROGRESS_SECONDS:
            told = time.monotonic()
            print(f"blimp: {share:.0%} of {len(sentences)} sentences, {told - started:.0f} s", flush=True)

    scores = SentenceScorer(model, tokenizer.mask_id, method).score(sentences, progress)
    found = accuracies(pairs, scores[: len(pairs)], scores[len(pairs) :])
    print(table(found), flush=True)
    if parsed.output:
        report = {
            "encoder": parsed.encoder,
            "encoder_sha256": encoder_digest(directory),
            "data": parsed.data,
            "method": method_in_words(config, method),
            "unknown_tokens": unknown,
            "seconds": time.monotonic() - started,
            **found.as_json(),
        }
        storage.write_bytes(parsed.output, json.dumps(report, indent=2).encode() + b"\n")


if __name__ == "__main__":
    run_and_leave(lambda: exit_code_of(main))
