"""Command line program `bn-jax`."""

from bn_jax.cli.main import main as main
