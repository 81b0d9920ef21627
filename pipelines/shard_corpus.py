"""Job 1: read a corpus, clean it, split it into sentences, and write documents in shards.

    clozeworks documents flows/recipes/demo.toml --set documents.num_shards=4

A document is assigned to a shard by the hash of its text, so a shard is a random sample of the corpus, and equal texts
end up in one shard, where all but one are dropped. Other options are passed to Beam (--runner, --direct_num_workers,
...).
"""

from __future__ import annotations

import apache_beam as beam
import pyarrow as pa

from pipelines.commands.process_exit import run_and_leave_in_order
from pipelines.contract import storage
from pipelines.contract.manifest import Manifest, StageKey
from pipelines.contract.workspace import DOCUMENTS, PARTS_GROUP, SHARDS_GROUP
from pipelines.documents.document import CorpusPart, PartSummary, plan_parts, shards_of
from pipelines.documents.near_duplicates import ChooseDocuments, EmitBands, MeetInBands, num_buckets
from pipelines.documents.parts import EVALUATION_GRAMS_NAME, ReadPart
from pipelines.documents.shards import CollectShard, CompleteDocuments, ShardSummary
from pipelines.documents.summary import closing_lines
from pipelines.filtering.decontamination import collect_grams
from pipelines.filtering.evaluation_texts import evaluation_files_of
from pipelines.jobs.arrow_files import write_table
from pipelines.jobs.dealing import dealt
from pipelines.jobs.runner import Job, Progress
from pipelines.jobs.sizes import disk_bytes_documents
from pipelines.reading.unpacking import unpacked_bytes
from pipelines.results.builds import open_build
from pipelines.results.marks import building_directory
from pipelines.results.unfinished import count_finished, scratch_uri
from pipelines.runners.running import job_of, run_jobs, run_pipeline
from pipelines.settings.documents import DocumentsConfig
from pipelines.sources.formats import find_inputs
from pipelines.stage_keys import documents_key


def build(
    pipeline: beam.Pipeline, directory: str, config: DocumentsConfig, plan: list[CorpusPart], key: StageKey
) -> beam.PCollection[Manifest]:
    """Construct the job; its single output element is the manifest.

    Args:
        pipeline: to add the job to.
        directory: of the stage; files are written to its build directory.
        config: the section [documents].
        plan: parts of the corpus.
        key: of the stage.
    """
    building = building_directory(directory)
    parts = (
        pipeline
        | "Parts" >> beam.Create(dealt(pipeline, plan, CorpusPart.text_bytes)).with_output_types(CorpusPart)
        | "ReadPart" >> beam.ParDo(ReadPart(building, config)).with_output_types(PartSummary)
    )
    names = [part.source.name for part in plan if part.source.name is not None]
    waited_for = [beam.pvalue.AsList(parts)]
    if config.near_duplicates is not None:
        waited_for.append(beam.pvalue.AsList(_choose_documents(parts, building, config, len(plan))))
    shard_summaries = (
        pipeline
        | "Shards" >> beam.Create(range(len(shards_of(config)))).with_output_types(int)
        | "CollectShard"
        >> beam.ParDo(CollectShard(building, config, names), *waited_for).with_output_types(ShardSummary)
    )
    return (
        shard_summaries
        | "GatherShards" >> beam.combiners.ToList()
        | "Complete"
        >> beam.ParDo(CompleteDocuments(directory, key), beam.pvalue.AsList(parts)).with_output_types(Manifest)
    )


def _choose_documents(
    parts: beam.PCollection[PartSummary], directory: str, config: DocumentsConfig, num_parts: int
) -> beam.PCollection[int]:
    """Find near-duplicates and write which of them to drop; the single output element is their number."""
    assert config.near_duplicates is not None
    emit_bands = EmitBands(directory, config.near_duplicates, num_buckets(num_parts))
    return (
        parts
        | "EmitBands" >> beam.ParDo(emit_bands).with_output_types(tuple[int, bytes])
        | "GroupByBucket" >> beam.GroupByKey()
        | "MeetInBands" >> beam.ParDo(MeetInBands()).with_output_types(bytes)
        | "GatherGroups" >> beam.combiners.ToList()
        | "ChooseDocuments"
        >> beam.ParDo(ChooseDocuments(directory, config), beam.pvalue.AsList(parts)).with_output_types(int)
    )


def run(argv: list[str] | None = None) -> None:
    """Run the job from command-line arguments; a complete and unchanged stage is skipped."""
    run_job(job_of(DOCUMENTS, __doc__, argv))


def run_job(job: Job) -> None:
    """Build the stage, unless it is complete and unchanged."""
    config = job.recipe.section("documents", DocumentsConfig)
    directory = storage.join(job.workspace, DOCUMENTS)
    key = documents_key(config, job.workspace)
    with job.build_of(key, directory) as is_needed:
        if not is_needed:
            return
        plan = plan_parts(config, job.workspace)
        needed_bytes = _needed_bytes(config, job.workspace)
        storage.require_free_space(directory, needed_bytes, "the documents and their temporary files")
        grams = _evaluation_grams(config)
        totals = {PARTS_GROUP: len(plan), SHARDS_GROUP: len(shards_of(config))}
        building = building_directory(directory)
        if open_build(directory, key, job.restart):
            finished = [f"{count_finished(building, group)} of {total} {group}" for group, total in totals.items()]
            print(f"{DOCUMENTS}: {' and '.join(finished)} were finished before and are kept")
        if grams is not None:
            write_table(scratch_uri(building, EVALUATION_GRAMS_NAME), grams, len(grams))
        progress = Progress(
            DOCUMENTS,
            directory,
            [
                (scratch_uri(building, PARTS_GROUP), PARTS_GROUP, totals[PARTS_GROUP]),
                (building, SHARDS_GROUP, totals[SHARDS_GROUP]),
            ],
        )
        run_pipeline(job, lambda pipeline: build(pipeline, directory, config, plan, key), progress)
        job.show_summary(DOCUMENTS, directory, lambda manifest: closing_lines(manifest, config))


def _needed_bytes(config: DocumentsConfig, workspace: str) -> float:
    """Estimate of the disk space; texts are written to parts and then to shards."""
    files = [file for files in find_inputs(config, workspace) for file in files]
    text_bytes = sum(unpacked_bytes(file.name, file.range_bytes) for file in files)
    return 2 * disk_bytes_documents(text_bytes)


def _evaluation_grams(config: DocumentsConfig) -> pa.Table | None:
    """The n-grams of evaluation data, if documents must not have them; prints how many there are."""
    if config.decontamination is None:
        return None
    files = evaluation_files_of(config)
    facts, grams = collect_grams(files, config.decontamination.words_per_gram)
    print(
        f"{DOCUMENTS}: looking for {facts.grams:,} distinct {facts.words_per_gram}-grams of {facts.texts:,} texts in "
        f"{len(files):,} evaluation files; {facts.short_texts:,} texts have fewer words and are not looked for"
    )
    return grams


def main() -> None:
    run_jobs([(job_of(DOCUMENTS, __doc__, None), run_job)])


if __name__ == "__main__":
    run_and_leave_in_order(main)
