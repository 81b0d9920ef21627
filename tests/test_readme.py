"""The commands that README.md prints: each exists and parses as printed, and the cheap ones are run."""

from __future__ import annotations

import ast
import contextlib
import io
import itertools
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from tests.support import REPOSITORY

from flows.cli import VERBS
from flows.comparison.study_file import read_study
from pipelines.contract.recipe import read_recipe

COMMAND = ".venv/bin/clozeworks"
DEMO = "workspaces/demo"
OWN_FILES = ("/data/",)
"""Where the page puts files of the reader's own."""
PLACEHOLDER = re.compile(r"\bNAME\b|\.\.\.|<[a-z]+>")
DEMO_MODELS = {"demo-encoder", "demo-encoder-distilled", "demo-word-order"}

ASK_FOR_HELP = """
import contextlib, io, json, runpy, sys
told = {}
for module in sys.argv[1:]:
    sys.argv, output = [module, "--help"], io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.suppress(SystemExit):
        runpy.run_module(module, run_name="__main__")
    told[module] = output.getvalue()
print(json.dumps(told))
"""


def blocks(page: str) -> list[str]:
    """Indented blocks of code, without their indentation."""
    lines = itertools.groupby(page.splitlines(), key=lambda line: line.startswith("    "))
    return ["\n".join(line[4:] for line in group) for is_code, group in lines if is_code]


def printed_commands(page: str) -> list[str]:
    """Command lines of the blocks, continued lines joined and comments taken off, and those within sentences."""
    found = []
    for block in blocks(page):
        if re.match(r"(\S*clozeworks|make|[a-z]+/\S+\.sh|export|source|prefect) ", block):
            found += [shlex.join(shlex.split(line, comments=True)) for line in block.replace("\\\n", "").splitlines()]
    sentences = "\n".join(line for line in page.splitlines() if not line.startswith("    "))
    inline = [code for code in sentences.split("`")[1::2] if "bin/clozeworks " in code]
    return [line for line in found + [" ".join(line.split()) for line in inline] if line]


README = (REPOSITORY / "README.md").read_text(encoding="utf-8")
COMMANDS = [shlex.split(line) for line in printed_commands(README)]
OUR_COMMANDS = [words for words in COMMANDS if words[0].endswith("clozeworks")]


def verb_of(words: list[str]) -> tuple[str, list[str]]:
    """The verb of a command, and its arguments; a flow of `run --only` is a verb of its own."""
    length = 2 if " ".join(words[1:3]) in VERBS else 1
    verb, arguments = " ".join(words[1 : 1 + length]), words[1 + length :]
    if verb == "run" and "--only" in arguments:
        place = arguments.index("--only")
        verb, arguments = f"run --only {arguments[place + 1]}", arguments[:place] + arguments[place + 2 :]
    return verb, arguments


def module_of(verb: str) -> str:
    _, is_flow, flow = verb.partition("run --only ")
    return f"flows.{flow}" if is_flow else VERBS[verb].module


@pytest.fixture(scope="module")
def help_of() -> dict[str, str]:
    modules = sorted({module_of(verb_of(words)[0]) for words in OUR_COMMANDS if not words[1].startswith("-")})
    command = [sys.executable, "-W", "ignore", "-c", ASK_FOR_HELP, *modules]
    result = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False, timeout=600)
    assert result.returncode == 0, result.stderr
    told: dict[str, str] = json.loads(result.stdout.splitlines()[-1])
    return told


def test_the_page_has_commands() -> None:
    assert len(OUR_COMMANDS) > 12
    assert {verb_of(words)[0] for words in OUR_COMMANDS} >= {"run", "status", "deploy"}


def test_every_command_is_the_one_that_make_installs() -> None:
    assert [shlex.join(words) for words in OUR_COMMANDS if words[0] != COMMAND] == []


@pytest.mark.slow
@pytest.mark.parametrize("words", [words for words in OUR_COMMANDS if not words[1].startswith("-")], ids=shlex.join)
def test_a_command_parses_as_printed(words: list[str], help_of: dict[str, str]) -> None:
    verb, arguments = verb_of(words)
    known = set(re.findall(r"(?<![\w-])--[a-z][\w-]*", help_of[module_of(verb)]))
    flags = [word.partition("=")[0] for word in arguments if word.startswith("--")]
    assert [flag for flag in flags if flag not in known] == []
    recipes = [word for word in arguments if word.endswith(".toml")]
    overrides = [value for flag, value in itertools.pairwise(arguments) if flag == "--set"]
    for recipe in recipes:
        assert (REPOSITORY / recipe).is_file(), recipe
        if Path(recipe).parent.name == "studies":
            study = read_study(str(REPOSITORY / recipe), tuple(overrides))
            read_recipe(study.base, study.runs()[0].overrides)
        else:
            read_recipe(str(REPOSITORY / recipe), overrides)
    paths = [word for word in arguments if "/" in word and not word.startswith(("-", *OWN_FILES)) and "=" not in word]
    made = [f"workspaces/{Path(name).stem}" for name in os.listdir(REPOSITORY / "flows" / "recipes")]
    unknown = [
        path for path in paths if not (REPOSITORY / path).exists() and not any(path.startswith(each) for each in made)
    ]
    assert unknown == []


def test_every_target_of_make_exists() -> None:
    """In every page that names one."""
    pages = [path for path in REPOSITORY.rglob("*.md") if ".venv" not in path.parts and "build" not in path.parts]
    targets = set(re.findall(r"^([a-z-]+):", (REPOSITORY / "Makefile").read_text(), re.MULTILINE))
    named = {
        (path.name, target)
        for path in pages
        for target in re.findall(r"(?:^    |`)make ([a-z][a-z-]+)", path.read_text(), re.MULTILINE)
    }
    assert {target for _, target in named} >= {"demo", "test", "check"}
    assert {(page, target) for page, target in named if target not in targets} == set()


def test_models_that_the_pages_name_are_those_of_the_demo() -> None:
    recipe = read_recipe(str(REPOSITORY / "flows" / "recipes" / "demo.toml"))
    tasks = recipe.tables["finetuning"]["tasks"]
    assert {"demo-encoder", "demo-encoder-distilled", *(f"demo-{task}" for task in tasks)} == DEMO_MODELS
    for page in ("README.md", "flows/README.md", "flows/promote.py"):
        text = (REPOSITORY / page).read_text()
        named = set(re.findall(r"(?:models:/|clozeworks promote )(demo-[a-z-]+)", text))
        assert named <= DEMO_MODELS, page


def test_blocks_of_python_are_python() -> None:
    python = [block for block in blocks(README) if block.startswith("import ")]
    assert python
    for block in python:
        ast.parse(block)


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the commands run as printed: the tree, and a small finished workspace in the demo's place."""
    folder = tmp_path_factory.mktemp("checkout")
    for name in ("flows", "pipelines", "training", "README.md", "requirements.lock", "pyproject.toml"):
        (folder / name).symlink_to(REPOSITORY / name)
    (folder / ".venv").symlink_to(Path(sys.prefix))
    from tests.support.flows.finished_workspace import write_workspace

    from flows.parameters.requests import RunRequest
    from flows.report.facts import gather
    from flows.report.files import write_report

    recipe = str(REPOSITORY / "flows" / "recipes" / "demo.toml")
    whole = RunRequest(recipe=recipe, workspace=str(folder / DEMO)).read()
    with contextlib.redirect_stdout(io.StringIO()):
        write_report(whole, gather(whole, write_workspace(whole), "sqlite:///mlflow.db", None))
    return folder


CHEAP = [
    words for words in OUR_COMMANDS if verb_of(words)[0] in ("--help", "estimate", "status") and "--watch" not in words
]


@pytest.mark.parametrize("words", CHEAP, ids=shlex.join)
def test_a_cheap_command_runs_as_printed(words: list[str], checkout: Path) -> None:
    result = subprocess.run(words, cwd=checkout, capture_output=True, text=True, check=False, timeout=600)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip()
    assert "Traceback" not in result.stderr


def test_there_are_cheap_commands_and_the_report_lies_where_the_page_says(checkout: Path) -> None:
    assert len(CHEAP) >= 2
    (named,) = set(re.findall(r"`(workspaces/demo/report\.html)`", README))
    assert (checkout / named).read_text().startswith("<!doctype html>")


def test_placeholders_are_few() -> None:
    """What a reader has to fill in is a name after `promote`; everything else runs as it stands."""
    filled_in = [shlex.join(words) for words in COMMANDS if PLACEHOLDER.search(shlex.join(words))]
    assert filled_in == [f"{COMMAND} promote NAME --rollback"]
