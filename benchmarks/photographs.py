"""Generated JPEGs as large as photographs, as ImageNet's records and as plain files."""

import io
import tarfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from bn_jax.data.preparation.imagenet import prepare_imagenet

_WIDTH, _HEIGHT = 500, 375
_SYNSETS = ("n01440764", "n01443537")


def write_images(folder: Path, num_images: int) -> list[int]:
    """Writes images as JPEG files to `files/` and as ImageNet's records to `prepared/`.

    Args:
        folder: Folder to write to.
        num_images: Number of images.

    Returns:
        Size of each JPEG in bytes.
    """
    rng = np.random.default_rng(0)
    sizes = []
    contents: dict[str, dict[str, bytes]] = {synset: {} for synset in _SYNSETS}
    for number in range(num_images):
        synset = _SYNSETS[number % len(_SYNSETS)]
        content = _jpeg(rng)
        sizes.append(len(content))
        path = folder / "files" / synset / f"{synset}_{number}.JPEG"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        contents[synset][path.name] = content
    training = {f"{synset}.tar": _tar(files) for synset, files in contents.items()}
    validation = {"ILSVRC2012_val_00000001.JPEG": _jpeg(rng)}
    (folder / "ILSVRC2012_img_train.tar").write_bytes(_tar(training))
    (folder / "ILSVRC2012_img_val.tar").write_bytes(_tar(validation))
    prepare_imagenet(folder, folder / "prepared", is_subset=True)
    return sizes


def _tar(files: Mapping[str, bytes]) -> bytes:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return content.getvalue()


def _jpeg(rng: np.random.Generator) -> bytes:
    """Returns a JPEG of smooth colors with noise, which is as large as a photograph."""
    coarse = rng.integers(0, 256, (_HEIGHT // 25, _WIDTH // 25, 3), dtype=np.uint8)
    smooth = Image.fromarray(coarse).resize((_WIDTH, _HEIGHT), Image.Resampling.BICUBIC)
    noise = rng.normal(0, 17, (_HEIGHT, _WIDTH, 1))
    pixels = np.clip(np.asarray(smooth) + noise, 0, 255).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=87)
    return file.getvalue()
