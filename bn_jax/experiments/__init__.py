"""The paper's experiments: which runs they need, and what is made of them."""
