"""Evaluate a registered version at the promotion gate, list the versions, or roll a promotion back.

    clozeworks promote NAME --tracking-uri URI [--margin 0.002]     compare the challenger with the champion
    clozeworks promote NAME --version N --force "reason"            promote regardless of the comparison
    clozeworks promote NAME --rollback                              restore the previous champion
    clozeworks promote NAME --list

Exit codes: 0 success, 1 the gate kept the champion, 2 user error.
"""

from __future__ import annotations

import argparse
import os
from typing import TYPE_CHECKING

from flows.console.tables import shown
from flows.parameters.tracking_config import CHANCE_MARGIN, TrackingConfig
from pipelines.commands.command_line import CommandParser
from pipelines.contract.errors import InputError, exit_code_of

if TYPE_CHECKING:
    from mlflow import MlflowClient

EXIT_KEPT = 1
TRACKING_VARIABLE = "MLFLOW_TRACKING_URI"

_EXAMPLE = "example: clozeworks promote demo-word-order --tracking-uri sqlite:///workspaces/demo/mlflow.db --list"


def main(arguments: list[str] | None = None) -> int:
    parser = CommandParser(
        prog="clozeworks promote", description=__doc__.splitlines()[0] if __doc__ else None, epilog=_EXAMPLE
    )
    parser.add_argument("name", help="registered model, such as demo-encoder")
    parser.add_argument("--tracking-uri", metavar="URI", help=f"MLflow's store or server; default: {TRACKING_VARIABLE}")
    parser.add_argument("--alias", default="champion", help="alias assigned to the winner (default: champion)")
    parser.add_argument(
        "--margin", type=float, default=0.0, help="minimum gain over the champion (default: %(default)g)"
    )
    parser.add_argument(
        "--chance-margin",
        type=float,
        default=CHANCE_MARGIN,
        help="minimum gain over chance, also without a champion (default: %(default)g)",
    )
    parser.add_argument("--version", metavar="N", help="version to evaluate (default: the challenger)")
    parser.add_argument("--force", metavar="REASON", help="promote regardless of the comparison; stored as a tag")
    parser.add_argument("--rollback", action="store_true", help="return the alias to the previous champion")
    parser.add_argument("--reason", default="asked for", help="reason of the rollback; stored as a tag")
    parser.add_argument("--list", action="store_true", help="show the versions and change nothing")
    parsed = parser.parse_args(arguments)
    return _run(parsed)


def _run(parsed: argparse.Namespace) -> int:
    for option, margin in (("--margin", parsed.margin), ("--chance-margin", parsed.chance_margin)):
        if not 0 <= margin <= 1:
            raise InputError(f"{option} {margin}: must be from 0 to 1, as scores are")
    if parsed.rollback and (parsed.version or parsed.force or parsed.list):
        raise InputError("--rollback cannot be combined with --version, --force or --list; give one of them")
    client = _open(parsed.tracking_uri)
    from flows.registry.promotion import CHALLENGER, promote, roll_back, version_at

    if parsed.list:
        _show(client, parsed.name)
        return 0
    if parsed.rollback:
        lost, has = roll_back(client, parsed.name, parsed.reason, parsed.alias)
        print(f"{parsed.name}@{parsed.alias} is version {has} again; version {lost} was rolled back")
        return 0
    number = parsed.version or version_at(client, parsed.name, CHALLENGER)
    if number is None:
        raise InputError(f"{parsed.name}: no version is @{CHALLENGER}; choose one with --version N, --list shows them")
    given = {"alias": parsed.alias, "promotion_margin": parsed.margin, "chance_margin": parsed.chance_margin}
    decided = promote(client, parsed.name, number, TrackingConfig().model_copy(update=given), parsed.force)
    what = "promoted" if decided.promoted else "kept back"
    print(f"{parsed.name} version {number}: {what}: {shown(decided.reason)}")
    return 0 if decided.promoted else EXIT_KEPT


def _open(uri: str | None) -> MlflowClient:
    uri = uri or os.environ.get(TRACKING_VARIABLE)
    if not uri:
        raise InputError(
            f"no registry given; set --tracking-uri sqlite:///<workspace>/mlflow.db, or {TRACKING_VARIABLE}"
        )
    # SQLite would create an empty database at a mistyped path.
    path = uri.removeprefix("sqlite:///")
    if path != uri and not os.path.exists(path):
        raise InputError(f"--tracking-uri {uri}: no such database; it is mlflow.db in the workspace of a run")
    from flows.tracking.stores import open_registry

    return open_registry(uri)


def _show(client: MlflowClient, name: str) -> None:
    from flows.registry.criteria import evaluation_of
    from flows.registry.promotion import PROMOTION_TAG, REASON_TAG, version_at

    version_at(client, name, "champion")  # raises for an unknown model
    by_version: dict[str, list[str]] = {}
    for alias, number in client.get_registered_model(name).aliases.items():
        by_version.setdefault(str(number), []).append(f"@{alias}")
    found = client.search_model_versions(f"name = '{name}'")
    for version in sorted(found, key=lambda each: int(each.version)):
        evaluation = evaluation_of(version)
        score = f"{evaluation.metric} {evaluation.score:.4f}" if evaluation else "no score"
        aliases = " ".join(by_version.get(str(version.version), []))
        judged = f"{version.tags.get(PROMOTION_TAG, 'not judged')}: {version.tags.get(REASON_TAG, '-')}"
        print(f"{version.version:>4}  {aliases:<12}  {score:<24}  {shown(judged)}")


if __name__ == "__main__":
    raise SystemExit(exit_code_of(main))
