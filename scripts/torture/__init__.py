"""The parts of ``scripts/torture.py``: each attacks in one way and counts what goes wrong."""
