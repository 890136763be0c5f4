"""Studies: one quantity is varied, with one run per value and a table and figure of the errors."""
