"""The order in which rows are trained on, one for both loops."""

import numpy as np
from numpy.typing import NDArray


def order_of(count: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """The numbers of the rows in the order of an epoch, a new one in every.

    Args:
        count: how many rows there are.
        seed: of the run.
        epoch: from 0 on.
    """
    return np.random.default_rng([seed, epoch]).permutation(count)
