"""What a run leaves: its folder, checkpoints, provenance, dashboard, and the failures of a sweep."""
