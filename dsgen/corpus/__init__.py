"""Corpora: plan, sources, composites and masks; opening one, rendering its rows, the schema of its depth labels."""
