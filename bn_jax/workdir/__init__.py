"""The folder that a run writes its results to."""
