"""Pure functions of arrays: the mathematics of Batch Normalization."""
