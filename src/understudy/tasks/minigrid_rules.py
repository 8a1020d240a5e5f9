"""MiniGrid's crossings as tensor functions: drawing grids, shortest paths, the view that walls occlude.

Rules and encoding are those of the package `minigrid` (Chevalier-Boisvert et al. 2023, arXiv 2306.13831). A cell is one
number, MiniGrid's object index; grids are `[P, S, S]` uint8, indexed y, then x. Directions: 0 right, 1 down, 2 left,
3 up.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

Obstacle = Literal["wall", "lava"]

EMPTY, WALL, GOAL, LAVA = 1, 2, 8, 9
OBJECTS, COLORS, STATES = 11, 6, 3
"""How many values MiniGrid's encoding of a cell has in each of its three channels."""
LEFT, RIGHT, FORWARD, TOGGLE = 0, 1, 2, 3
"""Actions; on its own a toggle changes nothing, for no crossing has a door."""
DIRECTIONS = ((1, 0), (0, 1), (-1, 0), (0, -1))
"""(dx, dy) of each direction."""
VIEW = 7
"""Side of the agent's view: it stands in the middle of the last row and looks at the others."""
MARGIN = VIEW - 1
"""How far the view can reach beyond the grid; there, everything is wall."""
MAX_SIZE = 63
"""Widest grid: `remaining_edges` keeps a row in the bits of one integer."""
CHECK_EVERY = 8
"""Waves of the search between two looks whether it is over: a look waits for the device, a wave too many is cheap."""


def draw_crossings(
    count: int, size: int, crossings: int, obstacle: Obstacle, generator: torch.Generator, device: torch.device
) -> Tensor:
    """`count` grids `[count, S, S]`, distributed as those of `minigrid`'s `CrossingEnv`.

    `crossings` rivers are drawn without replacement from the even rows and columns. A monotone walk from room to room
    (its order of rows and columns is drawn too) makes one opening in each, at a place drawn from its room's side.
    """
    half = (size - 3) // 2  # even columns 2, 4, .., S-3; as many rows
    lines = torch.arange(2, size - 2, 2, device=device)
    chosen = torch.rand(count, 2 * half, generator=generator, device=device).argsort(1) < crossings  # [P, 2 half]
    columns, rows = chosen[:, :half], chosen[:, half:]
    grid = torch.full((count, size, size), EMPTY, dtype=torch.uint8, device=device)
    code = WALL if obstacle == "wall" else LAVA
    grid[:, :, 2 : size - 2 : 2].masked_fill_(columns.unsqueeze(1), code)
    grid[:, 2 : size - 2 : 2].masked_fill_(rows.unsqueeze(2), code)
    grid[:, 0] = grid[:, -1] = grid[:, :, 0] = grid[:, :, -1] = WALL
    grid[:, size - 2, size - 2] = GOAL

    order = torch.rand(count, crossings, generator=generator, device=device).argsort(1)
    across = order < columns.sum(1, keepdim=True)  # [P, N]: this step of the walk crosses a column
    room_x = across.long().cumsum(1) - across.long()  # [P, N]: columns crossed before this step
    room_y = (~across).long().cumsum(1) - (~across).long()
    left, right = _limits(columns, lines, room_x, size)
    above, below = _limits(rows, lines, room_y, size)
    low, high = torch.where(across, above, left), torch.where(across, below, right)
    along = low + 1 + (torch.rand(low.shape, generator=generator, device=device) * (high - low - 1)).long()
    x, y = torch.where(across, right, along), torch.where(across, along, below)
    grid[torch.arange(count, device=device).unsqueeze(1), y, x] = EMPTY
    return grid


def _limits(chosen: Tensor, lines: Tensor, room: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """The lines on both sides of the `room`-th room `[P, N]`: rivers in order, between the outer walls."""
    rivers = torch.where(chosen, lines, size - 1).sort(1).values  # [P, half]
    limits = F.pad(F.pad(rivers, (1, 0)), (0, 1), value=size - 1)  # [P, half + 2]
    return limits.gather(1, room), limits.gather(1, room + 1)


def remaining_edges(grids: Tensor) -> Tensor:
    """Edges that remain to a virtual node behind the goal: `[P, 4, S, S]` int16 over (direction, y, x).

    One more than the fewest actions to the goal (1 on the goal), and 0 where no path exists. One breadth-first search
    from the goal runs over all grids at once; rows are bits of integers, so that a wave costs a dozen operations.
    """
    size = grids.shape[-1]
    if size > MAX_SIZE:
        raise ValueError(f"grids of {size} x {size} are too large: at most {MAX_SIZE} x {MAX_SIZE}")
    dtype = torch.int32 if size < 32 else torch.int64
    bits = torch.ones(size, dtype=dtype, device=grids.device) << torch.arange(size, device=grids.device, dtype=dtype)
    unseen = ((grids == EMPTY) * bits).sum(-1, dtype=dtype).expand(4, -1, -1).clone()  # [4, P, S]: bit x of row y
    wave = ((grids == GOAL) * bits).sum(-1, dtype=dtype).expand(4, -1, -1).clone()
    digits = [wave.clone()]  # digit k of the result, as bits; the goal is wave 1
    edges = 1
    while edges % CHECK_EVERY or bool(wave.any()):
        edges += 1
        wave = _predecessors(wave) & unseen
        unseen ^= wave
        if edges >> len(digits):
            digits.append(torch.zeros_like(wave))
        for k, digit in enumerate(digits):
            if edges >> k & 1:
                digit |= wave
    result = torch.zeros(4, *grids.shape, dtype=torch.int16, device=grids.device)
    for digit in reversed(digits):
        result.mul_(2).add_(digit.unsqueeze(-1) & bits != 0)
    return result.transpose(0, 1).contiguous()


def _predecessors(states: Tensor) -> Tensor:
    """The states `[4, P, S]` from which one action leads to a state; borders are walls, so nothing wraps around."""
    before = states.roll(1, 0) | states.roll(-1, 0)  # a left or a right turn
    before[0] |= states[0] >> 1  # a step forward: to the right it came from x - 1
    before[2] |= states[2] << 1
    before[1, :, :-1] |= states[1, :, 1:]
    before[3, :, 1:] |= states[3, :, :-1]
    return before


def expert_plan(grids: Tensor) -> Tensor:
    """4 * remaining edges + the expert's action, `[P, 4, S, S]` int16 over (direction, y, x).

    Of several shortest paths the expert takes the one that goes forward as long as possible, and turns left before it
    turns right. On the goal and where there is no path the action means nothing.
    """
    edges = remaining_edges(grids)
    forward = torch.zeros_like(edges)  # the edges that remain after a step forward
    forward[:, 0, :, :-1] = edges[:, 0, :, 1:]
    forward[:, 1, :-1] = edges[:, 1, 1:]
    forward[:, 2, :, 1:] = edges[:, 2, :, :-1]
    forward[:, 3, 1:] = edges[:, 3, :-1]
    fewer = edges - 1
    turn = (edges.roll(1, 1) != fewer).to(torch.int16)  # LEFT is 0, RIGHT is 1
    action = turn.masked_fill_(forward == fewer, FORWARD)
    return edges.mul_(4).add_(action)


def pad(grids: Tensor) -> Tensor:
    """Grids with `MARGIN` cells of wall around them, `[P, S + 2 MARGIN, S + 2 MARGIN]`: the view never leaves them."""
    return F.pad(grids, (MARGIN, MARGIN, MARGIN, MARGIN), value=WALL)


class EgoView:
    """What N agents see, as `minigrid` encodes it: `[N, 7, 7, 3]` uint8 (object, colour, state), 0 where unseen.

    Axes are (to the right, away from the top): the agent is at [3, 6] and looks towards [3, 0]. Light spreads from the
    agent's row to the top one, within a row to both sides, through all but walls (`minigrid`'s `Grid.process_vis`).
    A row of seven cells has 2^7 masks and 2^7 patterns of walls: what it shows and what it lights is looked up.
    """

    def __init__(self, width: int, device: torch.device) -> None:
        self.offsets = _view_offsets(width).to(device)  # [4, 49]: direction -> cells, relative to the agent's
        lit, shown = _row_tables()
        self.lit, self.shown = lit.to(device), shown.to(device)
        self.encoding = torch.zeros(OBJECTS, 3, dtype=torch.uint8, device=device)
        self.encoding[:, 0] = torch.arange(OBJECTS)
        self.encoding[WALL, 1], self.encoding[GOAL, 1] = 5, 1  # grey and green; lava is red, which is 0
        # column j of the view to the number whose bits are "not a wall", as one matrix product (exact in float32)
        self.pack = torch.zeros(VIEW, VIEW, VIEW, device=device)
        index = torch.arange(VIEW)
        for i in range(VIEW):
            self.pack[i, index, index] = 2.0**i
        self.pack = self.pack.flatten(0, 1)  # [49, 7]

    def __call__(self, cells: Tensor, position: Tensor, direction: Tensor) -> Tensor:
        """Flat padded grids `[P * width^2]`, flat positions in them `[N]`, directions `[N]` to `[N, 7, 7, 3]`."""
        places = position.unsqueeze(1) + self.offsets.index_select(0, direction)
        seen = cells.take(places)  # [N, 49]
        seen[:, VIEW // 2 * VIEW + VIEW - 1] = EMPTY  # the agent does not see what it stands on
        clear = ((seen != WALL).float() @ self.pack).long().unbind(1)  # 7 x [N], from the top row to the agent's
        row = clear[-1] + (1 << VIEW // 2 << VIEW)
        rows = [row]
        for pattern in clear[-2::-1]:
            row = self.lit.take(row) + pattern
            rows.append(row)
        shown = self.shown.index_select(0, torch.stack(rows[::-1], 1).flatten())  # [N * 7, 7]
        seen = seen.view(-1, VIEW, VIEW) * shown.view(-1, VIEW, VIEW).transpose(1, 2)
        return self.encoding.index_select(0, seen.flatten().int()).view(-1, VIEW, VIEW, 3)


def _view_offsets(width: int) -> Tensor:
    """`[4, 49]`: for each direction, what to add to the agent's flat position to reach each cell of its view."""
    right, ahead = torch.arange(VIEW).unsqueeze(1) - VIEW // 2, VIEW - 1 - torch.arange(VIEW)
    # facing (dx, dy), with y downwards, the right hand points to (-dy, dx)
    return torch.stack(
        [((ahead * dy + right * dx) * width + ahead * dx - right * dy).flatten() for dx, dy in DIRECTIONS]
    )


def _row_tables() -> tuple[Tensor, Tensor]:
    """For a row by 128 * mask + clear: 128 * the mask that it starts the next row with, and which cells are shown.

    A cell that light has reached and that is clear lights its neighbour, and in the next row both the neighbour's
    place and its own: first from left to right, then from right to left.
    """
    number = torch.arange(1 << 2 * VIEW)
    lit = [(number >> VIEW + i & 1).bool() for i in range(VIEW)]
    clear = [(number >> i & 1).bool() for i in range(VIEW)]
    above = [torch.zeros_like(lit[0]) for _ in range(VIEW)]
    rightwards = [(i, i + 1) for i in range(VIEW - 1)]
    leftwards = [(i, i - 1) for i in reversed(range(1, VIEW))]
    for i, neighbour in rightwards + leftwards:
        passes = lit[i] & clear[i]
        lit[neighbour] = lit[neighbour] | passes
        above[neighbour] = above[neighbour] | passes
        above[i] = above[i] | passes
    mask = sum((x.long() << i for i, x in enumerate(above)), torch.zeros_like(number))
    return mask << VIEW, torch.stack(lit, 1).to(torch.uint8)
