"""Where the Beam jobs run: on this machine, or on a cluster; one file and one row of a table for each runner."""
