"""Addresses of MLflow's pages that open where the runs are; without them MLflow opens a view for language models."""

from __future__ import annotations

from flows.servers.databases import opened

_VIEW = "workflowType=machine_learning"


def runs_page(server: str, experiment_id: str) -> str:
    """The table of an experiment's runs."""
    return f"{server.rstrip('/')}/#/experiments/{experiment_id}/runs?{_VIEW}"


def run_page(server: str, experiment_id: str, run_id: str) -> str:
    """One run."""
    return f"{server.rstrip('/')}/#/experiments/{experiment_id}/runs/{run_id}?{_VIEW}"


def newest_experiment(database_path: str) -> str:
    """The experiment in which something ran last, in a SQLite store; its default one where nothing ever ran."""
    with opened(database_path) as connection:
        found = connection.execute("SELECT experiment_id FROM runs ORDER BY start_time DESC LIMIT 1").fetchone()
    return str(found[0]) if found else "0"
