"""Stages that are stand-ins, finished workspaces, registered models and servers for the tests of flows."""
