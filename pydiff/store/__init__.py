"""What a run leaves on disk: sealed folders, checkpoints, the run's folder and its log."""
