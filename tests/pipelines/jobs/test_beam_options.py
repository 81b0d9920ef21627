"""Beam's options from a recipe: checked by Beam's own parser, one line for each mistake; the command line overrides."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from apache_beam.options.pipeline_options import DirectOptions, GoogleCloudOptions, PipelineOptions, WorkerOptions

from pipelines.contract.errors import InputError
from pipelines.jobs.beam_options import arguments_of_recipe
from pipelines.jobs.runner import Job, parse_job
from pipelines.runners.table import RUNNERS
from pipelines.settings.preprocessing import RUNNER_NAMES

RECIPE = """
[preprocessing.options]
max_num_workers = 12
use_public_ips = false
experiments = ["one", "two"]
project = "example"
save_main_session = true
"""


def job_of(tmp_path: Path, *arguments: str, text: str = RECIPE) -> Job:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(text)
    return parse_job("documents", None, [str(recipe), "--workspace", str(tmp_path), *arguments])


def test_every_runner_that_a_recipe_can_name_has_a_row() -> None:
    assert tuple(RUNNERS) == RUNNER_NAMES


def test_options_reach_beam(tmp_path: Path) -> None:
    options = job_of(tmp_path).options
    workers = options.view_as(WorkerOptions)
    assert (workers.max_num_workers, workers.use_public_ips) == (12, False)
    assert options.view_as(GoogleCloudOptions).project == "example"
    given = options.get_all_options(drop_default=True)
    assert given["experiments"] == ["one", "two"]
    assert given["save_main_session"] is True


def test_the_command_line_overrides(tmp_path: Path) -> None:
    job = job_of(tmp_path, "--max_num_workers=3", "--runner=DirectRunner")
    assert job.options.view_as(WorkerOptions).max_num_workers == 3
    assert job.beam_runner == "DirectRunner"
    ours = job_of(tmp_path, "--runner", "local")
    assert (ours.beam_runner, ours.settings.runner) == (None, "local")
    assert ours.options.view_as(DirectOptions).direct_num_workers in (None, 1)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        (
            "max_num_worker",
            3,
            "preprocessing.options.max_num_worker: Beam has no such option; see Beam's documentation",
        ),
        (
            "max_num_workers",
            "many",
            "preprocessing.options.max_num_workers = 'many': argument --max_num_workers: invalid",
        ),
        ("project", True, "preprocessing.options.project = True: argument --project: expected one argument"),
        (
            "enable_streaming_engine",
            False,
            "preprocessing.options.enable_streaming_engine = False: Beam has no argument",
        ),
    ],
)
def test_a_mistake_is_one_line_that_names_the_option(name: str, value: Any, message: str) -> None:
    with pytest.raises(InputError) as caught:
        arguments_of_recipe("r.toml", {name: value})
    assert str(caught.value).startswith(f"r.toml: {message}"), str(caught.value)
    assert "\n" not in str(caught.value)


def test_flags_get_the_arguments_that_beam_has_for_them() -> None:
    assert arguments_of_recipe("r.toml", {"dry_run": True, "no_use_public_ips": True, "save_main_session": True}) == [
        "--dry_run=True",
        "--no_use_public_ips",
        "--save_main_session",
    ]
    assert arguments_of_recipe("r.toml", {"dry_run": False, "use_public_ips": False}) == ["--no_use_public_ips"]
    assert PipelineOptions(["--no_use_public_ips"]).view_as(WorkerOptions).use_public_ips is False


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("options.runner='DirectRunner'", "'runner' is given by the setting runner; remove it here"),
        ("options.a.b=1", "'a' must be a text, a number, true or false, or a list of these"),
        ("runner='lokal'", "preprocessing.runner = \"lokal\": must be 'local'"),
        ("environment.AWS_SECRET_ACCESS_KEY='x'", "'AWS_SECRET_ACCESS_KEY' is a secret by its name"),
        ("job_endpoint='http://head:8099'", "preprocessing.job_endpoint"),
    ],
)
def test_a_wrong_setting_is_one_line(tmp_path: Path, setting: str, message: str) -> None:
    with pytest.raises(InputError) as caught:
        job_of(tmp_path, "--set", f"preprocessing.{setting}", text="")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
