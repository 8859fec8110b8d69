"""A corpus: its plan and normalised sources, the pictures drawn from them, the depth labels."""
