"""Job 1: read a corpus, clean it, split it into sentences, and write documents in shards.

    python -m pipelines.shard_corpus flows/recipes/demo.toml --set documents.num_shards=4

A document belongs to a shard by the hash of its text, so a shard is a random sample of the corpus, and equal texts
meet in one shard, where all but one are dropped. Options that this command does not know go to Beam (--runner,
--direct_num_workers, ...).
"""

from __future__ import annotations

import sys

import apache_beam as beam

from pipelines import storage
from pipelines.config import DocumentsConfig
from pipelines.contract import Manifest, StageKey, clear_stage
from pipelines.documents import (
    PARTS_DIRECTORY,
    CollectShard,
    CompleteDocuments,
    CorpusPart,
    PartSummary,
    ReadPart,
    ShardSummary,
    plan_parts,
    shards_of,
)
from pipelines.lifeline import follow_lifeline
from pipelines.recipe import exit_code_of
from pipelines.runners import Progress, parse_job, run_pipeline
from pipelines.stages import DOCUMENTS, documents_key, stage_directory


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
    shard_summaries = (
        pipeline
        | "Shards" >> beam.Create(range(len(shards_of(config)))).with_output_types(int)
        | "SpreadShards" >> beam.Reshuffle()
        | "CollectShard"
        >> beam.ParDo(CollectShard(directory, config), beam.pvalue.AsList(parts)).with_output_types(ShardSummary)
    )
    return (
        shard_summaries
        | "GatherShards" >> beam.combiners.ToList()
        | "Complete"
        >> beam.ParDo(CompleteDocuments(directory, key), beam.pvalue.AsList(parts)).with_output_types(Manifest)
    )


def run(argv: list[str] | None = None) -> None:
    """Run the job from command-line arguments; a stage that is complete and unchanged is left as it is."""
    job = parse_job("pipelines.shard_corpus", __doc__, argv)
    config = job.recipe.section("documents", DocumentsConfig)
    key = documents_key(job.recipe)
    directory = stage_directory(job.recipe, DOCUMENTS)
    if key.difference(directory) is None:
        print(f"{DOCUMENTS}: complete and unchanged in {directory}")
        return
    clear_stage(directory)
    plan = plan_parts(config)
    progress = Progress(
        DOCUMENTS,
        [
            (storage.join(directory, PARTS_DIRECTORY), "parts", len(plan)),
            (directory, "shards", len(shards_of(config))),
        ],
    )
    run_pipeline(job, lambda pipeline: build(pipeline, directory, config, plan, key), progress)


def main() -> None:
    follow_lifeline()
    run(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(exit_code_of(main))
