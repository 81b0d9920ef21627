"""Recipe section `[preprocessing]`: where the three Beam jobs run. Their output does not depend on it."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated, Literal, TypeAlias

from pydantic import Field, JsonValue, StringConstraints, field_validator

from pipelines.contract.bounds import Text, UserPath
from pipelines.contract.recipe import OPERATIONAL, Section

RUNNER_NAMES = ("local", "dataflow", "flink", "portable")
"""Each has a row in `pipelines.runners.table.RUNNERS`."""

OPTIONS_WITH_A_SETTING = {
    "runner": "runner",
    "job_endpoint": "job_endpoint",
    "sdk_container_image": "image",
    "direct_num_workers": "workers of [run]",
}
"""Beam's options that are not given in `options`, with the setting that takes their place."""

_SECRET = re.compile(r"SECRET|PASSWORD|PASSWD|TOKEN|ACCESS_?KEY|API_?KEY|PRIVATE_?KEY")

if TYPE_CHECKING:
    RunnerName: TypeAlias = str
else:
    RunnerName = Literal[RUNNER_NAMES]

OptionName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z][A-Za-z0-9_]*$", max_length=128)]
VariableName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$", max_length=128)]
Endpoint = Annotated[str, StringConstraints(pattern=r"^[^\s/:]+:\d{1,5}$|^\[[0-9A-Fa-f:]+\]:\d{1,5}$", max_length=256)]


class PreprocessingConfig(Section):
    """`[preprocessing]`: the runner of the three Beam jobs, and what it needs."""

    runner: RunnerName = Field(default="local", json_schema_extra=OPERATIONAL)
    """`--runner=NAME` on the command line of a job overrides it, also with a runner of Beam, such as DirectRunner."""
    options: dict[OptionName, JsonValue] = Field(default_factory=dict, json_schema_extra=OPERATIONAL)
    """Beam's pipeline options by Beam's own names, such as `{ region = "europe-west4", max_num_workers = 20 }`; a list
    gives an option repeatedly."""
    environment: dict[VariableName, Annotated[str, StringConstraints(max_length=4_096)]] = Field(
        default_factory=dict, json_schema_extra=OPERATIONAL
    )
    """Environment variables of the workers; secrets are refused, since a recipe is logged."""
    pass_environment: tuple[VariableName, ...] = Field(default=(), json_schema_extra=OPERATIONAL)
    """Names of variables whose values the workers get from the job's environment, such as AWS_SECRET_ACCESS_KEY."""
    image: Text | None = Field(default=None, json_schema_extra=OPERATIONAL)
    """Container image of the workers; None starts them as processes of the nodes, where the runner allows it."""
    worker: UserPath | None = Field(default=None, json_schema_extra=OPERATIONAL)
    """Path of `clozeworks-worker` on every node, for workers without an image; None means the path on this machine."""
    job_endpoint: Endpoint | None = Field(default=None, json_schema_extra=OPERATIONAL)
    """`host:port` of a Beam job server."""

    @field_validator("options")
    @classmethod
    def _options_have_no_setting(cls, options: dict[str, JsonValue]) -> dict[str, JsonValue]:
        """Return the options unchanged.

        Raises:
            ValueError: one of them has a setting of its own, or its value is not one that a command line can have.
        """
        for name, value in options.items():
            if setting := OPTIONS_WITH_A_SETTING.get(name):
                raise ValueError(f"{name!r} is given by the setting {setting}; remove it here")
            items = value if isinstance(value, list) else [value]
            if not all(isinstance(item, bool | int | float | str) for item in items):
                raise ValueError(f"{name!r} must be a text, a number, true or false, or a list of these")
        return options

    @field_validator("environment")
    @classmethod
    def _environment_has_no_secret(cls, environment: dict[str, str]) -> dict[str, str]:
        """Return the variables unchanged.

        Raises:
            ValueError: the name of one says that it is a secret.
        """
        for name in environment:
            if _SECRET.search(name.upper()):
                raise ValueError(
                    f"{name!r} is a secret by its name, but a recipe is logged and published with its models; name it "
                    "in pass_environment, or set it on the nodes"
                )
        return environment
