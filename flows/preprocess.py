"""Flow: from raw text to documents, vocabulary and examples."""

from __future__ import annotations

from flows.parameters.requests import PreprocessRequest
from flows.report.prefect_artifacts import tell_corpus
from flows.running import plan as stages
from flows.running.command import run_as_command
from flows.running.flow import clozeworks_flow, running
from flows.running.outcomes import FlowOutcome
from pipelines.commands.process_exit import run_and_leave_in_order
from pipelines.stage_keys import vocabulary_key


@clozeworks_flow("preprocess")
def preprocess(request: PreprocessRequest) -> FlowOutcome:
    """Build documents, vocabulary and examples, as far as they are not complete.

    Raises:
        InputError: the recipe, or an input that it names, is not valid.
        StageError: a stage's command failed.
    """
    with running(request) as run:
        # A vocabulary that is brought and cannot be adopted is refused before the documents are made.
        vocabulary_key(run.whole.vocabulary, run.whole.run.workspace)
        outcome = FlowOutcome(stages=tuple(run.build(stage) for stage in stages.preprocessing_stages(run.whole)))
        tell_corpus(run.whole, outcome)
        return outcome


if __name__ == "__main__":
    run_and_leave_in_order(lambda: run_as_command(preprocess))
