"""The parts of ``scripts/torture.py``: each attacks the command line in one way and counts what goes wrong."""
