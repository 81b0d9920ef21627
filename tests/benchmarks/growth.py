"""How the three preprocessing jobs scale with the corpus and with the workers, each run by its command.

1x, 2x, 4x and 8x of a corpus with one worker: CPU seconds per MB should stay within 5 % and no process should need more
memory, given as many more shards. Then the largest size with two workers too, by three commands and by
`clozeworks preprocess`, whose wall-clock time should fall by 1.8 at least (a process takes some seconds to start, so
small sizes cannot show it). Copies of the corpus hold the same paragraphs in other documents, so that nothing is
dropped as a duplicate and the text stays of one kind.

    make bench NAME=growth
    .venv/bin/python tests/benchmarks/growth.py --megabytes 4 --scales 1 2
    .venv/bin/python tests/benchmarks/growth.py --scales 2 4 8 16 32 --passes 1 --one-worker   # 0.5 to 8 GB
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from tests.support import REPOSITORY
from tests.support.measuring import english_paragraphs, report
from tests.support.process_usage import Usage, total, usage_of

from pipelines.commands.process_start import command_of

JOBS = ("shard_corpus", "train_vocabulary", "build_examples")
ONE_PROCESS = "preprocess"
"""All three jobs, with the imports and the start of workers once."""
PARAGRAPHS_PER_DOCUMENT = 40
COPIES = 5
"""At 1x: enough that starting the workers counts for little at 8x."""
SHARDS = 16
"""At 1x; a shard is a worker's unit of memory, so a corpus of twice the size gets twice as many."""

RECIPE = """
[run]
workspace = "{workspace}"
workers = {workers}
[documents]
num_shards = {num_shards}
[[documents.sources]]
inputs = ["{corpus}/*.txt"]
document_separator = "blank-line"
[vocabulary]
size = 8000
[examples]
passes = {passes}
lengths = [{{ max_seq_length = 128, max_predictions_per_seq = 20 }}]
"""


def write_corpus(directory: Path, paragraphs: list[str], copies: int) -> float:
    """Write copies, each a file a few megabytes at a time; returns megabytes."""
    directory.mkdir()
    size_bytes = 0
    for copy in range(copies):
        order = np.random.Generator(np.random.Philox(key=copy)).permutation(len(paragraphs))
        lines = [" ".join(paragraphs[number].split()) for number in order]
        starts = range(0, len(lines), PARAGRAPHS_PER_DOCUMENT)
        documents = ["\n".join(lines[start : start + PARAGRAPHS_PER_DOCUMENT]) for start in starts]
        for number, start in enumerate(range(0, len(documents), 500)):
            text = "\n\n".join(documents[start : start + 500]).encode()
            (directory / f"{copy:02d}-{number:04d}.txt").write_bytes(text)
            size_bytes += len(text)
    return size_bytes / 1e6


def run_jobs(
    root: Path, corpus: Path, scale: int, workers: int, passes: int, commands: tuple[str, ...] = JOBS
) -> dict[str, Usage]:
    """All three jobs in a workspace of their own, which is removed afterwards."""
    with tempfile.TemporaryDirectory(dir=root) as directory:
        recipe = Path(directory) / "growth.toml"
        recipe.write_text(
            RECIPE.format(
                workspace=f"{directory}/workspace",
                corpus=corpus,
                workers=workers,
                num_shards=SHARDS * scale,
                passes=passes,
            )
        )
        usages = {}
        for job in commands:
            usages[job] = usage_of(command_of(f"pipelines.{job}", [str(recipe)]))
        return usages


def shown(usage: Usage) -> dict[str, float]:
    return {name: round(value, 1) for name, value in usage._asdict().items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=52, help="size of one copy; 1x is five copies")
    parser.add_argument("--scales", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--passes", type=int, default=5, help="of the examples")
    parser.add_argument("--one-worker", action="store_true", help="do not compare with two workers")
    arguments = parser.parse_args()
    paragraphs = english_paragraphs(arguments.megabytes * 1_000_000)
    # The novels come file by file; the size asked for is met exactly.
    sizes = np.cumsum([len(paragraph.encode()) for paragraph in paragraphs])
    paragraphs = paragraphs[: int(np.searchsorted(sizes, arguments.megabytes * 1_000_000)) + 1]
    (REPOSITORY / "build").mkdir(exist_ok=True)
    rows: list[dict[str, Any]] = []
    speedups: dict[str, float] = {}
    with tempfile.TemporaryDirectory(dir=REPOSITORY / "build") as directory:
        root = Path(directory)
        for scale in arguments.scales:
            # The one before is removed, so that the disk holds one at a time.
            shutil.rmtree(root / "corpus", ignore_errors=True)
            corpus = root / "corpus"
            megabytes = write_corpus(corpus, paragraphs, COPIES * scale)
            one = run_jobs(root, corpus, scale, 1, arguments.passes)
            rows.append({"scale": scale, "megabytes": round(megabytes, 1), **shown(total(one.values()))})
            rows[-1]["cpu_seconds_per_megabyte"] = round(total(one.values()).cpu_seconds / megabytes, 4)
            rows[-1]["jobs"] = {job: shown(usage) for job, usage in one.items()}
            print(rows[-1], flush=True)
            if scale == arguments.scales[-1] and not arguments.one_worker:
                two = run_jobs(root, corpus, scale, 2, arguments.passes)
                speedups = {job: one[job].wall_seconds / two[job].wall_seconds for job in JOBS}
                speedups["three_commands"] = total(one.values()).wall_seconds / total(two.values()).wall_seconds
                seconds = [
                    run_jobs(root, corpus, scale, workers, arguments.passes, (ONE_PROCESS,))[ONE_PROCESS].wall_seconds
                    for workers in (1, 2)
                ]
                speedups["all"] = seconds[0] / seconds[1]
                print({job: round(speedup, 3) for job, speedup in speedups.items()}, flush=True)
    per_megabyte = [row["cpu_seconds_per_megabyte"] for row in rows]
    marginal = [
        (after["cpu_seconds"] - before["cpu_seconds"]) / (after["megabytes"] - before["megabytes"])
        for before, after in pairwise(rows)
    ]
    report(
        "growth",
        per_megabyte[-1] / per_megabyte[0],
        f"CPU seconds per MB at {rows[-1]['scale']}x over {rows[0]['scale']}x (start-up included)",
        marginal_seconds_per_megabyte=[round(value, 4) for value in marginal],
        peak_memory_growth=max(row["peak_megabytes"] for row in rows) / rows[0]["peak_megabytes"],
        speedup_of_two_workers={job: round(speedup, 3) for job, speedup in speedups.items()},
        sizes=rows,
    )


if __name__ == "__main__":
    main()
