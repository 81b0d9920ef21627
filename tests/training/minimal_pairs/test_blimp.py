"""The command `blimp`."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import safetensors.torch
import torch

from pipelines.contract.errors import exit_code_of
from training import blimp


def test_the_command_prints_a_table_and_writes_json(
    masked_lm: str, blimp_like: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "found.json"
    assert blimp.main([masked_lm, "--data", str(blimp_like), "--output", str(output)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["minimal", "agreement", "order", "syntax_semantics", "overall"]
    report = json.loads(output.read_bytes())
    assert report["method"] == "word-l2r"
    assert report["groups"]["order"]["pairs"] == 2
    assert report["overall"]["accuracy"] == float(lines[-1].split()[3])
    assert report["unknown_tokens"] == 0


def test_a_model_that_knows_nothing_gets_a_half(masked_lm: str, tmp_path: Path) -> None:
    directory = tmp_path / "nothing"
    shutil.copytree(masked_lm, directory)
    weights = safetensors.torch.load_file(directory / "model.safetensors")
    zeros = {name: torch.zeros_like(tensor) for name, tensor in weights.items()}
    safetensors.torch.save_file(zeros, directory / "model.safetensors", metadata={"format": "pt"})
    output = tmp_path / "found.json"
    data = tmp_path / "same_length.tsv"
    data.write_text("good\tbad\nthe cat\tcat the\nthe dogs\tthe cats\n")
    assert blimp.main([str(directory), "--data", str(data), "--output", str(output)]) == 0
    overall = json.loads(output.read_bytes())["overall"]
    assert (overall["accuracy"], overall["ties"]) == (0.5, 2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--pairs-per-group", "0"], "--pairs-per-group 0: give a number of pairs"),
        (["--data", "{data}/long.tsv"], "long.tsv:2: a sentence has 32 tokens with [CLS] and [SEP]; give 3 to 24"),
    ],
)
def test_what_cannot_be_scored_is_refused_in_one_line(
    arguments: list[str], message: str, masked_lm: str, blimp_like: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (blimp_like / "long.tsv").write_text(f"good\tbad\n{'the ' * 30}\tthe\n")
    words = [masked_lm, "--data", f"{blimp_like}/order.jsonl", *arguments]
    words = [word.format(data=blimp_like) for word in words]
    assert exit_code_of(lambda: blimp.main(words)) == 2
    assert message in capsys.readouterr().err
