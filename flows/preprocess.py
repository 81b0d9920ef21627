"""Flow: raw text to documents, vocabulary and examples."""

from __future__ import annotations

from flows.parameters.requests import PreprocessRequest
from flows.report.prefect_artifacts import tell_corpus
from flows.running import plan as stages
from flows.running.command import run_as_command
from flows.running.flow import clozeworks_flow, running
from flows.running.outcomes import FlowOutcome


@clozeworks_flow("preprocess")
def preprocess(request: PreprocessRequest) -> FlowOutcome:
    """Bring documents, vocabulary and examples up to date.

    Raises:
        InputError: a mistake in the recipe or in what it names.
        StageError: a stage's command failed.
    """
    with running(request) as run:
        outcome = FlowOutcome(stages=tuple(run.build(stage) for stage in stages.preprocessing_stages(run.whole)))
        tell_corpus(run.whole, outcome)
        return outcome


if __name__ == "__main__":
    raise SystemExit(run_as_command(preprocess))
