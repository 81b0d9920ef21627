"""Fixtures of the flow tests: a recipe, stand-in stages, and one Prefect server for the session."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

RECIPE = """
[run]
name = "trial"
workspace = "{workspace}"

[documents]
sources = [{{ inputs = ["corpus.txt"] }}]

[examples]
passes = 2
lengths = [{{ max_seq_length = 32, max_predictions_per_seq = 5 }}]

[model]
hidden_size = 16
num_attention_heads = 2
max_position_embeddings = 32

[pretraining]
phases = [{{ max_seq_length = 32, steps = 3, global_batch_size = 4 }}]
num_warmup_steps = 1

[finetuning]
tasks = ["cola"]
glue_dir = "glue"
max_seq_length = 32
compare_with_random = true
"""


@pytest.fixture
def write_recipe(tmp_path: object) -> Callable[..., str]:
    """Write the recipe of the tests, each (old, new) replaced; returns its path."""

    def write(*replacements: tuple[str, str]) -> str:
        text = RECIPE.format(workspace=f"{tmp_path}/ws")
        for old, new in replacements:
            assert old in text, old
            text = text.replace(old, new)
        path = f"{tmp_path}/recipe.toml"
        with open(path, "w") as stream:
            stream.write(text)
        return path

    return write


@pytest.fixture(scope="session")
def prefect_server() -> Iterator[None]:
    """A real Prefect server on loopback with its own database; start-up took 7 s alone, longer under load."""
    from prefect.testing.utilities import prefect_test_harness

    with prefect_test_harness(server_startup_timeout=120):
        yield


@pytest.fixture
def stand_ins(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace the plan of every flow by stages that run stand_in.py."""
    from tests.support.flows import chain_of_stand_ins

    chain_of_stand_ins.install(monkeypatch.setattr)
