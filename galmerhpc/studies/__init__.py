"""Studies: one quantity varied, a run for each value, a table and a figure of their errors."""
