"""Views: describe what a corpus or a store holds, and draw some of its rows."""
