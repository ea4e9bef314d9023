"""Whether a picture that should have changed repeats the one before it."""

from __future__ import annotations

import numpy as np


def repeated_pixels(before: np.ndarray, after: np.ndarray) -> bool:
    """Whether two pictures are nearly equal, for those that cannot be read.

    Fewer pixels differ (by more than 40 in RGB, in means of 3x3) than a third of the smallest
    object's area.
    """
    if before.shape != after.shape:
        return False
    padded = np.pad(after.astype(np.float32) - before, ((1, 1), (1, 1), (0, 0)), mode="edge")
    mean = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), (0, 1)).mean((-1, -2))
    return int((np.sqrt((mean**2).sum(-1)) > 40).sum()) < 24
