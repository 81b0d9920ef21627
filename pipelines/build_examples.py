"""Job 3: tokenise the documents and write rows with masked tokens, for every length that the recipe names.

    clozeworks examples flows/recipes/demo.toml --set examples.passes=2

What a shard of documents gives and what a file of examples holds is fixed before the job starts, so a retry or another
runner writes the same bytes, and a run that was killed goes on with what is not written yet. Random next sentences come
from the documents of the shard, which is a random sample of the corpus. Options that this command does not know go to
Beam (--runner, --direct_num_workers, ...).
"""

from __future__ import annotations

import sys

import apache_beam as beam

from pipelines.commands.lifeline import follow_lifeline
from pipelines.contract import storage
from pipelines.contract.errors import exit_code_of
from pipelines.contract.manifest import Manifest, StageKey, require_manifest
from pipelines.contract.schemas import SPLITS
from pipelines.contract.workspace import (
    DOCUMENTS,
    EXAMPLES,
    FILES_GROUP,
    ROWS_GROUP,
    VOCABULARY,
    VOCABULARY_NAME,
    length_directory,
)
from pipelines.examples.planning import ShardNumber
from pipelines.examples.transforms import (
    BalanceShard,
    BuildShard,
    CompleteExamples,
    FilesToWrite,
    ShardRows,
    WrittenFiles,
)
from pipelines.jobs.runner import Job, Progress, parse_job, run_pipeline
from pipelines.jobs.sizes import DOCUMENTS_BYTES_A_TEXT_BYTE, disk_bytes_examples
from pipelines.jobs.summary import examples_summary
from pipelines.results.builds import open_build
from pipelines.results.marks import building_directory
from pipelines.results.unfinished import count_finished, scratch_uri
from pipelines.results.verification import verify_stage
from pipelines.settings.examples import ExamplesConfig
from pipelines.settings.vocabulary import VocabularyConfig
from pipelines.stage_keys import examples_key


def build(
    pipeline: beam.Pipeline,
    shards: list[ShardNumber],
    lengths: list[int],
    build_shard: BuildShard,
    balance_shard: BalanceShard,
    complete_stage: CompleteExamples,
) -> beam.PCollection[Manifest]:
    """Construct the job; its one output element is the manifest."""
    shard_rows = (
        pipeline
        | "Shards" >> beam.Create(shards).with_output_types(ShardNumber)
        | "SpreadShards" >> beam.Reshuffle()
        | "BuildShard" >> beam.ParDo(build_shard).with_output_types(ShardRows)
    )
    targets = [FilesToWrite(length, shard) for length in lengths for shard in shards]
    return (
        pipeline
        | "Files" >> beam.Create(targets).with_output_types(FilesToWrite)
        | "SpreadFiles" >> beam.Reshuffle()
        | "BalanceShard" >> beam.ParDo(balance_shard, beam.pvalue.AsList(shard_rows)).with_output_types(WrittenFiles)
        | "GatherFiles" >> beam.combiners.ToList()
        | "Complete" >> beam.ParDo(complete_stage, beam.pvalue.AsList(shard_rows)).with_output_types(Manifest)
    )


def run(argv: list[str] | None = None) -> None:
    """Run the job from command-line arguments; a stage that is complete and unchanged is left as it is."""
    job = parse_job(EXAMPLES, __doc__, argv)
    config = job.recipe.section("examples", ExamplesConfig)
    directories = {stage: storage.join(job.workspace, stage) for stage in (DOCUMENTS, VOCABULARY, EXAMPLES)}
    documents = require_manifest(directories[DOCUMENTS], DOCUMENTS, "clozeworks documents")
    vocabulary = require_manifest(directories[VOCABULARY], VOCABULARY, "clozeworks vocabulary")
    key = examples_key(config, job.workspace)
    with job.build_of(key, directories[EXAMPLES]) as is_needed:
        if is_needed:
            _run(job, config, key, documents, vocabulary, directories)


def _run(
    job: Job,
    config: ExamplesConfig,
    key: StageKey,
    documents: Manifest,
    vocabulary: Manifest,
    directories: dict[str, str],
) -> None:
    directory = directories[EXAMPLES]
    verify_stage(job.workspace, DOCUMENTS, documents)
    verify_stage(job.workspace, VOCABULARY, vocabulary)
    storage.require_free_space(
        directory, _needed_bytes(documents, vocabulary, config), "the examples and their temporary files"
    )
    shards = []
    for split in SPLITS:
        total = len(documents.files_of(split))
        shards += [ShardNumber(split, number, total) for number in range(total)]
    lengths = [length.max_seq_length for length in config.lengths]
    building = building_directory(directory)
    if open_build(directory, key, job.restart):
        done, written = (count_finished(building, group) for group in (ROWS_GROUP, FILES_GROUP))
        print(
            f"{EXAMPLES}: rows of {done} of {len(shards)} shards and {written} of {len(lengths) * len(shards)} sets of "
            "files were finished before and are kept"
        )
    vocabulary_uri = storage.join(directories[VOCABULARY], VOCABULARY_NAME)
    tokens = storage.read_bytes(vocabulary_uri).decode().split("\n")[:-1]
    # The casing is that of the vocabulary in the workspace, whatever the recipe says meanwhile.
    casing = VocabularyConfig.model_validate(vocabulary.config)
    balance_shard = BalanceShard(building, config, casing, tokens, storage.sha256_of(vocabulary_uri))
    # A shard's rows of the last length are written last.
    rows_directory = scratch_uri(building, f"{ROWS_GROUP}/{length_directory(lengths[-1])}")
    num_files = len(shards) * config.num_length_bins
    progress = Progress(
        EXAMPLES,
        [
            (rows_directory, "documents shards cut into rows", len(shards)),
            *((storage.join(building, name), f"files of {name}", num_files) for name in map(length_directory, lengths)),
        ],
    )
    build_shard = BuildShard({**directories, EXAMPLES: building}, config, casing)
    complete_stage = CompleteExamples(directory, key, config)
    run_pipeline(
        job, lambda pipeline: build(pipeline, shards, lengths, build_shard, balance_shard, complete_stage), progress
    )
    job.show_summary(EXAMPLES, directory, examples_summary)


def _needed_bytes(documents: Manifest, vocabulary: Manifest, config: ExamplesConfig) -> float:
    """An estimate: rows are written to temporary files and then to their own."""
    text_bytes = sum(file.size_bytes for file in documents.files) / DOCUMENTS_BYTES_A_TEXT_BYTE
    return 2 * disk_bytes_examples(config, vocabulary.files[0].rows, text_bytes)


def main() -> None:
    follow_lifeline()
    run(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(exit_code_of(main))
