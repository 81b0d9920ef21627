"""Job 3: tokenise the documents and write rows with masked tokens, for every length that the recipe names.

    clozeworks examples flows/recipes/demo.toml --set examples.passes=2

The rows of each shard and the contents of each file are fixed before the job starts, so a retry or another runner
writes the same bytes, and a killed run resumes with what is not written yet. Random next sentences come from the
documents of the same shard, which is a random sample of the corpus. Other options are passed to Beam (--runner,
--direct_num_workers, ...).
"""

from __future__ import annotations

import apache_beam as beam

from pipelines.commands.process_exit import run_and_leave_in_order
from pipelines.compile_loops import load_loops
from pipelines.contract import storage
from pipelines.contract.errors import InputError
from pipelines.contract.manifest import Manifest, StageKey, require_manifest
from pipelines.contract.recipe import Recipe
from pipelines.contract.schemas import SPLITS
from pipelines.contract.workspace import (
    DOCUMENTS,
    EXAMPLES,
    FILES_GROUP,
    ROWS_GROUP,
    VOCABULARY,
    VOCABULARY_NAME,
)
from pipelines.examples.planning import ShardNumber
from pipelines.examples.statistics import ShardRows
from pipelines.examples.transforms import (
    BalanceShard,
    BuildShard,
    CompleteExamples,
    CountTokens,
    FilesToWrite,
    WrittenFiles,
)
from pipelines.examples.warnings import unk_remedy
from pipelines.jobs.runner import Job, Progress
from pipelines.jobs.sizes import DOCUMENTS_BYTES_A_TEXT_BYTE, disk_bytes_examples
from pipelines.jobs.summary import examples_summary
from pipelines.mixing.shares import mixed_sets
from pipelines.mixing.transforms import ChooseReads
from pipelines.results.builds import open_build
from pipelines.results.marks import building_directory
from pipelines.results.unfinished import count_finished, scratch_uri
from pipelines.results.verification import verify_stage
from pipelines.runners.running import job_of, run_jobs, run_pipeline
from pipelines.settings.documents import DocumentsConfig
from pipelines.settings.examples import ExamplesConfig
from pipelines.settings.mixtures import mixture_problem, with_weights
from pipelines.stage_keys import examples_key
from pipelines.wordpiece.tokenizer_settings import stage_settings


def build(
    pipeline: beam.Pipeline,
    shards: list[ShardNumber],
    config: ExamplesConfig,
    count_tokens: CountTokens,
    choose_reads: ChooseReads,
    build_shard: BuildShard,
    balance_shard: BalanceShard,
    complete_stage: CompleteExamples,
) -> beam.PCollection[Manifest]:
    """Construct the job; its single output element is the manifest."""
    mixtures = []
    if mixed_sets(config):
        counted = (
            pipeline
            | "TrainingShards" >> beam.Create([one for one in shards if one.split == "train"])
            | "CountTokens" >> beam.ParDo(count_tokens).with_output_types(str)
        )
        chosen = (
            pipeline
            | "Mixtures" >> beam.Create([None])
            | "ChooseReads" >> beam.ParDo(choose_reads, beam.pvalue.AsList(counted))
        )
        mixtures.append(beam.pvalue.AsList(chosen))
    shard_rows = (
        pipeline
        | "Shards" >> beam.Create(shards).with_output_types(ShardNumber)
        | "BuildShard" >> beam.ParDo(build_shard, *mixtures).with_output_types(ShardRows)
    )
    targets = [FilesToWrite(part.directory, shard) for part in config.parts() for shard in shards]
    return (
        pipeline
        | "Files" >> beam.Create(targets).with_output_types(FilesToWrite)
        | "BalanceShard" >> beam.ParDo(balance_shard, beam.pvalue.AsList(shard_rows)).with_output_types(WrittenFiles)
        | "GatherFiles" >> beam.combiners.ToList()
        | "Complete"
        >> beam.ParDo(complete_stage, beam.pvalue.AsList(shard_rows), *mixtures).with_output_types(Manifest)
    )


def run(argv: list[str] | None = None) -> None:
    """Run the job from command-line arguments; a complete and unchanged stage is skipped."""
    run_job(job_of(EXAMPLES, __doc__, argv))


def run_job(job: Job) -> None:
    """Build the stage, unless it is complete and unchanged."""
    config = config_of(job.recipe)
    directories = {stage: storage.join(job.workspace, stage) for stage in (DOCUMENTS, VOCABULARY, EXAMPLES)}
    documents = require_manifest(directories[DOCUMENTS], DOCUMENTS, "clozeworks documents")
    vocabulary = require_manifest(directories[VOCABULARY], VOCABULARY, "clozeworks vocabulary")
    key = examples_key(config, job.workspace)
    with job.build_of(key, directories[EXAMPLES]) as is_needed:
        if is_needed:
            _run(job, config, key, documents, vocabulary, directories)


def config_of(recipe: Recipe) -> ExamplesConfig:
    """The section `[examples]` with the weights of the sources.

    Raises:
        InputError: it names a source that the documents do not have.
    """
    config = recipe.section("examples", ExamplesConfig)
    if "documents" not in recipe.tables:
        return config
    documents = recipe.section("documents", DocumentsConfig)
    if problem := mixture_problem(config, documents):
        raise InputError(f"{recipe.path}: {problem}")
    return with_weights(config, documents)


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
    parts = config.parts()
    building = building_directory(directory)
    if open_build(directory, key, job.restart):
        done, written = (count_finished(building, group) for group in (ROWS_GROUP, FILES_GROUP))
        print(
            f"{EXAMPLES}: rows of {done} of {len(shards)} shards and {written} of {len(parts) * len(shards)} sets of "
            "files were finished before and are kept"
        )
    vocabulary_uri = storage.join(directories[VOCABULARY], VOCABULARY_NAME)
    tokens = storage.read_bytes(vocabulary_uri).decode().split("\n")[:-1]
    # Take the settings from the vocabulary in the workspace: the recipe may have changed since.
    settings = stage_settings(directories[VOCABULARY])
    balance_shard = BalanceShard(building, config, settings, tokens, storage.sha256_of(vocabulary_uri))
    # A shard's rows of the last length are written last.
    rows_directory = scratch_uri(building, f"{ROWS_GROUP}/{parts[-1].directory}")
    num_files = len(shards) * config.num_length_bins
    progress = Progress(
        EXAMPLES,
        directory,
        [
            (rows_directory, "documents shards cut into rows", len(shards)),
            *((storage.join(building, one.directory), f"files of {one.directory}", num_files) for one in parts),
        ],
    )
    build_shard, count_tokens = (
        transform({**directories, EXAMPLES: building}, config, settings) for transform in (BuildShard, CountTokens)
    )
    choose_reads = ChooseReads(building, mixed_sets(config))
    complete_stage = CompleteExamples(directory, key, config, unk_remedy(vocabulary))
    run_pipeline(
        job,
        lambda pipeline: build(
            pipeline, shards, config, count_tokens, choose_reads, build_shard, balance_shard, complete_stage
        ),
        progress,
    )
    job.show_summary(EXAMPLES, directory, examples_summary)


def _needed_bytes(documents: Manifest, vocabulary: Manifest, config: ExamplesConfig) -> float:
    """Estimate of the disk space: rows are written to temporary files and then to the final ones."""
    text_bytes = sum(file.size_bytes for file in documents.files) / DOCUMENTS_BYTES_A_TEXT_BYTE
    return 2 * disk_bytes_examples(config, vocabulary.files[0].rows, text_bytes)


def main() -> None:
    run_jobs([(job_of(EXAMPLES, __doc__, None), run_job)], load_loops)


if __name__ == "__main__":
    run_and_leave_in_order(main)
