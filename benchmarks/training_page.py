"""The part of docs/benchmarks.md that benchmarks/training.py measures."""

from collections.abc import Iterator
from typing import Any


def training(result: dict[str, Any]) -> Iterator[str]:
    """Blocks by size, their modules, and whole steps."""
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    yield f"## Training, {result['device']}\n"
    yield f"{result['date']}; {versions}, {result['settings']['dtype']}, axfold {result['commit']}.\n"
    blocks = [row for row in result["rows"] if "ms" in row]
    for size in dict.fromkeys(row["size"] for row in blocks):
        sequences, residues = size.split("x")
        yield (
            f"One Evoformer block forward and backward, {sequences} sequences and {residues} residues, with dropout "
            "and without checkpointing. What is launched kernel by kernel waits for the host where the kernels are "
            "short; a CUDA graph does not. `resident` was there before: representations, parameters, gradients.\n"
        )
        yield "| | forward ms | backward ms | both ms | peak GiB | resident GiB |"
        yield "| --- |" + " ---: |" * 5
        for row in blocks:
            if row["size"] == size:
                times = [
                    f"{row[name]:.1f}" if name in row else "" for name in ("forward_ms", "backward_ms", "ms")
                ]
                memory = [
                    f"{row[name] / 2**30:.2f}" if name in row else ""
                    for name in ("peak_bytes", "resident_bytes")
                ]
                yield f"| {row['engine']}, {row['setting']} | " + " | ".join([*times, *memory]) + " |"
        yield ""
        modules = [row for row in result["rows"] if row["size"] == size and "forward_device_ms" in row]
        if modules:
            yield "axfold's modules by themselves, milliseconds that the device computes and number of kernels:\n"
            yield "| | forward ms | kernels | backward ms | kernels |"
            yield "| --- |" + " ---: |" * 4
            for row in modules:
                each = [
                    f"{row[f'{way}_device_ms']:.2f} | {row[f'{way}_launches']}"
                    for way in ("forward", "backward")
                ]
                yield f"| {row['part']} | " + " | ".join(each) + " |"
            yield ""
    steps = [row for row in result["rows"] if "step_seconds" in row]
    if steps:
        yield "A step of model_1 on one sample, without recycling; blocks are computed again for their gradients.\n"
        yield "| residues, clusters, extra sequences | seconds a sample | peak GiB |"
        yield "| --- | ---: | ---: |"
        for row in steps:
            yield f"| {row['size']} | {row['step_seconds']:.3f} | {row['peak_bytes'] / 2**30:.2f} |"
        yield ""
    failed = [row for row in result["rows"] if "failed" in row]
    if failed:
        yield "Not measured:\n"
        for row in failed:
            what = ", ".join(str(row[name]) for name in ("engine", "setting", "size", "part") if name in row)
            yield f"- {what}: {row['failed']}"
        yield ""
