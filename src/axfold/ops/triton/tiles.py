"""How much of a representation a program of each kernel takes at once: measured values, as data."""

from dataclasses import dataclass
from functools import cache

import torch
import triton


@dataclass(frozen=True)
class Tile:
    """Shape and resources of one program of a kernel.

    `positions` go at once, and `chunk` channels of a wide layer. `resident` programs a multiprocessor stay and keep
    the weights on chip for all their tiles; with 0 each program takes one tile and reads the weights from the cache.
    A thread takes at most so many `registers`; with None the compiler decides.
    """

    positions: int
    chunk: int
    warps: int
    stages: int
    resident: int = 0
    registers: int | None = None


# rows that are reduced as a whole; so many programs a multiprocessor share the sums of their gradients
_LONG_ROWS = (
    (0, 64, Tile(32, 0, 4, 1, resident=4)),
    (0, 128, Tile(16, 0, 4, 1, resident=4)),
    (0, 256, Tile(8, 0, 4, 1, resident=4)),
    (0, 512, Tile(4, 0, 4, 1, resident=4)),
    (0, 1024, Tile(2, 0, 4, 1, resident=4)),
    (0, 4096, Tile(1, 0, 4, 1, resident=4)),
    (0, 8192, Tile(1, 0, 8, 1, resident=2)),
)

# op -> numbers -> (least compute capability, most channels, tile); the first that fits is taken
TILES: dict[str, dict[str, tuple[tuple[int, int, Tile], ...]]] = {
    "triangle_operand": {
        "half": (
            (100, 128, Tile(64, 128, 8, 3, resident=2)),
            (90, 128, Tile(64, 128, 4, 3, resident=2)),
            (0, 256, Tile(64, 32, 4, 2)),
        ),
        "fp16": ((90, 128, Tile(64, 128, 4, 2, resident=2)), (0, 256, Tile(64, 32, 4, 2))),
        "float32": ((90, 256, Tile(64, 64, 4, 3)), (0, 256, Tile(64, 32, 8, 2))),
    },
    "triangle_update": {
        "half": ((90, 128, Tile(32, 128, 4, 3, resident=2)), (0, 256, Tile(32, 32, 4, 1))),
        "fp16": ((90, 128, Tile(32, 128, 4, 2, resident=2)), (0, 256, Tile(32, 32, 4, 1))),
        "float32": (
            (90, 128, Tile(64, 32, 8, 3)),
            (0, 128, Tile(64, 16, 8, 2)),
            (0, 256, Tile(32, 16, 8, 2)),
        ),
    },
    "transition": {
        "half": (
            (100, 128, Tile(64, 64, 4, 3)),
            (90, 64, Tile(128, 64, 4, 2)),
            (90, 128, Tile(64, 64, 4, 3)),
            (100, 256, Tile(64, 64, 8, 2)),
            (90, 256, Tile(128, 32, 8, 3)),
            (0, 128, Tile(64, 32, 4, 2)),
            (0, 256, Tile(32, 32, 4, 2)),
        ),
        "fp16": (
            (90, 128, Tile(128, 32, 8, 3)),
            (90, 256, Tile(64, 32, 8, 3)),
            (0, 128, Tile(64, 32, 4, 2)),
            (0, 256, Tile(32, 32, 8, 2)),
        ),
        "float32": (
            (90, 128, Tile(128, 32, 8, 3)),
            (0, 128, Tile(64, 32, 8, 2)),
            (0, 256, Tile(32, 32, 8, 2)),
        ),
    },
    "linear_residual": {
        "half": (
            (90, 64, Tile(64, 64, 4, 1)),
            (90, 128, Tile(64, 128, 4, 2, resident=2)),
            (100, 256, Tile(128, 64, 8, 2)),
            (90, 256, Tile(64, 256, 8, 1, resident=1)),
            (0, 256, Tile(64, 32, 4, 2)),
        ),
        "fp16": (
            (90, 64, Tile(64, 64, 4, 2, resident=3)),
            (90, 128, Tile(64, 64, 4, 2)),
            (90, 256, Tile(64, 64, 8, 2)),
            (0, 256, Tile(32, 32, 4, 2)),
        ),
        "float32": ((90, 256, Tile(128, 64, 8, 3)), (0, 256, Tile(64, 32, 4, 2))),
    },
    "outer_product_mean": {
        "half": ((90, 128, Tile(128, 64, 4, 3)), (0, 256, Tile(64, 32, 4, 2))),
        "fp16": ((90, 128, Tile(128, 64, 8, 3)), (0, 256, Tile(64, 32, 4, 2))),
        "float32": (
            (90, 128, Tile(128, 32, 8, 3)),
            (0, 128, Tile(64, 32, 8, 2)),
            (0, 256, Tile(32, 32, 8, 2)),
        ),
    },
    "outer_product_backward": {
        "half": ((90, 128, Tile(64, 128, 8, 3)), (0, 256, Tile(32, 32, 4, 2))),
        "float32": (),
    },
    "normed_linear": {
        "half": (
            (90, 64, Tile(64, 64, 4, 3)),
            (90, 256, Tile(128, 64, 8, 3)),
            (0, 256, Tile(64, 32, 4, 2)),
        ),
        "fp16": ((90, 256, Tile(128, 64, 8, 3)), (0, 256, Tile(64, 32, 4, 2))),
        "float32": ((90, 256, Tile(128, 64, 8, 3)), (0, 256, Tile(64, 32, 4, 2))),
    },
    # narrow layers, of at most so many channels: ops.triton.normed_linear
    "normed_linear to 4": {"half": ((90, 256, Tile(32, 16, 4, 1)), (0, 256, Tile(64, 16, 4, 2)))},
    "normed_linear to 16": {"half": ((90, 256, Tile(64, 16, 4, 1)), (0, 256, Tile(64, 16, 4, 2)))},
    "normed_linear to 32": {"half": ((90, 256, Tile(64, 32, 4, 1)), (0, 256, Tile(64, 32, 4, 2)))},
    "invariant_point_attention": {
        "half": (
            (100, 256, Tile(32, 0, 4, 2)),
            (90, 256, Tile(64, 0, 4, 2)),
            (0, 256, Tile(32, 0, 4, 2)),
        ),
        "float32": ((0, 256, Tile(32, 0, 4, 1)),),
    },
    "global_column_attention": {
        "half": (
            (100, 256, Tile(32, 0, 4, 2)),
            (90, 256, Tile(64, 0, 4, 3)),
            (0, 256, Tile(32, 0, 4, 2)),
        ),
        "float32": ((0, 256, Tile(32, 0, 8, 2)),),
    },
    "layer_norm": dict.fromkeys(("half", "float32"), _LONG_ROWS),
    "softmax": dict.fromkeys(("half", "float32"), _LONG_ROWS),
}
"""In float32 a program of `triangle_update` takes `chunk` channels of its sums at a time, and writes all at once.

"fp16" are the tiles of float32 that is multiplied as float16. Neither have been timed: they are the largest that
compile without spilled registers, those of float32 with at most 99 KB of shared memory.
"""


PRODUCTS = {"ieee": "bf16x6", "tf32": "fp16"}
"""How tensor cores multiply float32.

"ieee": as bfloat16 numbers that add up to it, three of each. Their six largest products are as exact as float32 is.
"tf32": as float16, which keeps as many bits as TF32 (`ops.triton.tf32`), or where a kernel knows no other way as two
bfloat16 numbers, whose three largest products keep 16 bits. Tensor cores cut off what TF32 has no bits for.
"""


def precision(dtype: torch.dtype) -> str:
    """How numbers are multiplied: "half", or float32 as "tf32" where PyTorch's own products may, else "ieee"."""
    if dtype != torch.float32:
        return "half"
    return "ieee" if torch.get_float32_matmul_precision() == "highest" else "tf32"


def in_float16(dtype: torch.dtype) -> bool:
    """Whether float32 is multiplied as float16, by kernels that can."""
    return PRODUCTS.get(precision(dtype)) == "fp16"


def numbers(dtype: torch.dtype) -> str:
    """Which tiles are for that dtype: "half", "fp16" for float32 that is multiplied so, else "float32"."""
    return "half" if dtype != torch.float32 else "fp16" if in_float16(dtype) else "float32"


def products(dtype: torch.dtype) -> str:
    """`input_precision` of the kernels' products; half precision and the interpreter know no other than their own."""
    if triton.knobs.runtime.interpret:
        return "ieee"
    return "bf16x3" if in_float16(dtype) else PRODUCTS.get(precision(dtype), "ieee")


def tile(op: str, x: torch.Tensor) -> Tile:
    """The tile of an op for x, whose last axis is the channels."""
    capability = generation(gpu(x.device)[0])
    table = TILES[op].get(numbers(x.dtype)) or TILES[op]["float32"]
    return next(tile for least, most, tile in table if capability >= least and x.shape[-1] <= most)


def widest(op: str) -> int:
    """The most channels that any tile of an op takes."""
    return max(most for table in TILES[op].values() for _, most, _ in table)


def generation(capability: int) -> int:
    """Whose tiles a GPU takes: 12.0 has the shared memory and the products of 8.9, not those of 9.0 and 10.0."""
    return 89 if capability >= 120 else capability


def programs(tile: Tile, tiles: int, device: torch.device) -> int:
    """How many programs to launch for that number of tiles."""
    return min(tiles, tile.resident * gpu(device)[1]) if tile.resident else tiles


def grid(tile: Tile, members: int, tiles: int, device: torch.device) -> tuple[int, int]:
    """Programs to launch for that number of tiles of each member of a batch: so many of each, and the members."""
    return max(programs(tile, members * tiles, device) // max(members, 1), 1), members


@cache
def gpu(device: torch.device) -> tuple[int, int]:
    """Compute capability (90 is Hopper's) and number of multiprocessors."""
    if device.type != "cuda":  # Triton's interpreter: programs run one after the other
        return 80, 1
    properties = torch.cuda.get_device_properties(device)
    return 10 * properties.major + properties.minor, properties.multi_processor_count
