"""Split a SQuAD file into training and development questions, article by article.

    python -m training.squad.split_articles --input FILE --train OUT --dev OUT [--dev-share 0.2] [--seed N]

Questions on one text stay together, so that the development questions are about texts that were never trained on.
Which articles go where depends on their number and the seed alone; all else of the file is kept as it is.
"""

from __future__ import annotations

import json
from typing import Any

from pipelines.commands.command_line import CommandParser
from pipelines.contract import storage
from pipelines.contract.errors import InputError, exit_code_of
from training.data.ordering import keyed_permutation
from training.squad.reading import read_json, read_squad


def main(arguments: list[str] | None = None) -> int:
    parser = CommandParser(
        prog="python -m training.squad.split_articles",
        description=__doc__.splitlines()[0] if __doc__ else None,
        epilog="example: python -m training.squad.split_articles --input dev-v1.1.json --train train.json "
        "--dev dev.json",
    )
    parser.add_argument("--input", required=True, metavar="FILE", help="SQuAD JSON file, version 1.1 or 2.0")
    parser.add_argument("--train", required=True, metavar="OUT", help="file to write for training")
    parser.add_argument("--dev", required=True, metavar="OUT", help="file to write for development")
    parser.add_argument("--dev-share", type=float, default=0.2, help="share of the articles for --dev, default 0.2")
    parser.add_argument("--seed", type=int, default=12_345, help="which articles these are, default 12345")
    parsed = parser.parse_args(arguments)
    if len({parsed.input, parsed.train, parsed.dev}) < 3:
        raise InputError(
            f"--input {parsed.input} --train {parsed.train} --dev {parsed.dev}: two are the same file; name three"
        )
    read_squad(parsed.input)
    whole = read_json(parsed.input)
    train, dev = split_articles(whole["data"], parsed.dev_share, parsed.seed, parsed.input)
    for path, articles in ((parsed.train, train), (parsed.dev, dev)):
        text = json.dumps({**whole, "data": articles}, ensure_ascii=False)
        storage.write_bytes(path, text.encode())
        print(f"{path}: {len(articles)} articles, {len(read_squad(path).questions)} questions", flush=True)
    return 0


def split_articles(articles: list[Any], dev_share: float, seed: int, path: str) -> tuple[list[Any], list[Any]]:
    """Training and development articles, each in the file's order.

    Raises:
        InputError: one of the two would be empty.
    """
    num_dev = round(dev_share * len(articles))
    if not 0 < num_dev < len(articles):
        raise InputError(
            f"{path}: --dev-share {dev_share:g} of {len(articles)} articles leaves one side empty; use a share between "
            "0 and 1 and a file with more articles"
        )
    dev = set(keyed_permutation(len(articles), seed, "squad", "dev")[:num_dev].tolist())
    return (
        [article for index, article in enumerate(articles) if index not in dev],
        [article for index, article in enumerate(articles) if index in dev],
    )


if __name__ == "__main__":
    raise SystemExit(exit_code_of(main))
