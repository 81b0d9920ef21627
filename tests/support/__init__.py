"""What tests share: corpora, workspaces, stand-ins, servers and programs that tests start; no tests."""

from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
SUPPORT = Path(__file__).resolve().parent
