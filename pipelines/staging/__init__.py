"""Local copies of what a workspace in an object store holds, and local builds of what is written to it."""
