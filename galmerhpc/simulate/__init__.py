"""N-body encounters of galaxy pairs, the library of their snapshots, and the preview mirror."""
