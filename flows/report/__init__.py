"""Report of a run: facts, page, Markdown, artifacts."""
