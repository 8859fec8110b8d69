"""Parallel work: processes, dask clusters, parts of a batch job, locks, prefetching, progress, devices."""
