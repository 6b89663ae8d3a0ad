"""The records of a run: folder, checkpoints, provenance, dashboard, and a sweep's failures."""
