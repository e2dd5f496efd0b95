"""What a run stores on disk: sealed folders, checkpoints, the run's folder and its log."""
