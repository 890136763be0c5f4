"""What the trained network is worth: metrics beside baselines, figures, one HTML report."""
