"""Certification of amidmath against mpmath: what is compared, and with which bounds.

``cases`` draws rows, ``subjects`` plans points and calls the library, ``oracle`` has the truth from
definitions alone, ``measure`` compares one point, ``report`` writes what came out, and ``python -m
certify`` runs it all.

Every executor, the array core and the compiled kernels, is held to the same bounds at the same
points; ``subjects.EXECUTORS`` names them.

The truth. Every function of two rows is taken as a function F of logits: a divergence is called on
logarithms of probabilities, each correctly rounded, which leaves them a little off the simplex, so
the oracle first normalises them; the AMiD loss normalises its logits anyway. But for that, the
numbers that the library receives are taken as they stand, to the last bit. Gradients are ∂F/∂logits
by central differences at high precision. Those of a divergence are defined up to multiples of x (of
y) only, so what the library returns is first projected, c - x Σc. The number of digits is doubled
until two evaluations agree.

What rounding forces. No algorithm can undo that a logarithm is rounded to the dtype: with

    δᵢ = eps |log xᵢ| / 2   for a divergence, whose inputs are rounded once before they come, and
    δᵢ = eps |log pᵢ|       for the AMiD loss, where log p is computed and then carried,

the value moves by Σ |∂F/∂i| δᵢ + ½ Σ |∂²F/∂i∂j| δᵢ δⱼ (the second sum is what is left near
equality, where the first vanishes), and the i-th entry of a gradient by Σⱼ |∂²F/∂i∂j| δⱼ. The
derivatives are those of F, that is, along the simplex. A mixture or a mean is
allowed eps |log r̃|, which is much where λ^(1/k) is far from both sources, and through log Z the
average of the same, eps Σ rᵢ |log r̃ᵢ|. Where dividing
by the temperature rounds, eps |s| / 2 joins δ. Beyond 8 outcomes the sums are estimated: three
times the largest change under two random choices of the signs of δ.
The rounded inputs of a divergence have a mass that is not quite 1, which the value and the gradient
on measures scale with: |Σx - 1| + |Σy - 1| times their size is forced, a thousandth in bfloat16.
Also forced is the rounding of what is returned (half an eps of its dtype, which counts for the
bfloat16 gradients of bfloat16 rows), and what lies below the smallest normal number.

An error is reported as it is (raw) and less its forced part, both in units of eps times the size of
the result: |F| for a value, the largest entry for a gradient, max(1, |log p|, |log q|) for a
mixture. eps is that of the dtype computed in, float32 for bfloat16 rows.

Zeros. -inf is put in as a probability of 10^-(10^30). If the value grows with a second, far smaller
zero, it is +inf. Where a zero at α >= 1 leaves the assistant no support the loss is +inf by
convention. There is no gradient to compare where the loss is infinite, nor at a kink, nor where
rounding decides which side of it the rows are on (total variation and distances near x = y).
"""

VALUE_BOUND = 16.0
GRADIENT_BOUND = 16.0
MEAN_BOUND = 2.0
