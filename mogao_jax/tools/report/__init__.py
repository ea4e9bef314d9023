"""The HTML page about a run, and what training leaves in the run folder for it.

`run_facts` and `data_view` save small files; `page` turns them and metrics.jsonl into one
self-contained report.html.
"""
