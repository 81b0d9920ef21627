"""Several nodes on one machine: network namespaces with a real sshd each."""
