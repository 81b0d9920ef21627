"""Check the files in infra/ with standard tools and by this project's rules: `python infra/check_infra.py`.

Scripts by shellcheck, Dockerfiles by hadolint, the compose file by Compose's schema, manifests by Kubernetes' schemas
of an old and a new version, unknown keys refused; Flink's settings by our rules alone. All tools are installed with the
extra `dev` and need no network. One line per file; exit code 1 if one has a fault, 2 if a tool is missing.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml
from house_rules import compose_problems, dockerfile_problems, flink_problems, kubernetes_problems

KUBERNETES_VERSIONS = ("1.31", "1.37")
"""The oldest with a stable podFailurePolicy for Jobs, and the newest whose schemas are installed."""
KUSTOMIZATION = "kustomization.yaml"
TEMPLATES = "flows/kubernetes_jobs"


class UniqueKeysLoader(yaml.SafeLoader):
    """Refuses duplicate keys, of which PyYAML silently takes the last."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.YAMLError(f"line {node.start_mark.line + 1}: key {key!r} occurs twice")
        return super().construct_mapping(node, deep)


def documents_of(path: Path) -> list[dict[str, Any]]:
    """The YAML documents of a file, without empty ones."""
    with path.open(encoding="utf-8") as stream:
        return [document for document in yaml.load_all(stream, Loader=UniqueKeysLoader) if document]


def tool_problems(*command: str) -> Iterator[str]:
    """Run one of this environment's tools; if its exit code is not 0, every line that it prints is a fault."""
    program = Path(sys.executable).parent / command[0]
    result = subprocess.run([str(program), *command[1:]], capture_output=True, text=True, check=False)  # noqa: S603  # no shell
    if result.returncode:
        lines = [line.strip() for line in (result.stdout + result.stderr).splitlines() if line.strip()]
        yield from lines or [f"{command[0]} ended with exit code {result.returncode}"]


def script_faults(path: Path) -> Iterator[str]:
    yield from tool_problems("shellcheck", "--format=gcc", "--enable=check-set-e-suppressed", str(path))
    if not os.access(path, os.X_OK):
        yield "is not executable"


def dockerfile_faults(path: Path) -> Iterator[str]:
    yield from tool_problems("hadolint", "--no-color", "--failure-threshold", "style", str(path))
    yield from dockerfile_problems(path.read_text(encoding="utf-8"))


def compose_faults(path: Path) -> Iterator[str]:
    documents = documents_of(path)
    schema = list(tool_problems("check-jsonschema", "--builtin-schema", "vendor.compose-spec", str(path)))
    yield from schema
    if not schema:
        yield from compose_problems(documents[0])


def kubernetes_faults(path: Path) -> Iterator[str]:
    import kubernetes_validate  # takes a second, for a hundred megabytes of schemas

    if path.name == KUSTOMIZATION:
        listed = set(documents_of(path)[0]["resources"])
        there = {other.name for other in path.parent.glob("*.yaml")} - {KUSTOMIZATION}
        yield from (f"resources: {name} is not in both the list and the folder" for name in sorted(listed ^ there))
        return
    for document in documents_of(path):
        try:
            for version in KUBERNETES_VERSIONS:
                kubernetes_validate.validate(document, version, strict=True)
        except kubernetes_validate.ValidationError as error:
            place = ".".join(str(part) for part in error.path)
            yield f"{document['kind']}: {place}: {error.message} (Kubernetes {error.version})"
        except kubernetes_validate.SchemaNotFoundError as error:
            yield error.message
        else:
            yield from kubernetes_problems(document)


def flink_faults(path: Path) -> Iterator[str]:
    yield from flink_problems(documents_of(path)[0])


Check = Callable[[Path], Iterator[str]]


def checks_in(root: Path) -> list[tuple[Path, str, Check]]:
    """Every file to check, the name of its check, and the check."""
    infra = root / "infra"
    scripts = [*sorted(infra.rglob("*.sh")), *([root / ".ci" / "run"] if (root / ".ci" / "run").exists() else [])]
    dockerfiles = sorted([*infra.rglob("Dockerfile"), *infra.rglob("*.Dockerfile")])
    return [
        *((path, "shellcheck", script_faults) for path in scripts),
        *((path, "hadolint", dockerfile_faults) for path in dockerfiles),
        *((path, "Flink's settings", flink_faults) for path in sorted(infra.rglob("flink-conf.yaml"))),
        *((path, "compose schema", compose_faults) for path in sorted(infra.glob("compose*.yaml"))),
        *(
            (path, "kubernetes schemas", kubernetes_faults)
            for path in (*sorted((infra / "kubernetes").glob("*.yaml")), *sorted((root / TEMPLATES).glob("*.yaml")))
        ),
    ]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=Path(__file__).resolve().parent.parent, help="another checkout")
    root = parser.parse_args(arguments).root
    checks = checks_in(root)
    if not checks:
        print(f"error: {root}: no infra/ with files to check", file=sys.stderr)
        return 2
    faulty = 0
    for path, kind, check in checks:
        try:
            faults = list(check(path))
        except yaml.YAMLError as error:
            faults = [" ".join(str(error).split())]
        except FileNotFoundError as error:
            print(f"error: {error.filename}: not installed; run make setup (extra dev)", file=sys.stderr)
            return 2
        print(f"{path.relative_to(root)}: {kind}: {'ok' if not faults else f'{len(faults)} faults'}")
        for fault in faults:
            print(f"    {fault}")
        faulty += bool(faults)
    return 1 if faulty else 0


if __name__ == "__main__":
    sys.exit(main())
