"""Figure 5 of the paper: the layers of BN-Inception, and networks made from them."""

from typing import Literal, NamedTuple

VARIANTS = ("paper_rows", "slim")
STEMS = ("imagenet", "small")


class Convolution(NamedTuple):
    """A convolution, padded equally on both sides.

    Attributes:
        name: Name of the layer in the parameters.
        features: Number of output channels.
        kernel_size: Height and width of the kernel, in pixels.
        stride: Pixels from one output to the next.
        is_separable: True for a depthwise convolution followed by a 1 x 1 convolution.
    """

    name: str
    features: int
    kernel_size: int
    stride: int = 1
    is_separable: bool = False


class Pool(NamedTuple):
    """A pooling with windows of 3 x 3 pixels.

    Attributes:
        kind: "avg", which includes the zeros beyond the edges, or "max".
        stride: Pixels from one output to the next.
        rounds_up: True rounds half of an odd size up, like the strided convolutions
            with whose outputs the result is concatenated. False rounds it down, like
            PyTorch's pooling without padding and with `ceil_mode=True`.
    """

    kind: Literal["avg", "max"]
    stride: int
    rounds_up: bool = True


Branch = tuple[Convolution | Pool, ...]


class Stage(NamedTuple):
    """Branches with the same input, whose outputs are concatenated by channel.

    Attributes:
        name: "stem", or the module's name in the paper.
        branches: Branches, each a sequence of convolutions and poolings.
    """

    name: str
    branches: tuple[Branch, ...]


Network = tuple[Stage, ...]


class Row(NamedTuple):
    """A row of Figure 5, with 0 channels where the paper has no such convolution.

    Attributes:
        name: The module.
        stride: 2 if the module halves the image, 1 otherwise.
        conv1: Channels of the 1 x 1 convolution.
        reduce3: Channels of the 1 x 1 convolution before the 3 x 3 one.
        conv3: Channels of the 3 x 3 convolution.
        reduce_double: Channels of the 1 x 1 convolution before the two 3 x 3 ones.
        double3: Channels of each of these two 3 x 3 convolutions.
        pool: Kind of the pooling.
        projection: Channels of the 1 x 1 convolution after the pooling.
    """

    name: str
    stride: int
    conv1: int
    reduce3: int
    conv3: int
    reduce_double: int
    double3: int
    pool: Literal["avg", "max"]
    projection: int


# Source: Ioffe & Szegedy (2015), Figure 5, each row as printed.
# fmt: off
FIGURE_5 = (
    #   name stride 1x1 reduce 3x3 reduce double   pool proj
    Row("3a", 1,     64,    64,  64,    64,    96, "avg",  32),
    Row("3b", 1,     64,    64,  96,    64,    96, "avg",  64),
    Row("3c", 2,      0,   128, 160,    64,    96, "max",   0),
    Row("4a", 1,    224,    64,  96,    96,   128, "avg", 128),
    Row("4b", 1,    192,    96, 128,    96,   128, "avg", 128),
    Row("4c", 1,    160,   128, 160,   128,   160, "avg", 128),
    Row("4d", 1,     96,   128, 192,   160,   192, "avg", 128),
    Row("4e", 2,      0,   128, 192,   192,   256, "max",   0),
    Row("5a", 1,    352,   192, 320,   160,   224, "avg", 128),
    Row("5b", 1,    352,   192, 320,   192,   224, "max", 128),
)
# fmt: on


def stages(
    *,
    variant: str = "paper_rows",
    stem: str = "imagenet",
    separable: bool = True,
    width: float = 1.0,
) -> Network:
    """Returns the stem and the modules, in network order.

    Args:
        variant: "paper_rows" uses the rows of Figure 5, with which the modules 4c, 4d
            and 4e have 608, 608 and 1056 output channels. "slim" has the output sizes
            that Figure 5 prints beside these rows, 576, 576 and 1024, because it gives
            the projections of 4c and 4d 96 channels.
        stem: "imagenet" has strides that reduce the image to an eighth of its height
            and width. "small" keeps the size, with a first convolution of 3 x 3 pixels
            and no pooling, so that the modules get 28 x 28 pixels from images of
            28 x 28, as they do with "imagenet" from images of 224 x 224.
        separable: True makes the first convolution separable, as in the paper.
        width: Factor of all channel numbers, which are rounded to at least 1.

    Raises:
        ValueError: If the variant or stem is unknown, or the width is not positive.
    """
    if variant not in VARIANTS:
        raise ValueError(
            f"Inception: variant must be one of {', '.join(VARIANTS)}, but is "
            f"{variant!r}."
        )
    if stem not in STEMS:
        raise ValueError(
            f"Inception: stem must be one of {', '.join(STEMS)}, but is {stem!r}."
        )
    if not 0 < width < float("inf"):
        raise ValueError(
            "Inception: width must be a positive factor of all channel numbers, but is "
            f"{width}; 1.0 is the paper's."
        )
    rows = [_slim_row(row) if variant == "slim" else row for row in FIGURE_5]
    modules = [
        Stage(row.name, _module_branches(_scale_row(row, width))) for row in rows
    ]
    branch = _stem_branch(stem, separable=separable, width=width)
    return (Stage("stem", (branch,)), *modules)


def _stem_branch(stem: str, *, separable: bool, width: float) -> Branch:
    channels = [_scale_channels(n, width) for n in (64, 64, 192)]
    reduce = Convolution("conv2_reduce", channels[1], 1)
    conv2 = Convolution("conv2", channels[2], 3)
    if stem == "small":
        conv1 = Convolution("conv1", channels[0], 3, is_separable=separable)
        return conv1, reduce, conv2
    conv1 = Convolution("conv1", channels[0], 7, 2, is_separable=separable)
    pool = Pool("max", 2, rounds_up=False)
    return conv1, pool, reduce, conv2, pool


def _module_branches(row: Row) -> tuple[Branch, ...]:
    name, stride = row.name, row.stride
    single = (
        Convolution(f"{name}_3x3_reduce", row.reduce3, 1),
        Convolution(f"{name}_3x3", row.conv3, 3, stride),
    )
    double = (
        Convolution(f"{name}_double_3x3_reduce", row.reduce_double, 1),
        Convolution(f"{name}_double_3x3_1", row.double3, 3),
        Convolution(f"{name}_double_3x3_2", row.double3, 3, stride),
    )
    pool = (Pool(row.pool, stride),)
    if not row.projection:
        return single, double, pool
    conv1 = (Convolution(f"{name}_1x1", row.conv1, 1),)
    projection = Convolution(f"{name}_pool_projection", row.projection, 1)
    return conv1, single, double, (*pool, projection)


def _slim_row(row: Row) -> Row:
    return row._replace(projection=96) if row.name in ("4c", "4d") else row


def _scale_row(row: Row, width: float) -> Row:
    counts = {
        field: _scale_channels(value, width)
        for field, value in row._asdict().items()
        if field not in ("name", "stride", "pool")
    }
    return row._replace(**counts)


def _scale_channels(channels: int, width: float) -> int:
    return max(1, round(channels * width)) if channels else 0
