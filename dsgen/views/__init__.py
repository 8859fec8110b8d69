"""Views: describe what a corpus or a store holds, draw some of its rows, and write a data sheet for a store."""
