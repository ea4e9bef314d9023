"""One file per format: its key table, and its config.json read and written."""
