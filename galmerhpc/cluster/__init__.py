"""The cluster: what its environment has, and the jobs that run on it."""
