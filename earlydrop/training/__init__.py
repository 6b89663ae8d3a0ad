"""The trainer: paired, resumable, configured with Hydra. Needs ``earlydrop[train]``."""
