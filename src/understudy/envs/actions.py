"""From a policy's raw action to the one that the environment executes: bounding and rescaling."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor, nn

from understudy.core.check import fit
from understudy.core.spaces import (
    bounds_of,
    check_action_space,
    classes_of,
    is_box,
    is_real,
    kind_of,
    limits_of,
    shape_of,
    tensor_dtype,
)
from understudy.envs.gate import warn_once

_EDGE = 1e-6  # atanh is taken inside [-1 + _EDGE, 1 - _EDGE]: |raw| <= 7.25, and float32 can tell it from 1


class ActionMap(nn.Module):
    """Raw action `[..., D]` -> executed action `[..., *A]`. Log-probs are of the raw one; both are stored.

    Box (D = number of entries of the space), with a the raw action:

        bound "clip": a = clip(a, -1, 1)      "tanh": a = tanh(a)      "unit": a is in [-1, 1]      None: as it is
        scaling:      executed = low + (high - low) * (a + 1) / 2

    Without scaling, actions are clipped to the space's own bounds instead. `scaling="auto"` scales where all bounds are
    finite; bounds that only stand for "none" (`core.spaces.HUGE`) are not. With `bound=None` the executed action can
    lie outside the space. Integer Boxes are rounded.
    Discrete and MultiDiscrete: the index plus the space's `start`, `[...]` and `[..., D]`; MultiBinary: unchanged.
    Identities cost nothing (a Box of [-1, 1] with "clip" is one clamp).

    Raises ValueError for a space that no distribution covers, an unknown `bound`, or `scaling=True` on a Box with an
    infinite bound.
    """

    scale: Any  # Tensor [D], or float where all entries are equal; so are the next three
    shift: Any
    low: Any
    high: Any

    def __init__(
        self,
        action_space: spaces.Space[Any],
        scaling: bool | Literal["auto"] = "auto",
        bound: Literal["clip", "tanh", "unit"] | None = "clip",
    ) -> None:
        super().__init__()
        fit(Literal["clip", "tanh", "unit"] | None, bound, "action_bound")
        fit(bool | Literal["auto"], scaling, "action_scaling")
        self.action_space = check_action_space(action_space)
        self._tanh = self._rounds = self._clamps = self._scales = self._shifts = False
        classes = classes_of(action_space)
        if is_box(action_space):
            self._set_box(action_space, scaling, bound)
        elif classes is not None:
            self._shifts = any(classes.starts)
            self._set("shift", np.array(classes.starts, np.int64))
        shape = shape_of(action_space)
        # a Discrete action has no dimension to begin with
        self._shape = None if len(shape) == 1 or kind_of(action_space) == "discrete" else shape

    def forward(self, raw: Tensor) -> Tensor:
        """Executed action `[..., *A]` of a raw one `[..., D]` (Discrete: `[...]`); pure, no host sync."""
        action = raw.tanh() if self._tanh else raw
        if self._scales and self._shifts:
            action = torch.addcmul(self.shift, action, self.scale)
        elif self._scales:
            action = action * self.scale
        elif self._shifts:
            action = action + self.shift
        if self._clamps:
            # clip after scaling: the same function (scaling is monotone), and rounding cannot leave the bounds
            action = torch.clamp(action, self.low, self.high)
        if self._rounds:
            action = action.round()
        return action if self._shape is None else action.reshape(raw.shape[:-1] + self._shape)

    def inverse(self, executed: Tensor) -> Tensor:
        """The raw action `[..., D]` of an executed one `[..., *A]`, for example of a demonstration.

        Scaling is undone, tanh by atanh inside +-(1 - 1e-6); clipping cannot be undone: where it acted, the raw action
        comes back as the bound. Entries that the space fixes (low == high) come back as 0.
        """
        raw = executed
        if self._shape is not None:
            raw = raw.reshape((*raw.shape[: raw.ndim - len(self._shape)], -1))
        if self._shifts:
            raw = raw - self.shift
        if self._scales:
            raw = raw / self.scale if isinstance(self.scale, float) else raw / self.scale.where(self.scale != 0, 1.0)
        return torch.atanh(raw.clamp(_EDGE - 1, 1 - _EDGE)) if self._tanh else raw

    def same_as(self, other: ActionMap) -> bool:
        """Whether two maps execute the same action for the same raw one."""
        return self._parts() == other._parts()

    def _parts(self) -> tuple[Any, ...]:
        """All that decides, as plain numbers."""
        numbers = {"scale": self._scales, "shift": self._shifts, "low": self._clamps, "high": self._clamps}
        used = [vars(self).get(name, self._buffers.get(name)) if on else None for name, on in numbers.items()]
        plain = [x.tolist() if isinstance(x, Tensor) else x for x in used]
        shape = (self._tanh, self._rounds, self._shape)
        return (*shape, *(x[0] if isinstance(x, list) and len(set(x)) == 1 else x for x in plain))

    def _set_box(self, space: spaces.Space[Any], scaling: bool | str, bound: str | None) -> None:
        low, high = _float32_inside(*(side.reshape(-1) for side in limits_of(space)))
        if any((np.isinf(x) & np.isfinite(y.reshape(-1))).any() for x, y in zip((low, high), bounds_of(space))):
            warn_once(f"the bounds of the action space {space} are so large that they are taken for no bounds")
        finite = bool(np.isfinite(low).all() and np.isfinite(high).all())
        if scaling is True and not finite:
            raise ValueError(
                f"action scaling needs finite bounds, but the space is {space}: use scaling=False (or 'auto'), or give "
                "it bounds with gymnasium.wrappers.TransformAction"
            )
        self._tanh = bound == "tanh"
        self._rounds = not is_real(space)
        if scaling is not False and finite:
            scale, shift = (high - low) / 2, (high + low) / 2
            if self._tanh:
                scale = _shrink(scale, shift, low, high)
            self._scales, self._shifts = bool((scale != 1).any()), bool(shift.any())
            # one fused operation if both are there; it takes tensors only
            self._set("scale", scale, as_tensor=self._shifts)
            self._set("shift", shift, as_tensor=self._scales)
        outside = bound in ("tanh", "unit") and not (scaling is not False and finite)  # of the space, inside [-1, 1]
        outside = outside and bool((low > -1).any() or (high < 1).any())
        if outside or (bound == "clip" and bool(np.isfinite(low).any() or np.isfinite(high).any())):
            self._clamps = True
            mixed = np.ptp(low) != 0 or np.ptp(high) != 0 if finite else True  # clamp takes two numbers or two tensors
            self._set("low", low, as_tensor=mixed)
            self._set("high", high, as_tensor=mixed)

    def _set(self, name: str, value: np.ndarray, as_tensor: bool = False) -> None:
        """A number where all entries are equal (cheaper to apply), else a buffer that moves with the module."""
        if not as_tensor and bool((value == value.flat[0]).all()):
            setattr(self, name, value.flat[0].item())
        else:
            dtype = torch.int64 if value.dtype == np.int64 else torch.float32
            # not persistent: it follows from the action space
            self.register_buffer(name, torch.as_tensor(value).to(dtype), persistent=False)


def admit_actions(answer: Any, space: spaces.Space[Any], batch: int, who: str = "the expert") -> Tensor:
    """What a policy of the user's own answered (a tensor, an array, a list) as actions `[batch, *A]` of `space`.

    Real actions are clipped to the space's bounds. Raises ValueError for another shape, NaN and infinity, and where
    the space holds integers for fractions and for integers outside of it.
    """
    shape = (batch, *shape_of(space))
    try:
        actions = torch.as_tensor(answer if isinstance(answer, Tensor) else np.asarray(answer))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{who} must return actions {list(shape)}, got {answer!r:.80} ({error})") from error
    if actions.shape != shape:
        raise ValueError(f"{who} must return actions {list(shape)} of {space}, got the shape {[*actions.shape]}")
    numbers = actions.double()
    low, high = (torch.as_tensor(side, dtype=torch.float64, device=actions.device) for side in bounds_of(space))
    outside = (numbers < low) | (numbers > high)
    wrong = ~torch.isfinite(numbers) | (False if is_real(space) else outside | (numbers != numbers.round()))
    if bool(wrong.any()):
        raise ValueError(f"{who} returned the action {numbers[wrong][0].item():g}, which is not in {space}")
    if bool(outside.any()):
        warn_once(f"{who}'s actions exceed the bounds of {space}: they are clipped")
        actions = numbers.clamp(low, high)
    return actions.to(tensor_dtype(space))


def _float32_inside(low: np.ndarray, high: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The bounds as float32 numbers (in float64 arrays) that do not lie outside, as rounding 0.4 would."""
    with np.errstate(over="ignore"):
        low32, high32 = low.astype(np.float32), high.astype(np.float32)
    low32 = np.where(low32 < low, np.nextafter(low32, np.float32(np.inf)), low32)
    high32 = np.where(high32 > high, np.nextafter(high32, np.float32(-np.inf)), high32)
    return low32.astype(np.float64), high32.astype(np.float64)


def _shrink(scale: np.ndarray, shift: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """The largest float32 scale with which shift +- scale, rounded, stays within the bounds (tanh does reach +-1)."""
    center, half = shift.astype(np.float32), scale.astype(np.float32)
    for _ in range(4):  # an ulp or two at most
        outside = (center + half > high) | (center - half < low)
        half = np.where(outside, np.nextafter(half, np.float32(0)), half)
    return half.astype(np.float64)
