"""Check finished stages against their manifests: checksums, schemas, every row, and the statistics recomputed.

    clozeworks validate workspaces/demo/examples
    clozeworks validate workspaces/demo

Works on the directories of documents, vocabulary and examples, and on a workspace with all three. If the inputs of a
stage are next to it, they must be the ones that its manifest names, and its statistics are recomputed from them. Exits
with 1 at the first fault, naming the file and the row, and with 2 if there is nothing to check.
"""

from __future__ import annotations

import argparse
import sys

from pipelines.commands.command_line import CommandParser
from pipelines.contract.errors import exit_code_of
from pipelines.validation.faults import FaultError
from pipelines.validation.workspace import validate


def main() -> int:
    parser = CommandParser(
        prog="clozeworks validate",
        description=__doc__,
        epilog="example: clozeworks validate workspaces/demo",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("directory", help="a finished stage, such as workspaces/demo/examples, or a workspace")
    arguments = parser.parse_args()
    try:
        for line in validate(arguments.directory):
            print(line)
    except FaultError as fault:
        print(f"fault: {fault}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(exit_code_of(main))
