"""A real control plane of Kubernetes, built from Go modules, and a stand-in for the kubelet."""
