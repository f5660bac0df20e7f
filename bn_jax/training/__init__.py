"""Training from a configuration: `bn_jax.training.loop.train` is where to begin."""
