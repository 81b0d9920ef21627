"""Addresses of MLflow's pages that open the table of runs; by default MLflow opens a view for language models."""

from __future__ import annotations

from flows.servers.databases import opened

_VIEW = "workflowType=machine_learning"


def runs_page(server: str, experiment_id: str) -> str:
    """Address of the table of an experiment's runs."""
    return f"{server.rstrip('/')}/#/experiments/{experiment_id}/runs?{_VIEW}"


def run_page(server: str, experiment_id: str, run_id: str) -> str:
    """Address of one run."""
    return f"{server.rstrip('/')}/#/experiments/{experiment_id}/runs/{run_id}?{_VIEW}"


def newest_experiment(database_path: str) -> str:
    """The experiment with the newest run, in a SQLite store; the default one if there is no run."""
    with opened(database_path) as connection:
        found = connection.execute("SELECT experiment_id FROM runs ORDER BY start_time DESC LIMIT 1").fetchone()
    return str(found[0]) if found else "0"
