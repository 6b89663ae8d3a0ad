"""The rows of ``scripts/benchmark.py``: each measures two things side by side."""
