"""Stand-in stages, finished workspaces, registered models and servers for the tests of flows."""
