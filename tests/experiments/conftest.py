"""Fixtures that whole runs share."""

from training.fixtures import compilation_cache as compilation_cache
from training.fixtures import idx_dir as idx_dir
from training.fixtures import reuse_compiled_programs as reuse_compiled_programs
