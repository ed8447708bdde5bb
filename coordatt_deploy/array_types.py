"""What NumPy arrays hold, where it is not one type alone. Spelled out, since ``np.number`` and the like are ``Any``."""

import numpy as np
from numpy.typing import NDArray

Float = np.float16 | np.float32 | np.float64
Integer = np.int8 | np.uint8 | np.int16 | np.uint16 | np.int32 | np.uint32 | np.int64 | np.uint64
Number = Float | np.bool_ | Integer

FloatArray = NDArray[Float]
IntegerArray = NDArray[Integer]
NumberArray = NDArray[Number]
