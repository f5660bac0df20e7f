"""What came of runs, read from their folders: figures and tables."""
