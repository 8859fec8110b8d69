"""Integrity: check whether a corpus or a store is as it was made, and restore what is not."""
