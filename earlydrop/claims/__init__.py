"""Claims as data, and the verdicts, tables and figures that runs give."""
