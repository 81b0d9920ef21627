"""Curves of a pre-training run as a picture, drawn from its metrics.jsonl."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from pipelines.contract import storage
from pipelines.contract.storage import TEMPORARY_SUFFIX

CURVES_NAME = "curves.png"

_PANELS: tuple[tuple[str, tuple[tuple[str, str], ...]], ...] = (
    ("loss", (("mlm_loss", "MLM"), ("nsp_loss", "NSP"), ("heldout_mlm_loss", "MLM, held out"))),
    (
        "accuracy",
        (("mlm_accuracy", "MLM"), ("nsp_accuracy", "NSP"), ("heldout_mlm_accuracy", "MLM, held out")),
    ),
    ("learning rate", (("learning_rate", "learning rate"),)),
    ("gradient norm", (("grad_norm", "gradient norm"),)),
)


def draw_curves(metrics_uri: str, picture_path: str, title: str) -> bool:
    """Draw losses, accuracies, learning rate and gradient norm over steps into a PNG file; held-out values as dots.

    A picture that cannot be drawn costs a line, never the run that it is of. Returns whether it was drawn.
    """
    temporary = f"{picture_path}{TEMPORARY_SUFFIX}"
    try:
        _draw(metrics_uri, temporary, title)
        os.replace(temporary, picture_path)
    except Exception as error:  # noqa: BLE001 - matplotlib is absent, the disk is full, a line of the metrics is cut off
        with suppress(OSError):
            os.unlink(temporary)
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        print(f"{picture_path} was not drawn ({reason}); the run is complete without it", flush=True)
        return False
    return True


def _draw(metrics_uri: str, picture_path: str, title: str) -> None:
    import matplotlib
    from matplotlib.figure import Figure

    matplotlib.use("Agg")
    lines = [json.loads(line) for line in storage.read_bytes(metrics_uri).decode().splitlines()]
    figure = Figure(figsize=(11, 7), layout="constrained")
    figure.suptitle(title)
    for axes, (label, curves) in zip(figure.subplots(2, 2).flat, _PANELS, strict=True):
        for name, words in curves:
            steps, values = _series(lines, name)
            if steps:
                axes.plot(steps, values, "o--" if name.startswith("heldout") else "-", label=words, markersize=4)
        axes.set(xlabel="step", ylabel=label)
        axes.grid(alpha=0.3)
        if len(axes.lines) > 1:
            axes.legend()
    figure.savefig(picture_path, dpi=110, format="png")


def _series(lines: Sequence[dict[str, Any]], name: str) -> tuple[list[int], list[float]]:
    found = [(line["step"], line[name]) for line in lines if name in line]
    return [step for step, _ in found], [value for _, value in found]
