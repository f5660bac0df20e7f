"""Files and lock of a workdir, the folder of one run."""
