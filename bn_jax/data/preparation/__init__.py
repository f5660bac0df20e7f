"""Preparation of data sets for training."""
