"""Readers of the family of tables of numbers without names: Unitree's retargeted LAFAN1."""

from __future__ import annotations

import numpy as np

from understudy.data.motions.clip import MotionClip
from understudy.data.motions.reading import Columns, Reading


def lafan1(table: np.ndarray, name: str, reading: Reading) -> list[MotionClip]:
    """Rows of root position, quaternion and joints, 30 a second, no header."""
    if table.shape[1] < 8:
        raise ValueError(
            f"its rows have {table.shape[1]} numbers; expected 3 + 4 of the root, then those of the joints"
        )
    columns = Columns()
    columns.joints(reading.joints(table.shape[1] - 7), "pos", table[:, 7:])
    columns.root(pos=table[:, :3], rot=reading.wxyz(table[:, 3:7]))
    return [columns.clip(name, reading.frame_time({}, "a frame rate", usual=30.0))]
