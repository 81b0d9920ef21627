"""Several machines on one: network namespaces with a real sshd each, disks of their own, Slurm, a drawn run."""
