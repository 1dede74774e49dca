"""Functions that Triton does not have on every device, as its interpreter knows them too.

libdevice has these functions, but only on a GPU. ``tl.exp`` in single precision is the GPU's
2^x of a rounded x·log₂e: its relative error is about (2 + |x|) half units in the last place. That
is no more than the rounding of x itself, a log-probability, does to e^x, and exponentials are of
numbers relative to the row's largest, where a large |x| goes with a small e^x.
"""

import triton
import triton.language as tl


@triton.jit
def expm1(x):  # type: ignore[no-untyped-def]
    """e^x - 1, by its Taylor series near 0."""
    near = tl.abs(x) < 0.5
    z = tl.where(near, x, 0.0)
    p = z * (1.0 / 1307674368000.0) + 1.0 / 87178291200.0
    p = p * z + 1.0 / 6227020800.0
    p = p * z + 1.0 / 479001600.0
    p = p * z + 1.0 / 39916800.0
    p = p * z + 1.0 / 3628800.0
    p = p * z + 1.0 / 362880.0
    p = p * z + 1.0 / 40320.0
    p = p * z + 1.0 / 5040.0
    p = p * z + 1.0 / 720.0
    p = p * z + 1.0 / 120.0
    p = p * z + 1.0 / 24.0
    p = p * z + 1.0 / 6.0
    p = p * z + 0.5
    return tl.where(near, z + z * z * p, tl.exp(x) - 1.0)


@triton.jit
def log1p(x):  # type: ignore[no-untyped-def]
    """log(1 + x): the rounding of 1 + x is made good by a factor, as Kahan has it."""
    u = 1.0 + x
    rounded = u - 1.0
    as_it_is = (rounded == 0.0) | (u == float("inf"))
    return tl.where(as_it_is, x, tl.log(u) * (x / tl.where(as_it_is, 1.0, rounded)))


@triton.jit
def asin(x):  # type: ignore[no-untyped-def]
    """Arcsin x of one number, in double precision; beyond ½ by the angle that is left to π/2."""
    wide = x.to(tl.float64)
    size = tl.abs(wide)
    steep = size > 0.5
    left = 0.5 * (1.0 - size)
    z = tl.where(steep, left, size * size)
    side = tl.where(steep, tl.sqrt(left), size)
    # (asin(s)/s - 1)/s² in s², a Chebyshev fit on 0 <= s <= ½.
    p = z * 0.02877844261259304 - 0.014881409392818063
    p = p * z + 0.017419357964884856
    p = p * z + 0.005450878187720551
    p = p * z + 0.010324318288744113
    p = p * z + 0.011478952690257387
    p = p * z + 0.013971235301124539
    p = p * z + 0.017352391265909227
    p = p * z + 0.022372173002005596
    p = p * z + 0.030381944137085216
    p = p * z + 0.04464285714637338
    p = p * z + 0.07499999999998425
    p = p * z + 0.16666666666666669
    angle = side + side * z * p
    # tl.full and not a literal, which would be rounded to single precision before it is used.
    quarter = tl.full((), 1.5707963267948966, tl.float64)
    angle = tl.where(steep, quarter - 2.0 * angle, angle)
    return tl.where(wide < 0.0, -angle, angle).to(x.dtype)
