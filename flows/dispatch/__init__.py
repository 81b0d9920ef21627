"""Parts of a run, single trials among them, as runs of other deployments on their work pools."""
