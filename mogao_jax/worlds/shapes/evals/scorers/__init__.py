"""Judges: from pixels and words to what they show and claim, and whether that is right."""
