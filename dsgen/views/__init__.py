"""Views: describe what a corpus or a store holds, draw some of its rows, and show all of it in the browser."""
