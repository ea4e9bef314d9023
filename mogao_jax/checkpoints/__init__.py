CHECKPOINTS = "checkpoints"  # the folder of a run that they lie in
