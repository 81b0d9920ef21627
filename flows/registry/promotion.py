"""The promotion gate: `@champion` moves to a version only if it is better on the same data by a configured margin.

Every version, also the first, must have a finite score that exceeds that of an untrained model by a margin of its
own. All values that the gate compares, and the reason of its decision, are tags of the versions, so both can be read
from the registry alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from flows.parameters.tracking_config import TrackingConfig
from flows.registry.criteria import Contest, Verdict, evaluation_of, judge
from pipelines.contract.errors import InputError

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

CHAMPION, CHALLENGER = "champion", "challenger"
PROMOTED, KEPT, ROLLED_BACK = "promoted", "kept", "rolled-back"

PROMOTION_TAG = "clozeworks.promotion"
REASON_TAG, MARGIN_TAG = f"{PROMOTION_TAG}.reason", f"{PROMOTION_TAG}.margin"
CHAMPION_SCORE_TAG, CHALLENGER_SCORE_TAG = f"{PROMOTION_TAG}.champion_score", f"{PROMOTION_TAG}.challenger_score"
COMPARED_ON_TAG = f"{PROMOTION_TAG}.compared_on"
PREVIOUS_TAG = "clozeworks.previous_champion"

_VERDICT = " Gate: "
"""Starts the verdict at the end of a version's description."""


def version_at(client: MlflowClient, name: str, alias: str) -> str | None:
    """The version that an alias names; None if it names none.

    Raises:
        InputError: the model does not exist.
    """
    from mlflow.exceptions import MlflowException

    try:
        aliases = client.get_registered_model(name).aliases
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        raise InputError(
            f"{name}: the registry has no such model; its models are <run.name>-encoder and <run.name>-<task>"
        ) from error
    # The SQL store has the number as an integer, a tracking server sends it as text.
    return str(aliases[alias]) if alias in aliases else None


def move_alias(client: MlflowClient, name: str, alias: str, number: str) -> bool:
    """Point an alias at a version; False if it does already."""
    if version_at(client, name, alias) == number:
        return False
    client.set_registered_model_alias(name, alias, number)
    return True


def promote(
    client: MlflowClient, name: str, number: str, settings: TrackingConfig, forced: str | None = None
) -> Verdict:
    """Compare a version with the champion, write the reason into its tags and, if it is better, move the alias.

    Args:
        client: of the registry.
        name: registered model.
        number: the version to evaluate.
        settings: the section [tracking]: the champion's alias, and the settings of the criteria.
        forced: reason to promote it regardless of the comparison; None lets the comparison decide.

    Raises:
        InputError: the model or version does not exist.
    """
    version, alias = require_version(client, name, number), settings.alias
    holder = version_at(client, name, alias)
    if holder == number:
        decided = Verdict(True, f"it is already @{alias}")
        client.set_model_version_tag(name, number, PROMOTION_TAG, PROMOTED)
        return decided
    evaluation = evaluation_of(version)
    tags = {MARGIN_TAG: f"{settings.promotion_margin:g}"}
    if evaluation is not None:
        tags |= {CHALLENGER_SCORE_TAG: repr(evaluation.score), COMPARED_ON_TAG: evaluation.data}
    champion = None if holder is None else evaluation_of(require_version(client, name, holder))
    tags |= {} if champion is None else {CHAMPION_SCORE_TAG: repr(champion.score)}
    decided = judge(Contest(evaluation, settings, holder is not None, champion))
    if forced is not None:
        decided = Verdict(True, f"forced: {forced} (gate: {decided.reason})")
    if decided.promoted and holder is not None:
        tags[PREVIOUS_TAG] = holder
    # The tag that marks the decision comes last: a version without it is evaluated again after a crash.
    for key, value in {**tags, REASON_TAG: decided.reason}.items():
        client.set_model_version_tag(name, number, key, value)
    description = str(version.description or "").partition(_VERDICT)[0]
    shown = decided.reason if decided.promoted else f"stays @{CHALLENGER}, {decided.reason}"
    client.update_model_version(name, number, f"{description}{_VERDICT}{shown}.".lstrip())
    if decided.promoted:
        client.set_registered_model_alias(name, alias, number)
        if version_at(client, name, CHALLENGER) == number:
            client.delete_registered_model_alias(name, CHALLENGER)
    client.set_model_version_tag(name, number, PROMOTION_TAG, PROMOTED if decided.promoted else KEPT)
    return decided


def roll_back(client: MlflowClient, name: str, reason: str, alias: str = CHAMPION) -> tuple[str, str]:
    """Return the alias to the version that had it before; returns the version that lost it and the one that has it.

    Raises:
        InputError: there is no champion or no previous one, or that version was deleted.
    """
    number = version_at(client, name, alias)
    if number is None:
        raise InputError(f"{name}: no version is @{alias}, so there is nothing to roll back")
    previous = require_version(client, name, number).tags.get(PREVIOUS_TAG)
    if previous is None:
        raise InputError(
            f"{name}: version {number} is @{alias} and replaced no other; choose one with --version N --force 'reason'"
        )
    require_version(client, name, previous)
    # The alias comes last: after a crash the same command repeats this rollback and goes no further back.
    client.set_model_version_tag(name, number, REASON_TAG, f"rolled back to version {previous}: {reason}")
    client.set_model_version_tag(name, number, PROMOTION_TAG, ROLLED_BACK)
    client.set_model_version_tag(name, previous, REASON_TAG, f"rolled back from version {number}: {reason}")
    client.set_model_version_tag(name, previous, PROMOTION_TAG, PROMOTED)
    client.set_registered_model_alias(name, alias, previous)
    return number, previous


def require_version(client: MlflowClient, name: str, number: str) -> ModelVersion:
    """A version of a registered model.

    Raises:
        InputError: the version does not exist.
    """
    from mlflow.exceptions import MlflowException

    try:
        return client.get_model_version(name, number)
    except MlflowException as error:
        if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise
        raise InputError(f"{name}: the registry has no version {number}; --list shows the versions") from error
