"""Start of `python -m bn_jax.cli`."""

from bn_jax.cli.main import main

main()
