"""Benchmarks: ratios measured in one run; they never fail a test run."""
