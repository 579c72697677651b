"""A run as a ``batch/v1`` Job of Kubernetes."""
