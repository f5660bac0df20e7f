"""Statistics of a trained model: functions from pytrees to pytrees."""
