"""Job 1: read a corpus, clean it, split it into sentences, and write documents in shards.

    python -m pipelines.shard_corpus flows/recipes/demo.toml --set documents.num_shards=4

A document belongs to a shard by the hash of its text, so a shard is a random sample of the corpus, and equal texts
meet in one shard, where all but one are dropped. Options that this command does not know go to Beam (--runner,
--direct_num_workers, ...).
"""

from __future__ import annotations

import sys

import apache_beam as beam

from pipelines.config import DocumentsConfig
from pipelines.contract import Manifest, StageKey
from pipelines.documents import CorpusPart, PartSummary, plan_parts, shards_of
from pipelines.lifeline import follow_lifeline
from pipelines.near_duplicates import ChooseDocuments, EmitBands, MeetInBands, num_buckets
from pipelines.parts import PARTS_GROUP, ReadPart
from pipelines.recipe import exit_code_of
from pipelines.runners import Progress, parse_job, run_pipeline
from pipelines.shards import SHARDS_GROUP, CollectShard, CompleteDocuments, ShardSummary
from pipelines.stages import DOCUMENTS, documents_key, stage_directory
from pipelines.unfinished import close_stage, count_finished, open_stage, scratch_uri


def build(
    pipeline: beam.Pipeline, directory: str, config: DocumentsConfig, plan: list[CorpusPart], key: StageKey
) -> beam.PCollection[Manifest]:
    """Construct the job; its one output element is the manifest."""
    parts = (
        pipeline
        | "Parts" >> beam.Create(plan).with_output_types(CorpusPart)
        | "SpreadParts" >> beam.Reshuffle()
        | "ReadPart" >> beam.ParDo(ReadPart(directory, config)).with_output_types(PartSummary)
    )
    waited_for = [beam.pvalue.AsList(parts)]
    if config.near_duplicates is not None:
        waited_for.append(beam.pvalue.AsList(_choose_documents(parts, directory, config, len(plan))))
    shard_summaries = (
        pipeline
        | "Shards" >> beam.Create(range(len(shards_of(config)))).with_output_types(int)
        | "SpreadShards" >> beam.Reshuffle()
        | "CollectShard" >> beam.ParDo(CollectShard(directory, config), *waited_for).with_output_types(ShardSummary)
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
    """Find near-duplicates and write which of them go; the one output element counts them."""
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
    """Run the job from command-line arguments; a stage that is complete and unchanged is left as it is."""
    job = parse_job("pipelines.shard_corpus", __doc__, argv)
    config = job.recipe.section("documents", DocumentsConfig)
    key = documents_key(job.recipe)
    directory = stage_directory(job.recipe, DOCUMENTS)
    if key.difference(directory) is None:
        # What is left where a run was killed between its last two steps.
        close_stage(directory)
        print(f"{DOCUMENTS}: complete and unchanged in {directory}")
        return
    plan = plan_parts(config)
    totals = {PARTS_GROUP: len(plan), SHARDS_GROUP: len(shards_of(config))}
    if open_stage(directory, key):
        finished = [f"{count_finished(directory, group)} of {total} {group}" for group, total in totals.items()]
        print(f"{DOCUMENTS}: {' and '.join(finished)} were finished before and are kept")
    progress = Progress(
        DOCUMENTS,
        [
            (scratch_uri(directory, PARTS_GROUP), PARTS_GROUP, totals[PARTS_GROUP]),
            (directory, SHARDS_GROUP, totals[SHARDS_GROUP]),
        ],
    )
    run_pipeline(job, lambda pipeline: build(pipeline, directory, config, plan, key), progress)


def main() -> None:
    follow_lifeline()
    run(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(exit_code_of(main))
