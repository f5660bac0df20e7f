"""Preparing data sets for training."""
