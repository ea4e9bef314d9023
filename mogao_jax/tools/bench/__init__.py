"""How fast sampling is, as ratios measured in one run (`mogao bench`)."""
