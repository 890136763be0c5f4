"""The package's side of a cluster: what there is, and what runs on it."""
