"""Stopping a run: signals and exit codes."""
