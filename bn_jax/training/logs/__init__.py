"""Metrics, throughput and profiles of a run."""
