"""A tiny ImageNet for tests: the two tar files, of synthetic images."""

import io
import tarfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image

CMYK = "n01739381_1309.JPEG"
PNG = "n02105855_2933.JPEG"
GREY = "n01440764_900.JPEG"
TRAIN_TAR = "ILSVRC2012_img_train.tar"
VALIDATION_TAR = "ILSVRC2012_img_val.tar"
SYNSETS = ("n01440764", "n01739381", "n02105855", "n02123045", "n03062245")

Files = Mapping[str, bytes]


def encode(image: Image.Image, kind: str = "JPEG") -> bytes:
    """An encoded image."""
    file = io.BytesIO()
    image.save(file, kind, quality=90)
    return file.getvalue()


def picture(seed: int) -> Image.Image:
    """Smooth colours, of a size of its own."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (3, 4, 3), dtype=np.uint8)
    width, height = (int(side) for side in rng.integers(24, 80, 2))
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BILINEAR)


def training_files() -> dict[str, dict[str, bytes]]:
    """Of each class: eight images, and the odd ones."""
    files = {
        synset: {f"{synset}_{i}.JPEG": encode(picture(10 * c + i)) for i in range(1, 9)}
        for c, synset in enumerate(SYNSETS)
    }
    files["n01739381"][CMYK] = encode(picture(101).convert("CMYK"))
    files["n02105855"][PNG] = encode(picture(102), "PNG")
    files["n01440764"][GREY] = encode(picture(103).convert("L"))
    return files


def validation_files(num_images: int = 12) -> dict[str, bytes]:
    """The first validation images."""
    return {
        f"ILSVRC2012_val_{i:08d}.JPEG": encode(picture(200 + i))
        for i in range(1, num_images + 1)
    }


def tar_bytes(files: Files) -> bytes:
    """A tar file of these files."""
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return content.getvalue()


def write_tars(
    folder: Path,
    training: Mapping[str, Files] | None = None,
    validation: Files | None = None,
) -> Path:
    """Writes both tar files, and gives back their folder."""
    folder.mkdir(parents=True, exist_ok=True)
    training = training_files() if training is None else training
    validation = validation_files() if validation is None else validation
    # As in the official file, images lie in no order.
    shuffled = dict(sorted(validation.items(), key=lambda item: item[0][::-1]))
    inner = {f"{synset}.tar": tar_bytes(files) for synset, files in training.items()}
    (folder / TRAIN_TAR).write_bytes(tar_bytes(inner))
    (folder / VALIDATION_TAR).write_bytes(tar_bytes(shuffled))
    return folder
