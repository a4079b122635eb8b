"""Times tiles of a kernel on this GPU, at the channels of a call of the network.

    python benchmarks/one_kernel.py "transition, MSA" 512x1024 128,32,8,3 64,64,8,3 64,64,8,2

A tile is positions, channels of a chunk, warps, stages and, if any, resident programs; see `ops/triton/tiles.py`.
"""

import argparse
from unittest import mock

import torch

from axfold.ops import cases, small
from axfold.ops.triton import tiles
from ops import PRECISIONS, seconds


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("call", help="op and name, as in axfold.ops.cases.calls")
    parser.add_argument("size", help="rows x positions")
    parser.add_argument("tiles", nargs="+")
    parser.add_argument("--precision", choices=list(PRECISIONS), default="bf16")
    parser.add_argument("--device", default="cuda")
    args = parser.parse_args()
    device = torch.device(args.device)
    rows, positions = map(int, args.size.split("x"))
    call = next(c for c in cases.calls(PRECISIONS[args.precision]) if f"{c.op.name}, {c.name}" == args.call)
    assert call.op.small is not None
    with mock.patch.multiple(small, ROWS=rows, POSITIONS=positions):
        arguments = small.draw(call.op.small(*call.arguments), device)
    run = call.op.backends["triton"][0]
    for text in args.tiles:
        tile = tiles.Tile(*map(int, text.split(",")))
        try:
            taken = f"{1000 * seconds(lambda tile=tile: run(*arguments, tile=tile), device, 0.2):.3f} ms"
        except Exception as error:  # one that does not fit loses no other
            taken = f"{type(error).__name__}: {error}".splitlines()[0]
        print(f"{args.call}, {args.size}, {text}: {taken}", flush=True)


if __name__ == "__main__":
    main()
