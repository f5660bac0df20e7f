"""Measurements of a model from outside: functions of arrays."""
