"""Arguments of the commands that read an encoder."""

from __future__ import annotations

import argparse
import sys

from pipelines.contract.errors import InputError


def add_encoder_arguments(parser: argparse.ArgumentParser, layers: str) -> None:
    """Add what the commands that read an encoder share; `layers` is the default of --layers."""
    parser.add_argument(
        "--model",
        required=True,
        metavar="SOURCE",
        help="Hugging Face BERT directory, workspace, or models:/NAME@ALIAS at MLFLOW_TRACKING_URI",
    )
    parser.add_argument(
        "--layers",
        default=layers,
        metavar="N,N...",
        help="hidden states whose vectors are put side by side: 0 is the embeddings' output, 1 to L the layers; "
        "negative numbers count from the last, -1 (default: %(default)s)",
    )
    parser.add_argument(
        "--max-seq-length",
        type=int,
        metavar="TOKENS",
        help="tokens that the encoder reads at once, with [CLS] and [SEP]; longer text goes through overlapping "
        "windows. Set it where an encoder was trained at less than its positions, which are the default",
    )


def parse_encoder_arguments(parser: argparse.ArgumentParser, arguments: list[str] | None) -> argparse.Namespace:
    """Parse a command line with `layers` as a list of integers.

    argparse takes a value such as -1,-2 for an option unless it is tied to its own by `=`.

    Raises:
        InputError: --layers is no list of numbers.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    for index in range(len(words) - 1, 0, -1):
        if words[index - 1] == "--layers":
            words[index - 1 : index + 1] = [f"--layers={words[index]}"]
    parsed = parser.parse_args(words)
    try:
        parsed.layers = [int(number) for number in parsed.layers.split(",")]
    except ValueError as error:
        raise InputError(f"--layers {parsed.layers}: give numbers with commas, such as -1,-2,-3,-4") from error
    return parsed
