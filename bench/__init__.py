"""Benchmarks of agentfs against a ceiling (bare pyfuse3), a floor (tmpfs) and its peers."""
