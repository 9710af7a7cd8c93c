"""One server per file, all doing the same job; see ``benchmarks/README.md``, "The job"."""
