"""Files: local, at URLs and in zip archives; atomic writes; pictures, JSON, bundled assets."""
