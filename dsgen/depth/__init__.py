"""Depth: networks, where their weights come from, labelling, scores, and the training of a depth network."""
