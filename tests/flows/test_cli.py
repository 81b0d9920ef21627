"""The command `clozeworks`: help imports nothing heavy, verbs run as by `python -m`, user errors are one line."""

from __future__ import annotations

import importlib
import importlib.util
import os
import re
import signal
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from flows import cli
from pipelines.commands.command_line import CommandParser

COMMAND = (sys.executable, "-m", "flows.cli")
HEAVY = {"torch", "apache_beam", "prefect", "mlflow", "numpy", "pyarrow", "pydantic"}


@pytest.fixture(autouse=True)
def as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a verb sets for the rest of its process."""
    monkeypatch.setattr(CommandParser, "note", "")
    monkeypatch.setattr(sys, "argv", list(sys.argv))


def run(repository: Path, *words: str, **settings: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(repository), **settings}
    return subprocess.run([*COMMAND, *words], capture_output=True, text=True, check=False, env=environment)


def test_the_script_is_this_command(repository: Path) -> None:
    scripts = tomllib.loads((repository / "pyproject.toml").read_text())["project"]["scripts"]
    module, _, function = scripts[cli.PROGRAM].partition(":")
    assert getattr(importlib.import_module(module), function) is cli.main


def test_help_names_every_verb_and_loads_nothing_heavy(repository: Path) -> None:
    script = (
        "import sys; from flows.cli import main; code = main(); print(*sys.modules, file=sys.stderr); sys.exit(code)"
    )
    result = subprocess.run(
        [sys.executable, "-c", script, "--help"], cwd=repository, capture_output=True, text=True, check=True
    )
    assert not HEAVY & set(result.stderr.split())
    named = {line[2:14].strip() for line in result.stdout.splitlines() if line.startswith("  ")}
    assert named == set(cli.VERBS)
    assert max(map(len, result.stdout.splitlines())) <= 100


def test_every_page_and_message_names_verbs_that_exist(repository: Path) -> None:
    """`python -m` remains if a module has no verb, or if another program starts it (Spark, containers, flows)."""
    without_verb = {"pipelines.compile_loops", "pipelines.commands.process_start", "training.build_ops"}
    for folder in ("pipelines", "training", "flows", "."):
        paths = (repository / folder).glob("*.md") if folder == "." else (repository / folder).rglob("*")
        for path in paths:
            if path.suffix not in (".py", ".md", ".toml", ".yaml") or path.name == "CHANGELOG.md":
                continue
            text = path.read_text()
            for words in re.findall(r"(?:^ *|`|\"|run |: )(?:\.venv/bin/)?clozeworks ([a-z]+(?: [a-z]+)?)", text, re.M):
                assert words in cli.VERBS or words.split()[0] in cli.VERBS, f"{path}: clozeworks {words}"
            named = set(re.findall(r"python -m ((?:pipelines|training|flows)\.[a-z_.]+)", text))
            assert named <= without_verb, f"{path}: {named}"


@pytest.mark.parametrize("words", [[], ["-h"], ["help"]])
def test_no_verb_prints_the_map(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(words) == 0
    assert capsys.readouterr().out == f"{cli.help_text()}\n"


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("clozeworks pre", {"preprocess", "pretrain"}),
        ("clozeworks glue ", {"fetch", "submit"}),
        ("clozeworks run rec", {"recipe.toml"}),
        ("clozeworks x", set()),
    ],
)
def test_a_shell_completes_verbs_and_files(line: str, expected: set[str], repository: Path, tmp_path: Path) -> None:
    """Like argcomplete's function for bash and zsh: the line in variables, the answer on descriptor 8."""
    (tmp_path / "recipe.toml").touch()
    settings = {"_ARGCOMPLETE": "1", "COMP_LINE": line, "COMP_POINT": str(len(line)), "_ARGCOMPLETE_IFS": "\n"}
    environment = {**os.environ, "PYTHONPATH": str(repository), **settings}
    shell = " ".join([*COMMAND, "8>&1 9>&2 >/dev/null 2>&1"])
    result = subprocess.run(["bash", "-c", shell], cwd=tmp_path, env=environment, capture_output=True, check=False)
    assert set(result.stdout.decode().replace("\x0b", "\n").split()) == expected


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("clozeworks ")


@pytest.mark.parametrize("verb", [*cli.VERBS.values(), *(cli.Verb(f"flows.{flow}", "", "flows") for flow in cli.FLOWS)])
def test_every_verb_has_a_module_and_an_extra(verb: cli.Verb, repository: Path) -> None:
    path = repository.joinpath(*verb.module.split(".")).with_suffix(".py")
    assert 'if __name__ == "__main__":' in path.read_text()
    extras = tomllib.loads((repository / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert verb.extra in ("", *extras)
    assert all(importlib.util.find_spec(package) for package in cli.EXTRAS[verb.extra])


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["finetun", "r.toml"], "finetun: no such verb, the closest is clozeworks finetune"),
        (["shard_corpus"], "shard_corpus: no such verb, the closest is clozeworks documents"),
        (["submission"], "submission: no such verb, the closest is clozeworks glue submit"),
        (["xyzzy"], "xyzzy: no such verb"),
        (["glue", "fetsch"], "glue: incomplete verb, use glue fetch or glue submit"),
        (["--debug", "pretrain"], "--debug: options go after the verb"),
        (["a\x1b[31m\nb"], "a\\x1b[31m\\nb: no such verb"),
    ],
)
def test_unknown_verbs_are_one_line(words: list[str], line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(words) == 2
    assert capsys.readouterr().err == f"error: {line}; see clozeworks --help\n"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "program"),
    [
        (["pretrain"], "clozeworks pretrain"),
        (["glue", "submit"], "clozeworks glue submit"),
        (["status"], "clozeworks status"),
        (["run", "--only", "finetune"], "clozeworks run --only finetune"),
    ],
)
def test_a_verb_reports_its_mistakes_under_its_name(words: list[str], program: str, repository: Path) -> None:
    result = run(repository, *words)
    assert result.returncode == 2
    assert result.stderr.startswith("error: ")
    assert result.stderr.endswith(f"; see {program} --help\n")
    assert result.stderr.count("\n") == 1


@pytest.mark.slow
def test_run_tells_and_checks_its_flows(repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = run(repository, "run", "--help").stdout
    assert told.startswith("usage: clozeworks run ")
    assert "--only preprocess|pretrain|finetune|distill" in told
    assert "example: clozeworks run " in told
    with pytest.raises(SystemExit, match="2"):
        cli.main(["run", "--only", "vocabulary", "r.toml"])
    assert "choose from" in capsys.readouterr().err


def test_a_missing_extra_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "torch" else find(name))
    assert cli.main(["pretrain", "r.toml"]) == 2
    remedy = "install it with pip install 'clozeworks[training]'"
    assert capsys.readouterr().err == f"error: clozeworks pretrain: torch is not installed; {remedy}\n"


def test_without_any_package_there_is_still_the_map(repository: Path) -> None:
    """`-S` excludes the site packages."""

    def bare(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-S", "-m", "flows.cli", *words]
        return subprocess.run(command, cwd=repository, capture_output=True, text=True, check=False)

    assert bare("--help").stdout == f"{cli.help_text()}\n"
    assert bare("doctor", "--help").stdout.startswith("usage: clozeworks doctor ")
    for words, extra in ((["documents", "--help"], "pipelines"), (["run", "r.toml"], "flows")):
        result = bare(*words)
        assert result.returncode == 2
        assert f"install it with pip install 'clozeworks[{extra}]'\n" in result.stderr


def test_a_module_of_ours_that_is_missing_is_a_bug(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run_module(*_: object, **__: object) -> None:
        raise ModuleNotFoundError("No module named 'training.gone'", name="training.gone")

    monkeypatch.setattr(cli, "run_module", run_module)
    assert cli.main(["doctor"]) == 1
    assert "this is a bug" in capsys.readouterr().err


def test_an_interrupt_while_modules_load_is_one_line(repository: Path, tmp_path: Path) -> None:
    (tmp_path / "prefect.py").write_text(f"import os, signal; os.kill(os.getpid(), {int(signal.SIGINT)})\n")
    result = run(repository, "run", "r.toml", PYTHONPATH=f"{tmp_path}{os.pathsep}{repository}")
    assert result.returncode == 130
    assert result.stderr.startswith("interrupted")
    assert result.stderr.count("\n") == 1


def test_a_verb_runs_as_main(repository: Path, tmp_path: Path) -> None:
    """Processes that Python spawns import the verb's module, which they find by its name."""
    script = (
        "import sys; from flows import cli; cli.VERBS['doctor'] = cli.Verb('shown', '', ''); cli.main(['doctor', 'x'])"
    )
    shown = "import sys; print(__name__, __spec__.name, sys.modules['__main__'].__spec__.name, sys.argv[1:])"
    (tmp_path / "shown.py").write_text(shown)
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{repository}"}
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, env=environment)
    assert result.stdout == "__main__ shown shown ['x']\n"
