"""Say and show what a corpus or a store holds."""
