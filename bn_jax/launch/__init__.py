"""Launching of several local processes of one program."""
