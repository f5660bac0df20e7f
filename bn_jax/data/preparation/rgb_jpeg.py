"""Conversion of the ImageNet files that are not RGB or grey JPEGs."""

import io

from PIL import Image, UnidentifiedImageError

from bn_jax.errors import UserError


def rgb_jpeg(content: bytes, *, name: str) -> bytes:
    """Returns a JPEG in RGB or grey unchanged, and any other image as a JPEG in RGB.

    ImageNet has 22 JPEGs in CMYK and a PNG, all named `.JPEG`. This function recognizes
    them by their content and encodes them again with quality 100. tensorflow-datasets
    does this for a list of their names.

    A JPEG is decoded to an eighth of its size, which reads the whole file. A truncated
    file therefore fails here, not in training.

    Args:
        content: The encoded image.
        name: Name of the image in an error.

    Raises:
        UserError: If the image cannot be decoded, or is neither JPEG nor PNG.
    """
    try:
        image = Image.open(io.BytesIO(content), formats=("JPEG", "PNG"))
        # Pillow calls a JPEG file with several images MPO.
        if image.format in ("JPEG", "MPO") and image.mode in ("RGB", "L"):
            image.draft(image.mode, (1, 1))
            image.load()
            return content
        file = io.BytesIO()
        image.convert("RGB").save(file, "JPEG", quality=100)
        return file.getvalue()
    except UnidentifiedImageError as error:
        raise _undecodable_image_error(name, "it is neither JPEG nor PNG") from error
    # Pillow raises these errors for damaged or very large images.
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise _undecodable_image_error(name, str(error)) from error


def _undecodable_image_error(name: str, why: str) -> UserError:
    return UserError(
        f"{name}: Pillow cannot decode the image ({why}). Download the tar file again; "
        "if that does not help, use another version of Pillow."
    )
