"""What the kernels of the gated delta rule share: where a chunk lies, its rates, and the inverse.

The rates of a chunk are five rows of C float32: γ, the running sum of g with -inf read as 0; the number of documents
begun so far; e^γ from the chunk's start, and e^{γ_C − γ} to its end, both 0 where a document begins in between; β.
"""

# A kernel's arguments have no Python types.
# mypy: disable-error-code="no-untyped-def, untyped-decorator, import-untyped"

from __future__ import annotations

import triton
import triton.language as tl

__all__ = ["BLOCK", "RATES", "between", "chunk_of", "load_tile", "unit_lower_inverse"]

BLOCK = tl.constexpr(16)
RATES = tl.constexpr(5)


@triton.jit
def chunk_of(x, batch_stride, token_stride, head_stride, head, chunk, H: tl.constexpr, C: tl.constexpr):
    """Where the first token of a (batch, head) row's chunk lies in x."""
    return x + (head // H) * batch_stride + (head % H) * head_stride + tl.cast(chunk * C, tl.int64) * token_stride


@triton.jit
def load_tile(x, token_stride, column, real_C, WIDTH: tl.constexpr, C: tl.constexpr):
    """Columns of a chunk's C rows, 0 behind the sequence's end and the head's width."""
    mask = real_C[:, None] & (column < WIDTH)[None, :]
    return tl.load(x + tl.arange(0, C)[:, None] * token_stride + column[None, :], mask=mask, other=0.0)


@triton.jit
def between(gamma_C, begun_C, C: tl.constexpr):
    """D_ij = e^{γ_i − γ_j} for j ≤ i in one document, else 0."""
    place = tl.arange(0, C)
    together = (begun_C[:, None] == begun_C[None, :]) & (place[:, None] >= place[None, :])
    return tl.where(together, tl.exp(tl.where(together, gamma_C[:, None] - gamma_C[None, :], 0.0)), 0.0)


@triton.jit
def unit_lower_inverse(a_CC, C: tl.constexpr, PRECISION: tl.constexpr):
    """(I + A)⁻¹ of a strictly lower float32 A_CC, C = 32 or 64: substitution in blocks of 16, then merged in pairs.

    [[P, 0], [R, Q]]⁻¹ = [[P⁻¹, 0], [−Q⁻¹ R P⁻¹, Q⁻¹]]: with X the inverse of the diagonal blocks and R what lies
    between the two of a pair, the merged inverse is X − X R X.
    """
    count: tl.constexpr = C // BLOCK
    block, place, token = tl.arange(0, count), tl.arange(0, BLOCK), tl.arange(0, C)
    diagonal = block[:, None, None, None] == block[None, None, :, None]
    small = tl.sum(tl.where(diagonal, tl.reshape(a_CC, [count, BLOCK, count, BLOCK]), 0.0), 2)
    solved = tl.where(place[None, :, None] == place[None, None, :], 1.0, 0.0) + tl.zeros_like(small)
    for j in range(BLOCK - 1):
        column = tl.sum(tl.where(place[None, None, :] == j, small, 0.0), 2)
        row = tl.sum(tl.where(place[None, :, None] == j, solved, 0.0), 1)
        solved -= column[:, :, None] * row[:, None, :]
    inverse = tl.reshape(tl.where(diagonal, solved[:, :, None, :], 0.0), [C, C])
    for step in tl.static_range(C // (2 * BLOCK)):
        half = token // (BLOCK << step)
        pair = (half[:, None] // 2 == half[None, :] // 2) & (half[:, None] != half[None, :])
        reached = tl.dot(inverse, tl.where(pair, a_CC, 0.0), input_precision=PRECISION)
        inverse -= tl.dot(reached, inverse, input_precision=PRECISION)
    return inverse
