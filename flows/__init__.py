"""Prefect flows that chain preprocessing, pre-training and fine-tuning, track them in MLflow and register the models.

Importing the package turns off telemetry and the model hub for this process and its children: Prefect, MLflow and
huggingface_hub read these variables once, when they are imported.
"""

import os

OFFLINE_SETTINGS = {
    "DO_NOT_TRACK": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "HF_HUB_OFFLINE": "1",
}

for _name, _value in OFFLINE_SETTINGS.items():
    os.environ.setdefault(_name, _value)

TRACKING_SERVER = os.environ.get("MLFLOW_TRACKING_URI") or None
"""The user's own MLflow server, for recipes that name none. Read once: MLflow itself sets the variable later."""
