"""Beam jobs that turn raw text into documents, a WordPiece vocabulary and masked next-sentence examples."""

import logging
from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("clozeworks")
except PackageNotFoundError:
    # `make doctor` runs from the source tree before anything is installed.
    __version__ = "source tree"

# Importing Beam warns of a BigQuery client that nothing here uses.
logging.getLogger().addFilter(lambda record: "apitools not found" not in str(record.msg))
