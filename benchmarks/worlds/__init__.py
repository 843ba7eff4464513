"""Synthetic data sets and comparisons of the benchmarks; import with `PYTHONPATH=benchmarks`."""
