"""What fails on purpose: disks, servers, steps and operators; and how often the fault suite tries."""
