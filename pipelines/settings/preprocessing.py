"""Recipe section `[preprocessing]`: where the three Beam jobs run. Their output does not depend on it."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated, Literal, TypeAlias

from pydantic import Field, JsonValue, StringConstraints, field_validator, model_validator

from pipelines.contract.bounds import Text, UserPath
from pipelines.contract.recipe import OPERATIONAL, Section

RUNNER_NAMES = ("local", "spark", "dataflow", "flink", "portable")
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

MemorySize = Annotated[str, StringConstraints(pattern=r"^[1-9]\d{0,8}[kmgt]$", max_length=10)]
PropertyName = Annotated[str, StringConstraints(pattern=r"^spark\.[A-Za-z0-9._-]+$", max_length=256)]


class SparkConfig(Section):
    """`[preprocessing.spark]`: the cluster, and the sizes of an executor, which has one core and one Python worker."""

    master: Text | None = Field(default=None, json_schema_extra=OPERATIONAL)
    """As spark-submit takes it: `spark://head:7077`, `yarn`, `k8s://...`; `local-cluster[2,1,1024]` is a trial here."""
    home: UserPath | None = Field(default=None, json_schema_extra=OPERATIONAL)
    """Directory of an installed Spark 3.5; None means SPARK_HOME or, without it, Spark's jars from Maven."""
    executor_memory: MemorySize = Field(default="1g", json_schema_extra=OPERATIONAL)
    """Of an executor's Java process."""
    executor_overhead: MemorySize = Field(default="4g", json_schema_extra=OPERATIONAL)
    """Of what runs outside Java's heap, so of an executor's Python worker."""
    conf: dict[PropertyName, Annotated[str, StringConstraints(max_length=4_096)]] = Field(
        default_factory=dict, json_schema_extra=OPERATIONAL
    )
    """Further properties of Spark, such as `{ "spark.executor.instances" = "20" }`; they override this project's."""


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
    spark: SparkConfig = Field(default=SparkConfig(), json_schema_extra=OPERATIONAL)

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

    @model_validator(mode="after")
    def _the_runner_has_a_cluster(self) -> PreprocessingConfig:
        if self.runner == "spark" and self.spark.master is None and self.job_endpoint is None:
            raise ValueError(
                "runner = 'spark' needs spark.master, such as 'spark://head:7077', or job_endpoint, the host:port of a "
                "Beam job server"
            )
        return self
