"""`mogao bench`: speed of sampling as ratios within one run; bars of the training step."""
