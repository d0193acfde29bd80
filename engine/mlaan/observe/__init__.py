"""What is seen of a run: progress, logs, environment, plots."""
