"""What is claimed of dropout, and what the runs say: claims as data, verdicts, tables and figures."""
