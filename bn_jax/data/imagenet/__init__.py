"""ImageNet: records, crops and distortion."""
