"""Benchmarks: one file for each `cmrn bench …`, with peers beside us in the same run."""
