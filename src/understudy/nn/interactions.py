"""The saturated interaction design: every function of a few discrete numbers, as one linear layer.

With factors that take n_1, ..., n_K values a saturated model has n_1 * ... * n_K columns of zeros and ones, as many as
there are combinations. One column for each combination would do; here the columns are those of patsy's formula
`1 + a:b:c`: coarse ones that many combinations share beside fine ones, so that what is learned at one combination
helps at others. Only a few are one in any row, and a linear layer needs no others: `ActiveLinear` adds them up.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

MAX_FACTORS, MAX_COLUMNS = 8, 1_000_000
"""More factors have too many sets of factors, more combinations are no table any more."""


def interaction_terms(num_factors: int) -> list[dict[int, bool]]:
    """The terms beside the intercept: factor -> True, a column for each of its values; False, for all but the first.

    Starts with every non-empty set of factors, each without its first value (the treatment coding); then, as long as
    there is one, a term takes in another that lacks just one of its factors, which from then on has all its values.
    The order, and so the result, is patsy's.
    """
    factors = range(num_factors)
    sets = (chosen for size in range(1, num_factors + 1) for chosen in itertools.combinations(factors, size))
    terms = [dict.fromkeys(chosen, False) for chosen in sets]
    while (pair := _absorbing(terms)) is not None:
        short, long = pair
        terms[long] = dict.fromkeys(terms[long], True) | terms[short]
        del terms[short]
    return terms


def _absorbing(terms: Sequence[dict[int, bool]]) -> tuple[int, int] | None:
    """The first two terms of which the later is the earlier one and one more factor."""
    for i, short in enumerate(terms):
        for j in range(i + 1, len(terms)):
            if len(terms[j]) == len(short) + 1 and short.items() <= terms[j].items():
                return i, j
    return None


def active_columns(nvec: Sequence[int]) -> Tensor:
    """The columns that are one, `[prod(nvec), J]` int64, a row for each combination in lexicographic order.

    J is one more than there are terms; column 0 is the intercept. Where a term has no column for a combination the
    entry is prod(nvec), one past the last column. Raises ValueError for more than 8 factors or a million combinations.
    """
    size = math.prod(nvec)
    if len(nvec) > MAX_FACTORS or size > MAX_COLUMNS:
        raise ValueError(
            f"{len(nvec)} numbers with {size:,} combinations are too many for the interaction design (at most "
            f"{MAX_FACTORS} and {MAX_COLUMNS:,}): use one-hot (kind='auto') or embeddings"
        )
    rows = torch.cartesian_prod(*(torch.arange(n) for n in nvec)).view(size, len(nvec))
    columns, offset = [torch.zeros(size, dtype=torch.int64)], 1
    for term in interaction_terms(len(nvec)):
        column, active, count = torch.zeros(size, dtype=torch.int64), torch.ones(size, dtype=torch.bool), 1
        for factor, full in sorted(term.items()):
            first = 0 if full else 1
            active &= rows[:, factor] >= first
            column = column * (nvec[factor] - first) + rows[:, factor] - first
            count *= nvec[factor] - first
        columns.append(torch.where(active, column + offset, size))
        offset += count
    assert offset == size
    return torch.stack(columns, dim=-1)


class ActiveLinear(nn.Linear):
    """`nn.Linear` over columns of zeros and ones of which only the ones are given: y = b + sum_j W[:, c_j].

    Input: their indices `[..., J]` int64; the index `in_features` stands for none. Parameters, state dict and
    gradients are those of the dense layer, at a cost that does not grow with the number of columns.
    """

    @classmethod
    def like(cls, linear: nn.Linear) -> ActiveLinear:
        """The same layer (the same parameters) for active columns."""
        layer = cls(1, 1, bias=False)  # its own parameters are replaced
        layer.in_features, layer.out_features = linear.in_features, linear.out_features
        layer.weight, layer.bias = linear.weight, linear.bias
        return layer

    def forward(self, input: Tensor) -> Tensor:
        """`[..., J]` to `[..., out_features]`."""
        rows = F.pad(self.weight.t(), (0, 0, 0, 1))  # a row of zeros for "none"
        out = F.embedding(input, rows).sum(-2)
        return out if self.bias is None else out + self.bias
