"""Several local processes of one program."""
