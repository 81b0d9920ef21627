"""The command with tables: what it leaves out is named, and a bad row of any table ends it before the first trial."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.support.training.tiny_models import write_tiny_encoder

from pipelines.contract.errors import exit_code_of
from training import finetune


def test_all_tables_are_checked_before_the_first_is_trained(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_tiny_encoder(str(tmp_path / "encoder"))
    (tmp_path / "good.csv").write_text("text,label\nx,a\ny,b\n")
    (tmp_path / "bad.csv").write_text("text,label\nx,a\ny,b\nz,\n")
    tables = "".join(
        f'[[finetuning.tables]]\nname = "{name}"\ntrain_file = "{tmp_path}/{name}.csv"\n'
        f'dev_file = "{tmp_path}/{name}.csv"\n'
        for name in ("good", "bad")
    )
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(
        f'[run]\nworkspace = "{tmp_path}/workspace"\n[finetuning]\nencoder = "{tmp_path}/encoder"\n'
        f"max_seq_length = 16\n{tables}"
    )
    assert exit_code_of(lambda: finetune.main([str(recipe)])) == 2
    said = capsys.readouterr()
    assert said.err.splitlines()[-1].endswith(
        "bad.csv:4: no label in column 'label'; give each row a label, or remove the row"
    )
    assert "step" not in said.out
    assert not (tmp_path / "workspace").exists()

    assert exit_code_of(lambda: finetune.main([str(recipe), "--tasks", "bad"])) == 2
    assert "finetuning: tables that tasks does not name, and that are not trained: good\n" in capsys.readouterr().out
