"""Show which of Clozeworks' requirements this machine meets, and how to install the missing ones.

clozeworks doctor
"""

from __future__ import annotations

import json
from dataclasses import asdict

from flows.console.tables import print_table
from flows.inspection.machine import findings
from pipelines.commands.command_line import CommandParser
from pipelines.contract.errors import exit_code_of

EXIT_MISSING = 1

_STYLES = {"ok": "green", "missing": "bold red", "optional": "yellow"}


def main(arguments: list[str] | None = None) -> int:
    parser = CommandParser(
        prog="clozeworks doctor",
        description="Show what is installed, and how to install what is missing. Exit code 0 if all requirements are "
        "met, 1 if one is missing; optional parts do not count.",
        epilog="example: clozeworks doctor --workspace /data/workspaces",
    )
    parser.add_argument("--workspace", default=".", help="directory whose disk a run would fill; default: this one")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    parsed = parser.parse_args(arguments)
    found = list(findings(parsed.workspace))
    missing = [finding.part for finding in found if finding.state == "missing"]
    if parsed.json:
        print(json.dumps({"complete": not missing, "parts": [asdict(finding) for finding in found]}, indent=1))
    else:
        rows = [[finding.part, finding.state, finding.found, finding.remedy] for finding in found]
        print_table(["part", "state", "found", "what to do"], rows, _STYLES)
        print(f"missing: {', '.join(missing)}" if missing else "all requirements are met")
    return EXIT_MISSING if missing else 0


if __name__ == "__main__":
    raise SystemExit(exit_code_of(main))
