"""Parts that fail on purpose: disks, servers, steps and operators; and the number of tries of the fault suite."""
