"""The pair representation in host memory: what streams through the device is what would lie on it."""

import copy
from dataclasses import replace
from functools import partial
from itertools import product

import pytest
import torch
from small import make_features, small_model
from test_alphafold import assert_same, run

from axfold.memory.host import Bus, HostRows, _provide
from axfold.memory.rows import Rows
from axfold.model.alphafold import AlphaFold, Pass
from axfold.model.layers import RowUpdate
from axfold.network import passes

STAGES = sorted({module.stage for module in small_model().modules() if isinstance(module, RowUpdate)})
EVERY = frozenset(product(STAGES, STAGES))


def offloaded(model: AlphaFold, size: int | None, device: str, **options) -> tuple[AlphaFold, Bus]:
    """A copy that works on the host's memory; options as `HostRows` has them."""
    model = copy.deepcopy(model).to(device)
    bus = Bus(torch.device(device))
    for module in model.modules():
        if isinstance(getattr(module, "rows", None), Rows):
            module.rows = HostRows(size, bus, stage=getattr(module, "stage", ""), **options)
        if hasattr(module, "idle"):
            module.idle = bus.resting
    return model, bus


def everywhere(model: AlphaFold, result: Pass) -> Pass:
    """With the pair where anyone may read it."""
    return replace(result, pair=model.rows.whole(result.pair))


@pytest.mark.parametrize("handovers", [frozenset(), EVERY], ids=["", "handed over"])
@pytest.mark.parametrize(("kept", "lent"), [(0, 0), (0, 3), (1, 11), (5, 2), (11, 1)])
@pytest.mark.parametrize("size", [1, 3, 4, None])
def test_offload_changes_nothing(size, kept, lent, handovers):
    model, features = small_model(), make_features(11)
    stay = {"pair": kept, "template": kept}
    away, bus = offloaded(model, size, "cpu", kept=stay, lent=lent, handovers=handovers)
    result, expected = run(away, features), run(model, features)
    assert bus.keeps(result.pair.untyped_storage())
    assert_same(everywhere(away, result), expected)
    with torch.no_grad():
        for head in ("distogram", "aligned_error"):
            found = getattr(away.heads, head)(result.pair)
            torch.testing.assert_close(found, getattr(model.heads, head)(expected.pair))
        for start in range(0, 11, 4):
            rows = away.heads.aligned_error.rows.read(result.pair, start, min(4, 11 - start))
            torch.testing.assert_close(rows, expected.pair[start : start + 4])


@pytest.mark.parametrize("n", [1, 2])
def test_offload_of_the_shortest(n):
    model, features = small_model(), make_features(n)
    away, _ = offloaded(model, 1, "cpu", kept={"pair": 1}, handovers=EVERY)
    assert_same(everywhere(away, run(away, features)), run(model, features))


def test_ensembles():
    model, samples = small_model(), [make_features(9, seed=i) for i in range(3)]
    away, _ = offloaded(model, 4, "cpu", kept={"pair": 4}, handovers=EVERY)
    with torch.no_grad():
        found = away(samples, away(samples).recycled())
        expected = model(samples, model(samples).recycled())
    assert_same(everywhere(away, found), expected)


@pytest.mark.parametrize(
    ("handovers", "kept", "crossings"), [(frozenset(), 0, 11), (EVERY, 0, 5), (EVERY, 6, 2.5), (EVERY, 12, 0)]
)
def test_what_crosses_the_bus(handovers, kept, crossings):
    """In and out in a block of the Evoformer, in pair representations."""
    features = make_features(12)
    away, bus = offloaded(
        small_model(), 4, "cpu", slots=frozenset({"pair"}), kept={"pair": kept}, handovers=handovers
    )
    block, counts = away.trunk.evoformer.blocks[1], []
    for register in (block.register_forward_pre_hook, block.register_forward_hook):
        register(lambda *_: counts.append((bus.brought_bytes, bus.sent_bytes)))
    pair = run(away, features, passes=1).pair
    brought, sent = ((after - before) / pair.nbytes for before, after in zip(*counts, strict=True))
    assert brought == crossings
    assert sent == min(crossings, 6)


@pytest.mark.parametrize(("kept", "lent", "crossings"), [(0, 0, 3), (0, 6, 2), (6, 3, 1), (3, 99, 0.75)])
def test_rows_that_are_lent_cross_once(kept, lent, crossings):
    """In for the three layers of the structure module, in pair representations."""
    away, bus = offloaded(
        small_model(), 5, "cpu", slots=frozenset({"pair"}), kept={"pair": kept}, lent=lent, handovers=EVERY
    )
    counts = []

    def count(*_):
        bus.settle()
        counts.append(bus.brought_bytes)

    away.trunk.register_forward_hook(count)
    away.structure.register_forward_hook(count)
    pair = run(away, make_features(12), passes=1).pair
    assert (counts[1] - counts[0]) / pair.nbytes == crossings


def test_blocks_of_lent_rows():
    """Rows and columns, of which some stay, some are lent, and some are on the host alone."""
    bus = Bus(torch.device("cpu"))
    values = torch.rand(7, 7, 2)
    rows = HostRows(3, bus, kept={"pair": 2}, lent=3)
    with torch.no_grad():
        z = rows.place("pair", values, values)
        with rows.rereading(z):
            z[2:5] = torch.nan  # as if it were far away
            for start, size in ((0, 7), (1, 1), (1, 3), (3, 1), (3, 3), (4, 3), (6, 1)):
                assert rows.read(z, start, size).equal(values[start : start + size])
                y = rows.read(z.transpose(0, 1), start, size)
                assert y.equal(values.transpose(0, 1)[start : start + size])
        assert rows.read(z, 3, 1).isnan().all()


def test_updates_by_element_pass_with_the_one_before():
    bus = Bus(torch.device("cpu"))
    first, second = (HostRows(3, bus, stage=name, handovers=frozenset({("a", "b")})) for name in "ab")
    values = torch.rand(7, 7, 2)
    with torch.no_grad():
        z = first.place("pair", values, values)
        first.update(lambda x: x + 1, z.transpose(0, 1), axis=0)
        second.update(lambda x: x * x, z, axis=0, by_element=True)
        assert z.equal(values)  # both are deferred
        before = bus.brought_bytes
        bus.settle((z,))
        torch.testing.assert_close(z, (values + 1).square())
        assert bus.brought_bytes - before == z.nbytes
        first.update(lambda x: x + 1, z, axis=0)
        second.update(lambda x: x * x, z, axis=0)  # which may act within rows
        assert not z.equal((values + 1).square())  # what was before has passed
        bus.settle()
        torch.testing.assert_close(z, ((values + 1).square() + 1).square())


def test_memory_that_the_system_provides_beforehand():
    memory = torch.full((3 * 4096 * 512,), 7, dtype=torch.uint8)
    _provide(memory, 5000)
    assert (memory[:5000] == 7).all()
    assert not memory[5000::4096].any()


def test_memory_of_rows_that_stay_is_not_touched():
    away, bus = offloaded(small_model(), 4, "cpu", kept={"pair": 5}, handovers=EVERY)
    features = make_features(11)
    pair = run(away, features, passes=1).pair
    with torch.no_grad():
        pair[:5] = torch.nan
        result = away([features])
        assert result.pair[:5].isnan().all()
        assert not away.rows.whole(result.pair).isnan().any()
        assert away.rows.whole(result.pair.transpose(-2, -3)).equal(
            away.rows.whole(result.pair).transpose(-2, -3)
        )
        assert not result.structure.atom37.isnan().any()
        away.rows.place("pair", pair, torch.ones(11, 11, 24))
        assert result.pair[:5].isnan().all()
    mine, others = bus.split(result.pair)
    assert (len(mine), len(others)) == (5, 6)


@pytest.mark.parametrize("transposed", [False, True])
def test_a_context_that_is_wider_than_its_rows(transposed):
    """Where `prepare` appends zeros to the rows, as fast backends do."""

    def prepare(x, mask):
        return torch.nn.functional.pad((x * mask[..., None]).movedim(-1, -3), (0, -x.shape[-2] % 4))

    bus = Bus(torch.device("cpu"))
    first, second = (HostRows(3, bus, stage=name, handovers=frozenset({("a", "b")})) for name in "ab")
    mask = (torch.rand(7, 7) > 0.5).double()
    with torch.no_grad():
        z = first.zeros("pair", mask, 7, 7, 2)
        z = first.update(lambda x, y: x + y, z, torch.rand(7, 7, 2, dtype=torch.float64), axis=0)
        y = z.transpose(0, 1) if transposed else z
        assert not z.any()  # it is deferred
        found = second.gather(prepare, y, mask, axis=0, out_axis=1)
        assert z.all()
        torch.testing.assert_close(found, prepare(y, mask))


def test_what_an_update_reads_does_not_change_before_it_runs():
    bus = Bus(torch.device("cpu"))
    rows = HostRows(3, bus, stage="a", handovers=frozenset({("a", "b")}))
    with torch.no_grad():
        z, m = rows.zeros("pair", torch.ones(()), 4, 4, 1), torch.ones(4, 4, 1)
        rows.update(torch.add, z, m, axis=0)
        rows.update(lambda x: x + 1, m, axis=0)
        assert (z == 1).all()
        rows.update(torch.add, z, m, axis=0)
        rows.zeros("pair", z, 4, 4, 1)
        bus.settle()  # what belonged to the one before is forgotten
        assert not z.any()


PLACES = [  # a module, or one of its methods
    "trunk.evoformer.blocks.0.pair.multiplication_outgoing.prepare",
    "trunk.evoformer.blocks.0.pair.multiplication_outgoing.update",
    "trunk.evoformer.blocks.1.pair.attention_ending.attention",
    "trunk.evoformer.blocks.1.pair.attention_ending.prepare",
    "trunk.evoformer.blocks.0.pair",
    "trunk.extra_stack.blocks.0.outer_product_mean",
    "trunk.template_pair.embed.blocks.0.multiplication_incoming.update",
    "structure.attention.update",
]


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("at", [0, 1])
def test_an_error_leaves_nothing_to_be_done(place, at):
    """Memory that runs out while an update is deferred, or passes."""
    model, features = small_model(), make_features(9)
    expected = run(model, features)
    away, bus = offloaded(model, 4, "cpu", kept={"pair": 2}, handovers=EVERY)
    left, done = [1], []

    def fail():
        if len(done) == at and left:
            left.pop()
            raise torch.OutOfMemoryError("injected")

    def leaner():
        assert bus._deferred is None
        bus.release()
        return True

    path, _, name = place.rpartition(".")
    owner = away.get_submodule(path)
    if isinstance(getattr(owner, name), torch.nn.Module):
        owner, name = getattr(owner, name), "forward"
    called = getattr(owner, name)
    setattr(owner, name, lambda *args, **options: (called(*args, **options), fail())[0])
    for result in passes(away, [[features]] * 2, leaner):
        done.append(result)
    assert not left
    assert_same(everywhere(away, done[-1]), expected)


def test_host_memory_is_used_again():
    away, bus = offloaded(small_model(), 4, "cpu")
    run(away, make_features(11))
    before = {slot: kept.data_ptr() for slot, kept in bus._host.items()}
    run(away, make_features(9, seed=2))
    assert {slot: kept.data_ptr() for slot, kept in bus._host.items()} == before
    assert set(before) == {"pair", "extra MSA", "template", "attention to templates"}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device here")
@pytest.mark.parametrize("handovers", [frozenset(), EVERY], ids=["", "handed over"])
@pytest.mark.parametrize(("kept", "lent"), [(0, 0), (0, 40), (1, 67), (30, 9), (67, 0)])
@pytest.mark.parametrize("size", [1, 4, 50, None])
def test_offload_on_a_gpu(size, kept, lent, handovers):
    """Columns and rows through the copy engine, with MSA tensors that rest on the host."""
    model, features = small_model(), make_features(67)
    expected = run(model, features)
    away, _ = offloaded(model, size, "cuda", kept={"pair": kept}, lent=lent, handovers=handovers)
    result = run(away, {name: x.cuda() for name, x in features.items()})
    assert not result.pair.is_cuda
    close = partial(torch.testing.assert_close, atol=1e-8, rtol=1e-8)
    close(away.rows.whole(result.pair), expected.pair)
    close(away.rows.read(result.pair, 20, 40).cpu(), expected.pair[20:60])
    close(result.structure.atom37.cpu(), expected.structure.atom37)
