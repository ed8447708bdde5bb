"""Latency: the clock, rounds over artifacts, statistics, verdicts, comparisons."""
