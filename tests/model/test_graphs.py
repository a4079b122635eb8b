"""Blocks replayed from recordings: the same numbers as without, in every order of shapes, passes and models."""

from dataclasses import replace

import pytest
import torch
from small import make_features, small_model
from torch.utils._pytree import tree_leaves

from axfold import graphs as graphs_module
from axfold import network, planning
from axfold.config import PRESETS
from axfold.data import pipelines
from axfold.data.query import Query
from axfold.forecast import sizes_for
from axfold.graphs import CudaRecorder, Graphs, bytes_held, with_graphs
from axfold.memory.apply import apply
from axfold.memory.host import Bus
from axfold.memory.plan import plan
from axfold.memory.rows import Rows
from axfold.model.alphafold import AlphaFold

CPU = torch.device("cpu")
ROOM = 36 << 10  # for nine residues, and not for eleven


class Stand:
    """A recorder for the CPU: its recordings call the function again on the tensors that stay where they are."""

    def __init__(self, graphs):
        self.graphs = graphs
        self.recorded = self.replayed = 0
        self.fails = None  # an error to raise

    def record(self, run):
        self.recorded += 1
        if self.fails is not None:
            raise self.fails
        before = self.graphs._arena.clone()
        result = run()
        self.graphs._arena.copy_(before)

        def replay():
            self.replayed += 1
            for mine, new in zip(tree_leaves(result), tree_leaves(run()), strict=True):
                if mine.data_ptr() != new.data_ptr():
                    mine.copy_(new)

        for leaf in tree_leaves(result):  # a recording leaves nothing to read
            if not self._at_place(leaf):
                leaf.fill_(float("nan"))
        return replay, result

    def _at_place(self, x):
        arena = self.graphs._arena
        return arena.data_ptr() <= x.data_ptr() < arena.data_ptr() + len(arena)


@pytest.fixture
def graphs():
    made = Graphs(CPU, lambda: made.stand)
    made.stand = Stand(made)
    made.said = []
    made.say = made.said.append
    return made


@pytest.fixture(scope="module")
def models():
    one, other = small_model(), small_model()
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(1.5)
    return [model.requires_grad_(False) for model in (one, other)]


def passes(model, features, number=3):
    """Copies of all that several passes compute."""
    recycled, kept = None, []
    with torch.inference_mode():
        for _ in range(number):
            result = model([features], recycled)
            kept.append(
                [x.clone() for x in (result.msa, result.single, result.pair, result.structure.atom37)]
                + [x.clone() for layer in result.structure.layers for x in layer.values()]
            )
            recycled = result.recycled()
    return kept


def same(one, other):
    return all(map(torch.equal, tree_leaves(one), tree_leaves(other)))


def whole(n, **sizes):
    """Features whose masks hide nothing."""
    features = make_features(n, **sizes)
    return features | {name: torch.ones_like(x) for name, x in features.items() if name.endswith("msa_mask")}


@pytest.mark.parametrize("make", [make_features, whole], ids=["masked", "whole"])
def test_the_same_numbers(models, graphs, make):
    model, features = models[0], make(9)
    expected = passes(model, features)
    graphs.apply(model, ROOM)
    assert same(passes(model, features), expected)
    # an extra block, an Evoformer's, a template's and a structure layer
    assert graphs.stand.recorded == 4
    assert graphs.stand.replayed > 0
    graphs.remove(model)
    assert not [m for m in model.modules() if {"forward", "layer"} & set(vars(m))]
    assert not graphs.said


def test_recordings_are_used_again(models, graphs):
    """By another protein of the shape and by another model; another shape has its own."""
    proteins = [
        make_features(9, seed=1),
        make_features(9, seed=2),
        make_features(6),
        whole(9),
        make_features(11),
    ]
    calls = [(models[i], protein) for protein in proteins for i in (0, 1)] + [(models[0], proteins[0])]
    expected = [passes(model, protein, 2) for model, protein in calls]
    assert not same(expected[0], expected[1])
    for model in models:
        graphs.apply(model, ROOM)
    found, recorded = [], []
    for model, protein in calls:
        found.append(passes(model, protein, 2))
        recorded.append(graphs.stand.recorded)
    for model in models:
        graphs.remove(model)
    assert same(found, expected)
    # 9 residues, two proteins and models; 6; an extra MSA without a mask; 11 need more memory, and all is recorded anew
    assert recorded[:8] == [4, 4, 4, 4, 8, 8, 9, 9]
    assert recorded[-1] >= 17


def test_old_recordings_go(models, graphs, monkeypatch):
    monkeypatch.setattr(graphs_module, "KEPT", 4)
    model, proteins = models[0], [make_features(9), make_features(6)]
    graphs.apply(model, ROOM)
    for protein in (*proteins, proteins[0]):
        passes(model, protein, 2)
    graphs.remove(model)
    assert graphs.stand.recorded == 12
    assert len(graphs._programs) == 4


def test_rows_at_once_are_part_of_the_shape(models, graphs):
    model, features = models[0], make_features(9)
    expected = passes(model, features)
    graphs.apply(model, ROOM)
    passes(model, features)
    for module in model.modules():
        if isinstance(getattr(module, "rows", None), Rows):
            module.rows = Rows(4)
    try:
        found = passes(model, features)
        assert graphs.stand.recorded == 8
    finally:
        graphs.remove(model)
        for module in model.modules():
            if isinstance(getattr(module, "rows", None), Rows):
                module.rows = Rows()
    for x, y in zip(tree_leaves(found), tree_leaves(expected), strict=True):
        torch.testing.assert_close(x, y)


@pytest.mark.parametrize(
    ("error", "reason", "tries"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), "the memory ran out", 2),
        (
            RuntimeError("operation not permitted when stream is capturing\nmore"),
            "operation not permitted",
            1,
        ),
    ],
)
def test_what_can_not_be_recorded_runs_as_ever(models, graphs, error, reason, tries):
    model, features = models[0], make_features(9)
    expected = passes(model, features)
    graphs.apply(model, ROOM)
    graphs.stand.fails = error
    found = passes(model, features)
    again = passes(model, features)
    graphs.remove(model)
    assert same(found, expected)
    assert same(again, expected)
    assert graphs.stand.recorded == 4 * tries  # and none in the next passes
    assert graphs.stand.replayed == 0
    assert len(graphs.said) == 4
    assert all(reason in text and "\n" not in text for text in graphs.said)


def test_memory_that_runs_out_for_the_copies(models, graphs, monkeypatch):
    model, features = models[0], make_features(9)
    expected = passes(model, features)

    def full(inputs):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(graphs, "_places", full)
    graphs.apply(model, ROOM)
    found = passes(model, features)
    graphs.remove(model)
    assert same(found, expected)
    assert graphs.stand.recorded == 0
    assert graphs.said


def test_what_is_given_stays_where_it_is(models, graphs):
    """A stack consumes its representations: they are updated in their places."""
    model, features = models[0], make_features(9)
    graphs.apply(model, ROOM)
    with torch.inference_mode():
        first = model([features])
        pair, msa = first.pair, first.msa.clone()
        second = model([features], first.recycled())
        assert second.pair.data_ptr() == pair.data_ptr()
        assert torch.equal(first.msa, msa)
        assert second.msa.data_ptr() != first.msa.data_ptr()
    graphs.remove(model)


def test_hooks_of_blocks_are_called_and_those_inside_end_replays(models, graphs):
    model, features = models[0], make_features(9)
    graphs.apply(model, ROOM)
    passes(model, features)
    replayed, called = graphs.stand.replayed, []
    handle = model.trunk.evoformer.blocks[1].register_forward_hook(lambda *_: called.append(1))
    passes(model, features, 2)
    handle.remove()
    assert len(called) == 2
    assert graphs.stand.replayed > replayed
    replayed = graphs.stand.replayed
    trunk = model.trunk
    inner = [block.pair for stack in (trunk.evoformer, trunk.extra_stack) for block in stack.blocks]
    inner += [trunk.template_pair.embed.blocks[0].transition, model.structure.angles]
    handles = [module.register_forward_hook(lambda *_: called.append(2)) for module in inner]
    passes(model, features, 2)
    for handle in handles:
        handle.remove()
    graphs.remove(model)
    assert graphs.stand.replayed == replayed
    assert called.count(2) >= 2 * len(inner)


def test_gradients_are_recorded_as_ever(models, graphs):
    model, features = models[0], make_features(9)
    graphs.apply(model, ROOM)
    pair = torch.zeros(9, 9, model.sizes.c_z, dtype=torch.float64, requires_grad=True)
    single = torch.ones(9, model.sizes.c_s, dtype=torch.float64)
    structure = model.structure(single, pair, features["aatype"], features["seq_mask"])
    structure.atom37.square().sum().backward()
    graphs.remove(model)
    assert pair.grad.abs().sum() > 0


def test_graphs_are_for_small_proteins_with_room():
    config = PRESETS["model_1_ptm"]

    def asked(n, budget, **changed):
        sizes = replace(sizes_for(config, n, "bf16"), **changed)
        return with_graphs(plan(sizes, 80 << 30), sizes, budget), plan(sizes, 80 << 30), sizes

    found, without, sizes = asked(256, 80 << 30)
    kept = 256 * 256 * 128 * 2  # what a pass recycles
    assert found.peak_device_bytes == without.peak_device_bytes + bytes_held(sizes) + kept
    assert asked(256, int(2.2 * found.peak_device_bytes))[0] is not None
    assert asked(256, int(1.5 * found.peak_device_bytes))[0] is None
    assert asked(2048, 80 << 30)[0] is None
    assert asked(256, 80 << 30, on_gpu=False)[0] is None


def test_the_copies_take_what_is_foretold(models, graphs):
    """Masks and all, but for what aligning takes."""
    model = models[0]
    config = replace(PRESETS["model_1_ptm"], model=model.sizes)
    features = make_features(40, clusters=6, extra=30, templates=2)
    sizes = replace(sizes_for(config, 40, "fp32", clusters=6, extra=30, templates=2), clusters=6, itemsize=8)
    graphs.apply(model)
    passes(model, features, 1)
    needed = len(graphs._arena)
    graphs.apply(model, bytes_held(sizes))
    graphs.remove(model)
    assert needed <= len(graphs._arena) <= 1.05 * needed


def test_another_plan_is_followed(models, graphs):
    """memory.apply sets rows anew, which recordings then belong to."""
    model, features = models[0], make_features(9)
    config = replace(PRESETS["model_1_ptm"], model=model.sizes)
    graphs.apply(model, ROOM)
    passes(model, features, 2)
    apply(model, plan(sizes_for(config, 9, "fp32", on_gpu=False), 1 << 30))
    expected = passes(model, features, 2)
    graphs.remove(model)
    assert same(passes(model, features, 2), expected)
    apply(model, replace(plan(sizes_for(config, 9, "fp32", on_gpu=False), 1 << 30), blocks={}))


on_a_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
SEQUENCE = "MKTAYIAKQRQISFVKSHFSRQLEERLGLIEVQAPILSRVGDGTQDNLSGAEKAVQVKVKALPDAQFEVVHSLAKW"


@pytest.fixture(scope="module")
def real():
    """Two networks of the real widths in bfloat16, with few blocks."""
    config = PRESETS["model_3_ptm"]
    stacks = {name: replace(getattr(config.model, name), blocks=3) for name in ("evoformer", "extra_stack")}
    config = replace(config, model=replace(config.model, **stacks))
    made = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        model = AlphaFold(config.model).requires_grad_(False).eval().to_precision(torch.bfloat16)
        made.append(model.to("cuda"))
    return config, made


def folded(config, model, sequence, graphs, number=4):
    """What all passes compute of a sequence, and what was said."""
    (samples,) = network.on_device(
        [
            {
                k: v[0]
                for k, v in pipelines.monomer(
                    Query(name="q", sequence=sequence), config, seed=0, passes=1
                ).items()
            }
        ],
        1,
        torch.device("cuda"),
    )
    said = []
    sizes = planning.sizes_of(samples[0], config, model)
    memory = planning.find_memory(torch.device("cuda"))
    ladder = planning.Ladder(model, sizes, memory, Bus(torch.device("cuda")), said.append, graphs)
    kept = []
    for result in network.passes(model, (samples for _ in range(number)), ladder.leaner):
        tensors = result.msa, result.single, result.pair, result.structure.atom37
        kept.append([x.clone() for x in (*tensors, *result.structure.layers[3].values())])
    return kept, said


@pytest.mark.gpu
@on_a_gpu
def test_cuda_graphs_give_the_same_numbers(real):
    """Two proteins of a shape, other lengths, two models; every pass has other inputs."""
    config, models = real
    graphs = Graphs(torch.device("cuda"))
    recorded = []
    recorder = CudaRecorder(torch.device("cuda"))

    class Counting:
        def record(self, run):
            recorded.append(1)
            return recorder.record(run)

    graphs._make_recorder = Counting
    proteins = [SEQUENCE[:50], SEQUENCE[20:70], SEQUENCE[:63], SEQUENCE[:17]]
    for count, protein in zip((3, 3, 6, 9), proteins, strict=True):
        for model in models:
            expected, _ = folded(config, model, protein, None)
            found, said = folded(config, model, protein, graphs)
            graphs.remove(model)
            assert not said
            assert not same(expected[0], expected[1])
            assert same(found, expected)
        assert len(recorded) <= count  # a longer protein may need larger copies, and is recorded anew


@pytest.mark.gpu
@on_a_gpu
def test_cuda_each_protein_is_longer(real):
    """All recordings are let go of for larger copies, while the memory of the last ones is still in use."""
    config, (model, _) = real
    graphs = Graphs(torch.device("cuda"))
    for length in (17, 30, 50, 76):
        _, said = folded(config, model, SEQUENCE[:length], graphs)
        assert not said
    graphs.remove(model)


@pytest.mark.gpu
@on_a_gpu
def test_cuda_memory_that_runs_out_while_recording(real):
    config, (model, _) = real

    class Greedy(CudaRecorder):
        def record(self, run):
            return super().record(lambda: (torch.empty(1 << 46, device="cuda"), run())[1])

    graphs = Graphs(torch.device("cuda"), lambda: Greedy(torch.device("cuda")))
    expected, _ = folded(config, model, SEQUENCE[:50], None)
    found, said = folded(config, model, SEQUENCE[:50], graphs)
    assert same(found, expected)
    assert said
    assert all("the memory ran out" in text for text in said)
    graphs.remove(model)
    fresh = Graphs(torch.device("cuda"))
    again, said = folded(config, model, SEQUENCE[:50], fresh)  # nothing is left behind
    fresh.remove(model)
    assert same(again, expected)
    assert not said
