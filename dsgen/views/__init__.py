"""Views: describe what a corpus or a store holds, draw its rows, write a data sheet, and show all in the browser."""
