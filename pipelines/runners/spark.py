"""The runner `spark`: a job as an application of a cluster, through spark-submit, or on a job server of Beam.

The driver is a child process of the job, in client mode: its log is part of the job's output, and its end is the end of
the application on the cluster.
"""

from __future__ import annotations

import glob
import os
import shutil
import subprocess
import sys
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions, StandardOptions
from apache_beam.runners.portability.portable_runner import JobServiceHandle, PortableRunner
from apache_beam.runners.runner import PipelineResult, PipelineState

from pipelines.jobs.beam_errors import first_cause
from pipelines.jobs.runner import Job
from pipelines.runners import maven, portable
from pipelines.runners.ending import Construct, run_on_cluster
from pipelines.runners.spark_jar import job_jar

MAIN_CLASS = "org.apache.beam.runners.spark.SparkPipelineRunner"
OPENED_PACKAGES = (
    *("lang", "lang.invoke", "lang.reflect", "io", "net", "nio", "util", "util.concurrent", "util.concurrent.atomic"),
    *("/sun.nio.ch", "/sun.nio.cs", "/sun.security.action", "/sun.util.calendar"),
)
"""What Spark's own launcher opens on Java 17 (JavaModuleOptions.java); below `java.` unless with a slash."""

_STOP_SECONDS = 12.0
"""Time for the driver to end its application; less than the grace that a flow gives the job."""
_KEPT_LINES = 5_000
"""A worker's traceback is within the last lines of the driver's log."""


def run(job: Job, construct: Construct, scratch: str) -> None:
    """Run a job's pipeline on Spark; an interrupt ends the application on the cluster.

    Raises:
        InputError: a worker found a user error; or Java, Maven or Spark is missing here.
        OSError: a worker could not read or write a file.
        ConnectionError: the driver ended for a reason that is not a worker's.
    """
    if job.settings.job_endpoint is not None:
        portable.run(job, construct, scratch)
        return
    # Variables of the workers are those of the executors, so no value is in the jar.
    portable.choose_workers(job, {})
    runner = _SparkSubmit(job, _launcher(job), portable.worker_environment(job), scratch)
    run_on_cluster(beam.Pipeline(runner=runner, options=job.options), construct)


def require_settings(job: Job) -> None:
    """Check that this machine can start a driver.

    Raises:
        JavaUnavailableError: there is no Java, or no spark-submit in the named Spark.
    """
    if job.settings.job_endpoint is not None:
        portable.require_settings(job)
        return
    maven.require_program("java", "install a JDK (17 or 11)")
    if home := _home(job):
        submit = os.path.join(home, "bin", "spark-submit")
        maven.require_program(submit, "correct preprocessing.spark.home, or SPARK_HOME")


def _home(job: Job) -> str | None:
    return job.settings.spark.home or os.environ.get("SPARK_HOME") or None


class _SparkSubmit(PortableRunner):
    """Beam's runner that makes a jar of the pipeline and passes it to spark-submit."""

    def __init__(self, job: Job, launcher: _Launcher, environment: Mapping[str, str], scratch: str) -> None:
        super().__init__()
        self._job, self._launcher, self._environment, self._scratch = job, launcher, environment, scratch

    def run_portable_pipeline(self, pipeline: Any, options: PipelineOptions) -> PipelineResult:
        # As Beam's runner does: the class that the jar names decides.
        options.view_as(StandardOptions).runner = None
        launcher = self._launcher
        jar, is_cached = job_jar(
            os.path.join(maven.cache_directory("spark"), "jobs"),
            os.path.basename(launcher.beam_jars),
            self._optimize_pipeline(pipeline, options),
            JobServiceHandle.encode_pipeline_options({**options.get_all_options(), **_java_options(self._job)}),
        )
        stage, master = self._job.stage, self._job.settings.spark.master
        how = "from the cache" if is_cached else "built"
        print(f"{stage}: submitting to Spark at {master}, with the job's jar {how}", file=sys.stderr, flush=True)
        properties = os.path.join(self._scratch, "spark.conf")
        _write_properties(properties, _properties(self._job, self._environment), launcher.home)
        return _Application(launcher.command(self._job, jar, properties), launcher.environment)


@dataclass(frozen=True)
class _Launcher:
    """How spark-submit is started here.

    home: an installed Spark; None stands for Spark's jars from Maven, which `driver_jars` then contains.
    beam_jars: directory of the jars that a Spark lacks.
    """

    home: str | None
    beam_jars: str
    driver_jars: str | None
    environment: Mapping[str, str]

    def command(self, job: Job, jar: str, properties: str) -> list[str]:
        """The driver's command line; the driver is ended if the job's process is killed."""
        assert job.settings.spark.master is not None
        # Jars that Spark has under the same name are not replaced.
        own = os.path.join(self.home, "jars") if self.home else ""
        paths = sorted(glob.glob(os.path.join(glob.escape(self.beam_jars), "*.jar")))
        lacking = [path for path in paths if not own or not os.path.exists(os.path.join(own, os.path.basename(path)))]
        arguments = ["--master", job.settings.spark.master, "--deploy-mode", "client", "--class", MAIN_CLASS]
        arguments += ["--name", f"clozeworks-{job.stage}", "--properties-file", properties, "--jars", ",".join(lacking)]
        logging = f"-Dlog4j2.configurationFile={os.path.join(maven.FOLDER, 'log4j2.properties')}"
        wrapper = ["setpriv", "--pdeathsig", "TERM", "--"] if shutil.which("setpriv") else []
        if self.home is not None:
            return [*wrapper, os.path.join(self.home, "bin", "spark-submit"), "--driver-java-options", logging,
                    *arguments, jar]  # fmt: skip
        # Beam's classes are on this class path, and find the jar's resources only there.
        class_path = f"{jar}:{self.driver_jars}/*"
        java = ["java", *opened_packages(), logging, "-Xmx1g", "-cp", class_path, "org.apache.spark.deploy.SparkSubmit"]
        return [*wrapper, *java, *arguments, jar]


def opened_packages() -> list[str]:
    """Arguments of Java 17 that Spark needs."""
    names = [name.removeprefix("/") if name.startswith("/") else f"java.{name}" for name in OPENED_PACKAGES]
    return [f"--add-opens=java.base/{name}=ALL-UNNAMED" for name in names]


def _launcher(job: Job) -> _Launcher:
    """Find or fetch what spark-submit needs.

    Raises:
        JavaUnavailableError: Java or Maven is missing, or Maven cannot get the jars.
    """
    home = _home(job)
    beam_jars = maven.fetch_jars("spark", maven.WITHOUT_CLUSTER)
    if home:
        return _Launcher(home, beam_jars, None, {"SPARK_HOME": home})
    driver_jars = maven.fetch_jars("spark", maven.WITH_CLUSTER)
    # `local-cluster` starts its executors from what looks like an installed Spark.
    home = os.path.join(maven.cache_directory("spark"), f"home-{os.path.basename(driver_jars)}")
    os.makedirs(home, exist_ok=True)
    if not os.path.lexists(os.path.join(home, "jars")):
        os.symlink(driver_jars, os.path.join(home, "jars"))
    return _Launcher(None, beam_jars, driver_jars, {"SPARK_HOME": home, "SPARK_SCALA_VERSION": "2.12"})


def _java_options(job: Job) -> dict[str, str]:
    """Options of Beam's Java side that a job server would add."""
    return {"app_name": f"clozeworks-{job.stage}", "storage_level": "MEMORY_ONLY"}


def _properties(job: Job, environment: Mapping[str, str]) -> dict[str, str]:
    spark = job.settings.spark
    return {
        # Beam drops a dead Python worker only when no task of its executor is left.
        "spark.executor.cores": "1",
        "spark.executor.memory": spark.executor_memory,
        "spark.executor.memoryOverhead": spark.executor_overhead,
        "spark.task.maxFailures": "4",
        # Two copies of a task write the same bytes, by rename, but do so twice.
        "spark.speculation": "false",
        # It would listen on all interfaces, without a password.
        "spark.ui.enabled": "false",
        "spark.redaction.regex": "(?i)secret|password|token|access[._]?key",
        **{f"spark.executorEnv.{name}": value for name, value in environment.items()},
        **spark.conf,
    }


def _write_properties(path: str, properties: Mapping[str, str], home: str | None) -> None:
    """Write Spark's properties, which may be secrets, for this user only; those of the installed Spark come first."""
    folder = os.environ.get("SPARK_CONF_DIR") or (os.path.join(home, "conf") if home else "")
    text = ""
    if folder and os.path.exists(defaults := os.path.join(folder, "spark-defaults.conf")):
        with open(defaults, encoding="utf-8") as stream:
            text = stream.read().rstrip("\n") + "\n"
    lines = [f"{name} {_escaped(value)}\n" for name, value in properties.items()]
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as output:
        output.write(text + "".join(lines))


def _escaped(value: str) -> str:
    """A value as java.util.Properties reads it."""
    text = value.replace("\\", "\\\\").replace("\n", "\\n").replace("\r", "\\r").replace("\t", "\\t")
    return f"\\{text}" if text.startswith(" ") else text


class _Application(PipelineResult):
    """A driver and its application on the cluster."""

    def __init__(self, command: list[str], environment: Mapping[str, str]) -> None:
        super().__init__(PipelineState.RUNNING)
        self._lines: deque[str] = deque(maxlen=_KEPT_LINES)
        self._driver = subprocess.Popen(  # noqa: S603  # no shell
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={**os.environ, **environment},
        )

    def wait_until_finish(self, duration: int | None = None) -> str:  # noqa: ARG002  # Beam's signature
        """Show the driver's log until it ends.

        Raises:
            RuntimeError: a worker failed; the message is the log, which quotes its traceback.
            ConnectionError: the driver ended for another reason.
        """
        assert self._driver.stdout is not None
        for raw in self._driver.stdout:
            line = raw.decode(errors="replace").rstrip()
            self._lines.append(line)
            print(line, file=sys.stderr, flush=True)
        code = self._driver.wait()
        if code == 0:
            return str(PipelineState.DONE)
        text = "\n".join(self._lines)
        if first_cause(text) is not None:
            raise RuntimeError(text)
        raise ConnectionError(f"Spark's driver ended with exit code {code}: {self._reason()}; its log is above")

    def cancel(self) -> None:
        """End the driver, and with it the application: it is given time to deregister, then killed."""
        self._driver.terminate()
        try:
            self._driver.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._driver.kill()
            self._driver.wait()

    def _reason(self) -> str:
        """The line of the log that most likely is the cause."""
        for sign in ('Exception in thread "main"', "Caused by:", " ERROR ", "Error"):
            if found := [line for line in self._lines if sign in line]:
                return found[0].strip()
        return next((line for line in reversed(self._lines) if line), "no output")
