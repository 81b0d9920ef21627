"""Open the file system of a URI: time-outs, credentials from the environment, one connection for each process."""

from __future__ import annotations

import os
import re
import threading
import urllib.parse

import pyarrow as pa
from pyarrow import fs

from pipelines.stores.patient_filesystem import PatientHandler, StoreWays

_CONNECT_SECONDS, _ANSWER_SECONDS = 10.0, 30.0
_ATTEMPTS = 2
"""Of Arrow's client for one request; after them this project's patience begins."""
_S3_PARAMETERS = {"region", "scheme", "endpoint_override", "allow_bucket_creation", "allow_bucket_deletion"}
_URI = re.compile(r"[A-Za-z0-9._~!$&'()*+,;=:@/%?-]+")
_UNLIMITED = 1 << 62
_S3 = StoreWays(replaces_whole=True, most_copied_bytes=5_000_000_000)  # CopyObject
_GCS = StoreWays(replaces_whole=True, most_copied_bytes=_UNLIMITED)
_AZURE = StoreWays(replaces_whole=False, most_copied_bytes=256 << 20)  # Copy Blob From URL; a new stream empties a blob
_WAYS = {"s3": _S3, "gs": _GCS, "gcs": _GCS, **dict.fromkeys(("az", "abfs", "abfss"), _AZURE)}
_FILES = StoreWays(replaces_whole=False, most_copied_bytes=_UNLIMITED)
"""Of other schemes, such as hdfs: a real directory tree, in which a file is renamed."""
_ENVIRONMENT = ("AWS_", "AZURE_", "GOOGLE_", "CLOUD_STORAGE_")

_opened: dict[tuple[object, ...], tuple[PatientHandler, fs.FileSystem]] = {}
_guard = threading.Lock()


def open_store(uri: str) -> tuple[fs.FileSystem, str]:
    """The file system of a URI with a scheme other than `file`, and the path inside it.

    Raises:
        ValueError: Arrow cannot open it.
        OSError: Arrow cannot open it, or the store refuses it.
    """
    if not _URI.fullmatch(uri):
        refused: tuple[fs.FileSystem, str] = fs.FileSystem.from_uri(uri)
        return refused
    place, _, query = uri.partition("?")
    scheme, _, rest = place.partition("://")
    host = rest.partition("/")[0]
    environment = tuple(sorted(item for item in os.environ.items() if item[0].startswith(_ENVIRONMENT)))
    key = (os.getpid(), scheme, host, query, environment)
    with _guard:
        if key not in _opened:
            handler = PatientHandler(
                f"{scheme}://{host.rpartition('@')[2]}", lambda: _connected(uri)[0], _WAYS.get(scheme, _FILES)
            )
            _opened[key] = handler, fs.PyFileSystem(handler)
        return _opened[key][1], _path_in(scheme, uri, rest)


def handler_of(filesystem: fs.FileSystem) -> PatientHandler | None:
    """The handler of a store's file system; None for a local one."""
    handler = filesystem.handler if isinstance(filesystem, fs.PyFileSystem) else None
    return handler if isinstance(handler, PatientHandler) else None


def _path_in(scheme: str, uri: str, rest: str) -> str:
    if scheme in ("s3", "gs", "gcs", "az"):
        return urllib.parse.unquote(rest.rpartition("@")[2] if "@" in rest.partition("/")[0] else rest).rstrip("/")
    return _connected(uri)[1]


def _connected(uri: str) -> tuple[fs.FileSystem, str]:
    scheme, _, rest = uri.partition("://")
    if scheme == "az":
        return _azure(), rest
    parts = urllib.parse.urlsplit(uri)
    parameters = dict(urllib.parse.parse_qsl(parts.query, keep_blank_values=True))
    if scheme in ("gs", "gcs") and "retry_limit_seconds" not in parameters:
        # Its client repeats a request for 15 minutes by itself, and says nothing.
        uri += f"{'&' if parts.query else '?'}retry_limit_seconds={_ANSWER_SECONDS:g}"
    is_plain = "@" not in parts.netloc and parts.netloc and parameters.keys() <= _S3_PARAMETERS
    if scheme != "s3" or not is_plain:
        found: tuple[fs.FileSystem, str] = fs.FileSystem.from_uri(uri)
        return found
    endpoint = (
        parameters.get("endpoint_override")
        or os.environ.get("AWS_ENDPOINT_URL_S3")
        or os.environ.get("AWS_ENDPOINT_URL")
    )
    region = parameters.get("region") or os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    if region is None and endpoint is None:
        region = fs.resolve_s3_region(parts.netloc)
    filesystem = fs.S3FileSystem(
        region=region,
        endpoint_override=endpoint,
        scheme=parameters.get("scheme"),
        allow_bucket_creation=parameters.get("allow_bucket_creation") == "true",
        allow_bucket_deletion=parameters.get("allow_bucket_deletion") == "true",
        connect_timeout=_CONNECT_SECONDS,
        request_timeout=_ANSWER_SECONDS,
        retry_strategy=fs.AwsStandardS3RetryStrategy(max_attempts=_ATTEMPTS),
        allow_delayed_open=True,
    )
    return filesystem, parts.netloc + parts.path


def _azure() -> fs.FileSystem:
    """Azure's store, by the environment variables of Azure's own tools."""
    account = os.environ.get("AZURE_STORAGE_ACCOUNT")
    if not account:
        raise pa.ArrowInvalid("set AZURE_STORAGE_ACCOUNT, and AZURE_STORAGE_KEY or AZURE_STORAGE_SAS_TOKEN")
    return fs.AzureFileSystem(
        account,
        account_key=os.environ.get("AZURE_STORAGE_KEY"),
        sas_token=os.environ.get("AZURE_STORAGE_SAS_TOKEN"),
        blob_storage_authority=os.environ.get("AZURE_STORAGE_BLOB_AUTHORITY"),
        dfs_storage_authority=os.environ.get("AZURE_STORAGE_DFS_AUTHORITY"),
        blob_storage_scheme=os.environ.get("AZURE_STORAGE_SCHEME"),
        dfs_storage_scheme=os.environ.get("AZURE_STORAGE_SCHEME"),
    )
