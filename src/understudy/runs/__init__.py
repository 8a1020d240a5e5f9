"""What a run is on disk: its config, checkpoints, metrics and where it came from."""
