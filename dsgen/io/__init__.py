"""Files: local, at URLs and in zips, written atomically; pictures, JSON, bundled assets."""
