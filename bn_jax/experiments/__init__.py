"""The paper's experiments: the runs they need, and the figures made from them."""
