"""Round to float16 without leaving float32, several times faster than NumPy converts there and back.

NumPy's conversion branches on every element. Here each step is one operation over an array, which vector units do, and
arrays are taken in blocks that stay in the cache. Results are NumPy's, bit for bit: ties go to the even neighbour,
small values to float16's subnormals, what reaches 65,520 becomes infinite, zeros keep their sign.
"""

from typing import Final

import numpy as np
from numpy.typing import NDArray

BLOCK: Final = 1 << 14
_SIGN: Final = np.uint32(1 << 31)
_EXPONENT: Final = np.uint32(0xFF << 23)
_LEAST: Final = np.uint32((127 - 14) << 23)  # below 2^-14 float16's steps get no finer
_GREATEST: Final = np.uint32((127 + 16) << 23)  # from 2^16 on all is infinite
_STEPS: Final = np.uint32((13 << 23) | (1 << 22))
_UP: Final = np.float32(2.0**112)  # takes 2^16 to infinity, and float16's largest number not
_DOWN: Final = np.float32(2.0**-112)  # takes float16's exponents to where float32's lowest are


def round_to_float16(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the nearest float16 of every element, in a new array of float32.

    A value of exponent e is a multiple of 2^(e - 10) in float16. Adding 1.5 · 2^(e + 13), a number whose own steps in
    float32 are that wide, rounds to them; subtracting it leaves what was rounded.
    """
    source = np.asarray(values, np.float32, order="C")
    result = np.empty_like(source)
    flat, out = source.reshape(-1), result.reshape(-1)
    bits, out_bits = flat.view(np.uint32), out.view(np.uint32)
    room = np.empty(min(BLOCK, flat.size), np.uint32)
    with np.errstate(all="ignore"):
        for start in range(0, flat.size, BLOCK):
            at = slice(start, start + BLOCK)
            large, block = room[: flat[at].size], out[at]
            np.bitwise_and(bits[at], _EXPONENT, out=large)
            np.clip(large, _LEAST, _GREATEST, out=large)
            np.add(large, _STEPS, out=large)
            np.add(flat[at], large.view(np.float32), out=block)
            np.subtract(block, large.view(np.float32), out=block)
            np.multiply(block, _UP, out=block)
            np.multiply(block, _DOWN, out=block)
            np.bitwise_and(bits[at], _SIGN, out=large)
            np.bitwise_or(out_bits[at], large, out=out_bits[at])
    return result


def pack_float16(values: NDArray[np.float32]) -> NDArray[np.float16]:
    """Return what ``round_to_float16`` gave as float16, in a new array.

    Times 2^-112 the bits of a float32 are those of the float16, 13 places further up, subnormals included.
    """
    source = np.asarray(values, np.float32, order="C")
    result = np.empty(source.shape, np.float16)
    flat, out = source.reshape(-1), result.reshape(-1).view(np.uint16)
    bits = flat.view(np.uint32)
    room = np.empty(min(BLOCK, flat.size), np.uint32)
    signs = np.empty_like(room)
    with np.errstate(all="ignore"):
        for start in range(0, flat.size, BLOCK):
            at = slice(start, start + BLOCK)
            low, sign = room[: flat[at].size], signs[: flat[at].size]
            np.multiply(flat[at], _DOWN, out=low.view(np.float32))
            np.right_shift(low, 13, out=low)
            np.bitwise_and(low, 0x7FFF, out=low)
            np.right_shift(bits[at], 16, out=sign)
            np.bitwise_and(sign, 0x8000, out=sign)
            np.bitwise_or(low, sign, out=low)
            out[at] = low
    return result


def widened(value: object) -> object:
    """Return float16 values as float32, everything else as it is."""
    if isinstance(value, (np.ndarray, np.generic)) and value.dtype == np.float16:
        return value.astype(np.float32)
    return value
