"""Benchmarks of agentfs against a ceiling (bare pyfuse3), a floor (tmpfs) and its peers."""

import sys
from pathlib import Path

# The agentfs that is installed is what is measured. This source tree, which `python -m` looks
# through first, has its C only after `make build-inplace`.
_TREE = str(Path(__file__).resolve().parents[1])
sys.path.sort(key=lambda entry: str(Path(entry).resolve()) == _TREE)
