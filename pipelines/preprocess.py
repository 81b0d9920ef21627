"""Build documents, vocabulary and examples one after another, in one process; complete stages are skipped."""

from __future__ import annotations

from pipelines import build_examples, shard_corpus, train_vocabulary
from pipelines.commands.process_exit import run_and_leave_in_order
from pipelines.compile_loops import load_loops
from pipelines.contract.recipe import Recipe
from pipelines.contract.workspace import DOCUMENTS, EXAMPLES, VOCABULARY
from pipelines.runners.running import job_of, run_jobs
from pipelines.settings.documents import DocumentsConfig
from pipelines.settings.vocabulary import VocabularyConfig

STAGES = (
    (DOCUMENTS, shard_corpus.run_job),
    (VOCABULARY, train_vocabulary.run_job),
    (EXAMPLES, build_examples.run_job),
)


def main() -> None:
    jobs = [(job_of(stage, __doc__, None, verb="preprocess"), build) for stage, build in STAGES]
    require_sections(jobs[0][0].recipe)
    run_jobs(jobs, load_loops)


def require_sections(recipe: Recipe) -> None:
    """Check the sections of all jobs before the first one starts.

    Raises:
        RecipeError: a setting is not valid.
    """
    recipe.section("documents", DocumentsConfig)
    recipe.section("vocabulary", VocabularyConfig)
    build_examples.config_of(recipe)


if __name__ == "__main__":
    run_and_leave_in_order(main)
