"""Text to documents on one core: MB a CPU second of job 1, start-up apart, with near-duplicates, and a MediaWiki dump.

Documents of the novels, and a copy of every twentieth with every sixtieth word changed. The peer of finding
near-duplicates is `rensa` as its README uses it: words by an expression, n-grams as strings, an index of signatures.
How many documents both drop is compared. The peer's time is its own; ours is what the setting adds to the job.

    make bench NAME=documents
    .venv/bin/python tests/benchmarks/documents.py --megabytes 4 --runs 1
"""

from __future__ import annotations

import argparse
import re
import statistics
import tempfile
from collections.abc import Iterator
from pathlib import Path

from rensa import RMinHash, RMinHashLSH
from tests.support import REPOSITORY
from tests.support.measuring import cpu_seconds, english_paragraphs, report
from tests.support.process_usage import usage_of

from pipelines.commands.process_start import command_of
from pipelines.contract.manifest import read_manifest
from pipelines.documents.near_duplicates import NEAR_DUPLICATE
from pipelines.settings.documents import NearDuplicatesConfig

DUMP = REPOSITORY.parent / "shared" / "data" / "corpora" / "enwiki_xml"
PARAGRAPHS_PER_DOCUMENT = 20
COPY_EVERY, CHANGE_EVERY = 20, 60
_LEAST_SECONDS = 0.5
PEER_BANDS = 16
"""It must divide the permutations; ours of a pair at the threshold meets as often in 18."""
SETTINGS = NearDuplicatesConfig()
WORD = re.compile(r"\w+")

RECIPE = """
[run]
workspace = "{workspace}"
workers = 1
[documents]
num_shards = 16
[[documents.sources]]
{source}
"""
NEAR_DUPLICATES = "[documents.near_duplicates]\n"


def documents_of(paragraphs: list[str]) -> list[str]:
    """Documents as lines of text, with near-duplicates after the originals."""
    lines = [" ".join(paragraph.split()) for paragraph in paragraphs]
    starts = range(0, len(lines), PARAGRAPHS_PER_DOCUMENT)
    documents = ["\n".join(lines[start : start + PARAGRAPHS_PER_DOCUMENT]) for start in starts]
    return [*documents, *map(changed, documents[::COPY_EVERY])]


def changed(document: str) -> str:
    words = document.split(" ")
    words[::CHANGE_EVERY] = ["changed"] * len(words[::CHANGE_EVERY])
    return " ".join(words)


def job_seconds(source: str, near_duplicates: bool) -> tuple[float, int]:
    """CPU seconds of job 1 in a workspace of its own, and the near-duplicates that it has dropped."""
    with tempfile.TemporaryDirectory(dir=REPOSITORY / "build") as directory:
        recipe = Path(directory) / "documents.toml"
        text = RECIPE.format(workspace=f"{directory}/ws", source=source)
        recipe.write_text(text + (NEAR_DUPLICATES if near_duplicates else ""))
        usage = usage_of(command_of("pipelines.shard_corpus", [str(recipe)]))
        rejected = read_manifest(f"{directory}/ws/documents").statistics["rejected_by_reason"]
        return usage.cpu_seconds, int(rejected.get(NEAR_DUPLICATE, 0))


def peer_dropped(documents: list[str]) -> int:
    """Documents that are similar to an earlier one, the usual way."""
    index = RMinHashLSH(SETTINGS.min_similarity, SETTINGS.num_permutations, PEER_BANDS)
    kept: dict[int, RMinHash] = {}
    dropped = 0
    for number, document in enumerate(documents):
        signature = RMinHash(SETTINGS.num_permutations, 1)
        signature.update(list(grams(document)))
        if any(signature.jaccard(kept[other]) >= SETTINGS.min_similarity for other in index.query(signature)):
            dropped += 1
            continue
        kept[number] = signature
        index.insert(number, signature)
    return dropped


def grams(document: str) -> Iterator[str]:
    words, size = WORD.findall(document.lower()), SETTINGS.words_per_shingle
    return (" ".join(words[start : start + size]) for start in range(max(1, len(words) - size + 1)))


def source_of(files: Path) -> str:
    return f'inputs = ["{files}/*.txt"]\ndocument_separator = "blank-line"'


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=26, help="size of the text")
    parser.add_argument("--runs", type=int, default=3, help="rounds, of which the median is taken")
    arguments = parser.parse_args()
    documents = documents_of(english_paragraphs(arguments.megabytes * 1_000_000))
    text = "\n\n".join(documents).encode()
    (REPOSITORY / "build").mkdir(exist_ok=True)
    rates: dict[str, list[float]] = {"text": [], "near_duplicates": [], "mediawiki": []}
    ratios, ours, theirs = [], 0, 0
    with tempfile.TemporaryDirectory(dir=REPOSITORY / "build") as directory:
        corpus, tiny = Path(directory, "corpus"), Path(directory, "tiny")
        for folder, content in ((corpus, text), (tiny, documents[0].encode())):
            folder.mkdir()
            (folder / "text.txt").write_bytes(content)
        for _ in range(arguments.runs):
            start_up, _ = job_seconds(source_of(tiny), near_duplicates=False)
            plain, _ = job_seconds(source_of(corpus), near_duplicates=False)
            start_up_with, _ = job_seconds(source_of(tiny), near_duplicates=True)
            with_near, ours = job_seconds(source_of(corpus), near_duplicates=True)
            rates["text"].append(len(text) / 1e6 / (plain - start_up))
            rates["near_duplicates"].append(len(text) / 1e6 / (with_near - start_up_with))
            found: list[int] = []
            peer = cpu_seconds(lambda found=found: found.append(peer_dropped(documents)))
            theirs = found[0]
            added = with_near - start_up_with - plain + start_up
            # CPU time of processes is known to a tenth of a second.
            ratios += [peer / added] if added > _LEAST_SECONDS else []
            if DUMP.is_dir():
                seconds, _ = job_seconds(f'format = "mediawiki"\ninputs = ["{DUMP}/enwiki-latest*.bz2"]', False)
                rates["mediawiki"].append(seconds - start_up)
            print({name: values[-1] for name, values in rates.items() if values}, ratios, flush=True)
    report(
        "documents",
        statistics.median(rates["text"]),
        "MB of text a CPU second, start-up apart",
        near_duplicates=statistics.median(rates["near_duplicates"]),
        mediawiki_seconds=statistics.median(rates["mediawiki"]) if rates["mediawiki"] else None,
        peer="rensa with n-grams as strings, near-duplicates alone",
        ratio=statistics.median(ratios) if ratios else None,
        identical=ours == theirs,
        dropped=[ours, theirs],
        runs=arguments.runs,
    )


if __name__ == "__main__":
    main()
