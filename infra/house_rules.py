"""Rules of this project for its images, compose file and manifests, in addition to their schemas.

Nothing listens beyond loopback, nothing runs as root, no secret is in a file, every image has a tag and a health
check. Each function takes a parsed file and returns its faults, one line each.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

Document = dict[str, Any]

_SECRET_NAME = re.compile(r"PASSWORD|SECRET|TOKEN|ACCESS_KEY|AUTH|CREDENTIAL|API_KEY", re.IGNORECASE)
_REQUIRED_VARIABLE = re.compile(r"^\$\{[A-Z_]+:\?[^}]*}$")
_PASSWORD_IN_URL = re.compile(r"://[^/@\s]*:[^/@\s]+@")
_LOOPBACK = "127.0.0.1"
_EXIT_INTERRUPTED = 75


@dataclass
class Stage:
    """One FROM of a Dockerfile with its instructions."""

    name: str
    parent: str
    instructions: list[tuple[str, str]] = field(default_factory=list)

    def last(self, keyword: str) -> str | None:
        values = [value for word, value in self.instructions if word == keyword]
        return values[-1] if values else None


def instructions_of(text: str) -> list[tuple[str, str]]:
    """A Dockerfile's instructions, with joined lines and without comments."""
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", " ", "\n".join(lines))
    pairs = (line.strip().split(None, 1) for line in joined.splitlines() if line.strip())
    return [(pair[0].upper(), pair[1] if len(pair) > 1 else "") for pair in pairs]


def dockerfile_problems(text: str) -> Iterator[str]:
    """Faults of a Dockerfile."""
    arguments: dict[str, str] = {}
    stages: dict[str, Stage] = {}
    current: Stage | None = None
    for keyword, value in instructions_of(text):
        if keyword == "FROM":
            words = value.split()
            name = words[2] if len(words) == 3 and words[1].upper() == "AS" else f"stage {len(stages)}"
            base = re.sub(r"\$\{?(\w+)}?", lambda match: arguments.get(match[1], match[0]), words[0])
            if base not in stages and (problem := _image_problem(base)):
                yield problem
            current = stages[name] = Stage(name, base)
            continue
        if keyword in ("ARG", "ENV"):
            for name, default in re.findall(r"(\w+)=(\S*)", value):
                arguments[name] = default
                if _SECRET_NAME.search(name):
                    yield f"{keyword} {name}: a secret would stay in the image; give it at run time"
        if keyword == "RUN" and re.search(r"\bpip (install|sync)\b", value):
            for command in re.split(r"&&|;", value):
                if re.search(r"\bpip (install|sync)\b", command) and not re.search(
                    "--require-hashes|--no-deps", command
                ):
                    yield f"{command.strip()}: packages come from requirements.lock; add --require-hashes"
        if current is not None:
            current.instructions.append((keyword, value))
    for stage in stages.values():
        if stage.last("ENTRYPOINT") is None:
            continue
        user = stage.last("USER") or ""
        if not re.fullmatch(r"[1-9]\d*(:[1-9]\d*)?", user):
            yield f"{stage.name}: USER {user or 'root'}: give a number other than 0, which Kubernetes can check"
        if stage.last("HEALTHCHECK") is None:
            yield f"{stage.name}: no HEALTHCHECK (write HEALTHCHECK NONE if it needs none)"


def compose_problems(document: Document) -> Iterator[str]:
    """Faults of a compose file that its schema allows."""
    for name, service in document["services"].items():
        if "build" not in service and (problem := _image_problem(service.get("image", ""))):
            yield f"{name}: {problem}"
        for port in service.get("ports", []):
            host = port.get("host_ip") if isinstance(port, dict) else str(port).rpartition(":")[0].rpartition(":")[0]
            if host != _LOOPBACK:
                yield f"{name}: port {port}: publish it as {_LOOPBACK}:{port}"
        if service.get("network_mode") == "host" or service.get("privileged"):
            yield f"{name}: network_mode host and privileged expose the machine"
        if "build" not in service and "healthcheck" not in service:
            yield f"{name}: no healthcheck"
        environment = service.get("environment", {})
        if isinstance(environment, list):
            environment = dict(item.partition("=")[::2] for item in environment)
        for variable, value in environment.items():
            yield from _secret_problems(name, variable, None if value is None else str(value))


def _secret_problems(where: str, variable: str, value: str | None) -> Iterator[str]:
    if _SECRET_NAME.search(variable) and not (value and _REQUIRED_VARIABLE.match(value)):
        yield f"{where}: {variable}: take it from the environment, without a default: ${{NAME:?what to do}}"
    if value and _PASSWORD_IN_URL.search(value):
        yield f"{where}: {variable}: an address with a password in it is logged and shown by `ps`"


def _image_problem(image: str) -> str | None:
    tag = image.rpartition("/")[2].partition("@")[0].partition(":")[2]
    if "@sha256:" in image or (tag and tag != "latest"):
        return None
    return f"image {image or 'none'}: name a version, by tag or digest"


def kubernetes_problems(document: Document) -> Iterator[str]:
    """Faults of a manifest that its schema allows."""
    kind, name = document["kind"], document["metadata"]["name"]
    where = f"{kind} {name}"
    if kind == "Secret":
        yield f"{where}: secrets are made with kubectl, not kept in a file"
    if kind == "Service" and document["spec"].get("type", "ClusterIP") != "ClusterIP":
        yield f"{where}: type {document['spec']['type']} opens it to the outside"
    template = document.get("spec", {}).get("template")
    if template:
        yield from _pod_problems(where, template["spec"])
    if kind == "Job":
        yield from _job_problems(where, document["spec"])


def flink_problems(settings: Document) -> Iterator[str]:
    """Faults of Flink's settings for a cluster on one machine."""
    for name in ("jobmanager.bind-host", "taskmanager.bind-host", "rest.bind-address"):
        if settings.get(name) != _LOOPBACK:
            yield f"{name}: listen on {_LOOPBACK}: any program that reaches it can run code"
    for name in ("taskmanager.memory.network", "taskmanager.memory.jvm-overhead"):
        # Flink's own scripts would compute one size within the limits.
        if settings.get(f"{name}.min") != settings.get(f"{name}.max") or f"{name}.min" not in settings:
            yield f"{name}: set min and max to one size: task managers are started without Flink's scripts"


def _pod_problems(where: str, pod: Document) -> Iterator[str]:
    security = pod.get("securityContext", {})
    if security.get("runAsNonRoot") is not True or not security.get("runAsUser"):
        yield f"{where}: securityContext: set runAsNonRoot: true and a runAsUser other than 0"
    for key in ("hostNetwork", "hostPID", "hostIPC"):
        if pod.get(key):
            yield f"{where}: {key} exposes the node"
    if any("hostPath" in volume for volume in pod.get("volumes", [])):
        yield f"{where}: hostPath exposes the node"
    for container in pod["containers"]:
        inside = f"{where}: {container['name']}"
        if problem := _image_problem(container["image"]):
            yield f"{inside}: {problem}"
        own = container.get("securityContext", {})
        if own.get("allowPrivilegeEscalation") is not False or own.get("privileged") or own.get("runAsUser") == 0:
            yield f"{inside}: securityContext: set allowPrivilegeEscalation: false, and no privileges"
        if any("hostPort" in port for port in container.get("ports", [])):
            yield f"{inside}: hostPort opens the node"
        if not {"livenessProbe", "readinessProbe", "startupProbe"} & container.keys():
            yield f"{inside}: no probe"
        for variable in container.get("env", []):
            value = variable.get("value", "")
            if _SECRET_NAME.search(variable["name"]) and "secretKeyRef" not in variable.get("valueFrom", {}):
                yield f"{inside}: {variable['name']}: take it from a secret (valueFrom.secretKeyRef)"
            if _PASSWORD_IN_URL.search(value):
                yield f"{inside}: {variable['name']}: an address with a password in it; use a secret"


def _job_problems(where: str, job: Document) -> Iterator[str]:
    """Faults of a Job in what the training entry point relies on."""
    container = job["template"]["spec"]["containers"][0]
    environment = {variable["name"]: variable.get("value") for variable in container.get("env", [])}
    sizes = (job.get("completions"), job.get("parallelism"), int(environment.get("NODES") or 1))
    if len(set(sizes)) != 1:
        yield f"{where}: completions, parallelism and NODES are {sizes}; all nodes train together, so make them equal"
    gpus = container.get("resources", {}).get("limits", {}).get("nvidia.com/gpu")
    if str(gpus) != (environment.get("PROCESSES_PER_NODE") or "1"):
        yield f"{where}: {gpus} GPUs a pod, but PROCESSES_PER_NODE is {environment.get('PROCESSES_PER_NODE')}"
    rules = job.get("podFailurePolicy", {}).get("rules", [])
    ignored = [rule["onExitCodes"]["values"] for rule in rules if rule["action"] == "Ignore" and "onExitCodes" in rule]
    if [_EXIT_INTERRUPTED] not in ignored:
        yield f"{where}: podFailurePolicy: ignore exit code {_EXIT_INTERRUPTED}: a checkpoint is written"
