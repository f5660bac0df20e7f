"""An image of ImageNet as the JPEG that it ought to be."""

import io

from PIL import Image, UnidentifiedImageError

from bn_jax.errors import UserError


def rgb_jpeg(content: bytes, *, name: str) -> bytes:
    """The same bytes, or a JPEG in RGB where they are something else.

    ImageNet holds 22 JPEGs in CMYK and a PNG, all named `.JPEG`. They are told by their
    content, and encoded anew with quality 100, as tensorflow-datasets does by a list of
    their names.

    The image is decoded to an eighth of its size, which reads all of the file: one that
    is cut off is found here, not in training.

    Args:
        content: An encoded image.
        name: What to call it in an error.

    Raises:
        UserError: If it cannot be decoded, or is neither JPEG nor PNG.
    """
    try:
        image = Image.open(io.BytesIO(content), formats=("JPEG", "PNG"))
        # A JPEG that has others behind it is called MPO.
        if image.format in ("JPEG", "MPO") and image.mode in ("RGB", "L"):
            image.draft(image.mode, (1, 1))
            image.load()
            return content
        file = io.BytesIO()
        image.convert("RGB").save(file, "JPEG", quality=100)
        return file.getvalue()
    except UnidentifiedImageError as error:
        raise _damaged(name, "it is neither JPEG nor PNG") from error
    # Pillow has one more error of its own.
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise _damaged(name, str(error)) from error


def _damaged(name: str, why: str) -> UserError:
    return UserError(
        f"{name}: Pillow cannot decode the image ({why}). Download the tar file again; "
        "if that does not help, use another version of Pillow."
    )
