"""dsgen manufactures pictures labelled with masks and metric depth, and trains networks on them."""

__version__ = "0.1.0"
