"""As a script: text to rows of token ids by `datasets.map`, the peer of the benchmark `preprocessing`.

What the example `run_mlm.py` of `transformers` does without `--line_by_line`: lines are tokenised with special tokens,
and the tokens of a thousand lines at a time are concatenated and cut into rows. Masks are drawn while training.
"""

from __future__ import annotations

import argparse
import itertools
import os
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, os.environ["PEER_PACKAGES"])

from datasets import load_dataset  # type: ignore[import-not-found]
from transformers import BertTokenizerFast


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("vocabulary", type=Path)
    parser.add_argument("output", type=Path, help="directory of the rows; the cache is kept below it")
    parser.add_argument("texts", nargs="+")
    parser.add_argument("--length", type=int, required=True)
    parser.add_argument("--processes", type=int, required=True)
    arguments = parser.parse_args()
    words = arguments.vocabulary.read_text().splitlines()
    tokenizer = BertTokenizerFast(vocab={token: index for index, token in enumerate(words)})

    def tokenized(lines: dict[str, list[str]]) -> Any:
        return tokenizer(lines["text"], return_special_tokens_mask=True)

    def grouped(columns: dict[str, list[list[int]]]) -> dict[str, list[list[int]]]:
        joined = {name: list(itertools.chain(*rows)) for name, rows in columns.items()}
        end = len(next(iter(joined.values()))) // arguments.length * arguments.length
        starts = range(0, end, arguments.length)
        return {name: [ids[start : start + arguments.length] for start in starts] for name, ids in joined.items()}

    lines = load_dataset(
        "text",
        data_files={"train": arguments.texts},
        cache_dir=str(arguments.output / "cache"),
        num_proc=min(arguments.processes, len(arguments.texts)),
    )["train"]
    many = {"batched": True, "num_proc": arguments.processes}
    rows = lines.map(tokenized, remove_columns=["text"], **many).map(grouped, **many)
    rows.save_to_disk(str(arguments.output / "rows"))
    (arguments.output / "rows.txt").write_text(str(len(rows)))


if __name__ == "__main__":
    main()
