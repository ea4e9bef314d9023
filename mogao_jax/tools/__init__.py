"""Tools around a run: plan, profile, bench, report. Nothing of the core imports them."""
