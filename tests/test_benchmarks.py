"""The benchmarks run, and their page is that of their results."""

import importlib.util
import json
import re
import subprocess
import sys
import weakref
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from axfold import network, ops
from axfold.config import PRESETS
from axfold.forecast import sizes_for
from axfold.memory.budget import parse_bytes
from axfold.memory.plan import max_length, plan

ROOT = Path(__file__).parents[1]
BENCHMARKS = ROOT / "benchmarks"
sys.path.append(str(BENCHMARKS))  # they import one another


@pytest.fixture(scope="module")
def report() -> ModuleType:
    sys.path.append(str(BENCHMARKS))  # as where it is run as a script
    spec = importlib.util.spec_from_file_location("benchmark_report", BENCHMARKS / "report.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_pass_is_timed_by_its_parts(tmp_path: Path, report: ModuleType) -> None:
    small = {
        "--clusters": 3,
        "--extra": 4,
        "--blocks": 1,
        "--threads": 1,
        "--repeats": 1,
        "--results": tmp_path,
    }
    options = [str(word) for option in small.items() for word in option]
    command = [sys.executable, str(BENCHMARKS / "model.py"), "--lengths", "5", "8", *options]
    command += ["--precision", "bf16", "fp32"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    other, path = sorted(tmp_path.iterdir())
    assert json.loads(other.read_text("utf-8"))["settings"]["precision"] == "bf16"
    other.unlink()
    result = json.loads(path.read_text("utf-8"))
    assert [row["residues"] for row in result["measured"]] == [5, 8]
    for row in result["measured"]:
        parts = row["parts"]
        assert {
            "embedding",
            "extra MSA stack",
            "structure module",
            "heads",
            "Evoformer pair transition",
        } <= set(parts)
        assert sum(parts.values()) == pytest.approx(row["hooked_seconds"], abs=0.01)
        assert 0 <= parts["other"] < 0.5 * row["hooked_seconds"]
        assert row["seconds"] == min(row["all_seconds"])
        assert row["first_seconds"] > 0
        assert row["graphs"] is False
    page, last = report.page(tmp_path), result["measured"][1]
    assert f"| 8 | {last['seconds']:.2f} |" in page
    assert f"| 8 | {last['first_seconds']:.2f} |" in page
    assert f" | {last['hooked_seconds']:.2f} |" in page
    assert page.count("in one of its own without CUDA graphs") == 1
    result["measured"][0]["graphs"] = True
    path.write_text(json.dumps(result), "utf-8")
    assert "passes of 5 residues are replayed CUDA graphs" in report.page(tmp_path)


class Replays:
    """A recorder that runs again what it recorded, where no CUDA graph can be."""

    def record(self, run):
        kept: list[Any] = []

        def replay() -> None:
            for place, x in zip(tree_leaves(kept[0]), tree_leaves(run()), strict=True):
                place.copy_(x)

        kept.append(run())
        return replay, kept[0]


@pytest.mark.parametrize("precision", ["fp16", "tf32"])
def test_a_pass_is_timed_with_graphs_and_watched_without(precision: str, monkeypatch, capsys) -> None:
    import model
    import passes

    config = passes.configuration("model_5", clusters=3, extra=4, blocks=3)
    device = torch.device("cpu")
    engine = model.Engine(config, device, precision)
    assert engine.model.trunk.single.weight.dtype == (torch.float16 if precision == "fp16" else torch.float32)
    features = passes.random_features(6, config)
    clock = model.Clock(device)
    seen = []  # for each pass whether blocks are replaced, whether they are watched, and the products of the trunk
    block = engine.model.trunk.evoformer.blocks[2]

    def look(*_: Any) -> None:
        watched = bool(block.pair.transition._forward_hooks)
        seen.append(("forward" in vars(block), watched, torch.get_float32_matmul_precision()))

    engine.model.trunk.evoformer.register_forward_pre_hook(look)
    monkeypatch.setattr(model.planning, "with_graphs", lambda plan, *_: plan)
    monkeypatch.setattr(engine, "_graphs", model.Graphs(device, Replays))
    row = model.measure(engine, features, 2, clock)
    products = "high" if precision == "tf32" else "highest"
    assert seen == [(True, False, products)] * 3 + [(False, False, products), (False, True, products)]
    assert row["graphs"]
    assert len(row["all_seconds"]) == 2
    assert "Evoformer row attention" in row["parts"]
    assert not block.pair.transition._forward_hooks
    monkeypatch.setattr(engine, "run", lambda *_: 1 / 0)
    assert model.row_of(engine, features, 2, clock) == {"failed": "ZeroDivisionError: division by zero"}


def test_a_device_without_tf32_is_told() -> None:
    command = [sys.executable, str(BENCHMARKS / "model.py"), "--precision", "tf32", "--dry-run"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert re.match(r"--precision tf32: .+ has none\.", done.stderr)


def test_the_experiments_have_the_results(report: ModuleType, tmp_path: Path) -> None:
    text = (ROOT / "docs" / "experiments.md").read_text("utf-8")
    experiments = report.experiments_page
    assert experiments.page(text, BENCHMARKS / "results") == text
    about = {"date": "2026-01-02", "device": "a GPU"}
    some = [("slow", 2e-3, True), *((f"way {i}", i * 1e-4, False) for i in range(1, 6))]
    measured = [
        {
            "case": "a case",
            "way": way,
            "seconds": x,
            "today": today,
            "operations_per_second": 2e9 / x,
            "residues": 7,
        }
        for way, x, today in some
    ]
    failed = {"case": "a case", "way": "none", "today": False, "failed": "no"}
    made = [
        {"call": "worth it", "times": 3, "seconds": 1e-5, "tiles": {"64 64": 9e-6, "1 1": "no"}},
        {"call": "not worth it", "times": 3, "seconds": 1e-5, "tiles": {"64 64": 9.9e-6}},
        {"call": "without", "times": 3, "seconds": 1e-5},
    ]
    for name, result in {
        "ways": {**about, "versions": {"axfold": "1"}, "measured": [*measured, failed]},
        "calls": {**about, "axfold": "1", "measured": [{"residues": 7, "calls": made}]},
    }.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "some.json").write_text(json.dumps(result), "utf-8")
    page = experiments.page(text, tmp_path)
    fastest = "; ".join(f"way {i} 0.{i}00" for i in range(1, 5))
    assert f"| a case | {fastest}; **slow** 2.000 | 6 | 20 |" in page
    assert "| 7 | worth it | 3 | 10.0 | 64 64 | 9.0 |" in page
    assert "not worth it" not in page
    assert experiments.page(page, BENCHMARKS / "results") == text


def test_the_page_is_that_of_the_results(report: ModuleType) -> None:
    assert (ROOT / "docs" / "benchmarks.md").read_text("utf-8") == report.page(BENCHMARKS / "results")


def test_the_newest_result_of_a_device_counts(tmp_path: Path, report: ModuleType) -> None:
    result = json.loads(next((BENCHMARKS / "results").glob("*.json")).read_text("utf-8"))
    for date in ("2020-01-02", "2020-01-01"):
        text = json.dumps({**result, "date": date})
        (tmp_path / f"{date}-cpu-fp32.json").write_text(text, "utf-8")
    page = report.page(tmp_path)
    assert "2020-01-02" in page
    assert "2020-01-01" not in page


def test_memory_is_measured_against_its_plan(tmp_path: Path) -> None:
    options = {
        "--lengths": "24",
        "--clusters": "8",
        "--extra": "16",
        "--precision": "fp32",
        "--picture": "16:fp32",
    }
    words = [word for option in options.items() for word in option]
    command = [sys.executable, str(BENCHMARKS / "memory.py"), *words]
    pages = tmp_path / "pages"  # made where it is missing
    command += ["--results", str(tmp_path / "results"), "--page", str(pages / "memory.md")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (path,) = (tmp_path / "results").iterdir()
    result = json.loads(path.read_text("utf-8"))
    rows = result["measured"]
    assert [row["tier"] for row in rows] == ["resident", "lean", "offload"]
    for row in rows:
        assert 0.95 <= row["predicted_bytes"] / row["measured_bytes"] <= 1.05
        assert row["seconds"] > row["run_seconds"] > 0
    drawn = pages / "memory-16-fp32.png"
    assert drawn.stat().st_size > 10_000
    text = (pages / "memory.md").read_text("utf-8")
    assert "| 24 | fp32 | offload |" in text
    assert "| 16 |" not in text  # whose tensors were counted, which takes time
    assert "![memory 16 fp32](memory-16-fp32.png)" in text
    (row,) = result["pictures"]
    stages = [call["stage"] for call in row["sequence"]]
    assert stages.count("Evoformer: MSA row attention") == 1
    assert all(call["alive"]["weights"] > 10**8 for call in row["sequence"])

    kept = drawn.read_bytes()
    drawn.unlink()
    command = [sys.executable, str(BENCHMARKS / "memory.py"), "--report", *command[-4:]]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert drawn.read_bytes() == kept
    assert (pages / "memory.md").read_text("utf-8") == text


def test_the_page_of_small_and_many_proteins(tmp_path: Path, report: ModuleType) -> None:
    head = {"date": "2026-01-02", "device": "GPU 1", "torch": "2", "axfold": "abc"}
    settings = {
        "model": "model_5",
        "precision": "bf16",
        "clusters": 512,
        "extra": 5120,
        "recycles": 3,
        "processes": 2,
    }
    row = {"graphs": True, "seconds": 0.25, "passes": [0.5, 0.25], "launches": 900}
    small = {"residues": 256, "equal": True, "without": {**row, "launches": 4000}, "with": row}
    large = {"residues": 900, "equal": True, "without": row, "with": {**row, "graphs": False}}
    many = {"proteins": 30, "seconds": 60.0, "busy": 0.914, "busy_with_start": None}
    for folder, measured in (("graphs", [small, large]), ("throughput", many)):
        (tmp_path / folder).mkdir()
        result = {**head, "settings": settings, "measured": measured}
        (tmp_path / folder / "2026-01-02-gpu.json").write_text(json.dumps(result))
    page = report.page(tmp_path)
    assert "| 256 | 0.250 | 0.250 | 0.500 | 4000 | 900 | equal |" in page
    assert "| 900 | 0.250 | not used | 0.500 | 900 | 900 | equal |" in page
    assert "| GPU 1, model_5, bf16 | 3 | 2 | 30 | 60 | 1800 | 91% |  |" in page


TINY = {  # in place of settings that fill a GPU
    "short": {"residues": 24, "precision": "fp32", "gib": 1.0, "units": 0.001},
    "longest": {"residues": None, "precision": "fp32", "budget": "8 apples"},  # an error loses no other
    "short-offload": {
        "residues": 24,
        "precision": "fp32",
        "tier": "offload",
        "against": "short",
        "times": 1e3,
    },
}


def test_targets_are_measured_and_told_beside_their_limits(tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    memory, targets = importlib.import_module("memory"), importlib.import_module("targets")
    tiny = {name: targets.Target(**setting) for name, setting in TINY.items()}
    monkeypatch.setattr(memory, "TARGETS", tiny)
    words = ["--targets", "--clusters", "8", "--extra", "16", "--results", str(tmp_path)]
    monkeypatch.setattr("sys.argv", ["memory.py", *words, "--page", str(tmp_path / "memory.md")])
    memory.main()
    (path,) = tmp_path.glob("*.json")
    rows = json.loads(path.read_text("utf-8"))["measured"]
    assert [row["target"] for row in rows] == list(TINY)
    assert ["error" in row for row in rows] == [False, True, False]
    text = (tmp_path / "memory.md").read_text("utf-8")
    assert re.search(r"\| short \| 24 \| resident \|  \| 1 GiB \| 0\.\d\d \| yes \|", text)
    assert re.search(r"\| short \| 24 \| resident \|  \| 0.001 U \| \d+\.\d\d \| no \|", text)
    assert re.search(r"\| short-offload \| 24 \| offload \|  \| 1e\+03 times \| \d\.\d\d \| yes \|", text)
    assert "8 apples" in text


def test_a_setting_has_its_seconds_and_the_next_one_runs(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    memory, targets = importlib.import_module("memory"), importlib.import_module("targets")
    tiny = {name: targets.Target(residues=24, precision="fp32", gib=1.0) for name in ("slow", "quick")}
    monkeypatch.setattr(memory, "TARGETS", tiny)
    alive = []

    def measure(*args: Any) -> dict[str, Any]:
        if alive:
            assert alive[0]() is None  # what was given up holds no memory
            return {"measured_bytes": 2**29, "predicted_bytes": 2**29, "beside_bytes": 0, "pair_bytes": 1} | {
                "seconds": 1.0,
                "predicted_seconds": 1.0,
            }
        tensor = torch.zeros(5)
        alive.append(weakref.ref(tensor))
        try:
            while tensor is not None:
                tensor.add_(1)
        except Exception as error:
            raise AssertionError("taken for an error of its own") from error
        return {}

    def rows(seconds: str, *names: str) -> list[dict[str, Any]]:
        words = ["--targets", *names, "--seconds", seconds, "--results", str(tmp_path)]
        monkeypatch.setattr("sys.argv", ["memory.py", *words, "--page", str(tmp_path / "memory.md")])
        memory.main()
        (written,) = tmp_path.glob("20[!0]*.json")
        found = json.loads(written.read_text("utf-8"))["measured"]
        written.rename(tmp_path / f"200{len(list(tmp_path.glob('*.json')))}.json")
        return found

    def kept(name: str) -> str:
        text = (tmp_path / "memory.md").read_text("utf-8")
        return re.search(rf"\| {name} \| 24 \| resident \|  \|(.+)\|\n", text)[1].strip()

    monkeypatch.setattr(memory, "measure", measure)
    slow, quick = rows("0.2", "slow", "quick")
    assert slow["error"] == "not done within 0.2 s"
    assert "error" not in quick
    assert kept("slow") == "| not done within 0.2 s | no"
    assert kept("quick") == "1 GiB | 0.50 | yes"
    assert "error" not in rows("9", "slow")[0]
    assert kept("slow") == "1 GiB | 0.50 | yes"
    alive.clear()
    assert "error" in rows("0.1", "slow")[0]
    assert kept("slow") == "1 GiB | 0.50 | yes"  # what was measured before counts


def test_the_plan_keeps_to_every_target():
    spec = importlib.util.spec_from_file_location("benchmark_targets", BENCHMARKS / "targets.py")
    targets = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = targets
    spec.loader.exec_module(targets)
    for name, wanted in targets.TARGETS.items():
        config = PRESETS[wanted.model]
        sizes = sizes_for(config, wanted.residues or 1, wanted.precision, templates=wanted.templates)
        budget = parse_bytes(wanted.budget or "79GiB")
        if wanted.residues is None:
            sizes = replace(sizes, residues=max_length(sizes, budget, tier=wanted.tier) // 16 * 16)
        found = plan(sizes, budget, tier=wanted.tier, kept=wanted.kept, full=wanted.full)
        assert found.peak_device_bytes <= (wanted.gib or 79) * 2**30, name
        beside = sum(found.parts.get(part, 0) for part in ("weights", "features", "MSA", "extra MSA"))
        unit = sizes.residues**2 * 128 * sizes.itemsize
        assert found.peak_device_bytes - beside <= (wanted.units or 9) * unit, name
        assert wanted.against is None or wanted.against in targets.TARGETS


OPENFOLD = {
    "config.py": """
        from types import SimpleNamespace as Some

        def model_config(name):
            stack = Some(no_blocks=48, tune_chunk_size=True)
            extra = Some(extra_msa_stack=Some(tune_chunk_size=True))
            return Some(model=Some(evoformer_stack=stack, extra_msa=extra), globals=Some(chunk_size=4))
    """,
    "model.py": """
        import torch

        class AlphaFold(torch.nn.Module):
            def __init__(self, config):
                super().__init__()
                assert config.model.evoformer_stack.no_blocks == 1
                assert config.globals.chunk_size == 64
                self.layer = torch.nn.Linear(22, 3)

            def forward(self, batch):
                assert batch["aatype"].dtype == torch.int64
                assert self.layer.weight.any()
                if len(batch["aatype"]) == 8:
                    raise ValueError("eight is too many")
                return self.layer(batch["target_feat"][..., 0])
    """,
}
"""A package of the same name and shape."""


def test_a_peer_is_timed_and_what_it_fails_at_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from textwrap import dedent

    import passes
    from peers import process

    package = tmp_path / "openfold"
    (package / "model").mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "model" / "__init__.py").touch()
    (package / "config.py").write_text(dedent(OPENFOLD["config.py"]), "utf-8")
    (package / "model" / "model.py").write_text(dedent(OPENFOLD["model.py"]), "utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", ":".join(sys.path))
    model = {"model": "model_5", "clusters": 3, "extra": 4, "blocks": 1}
    files = {n: tmp_path / f"{n}.npz" for n in (5, 8, 6)}
    for n, file in files.items():
        np.savez(file, **passes.random_features(n, passes.configuration(**model)))
    asked: dict[str, Any] = {
        "model": model,
        "device": "cpu",
        "precision": "fp32",
        "repeats": 2,
        "seconds": 30,
    }
    rows = process.measure("openfold", "chunks of 64", files, **asked)
    assert [row["residues"] for row in rows] == list(files)
    first, raised, second = rows
    assert first["cold_seconds"] > first["first_seconds"] > 0
    assert first["start_seconds"] < first["cold_seconds"]
    assert first["seconds"] == min(first["all_seconds"])
    assert len(second["all_seconds"]) == 2
    assert "cold_seconds" not in second
    assert raised["failed"] == "ValueError: eight is too many"
    rows = process.measure("openfold", "chunks of 64", {9: tmp_path / "absent.npz"}, **asked)
    assert rows[0]["failed"].startswith("exit code 1: FileNotFoundError")
    rows = process.measure("openfold", "chunks of 64", files, **asked | {"seconds": 0.1})
    assert {row["failed"] for row in rows} == {"no result within 0.1 s"}


def test_a_peer_that_is_not_installed_is_a_row(tmp_path: Path) -> None:
    from peers import PEERS, load, process

    asked: dict[str, Any] = {
        "model": {"model": "model_5", "clusters": 3, "extra": 4, "blocks": 1},
        "device": "cpu",
        "precision": "fp32",
        "repeats": 1,
        "seconds": 60,
    }
    for peer in PEERS:
        setting = load(peer).SETTINGS[-1]
        (row,) = process.measure(peer, setting, {7: tmp_path / "absent.npz"}, **asked)
        assert row["engine"] == load(peer).NAME
        assert row["residues"] == 7
        assert "seconds" not in row
        assert row["failed"]


def test_peers_are_chosen_by_words() -> None:
    import model

    assert model.peers_asked(None) == []
    assert len(model.peers_asked([])) == 8
    assert model.peers_asked(["colabfold FUSED", "cuequi"]) == [
        ("colabfold", "fused kernels"),
        ("openfold", "cuEquivariance, no chunks"),
    ]


def test_a_cold_start_is_timed_by_its_parts(tmp_path: Path, report: ModuleType) -> None:
    words = [
        "--lengths",
        "8",
        "--clusters",
        "3",
        "--extra",
        "4",
        "--blocks",
        "1",
        "--threads",
        "1",
        "--results",
    ]
    command = [sys.executable, str(BENCHMARKS / "cold.py"), *words, str(tmp_path / "cold")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (path,) = (tmp_path / "cold").iterdir()
    rows = json.loads(path.read_text("utf-8"))["measured"]
    assert [row["cache"] for row in rows] == ["none", "kept"]
    for row in rows:
        assert sum(row["parts"].values()) == pytest.approx(row["seconds"], abs=0.01)
        assert min(row["parts"].values()) >= 0
        assert row["parts"]["import of PyTorch"] > 0.1
    assert f"| axfold | 8 | kept | {rows[1]['seconds']:.1f} |" in report.page(tmp_path)


def _arguments(op: str) -> tuple[torch.Tensor | None, ...]:
    """Small ones, all sizes different."""
    generator = torch.Generator().manual_seed(0)

    def x(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    norm = x(8), x(8)
    return {
        "gated_attention": (
            x(5, 7, 2, 4),
            x(5, 9, 2, 4),
            x(5, 9, 2, 4),
            x(5, 7, 2, 4),
            torch.ones(5, 9),
            x(2, 7, 9),
        ),
        "normed_linear": (x(3, 5, 8), *norm, x(11, 8), x(11)),
        "linear_residual": (x(3, 5, 8), x(3, 5, 6), x(8, 6), x(8)),
        "triangle_operand": (x(3, 5, 8), torch.ones(3, 5), *norm, x(12, 8), x(12)),
        "triangle_update": (
            x(3, 5, 8),
            x(6, 3, 7),
            x(6, 5, 7),
            *norm,
            x(6),
            x(6),
            x(8, 6),
            x(8),
            x(8, 8),
            x(8),
        ),
        "transition": (x(3, 5, 8), *norm, x(32, 8), x(32), x(8, 32), x(8)),
        "outer_product_update": (x(3, 5, 8), x(3, 7, 2), x(7, 5, 2), torch.ones(3, 5), x(8, 4), x(8)),
        "global_column_attention": (
            *(x(3, 5, 8), torch.ones(3, 5), *norm, x(6, 8), x(4, 8)),
            *(x(6, 8), x(6), x(8, 6), x(8)),
        ),
        "invariant_point_attention": (
            *(x(3, 2, 4), x(5, 2, 4), x(5, 2, 4), x(3, 2, 6, 3), x(5, 2, 6, 3), x(5, 2, 7, 3), x(2)),
            *(x(3, 5, 8), *norm, x(2, 8), x(2), torch.ones(3), torch.ones(5)),
        ),
    }[op]


def test_floors_count_the_products_of_the_reference() -> None:
    import floors

    for op in floors.PRODUCTS:
        arguments = _arguments(op)
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            result = getattr(ops, op)(
                *(x if x is None else x.clone() for x in arguments), backend="reference"
            )
        counted = counter.get_total_flops()
        if op == "invariant_point_attention":  # PyTorch's distances are not among what is counted
            counted += 2 * (3 * 5) * 2 * (3 * 6)
        assert floors.work(op, arguments, result)["operations"] == counted, op


def test_floors_count_what_a_tensor_shows_once() -> None:
    import floors

    x = torch.zeros(3, 5)
    need = floors.work("unknown", (x, None, torch.ones(()).expand(7, 9)), (x.double(), x[:, :1]))
    assert need == {"bytes": 4 * 15 + 4 + 8 * 15 + 4 * 3}
    ceilings = {"operations_per_second": 10.0, "bytes_per_second": 4.0}
    assert floors.seconds({"operations": 50, "bytes": 4}, ceilings) == 5
    assert floors.seconds({"bytes": 400}, ceilings) == 100
    assert set(floors.measure(torch.float32, torch.device("cpu"), 64, 1024)) == set(ceilings)


def test_the_page_has_floors_and_failures(tmp_path: Path, report: ModuleType) -> None:
    gpu = {
        "date": "2020-01-01",
        "device": "NVIDIA H100 80GB HBM3",
        "versions": {"torch": "2"},
        "note": "",
        "settings": {
            "model": "m",
            "precision": "bf16",
            "clusters": 512,
            "extra": 5120,
            "blocks": 48,
            "repeats": 1,
        },
        "measured": [
            {
                "engine": "axfold",
                "setting": "",
                "residues": 64,
                "seconds": 2.0,
                "peak_bytes": 2**30,
                "parts": {},
            },
            {"engine": "Peer", "setting": "fast", "residues": 64, "seconds": 3.0, "first_seconds": 40.0},
            {"engine": "Peer", "setting": "fast", "residues": 128, "failed": "out of memory"},
        ],
    }
    case = {"op": "o", "case": "wide", "needs": {"operations": 10**9, "bytes": 2**20}}
    op = {
        "date": "2020-01-01",
        "device": "NVIDIA H100",
        "precision": "bf16",
        "versions": {},
        "ceilings": {"operations_per_second": 1e12, "bytes_per_second": 1e12},
        "measured": [
            {**case, "backend": "slow", "seconds": 9e-3},
            {**case, "backend": "quick", "seconds": 4e-3},
            {**case, "backend": "broken", "failed": "out of memory"},
        ],
    }
    (tmp_path / "ops").mkdir()
    (tmp_path / "gpu.json").write_text(json.dumps(gpu), "utf-8")
    (tmp_path / "ops" / "gpu.json").write_text(json.dumps(op), "utf-8")
    page = report.page(tmp_path)
    assert "| residues | axfold (H100) | Peer (H100), fast |" in page
    assert "| 64 | 2.00 | 3.00 |" in page
    assert "| 64 | 40.00 |" in page
    assert "- Peer, fast at 128: out of memory" in page
    assert "| wide | quick | 1.0 | 1 | 1.000 | 4.000 | 4.0 |" in page
    drawn = report.draw(report.compared(tmp_path), tmp_path)
    assert [path.name for path in drawn] == ["benchmarks-time.png", "benchmarks-memory.png"]
    assert min(path.stat().st_size for path in drawn) > 5_000


def test_deviations_are_written_as_they_are_measured(tmp_path: Path, small, monkeypatch, capsys) -> None:
    import deviation
    import parity
    import passes

    loads = []

    def load_network(*args: Any) -> Any:
        loads.append(args)
        return network.load_network(*args)

    monkeypatch.setattr(deviation, "load_network", load_network)
    (tmp_path / "cases" / "mono_notemplate").mkdir(parents=True)
    features = {name: x[None] for name, x in passes.random_features(9, PRESETS["model_3"]).items()}
    np.savez(tmp_path / "cases" / "mono_notemplate" / "inputs.npz", **features)
    monkeypatch.setattr(parity, "PARITY", tmp_path)
    monkeypatch.setattr(deviation, "find_precision", lambda name, device: name)

    def run(*words: str) -> dict[str, Any]:
        folders = ["--results", str(tmp_path / "results"), "--page", str(tmp_path / "parity.md")]
        monkeypatch.setattr("sys.argv", ["deviation.py", "--cases", "mono_notemplate", *words, *folders])
        deviation.main()
        newest = max((tmp_path / "results").iterdir())
        return json.loads(newest.read_text("utf-8"))["cases"]["mono_notemplate"]

    found = run("--precisions", "bf16", "--tiers", "lean")
    assert list(found) == ["bf16 from fp32", "bf16, lean"]
    assert 1e-4 < found["bf16 from fp32"]["pair"] < 0.1
    assert len(loads) == 1
    newest = next((tmp_path / "results").iterdir())
    newest.rename(newest.with_name("2020-01-01-cpu.json"))

    def no_lean(*args: Any) -> Any:
        if args[3] == deviation.TIERS["lean"]:
            raise ValueError("no lean")
        return outputs(*args)

    outputs = deviation.outputs
    monkeypatch.setattr(deviation, "outputs", no_lean)
    found = run("--precisions", "fp32", "--tiers", "lean", "offload")  # what fails loses no other
    assert list(found) == ["fp32, offload"]
    said = capsys.readouterr()
    assert "ValueError: no lean" in said.err
    assert re.search(r"mono_notemplate, fp32, offload \[\d+ s\]: positions \d", said.out)
    text = (tmp_path / "parity.md").read_text("utf-8")
    assert "| output | bf16 from fp32 | bf16, lean | fp32, offload |" in text  # of both runs
