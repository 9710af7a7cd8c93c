"""How fast realtime is beside the servers people would use instead. Run ``python -m benchmarks``."""
