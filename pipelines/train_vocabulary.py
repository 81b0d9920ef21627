"""Job 2: count the words of the training documents and train a WordPiece vocabulary from the counts, or bring one.

    clozeworks vocabulary flows/recipes/demo.toml --set vocabulary.size=4096
    clozeworks vocabulary RECIPE --set vocabulary.from=bert/vocab.txt --set vocabulary.extend=500

Each worker counts the words of one shard; counts are merged as Arrow tables, and one node trains. Held-out documents
are not read. A vocabulary that is brought (a vocab.txt, a tokenizer.json, a Hugging Face directory, a workspace, or
models:/NAME@alias) is checked and adopted with its casing; the counts state how well it fits, and choose the words that
vocabulary.extend adds. Other options are passed to Beam (--runner, --direct_num_workers, ...).
"""

from __future__ import annotations

import apache_beam as beam
import pyarrow as pa

from pipelines.commands.process_exit import run_and_leave_in_order
from pipelines.compile_loops import load_loops
from pipelines.contract import storage
from pipelines.contract.manifest import Manifest, require_manifest
from pipelines.contract.workspace import DOCUMENTS, VOCABULARY
from pipelines.jobs.runner import Job
from pipelines.jobs.summary import vocabulary_summary
from pipelines.results.builds import open_build
from pipelines.results.verification import verify_stage
from pipelines.runners.running import job_of, run_jobs, run_pipeline
from pipelines.settings.vocabulary import VocabularyConfig
from pipelines.stage_keys import vocabulary_key
from pipelines.vocabularies.making import Adoption, CompleteVocabulary, Training, VocabularyMaker
from pipelines.vocabularies.reading import read_vocabulary
from pipelines.wordpiece.tokenizer_settings import TokenizerSettings
from pipelines.wordpiece.word_counts import CountShard, SumCounts


def build(
    pipeline: beam.Pipeline,
    documents_directory: str,
    names: list[str],
    complete: CompleteVocabulary,
    settings: TokenizerSettings,
) -> beam.PCollection[Manifest]:
    """Construct the job; its single output element is the manifest."""
    return (
        pipeline
        | "Shards" >> beam.Create(names).with_output_types(str)
        | "CountShard" >> beam.ParDo(CountShard(documents_directory, settings)).with_output_types(pa.Table)
        | "SumCounts" >> beam.CombineGlobally(SumCounts()).with_output_types(pa.Table)
        | "TrainVocabulary" >> beam.ParDo(complete).with_output_types(Manifest)
    )


def run(argv: list[str] | None = None) -> None:
    """Run the job from command-line arguments; a complete and unchanged stage is skipped."""
    run_job(job_of(VOCABULARY, __doc__, argv))


def run_job(job: Job) -> None:
    """Build the stage, unless it is complete and unchanged."""
    config = job.recipe.section("vocabulary", VocabularyConfig)
    documents_directory, directory = (storage.join(job.workspace, stage) for stage in (DOCUMENTS, VOCABULARY))
    documents = require_manifest(documents_directory, DOCUMENTS, "clozeworks documents")
    key = vocabulary_key(config, job.workspace)
    with job.build_of(key, directory) as is_needed:
        if not is_needed:
            return
        verify_stage(job.workspace, DOCUMENTS, documents, lambda file: file in documents.files_of("train"))
        maker = _maker(config)
        open_build(directory, key, job.restart)
        names = [file.name for file in documents.files_of("train")]
        complete = CompleteVocabulary(directory, key, maker)
        run_pipeline(job, lambda pipeline: build(pipeline, documents_directory, names, complete, maker.settings))
        job.show_summary(VOCABULARY, directory, vocabulary_summary)


def _maker(config: VocabularyConfig) -> VocabularyMaker:
    if config.origin is None:
        return Training(config)
    vocabulary = read_vocabulary(config)
    if vocabulary.assumed:
        print(f"{VOCABULARY}: {vocabulary.assumed}", flush=True)
    return Adoption(vocabulary, config.extend)


def main() -> None:
    run_jobs([(job_of(VOCABULARY, __doc__, None), run_job)], load_loops)


if __name__ == "__main__":
    run_and_leave_in_order(main)
