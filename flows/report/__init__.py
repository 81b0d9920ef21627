"""The report of a run: facts, page, Markdown, artifacts."""
