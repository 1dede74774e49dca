"""NumPy: the core as it is, without warnings for the infinities that it handles itself."""

import array_api_compat.numpy as xp
import numpy as np

from amidmath._typing import Array, ClosedForm, Partials


def run(
    form: ClosedForm, operands: tuple[Array, ...], needs: tuple[bool, ...]
) -> tuple[Array, Partials]:
    """The closed form's value and the partial derivatives that ``needs`` marks."""
    with np.errstate(all="ignore"):
        return form(*operands, needs=needs, xp=xp)
