"""Command-line arguments shared by the commands that read an encoder."""

from __future__ import annotations

import argparse
import sys

from pipelines.contract.errors import InputError


def add_encoder_arguments(parser: argparse.ArgumentParser, layers: str) -> None:
    """Add the shared arguments; `layers` is the default of --layers."""
    parser.add_argument(
        "--model",
        required=True,
        metavar="SOURCE",
        help="Hugging Face BERT directory, workspace, checkpoint such as WORKSPACE@step-1000 or WORKSPACE@latest, or "
        "models:/NAME@ALIAS at MLFLOW_TRACKING_URI",
    )
    parser.add_argument(
        "--layers",
        default=layers,
        metavar="N,N...",
        help="hidden states to concatenate: 0 is the embeddings' output, 1 to L the layers; "
        "negative numbers count from the last, -1 (default: %(default)s)",
    )
    parser.add_argument(
        "--max-seq-length",
        type=int,
        metavar="TOKENS",
        help="tokens per window, with [CLS] and [SEP]; longer text is split into overlapping windows "
        "(default: the encoder's positions). Lower it if the encoder was trained at shorter lengths only",
    )


def parse_encoder_arguments(parser: argparse.ArgumentParser, arguments: list[str] | None) -> argparse.Namespace:
    """Parse a command line with `layers` as a list of integers.

    argparse reads a value such as -1,-2 as an option unless it is joined by `=`.

    Raises:
        InputError: --layers is not a list of numbers.
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
