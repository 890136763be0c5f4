"""Evaluation of trained networks: metrics beside baselines, figures, one HTML report."""
