"""What is done to pixels before a model sees them, on NumPy or JAX arrays alike."""

from typing import Any


def binarize(images: Any, *, threshold: int) -> Any:
    """1.0 where a pixel is above the threshold, else 0.0, in float32.

    Source: Ioffe & Szegedy (2015), section 4.1 ("28x28 binary image"; the threshold
    is not stated).

    Args:
        images: uint8 pixels of any shape, a NumPy or a JAX array.
        threshold: Largest pixel value that becomes 0, in 0 to 254.
    """
    return (images > threshold).astype("float32")
