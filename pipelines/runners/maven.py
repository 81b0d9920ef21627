"""Fetch the Java side of a runner with Maven, once, into the user's cache."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from typing import Final

from pipelines.contract.errors import InputError

TESTED_BEAM_VERSION: Final = "2.56.0"
"""Newest version of Beam's Java side that could be fetched completely."""
FOLDER: Final = os.path.join(os.path.dirname(os.path.abspath(__file__)), "maven")
"""One pom for each runner, and the driver's log4j2.properties."""
WITH_CLUSTER: Final = "test"
"""Maven's name for a class path with the cluster's own software, which a pom gives the scope `provided`."""
WITHOUT_CLUSTER: Final = "runtime"

_FETCH_SECONDS = 1200.0


class JavaUnavailableError(InputError):
    """The Java side of a runner cannot be had here; the message gives the cause and the remedy."""


def cache_directory(runner: str) -> str:
    """The cache of a runner's jars: in $XDG_CACHE_HOME, by default ~/.cache."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return os.path.join(base, "clozeworks", runner)


def fetch_jars(runner: str, scope: str, beam_version: str = TESTED_BEAM_VERSION) -> str:
    """Fetch the class path of a runner's pom, once; return its directory.

    Args:
        runner: name of the pom in `FOLDER`, such as `spark`.
        scope: `WITH_CLUSTER` or `WITHOUT_CLUSTER`.
        beam_version: of Beam's Java side, which need not be that of its Python side.

    Raises:
        JavaUnavailableError: no Java or Maven here, or Maven cannot get the jars.
    """
    pom = os.path.join(FOLDER, f"{runner}.xml")
    with open(pom, "rb") as stream:
        digest = hashlib.sha256(stream.read()).hexdigest()[:12]
    cache = cache_directory(runner)
    target = os.path.join(cache, f"{scope}-{beam_version}-{digest}")
    require_program("java", "install a JDK (17 or 11)")
    if os.path.isdir(target):
        return target
    require_program("mvn", "install Maven, which fetches the jars once")
    os.makedirs(cache, exist_ok=True)
    print(f"{runner}: fetching Beam's Java side with Maven into {cache}", file=sys.stderr, flush=True)
    with tempfile.TemporaryDirectory(dir=cache) as scratch:
        command = ["mvn", "--batch-mode", "--quiet", f"--file={pom}", f"-Dbeam.version={beam_version}"]
        command += ["dependency:copy-dependencies", f"-DincludeScope={scope}", f"-DoutputDirectory={scratch}/jars"]
        try:
            result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_FETCH_SECONDS)  # noqa: S603  # no shell
        except subprocess.TimeoutExpired as error:
            raise JavaUnavailableError(f"Maven did not get the jars in {_FETCH_SECONDS:.0f} s; try again") from error
        if result.returncode:
            lines = [line for line in result.stdout.splitlines() if "ERROR" in line]
            reason = (lines or ["no reason given"])[0]
            raise JavaUnavailableError(f"Maven cannot get Beam {beam_version} for {runner}: {reason}")
        try:
            os.rename(f"{scratch}/jars", target)
        except OSError:
            # Another process was faster.
            if not os.path.isdir(target):
                raise
    return target


def require_program(name: str, remedy: str) -> str:
    """The path of a program.

    Raises:
        JavaUnavailableError: it is not on the PATH.
    """
    path = shutil.which(name)
    if path is None:
        raise JavaUnavailableError(f"no {name} on the PATH: {remedy}")
    return path
