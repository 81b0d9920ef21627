"""Recipe section `[tracking]`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator

from pipelines.contract.bounds import Bounded, Text
from pipelines.contract.recipe import Section

CHANCE_MARGIN = 0.01
"""Of a score from 0 to 1; the standard error of an accuracy over 1,000 rows is 0.016 at most."""
REGISTRY_NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"

_TRACKING_SCHEMES = ("http", "https", "sqlite", "postgresql", "mysql", "mssql", "databricks")
_CHANCE = "no task needs a score of more than 0.5 above chance"
_MARGIN = "scores are between -100 and 100, and 0 requires any improvement on the champion"


class TrackingConfig(Section):
    """`[tracking]`: where MLflow keeps runs and models, and how it names them."""

    mlflow_tracking_uri: Text | None = None
    """None means the server that MLFLOW_TRACKING_URI names or, without it, SQLite in the workspace (`mlflow.db`), with
    artifacts next to it (`mlartifacts/`)."""
    experiment: Text = "clozeworks"
    registered_model_prefix: Annotated[str, Field(pattern=REGISTRY_NAME_PATTERN, max_length=128)] | None = None
    """Models are registered as `<prefix>-encoder` and `<prefix>-<task>`; None means the name of the run."""
    alias: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_-]*$", max_length=128)] = "champion"
    """Alias of the best version, assigned by the promotion gate."""
    promotion_margin: Annotated[float, Bounded(0.0, 100.0, _MARGIN)] = 0.0
    """By how much a new version's score must exceed the champion's to replace it."""
    chance_margin: Annotated[float, Bounded(0.0, 0.5, _CHANCE)] = CHANCE_MARGIN
    """By how much a version's score must exceed that of an untrained one (the best constant answer; for an encoder,
    its own score before training) to become champion, also if there is no champion yet."""

    encoder_metric: Literal["objective", "minimal_pairs"] = "objective"
    """What encoders are compared by: the objective's own metric on held-out examples, or the accuracy on
    `pretraining.minimal_pairs`."""

    @field_validator("mlflow_tracking_uri")
    @classmethod
    def _scheme_is_known(cls, uri: str | None) -> str | None:
        """Return the URI unchanged.

        Raises:
            ValueError: MLflow has no tracking store for such a URI.
        """
        if uri is None or uri == "databricks":
            return uri
        scheme, separator, rest = uri.partition("://")
        if not separator or scheme.partition("+")[0] not in _TRACKING_SCHEMES or not rest:
            known = ", ".join(f"{name}://" for name in _TRACKING_SCHEMES)
            raise ValueError(f"must begin with one of {known} and name a server or a database")
        return uri
