"""Job 3: tokenise the documents and write next-sentence pairs with masked tokens, one file a shard and length.

    python -m pipelines.build_examples flows/recipes/demo.toml --set examples.passes=2

A documents shard is the unit of work: its file's name and content are fixed before it starts, so a retry or another
runner writes the same bytes. Random next sentences come from the documents of the shard, which is a random sample of
the corpus. Options that this command does not know go to Beam (--runner, --direct_num_workers, ...).
"""

from __future__ import annotations

import sys

import apache_beam as beam

from pipelines import storage
from pipelines.config import ExamplesConfig, VocabularyConfig
from pipelines.contract import VOCABULARY_NAME, FileRecord, Manifest, clear_stage, length_directory, require_manifest
from pipelines.examples import BuildShard, CompleteExamples
from pipelines.lifeline import follow_lifeline
from pipelines.recipe import exit_code_of
from pipelines.runners import Progress, parse_job, run_pipeline
from pipelines.stages import DOCUMENTS, EXAMPLES, VOCABULARY, examples_key, stage_directory


def build(
    pipeline: beam.Pipeline, names: list[str], build_shard: BuildShard, complete_stage: CompleteExamples
) -> beam.PCollection[Manifest]:
    """Construct the job; its one output element is the manifest."""
    return (
        pipeline
        | "Shards" >> beam.Create(names).with_output_types(str)
        | "SpreadShards" >> beam.Reshuffle()
        | "BuildShard" >> beam.ParDo(build_shard).with_output_types(FileRecord)
        | "GatherFiles" >> beam.combiners.ToList()
        | "Complete" >> beam.ParDo(complete_stage).with_output_types(Manifest)
    )


def run(argv: list[str] | None = None) -> None:
    """Run the job from command-line arguments; a stage that is complete and unchanged is left as it is."""
    job = parse_job("pipelines.build_examples", __doc__, argv)
    config = job.recipe.section("examples", ExamplesConfig)
    directories = {stage: stage_directory(job.recipe, stage) for stage in (DOCUMENTS, VOCABULARY, EXAMPLES)}
    documents = require_manifest(directories[DOCUMENTS], "python -m pipelines.shard_corpus")
    vocabulary = require_manifest(directories[VOCABULARY], "python -m pipelines.train_vocabulary")
    key, directory = examples_key(job.recipe), directories[EXAMPLES]
    if key.difference(directory) is None:
        print(f"{EXAMPLES}: complete and unchanged in {directory}")
        return
    clear_stage(directory)
    names = [file.name for file in documents.files if file.name.endswith(".arrow")]
    sha256 = next(file.sha256 for file in vocabulary.files if file.name == VOCABULARY_NAME)
    # The casing is that of the vocabulary in the workspace, whatever the recipe says by now.
    vocabulary_config = VocabularyConfig.model_validate(vocabulary.config)
    build_shard = BuildShard(directories, config, vocabulary_config, sha256)
    progress = Progress(
        EXAMPLES,
        [
            (storage.join(directory, name), f"shards of {name}", len(names))
            for name in (length_directory(length.max_seq_length) for length in config.lengths)
        ],
    )
    run_pipeline(
        job,
        lambda pipeline: build(pipeline, names, build_shard, CompleteExamples(directory, key, config)),
        progress,
    )


def main() -> None:
    follow_lifeline()
    run(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(exit_code_of(main))
