"""Blocks of work in parallel: processes, clusters, parts of a batch job, locks, progress, devices."""
