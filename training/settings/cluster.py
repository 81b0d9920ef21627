"""Recipe section `[pretraining.cluster]`: the nodes on which ranks run; light to import, without torch."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import StringConstraints, model_validator

from pipelines.contract.bounds import Bounded, Text, UserPath
from pipelines.contract.credentials import is_credential
from pipelines.contract.recipe import Section

Nodes = Annotated[int, Bounded(1, 10_000, "it counts machines")]
VariableName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$", max_length=256)]
ObjectName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$", max_length=253)]
LeaseSeconds = Annotated[int, Bounded(30, 2_592_000, "the flow renews it ten times in this time, and a month is long")]


class KubernetesConfig(Section):
    """`[pretraining.cluster.kubernetes]`: the Job of kind `kubernetes`, where it differs from its template."""

    namespace: ObjectName = "clozeworks"
    """Namespace of the Job; it must exist (`infra/kubernetes`)."""
    image: Text | None = None
    """Image of the ranks, built by `infra/docker/training.Dockerfile`; None is the template's."""
    context: Text | None = None
    """Context of kubeconfig; None is the current one, or in a pod its service account."""
    template: UserPath | None = None
    """Another file with a Service and a Job; None is `flows/kubernetes_jobs/training_job.yaml`."""
    gpu_resource: Text = "nvidia.com/gpu"
    """Resource of which a pod requests `ranks`; `none` requests none."""
    secrets: tuple[ObjectName, ...] = ()
    """Secrets whose keys become environment variables: credentials of the object store."""
    volume_claim: ObjectName = "workspace"
    """Claim of the shared volume; not used with a workspace in an object store."""
    lease_seconds: LeaseSeconds = 900
    """Time after which the Job stops, with a checkpoint, when its flow no longer answers; a retried flow adopts it
    before."""


class ClusterConfig(Section):
    """`[pretraining.cluster]`: where a flow starts the ranks of pre-training, distillation and fine-tuning.

    `pretraining.ranks` and `finetuning.ranks` count the processes of each node.
    """

    kind: Literal["none", "hostfile", "slurm", "kubernetes"] = "none"
    """`none`: this machine; `hostfile`: its nodes over ssh; `slurm`: srun; `kubernetes`: an indexed Job."""
    hostfile: UserPath | None = None
    """Of kind `hostfile`: DeepSpeed's file of nodes, a line `host slots=N` for each; the first one has rank 0."""
    nodes: Nodes = 1
    """Of kinds `slurm` and `kubernetes`: number of nodes to request."""
    options: tuple[Text, ...] = ()
    """Further options of ssh (`-F`, `ssh_config`) or srun (`--partition=gpu`)."""
    python: UserPath | None = None
    """Python on the nodes, with the same version of this project; None is the path of the flow's own."""
    master_address: Text | None = None
    """Address at which the other nodes reach rank 0; None is the one at which the first node was reached."""
    environment: tuple[VariableName, ...] = ()
    """Names of further environment variables to pass to the ranks; `flows/README.md` has those that always are."""
    kubernetes: KubernetesConfig = KubernetesConfig()

    @property
    def requests_ranks(self) -> bool:
        """Whether the number of ranks of a node is requested, so that it cannot be left to the node."""
        return self.kind in ("slurm", "kubernetes")

    @property
    def num_nodes(self) -> int | None:
        """Nodes of a run; None if a hostfile counts them."""
        return None if self.kind == "hostfile" else self.nodes

    @model_validator(mode="after")
    def _settings_are_read_by_the_kind(self) -> ClusterConfig:
        if self.kind == "hostfile" and self.hostfile is None:
            raise ValueError("kind = 'hostfile' needs hostfile; name a file with lines `host slots=N`")
        for name, kinds in _READ_BY.items():
            value = getattr(self, name)
            if self.kind not in kinds and value != type(self).model_fields[name].default:
                shown = list(value) if isinstance(value, tuple) else value
                raise ValueError(
                    f"{name} = {shown!r} with kind = {self.kind!r}, which does not read it; remove it, or set kind = "
                    + " or ".join(map(repr, kinds))
                )
        if self.kind == "kubernetes" and (secret := [name for name in self.environment if is_credential(name)]):
            raise ValueError(
                f"environment names {', '.join(secret)} with kind = 'kubernetes': values of credentials are not "
                "written into a Job; make them keys of a secret, and name it in kubernetes.secrets"
            )
        return self


_READ_BY = {
    "hostfile": ("hostfile",),
    "nodes": ("slurm", "kubernetes"),
    "options": ("hostfile", "slurm"),
    "python": ("hostfile", "slurm"),
    "master_address": ("hostfile", "slurm"),
}
"""Settings that only some kinds read, and those kinds. `environment` is no contradiction where all of it is passed."""
