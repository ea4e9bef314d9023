"""A training step of ours beside those of other open implementations, on the same documents.

Their code is not part of this package: the caller names the folders where it lies.
"""
