"""Actions of an operator in any order: no completed result is lost, and no wrong one is marked as complete.

Random sequences on one workspace: run a stage with old or new settings, restart it, kill or interrupt it at a random
change of the file system, fill the disk, damage a file, run two at once. A small model says what may exist afterwards.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test
from tests.support.faults.operated_workspace import (
    REFUSED,
    STAGES,
    TRAINING_STEPS,
    Fault,
    OperatedWorkspace,
    state_of,
    trained,
)
from tests.support.faults.scale import rounds
from tests.support.preprocessing.small_run import write_corpus

from pipelines.contract.manifest import read_manifest
from pipelines.results.kept import kept_directories
from pipelines.results.locks import workspace_lock

SEQUENCES = rounds(6, 200)
ACTIONS = 8

pytestmark = pytest.mark.timeout(rounds(600, 3600))

Result = tuple[str, str]
"""Identity of a result: its key's digest, and the digest of its bytes."""

oracles: dict[str, dict[str, bytes]] = {}
"""Bytes of undisturbed builds by key; the keys of equal inputs are equal in every workspace."""


class Operator(RuleBasedStateMachine):
    """The model: what has been completed so far, and which results have been damaged since."""

    corpus: Path

    def __init__(self) -> None:
        super().__init__()
        self.root = Path(tempfile.mkdtemp())
        self.workspace = OperatedWorkspace(self.root, self.corpus)
        self.settings = dict.fromkeys(STAGES, 1)
        self.completed: dict[str, list[str]] = {stage: [] for stage in STAGES}
        self.attempted: dict[str, set[str]] = {stage: set() for stage in STAGES}
        self.damaged: dict[str, set[str]] = {}

    def teardown(self) -> None:
        shutil.rmtree(self.root)

    def act(self, stage: str, restart: bool = False, fault: Fault | None = None) -> int:
        directory = self.workspace.directory(stage)
        key = self.workspace.key(stage, self.settings)
        before = read_manifest(directory)
        was_complete = key.difference(directory) is None
        code = self.workspace.act(stage, self.settings, restart, fault)
        self.attempted[stage].add(key.digest)
        is_built = read_manifest(directory) != before or (restart and code == 0)
        if is_built:
            # Damaged files have been replaced by bytes of a new build, or by a kept result.
            self.damaged.pop(stage, None)
        if code == 0:
            assert key.difference(directory) is None, "a stage that has ended well is complete"
            self.completed[stage].append(key.digest)
            if not was_complete or restart:
                read = {file for before in STAGES[: STAGES.index(stage)][-1:] for file in self.damaged.get(before, ())}
                if stage == "vocabulary":
                    # Held-out documents and rejects are not read.
                    read = {file for file in read if file.startswith("train-")}
                assert not read, "built from what its manifest does not describe"
        return code

    @rule(stage=st.sampled_from(STAGES))
    def run(self, stage: str) -> None:
        code = self.act(stage)
        assert code in (0, REFUSED)

    @rule(stage=st.sampled_from(STAGES))
    def restart(self, stage: str) -> None:
        assert self.act(stage, restart=True) in (0, REFUSED)

    @rule(stage=st.sampled_from(STAGES), value=st.sampled_from((1, 2)))
    def change_a_setting(self, stage: str, value: int) -> None:
        self.settings[stage] = value

    @rule(
        stage=st.sampled_from(STAGES),
        kind=st.sampled_from(("kill", "interrupt", "full disk")),
        at_change=st.integers(1, 40),
        restart=st.booleans(),
    )
    def run_until_a_fault(self, stage: str, kind: str, at_change: int, restart: bool) -> None:
        self.act(stage, restart, Fault(kind, at_change))

    @rule(stage=st.sampled_from(STAGES), place=st.floats(0, 1, exclude_max=True))
    @precondition(lambda self: any(self.completed.values()))
    def damage(self, stage: str, place: float) -> None:
        if file := self.workspace.damage(stage, place):
            self.damaged.setdefault(stage, set()).add(file)

    @rule(stage=st.sampled_from(STAGES))
    def run_beside_another(self, stage: str) -> None:
        key = self.workspace.key(stage, self.settings)
        is_complete = key.difference(self.workspace.directory(stage)) is None
        with workspace_lock(self.workspace.path, stage):
            code = self.act(stage)
        # A complete result needs no lock; an interrupted exchange does.
        assert code in ((0, REFUSED) if is_complete else (REFUSED,))

    @invariant()
    def nothing_completed_is_lost(self) -> None:
        for stage in STAGES:
            if not self.completed[stage]:
                continue
            directory = self.workspace.directory(stage)
            manifest = read_manifest(directory)
            assert manifest is not None, f"{stage} was complete, and its result is gone"
            there = {self.digest_of(stage, directory)}
            if stage == "pretraining":
                there |= {
                    self.digest_of(stage, kept)
                    for kept in kept_directories(directory)
                    if read_manifest(kept) is not None
                }
                assert {*self.completed[stage]} <= there, "a finished training is gone"
            else:
                assert there <= {self.completed[stage][-1], *self.attempted[stage]}

    @invariant()
    def nothing_wrong_is_complete(self) -> None:
        for stage in STAGES:
            directory = self.workspace.directory(stage)
            manifest = read_manifest(directory)
            if manifest is None or stage in self.damaged:
                continue
            assert self.workspace.contents(directory) == self.oracle(stage, directory), stage

    def digest_of(self, stage: str, directory: str) -> str:
        from pipelines.contract.manifest import StageKey

        manifest = read_manifest(directory)
        assert manifest is not None
        return StageKey(stage, manifest.stage_version, manifest.config, manifest.inputs).digest

    def oracle(self, stage: str, directory: str) -> dict[str, bytes]:
        """The bytes that an undisturbed run produces for a result's own key."""
        digest = self.digest_of(stage, directory)
        if digest not in oracles:
            manifest = read_manifest(directory)
            assert manifest is not None
            if stage == "pretraining":
                from pipelines.contract.manifest import StageKey

                state = state_of(StageKey(stage, 1, manifest.config, manifest.inputs))
                for _ in range(TRAINING_STEPS):
                    state = trained(state)
                oracles[digest] = {"encoder/weights": state.encode()}
            else:
                oracles[digest] = self.built_undisturbed(stage, digest)
        return oracles[digest]

    def built_undisturbed(self, stage: str, digest: str) -> dict[str, bytes]:
        for documents in (1, 2):
            for vocabulary in (1, 2):
                with tempfile.TemporaryDirectory() as directory:
                    other = OperatedWorkspace(Path(directory), self.corpus)
                    chosen = {"documents": documents, "vocabulary": vocabulary, "pretraining": 1}
                    assert other.act("documents", chosen) == 0
                    if stage == "vocabulary":
                        assert other.act("vocabulary", chosen) == 0
                    if self.digest_of(stage, other.directory(stage)) == digest:
                        return other.contents(other.directory(stage))
        raise AssertionError(f"{stage}: no settings give this result")


@pytest.mark.slow
def test_no_sequence_loses_a_result_or_calls_a_wrong_one_complete(tmp_path: Path) -> None:
    write_corpus(tmp_path / "corpus", num_documents=8)
    Operator.corpus = tmp_path / "corpus"
    run_state_machine_as_test(  # type: ignore[no-untyped-call]
        Operator,
        settings=settings(
            max_examples=SEQUENCES,
            stateful_step_count=ACTIONS,
            deadline=None,
            derandomize=True,
            database=None,
            print_blob=False,
            suppress_health_check=list(HealthCheck),
        ),
    )
