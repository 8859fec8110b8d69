"""Integrity: is all of a corpus or store as it was made, and how to make it so again."""
