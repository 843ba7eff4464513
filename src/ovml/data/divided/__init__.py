"""Benchmarks that annotate every label, and leave it to their users which ones are unseen."""
