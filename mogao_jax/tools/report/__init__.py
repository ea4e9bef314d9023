"""The HTML page about a run, and what training leaves in the run folder for it.

`data_sample` saves a data sample; `page` turns it and what training wrote into one self-contained
report.html.
"""
