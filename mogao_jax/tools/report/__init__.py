"""The HTML page about a run (`command`), and what training leaves in the run folder for it."""
