"""Evaluation: a trained network scored, applied to pictures, and exported."""
