"""GLUE's archives: their addresses and published checksums, and how to unpack them into the tasks' folders."""

from __future__ import annotations

import os
import shutil
import stat
import zipfile
import zlib
from dataclasses import dataclass

from pipelines.contract import storage
from pipelines.contract.errors import InputError
from training.settings.glue import Task

BASE_URL = "https://dl.fbaipublicfiles.com"

UNREADABLE_ZIP = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError)
"""Errors of zipfile for a damaged or encrypted file (RuntimeError), or an unknown compression."""

_BLOCK_BYTES = 1 << 20


@dataclass(frozen=True)
class Source:
    """A file to download: its path on the server, and its published SHA-256."""

    path: str
    sha256: str

    @property
    def name(self) -> str:
        return self.path.rsplit("/", 1)[-1]


_MRPC_TRAIN, _MRPC_TEST, _MRPC_DEV_IDS = "msr_paraphrase_train.txt", "msr_paraphrase_test.txt", "mrpc_dev_ids.tsv"

SOURCES: dict[str, tuple[Source, ...]] = {
    "cola": (Source("glue/data/CoLA.zip", "f212fcd832b8f7b435fb991f101abf89f96b933ab400603bf198960dfc32cbff"),),
    "sst-2": (Source("glue/data/SST-2.zip", "d67e16fb55739c1b32cdce9877596db1c127dc322d93c082281f64057c16deaa"),),
    "mrpc": (
        Source(
            f"senteval/senteval_data/{_MRPC_TRAIN}", "60a9b09084528f0673eedee2b69cb941920f0b8cd0eeccefc464a98768457f89"
        ),
        Source(
            f"senteval/senteval_data/{_MRPC_TEST}", "a04e271090879aaba6423d65b94950c089298587d9c084bf9cd7439bd785f784"
        ),
        Source(f"glue/data/{_MRPC_DEV_IDS}", "971d7767d81b997fd9060ade0ec23c4fc31cbb226a55d1bd4a1bac474eb81dc7"),
    ),
    "sts-b": (Source("glue/data/STS-B.zip", "e60a6393de5a8b5b9bac5020a1554b54e3691f9d600b775bd131e613ac179c85"),),
    "qqp": (Source("glue/data/QQP-clean.zip", "40e7c862c04eb26ee04b67fd900e76c45c6ba8e6d8fab4f8f1f8072a1a3fbae0"),),
    "mnli": (Source("glue/data/MNLI.zip", "e7c1d896d26ed6caf700110645df426cc2d8ebf02a5ab743d5a5c68ac1c83633"),),
    "qnli": (Source("glue/data/QNLIv2.zip", "e634e78627a29adaecd4f955359b22bf5e70f2cbd93b493f2d624138a0c0e5f5"),),
    "rte": (Source("glue/data/RTE.zip", "6bf86de103ecd335f3441bd43574d23fef87ecc695977a63b82d5efb206556ee"),),
    "wnli": (Source("glue/data/WNLI.zip", "ae0e8e4d16f4d46d4a0a566ec7ecceccfd3fbfaa4a7a4b4e02848c0f2561ac46"),),
    "ax": (Source("glue/data/AX.tsv", "0e13510b1bb14436ff7e2ee82338f0efb0133ecf2e73507a697dc210db3f05fd"),),
}
"""By task. The addresses are those of download_glue_data.py (nyu-mll/GLUE-baselines), whose last version has swapped
those of STS-B and QQP. The checksums are from two publications that recorded their own downloads and agree:
datasets/glue/dataset_infos.json of Hugging Face datasets 1.x, and url_checksums/glue.txt of TensorFlow Datasets, which
fetched the same bytes from an older address. The latter lacks QQP-clean.zip (it has an older QQP.zip)."""


def unpack(task: Task, archives: str, directory: str) -> list[str]:
    """Build a task's folder from its downloaded files.

    Args:
        task: one of SOURCES.
        archives: local directory with the downloads.
        directory: parent of the folder; existing files with the right bytes are not rewritten.

    Returns:
        Names of the files in the folder.

    Raises:
        InputError: an archive is damaged, unsafe, or lacks a file of the task.
    """
    folder = os.path.join(directory, task.folder)
    paths = [os.path.join(archives, source.name) for source in SOURCES[task.name]]
    if task.name == "mrpc":
        files = mrpc_files(*paths)
    elif paths[0].endswith(".zip"):
        return _extract(task, paths[0], folder)
    else:
        files = {task.test_files[0]: storage.read_bytes(paths[0])}
    for name, data in files.items():
        storage.write_bytes(os.path.join(folder, name), data)
    return list(files)


def _extract(task: Task, archive: str, folder: str) -> list[str]:
    """Extract the files directly in the archive's folder of the task; MNLI's has other formats in sub-folders."""
    try:
        with zipfile.ZipFile(archive) as opened:
            members = {}
            for info in opened.infolist():
                _require_safe(archive, info)
                parent, _, name = info.filename.rpartition("/")
                if parent == task.folder and name and not name.startswith("."):
                    members[name] = info
            for name in task.files:
                if name not in members:
                    raise InputError(f"{archive}: has no {task.folder}/{name}; is it GLUE's archive of {task.name}?")
            for name, info in members.items():
                path = os.path.join(folder, name)
                if not _has_bytes_of(path, info):
                    with opened.open(info) as source, storage.atomic_output(path) as target:
                        shutil.copyfileobj(source, target, _BLOCK_BYTES)
    except UNREADABLE_ZIP as error:
        raise InputError(f"{archive}: damaged archive ({error}); delete it and run the command again") from error
    return list(members)


def _require_safe(archive: str, info: zipfile.ZipInfo) -> None:
    parts = info.filename.replace("\\", "/").split("/")
    is_link = stat.S_ISLNK(info.external_attr >> 16)
    if not parts[0] or ":" in parts[0] or ".." in parts or is_link:
        raise InputError(
            f"{archive}: refused: its member {info.filename!r} "
            + ("is a link" if is_link else "points outside the folder")
        )


def _has_bytes_of(path: str, info: zipfile.ZipInfo) -> bool:
    if not os.path.isfile(path) or os.path.getsize(path) != info.file_size:
        return False
    checksum = 0
    with open(path, "rb") as stream:
        while block := stream.read(_BLOCK_BYTES):
            checksum = zlib.crc32(block, checksum)
    return checksum == info.CRC


def mrpc_files(train_path: str, test_path: str, dev_ids_path: str) -> dict[str, bytes]:
    """MRPC's three files from Microsoft's two texts and GLUE's list of development pairs.

    The result equals that of download_glue_data.py byte for byte. SentEval's texts are tokenized, Microsoft's are not.

    Raises:
        InputError: a row has another number of columns, or a development pair is not in the training text.
    """
    dev_ids = {tuple(row): number for number, row in _rows(dev_ids_path, 2)}
    header, *rows = _rows(train_path, 5)
    found = {tuple(row[1:3]) for _, row in rows}
    for pair, number in dev_ids.items():
        if pair not in found:
            raise InputError(f"{dev_ids_path}:{number}: pair {' '.join(pair)} is not in {train_path}")
    test_rows = [row for _, row in _rows(test_path, 5)][1:]
    tables = {
        "train.tsv": [header[1], *(row for _, row in rows if tuple(row[1:3]) not in dev_ids)],
        "dev.tsv": [header[1], *(row for _, row in rows if tuple(row[1:3]) in dev_ids)],
        "test.tsv": [
            ["index", "#1 ID", "#2 ID", "#1 String", "#2 String"],
            *([str(index), *row[1:]] for index, row in enumerate(test_rows)),
        ],
    }
    return {name: "".join("\t".join(row) + "\n" for row in table).encode() for name, table in tables.items()}


def _rows(path: str, width: int) -> list[tuple[int, list[str]]]:
    rows = []
    try:
        lines = storage.read_bytes(path).decode().removesuffix("\n").split("\n")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 at byte {error.start}; delete it and run the command again") from error
    for number, line in enumerate(lines, start=1):
        row = line.strip().split("\t")
        if len(row) != width:
            raise InputError(f"{path}:{number}: has {len(row)} columns; expected {width}")
        rows.append((number, row))
    return rows
