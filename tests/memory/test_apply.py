"""A plan changes where and in what blocks a network works, not what it computes."""

from dataclasses import replace

import pytest
import torch
from sizes import make_features, make_network, sizes_of

from axfold.memory.apply import apply
from axfold.memory.host import Bus, HostRows
from axfold.memory.plan import SETUPS, with_blocks
from axfold.memory.rows import Rows

LENGTHS = 13, 4, 6, 2


@pytest.fixture(scope="module")
def network():
    return make_network(2, torch.float32)


@pytest.mark.parametrize("rows", [1, 5, None])
@pytest.mark.parametrize(("kept", "handovers"), [(0, False), (0, True), (6, True), (99, False)])
@pytest.mark.parametrize("setup", SETUPS, ids=str)
def test_results_stay(network, setup, rows, kept, handovers):
    if "pair" not in setup.host and (kept or handovers):
        pytest.skip("the pair is on the device")
    features = make_features(*LENGTHS)
    found = with_blocks(sizes_of(network, *LENGTHS), setup, rows, kept=kept, handovers=handovers)
    apply(network, with_blocks(sizes_of(network, *LENGTHS), SETUPS[0], None))
    with torch.inference_mode():
        expected = network([features])
        apply(network, found, Bus(torch.device("cpu")))
        result = network([features])
    torch.testing.assert_close(network.rows.whole(result.pair), expected.pair, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(result.msa, expected.msa, atol=1e-4, rtol=1e-4)


def test_what_is_set(network):
    bus = Bus(torch.device("cpu"))
    lean = with_blocks(sizes_of(network, *LENGTHS), SETUPS[2], 5)
    apply(network, lean, bus)
    assert isinstance(network.rows, HostRows)
    assert network.rows.slots == {"extra MSA"}
    assert network.trunk.evoformer.blocks[0].idle == bus.resting
    assert network.trunk.evoformer.blocks[0].pair.transition.rows.size == 5
    apply(network, with_blocks(sizes_of(network, *LENGTHS), SETUPS[0], 3))
    assert type(network.rows).__name__ == "Rows"
    assert network.trunk.evoformer.blocks[0].idle != bus.resting
    assert network.structure.attention.rows.size == 3


def test_wider_blocks_and_direct_contexts(network):
    """Other rows at once in the Evoformer than in the other stacks, and contexts of all rows at once."""
    features = make_features(*LENGTHS)
    narrow = with_blocks(sizes_of(network, *LENGTHS), SETUPS[0], 3)
    stage = "triangle multiplication"
    wide = replace(narrow, wider={stage: 7}, direct=frozenset({stage}))
    with torch.inference_mode():
        apply(network, narrow)
        expected = network([features])
        apply(network, wide)
        result = network([features])
    torch.testing.assert_close(result.pair, expected.pair, atol=1e-4, rtol=1e-4)
    evoformer, extra = network.trunk.evoformer.blocks[0].pair, network.trunk.extra_stack.blocks[0].pair
    assert evoformer.multiplication_outgoing.rows == Rows(7, direct=True)
    assert extra.multiplication_incoming.rows == Rows(3, direct=True)
    assert evoformer.attention_ending.rows == Rows(3)


def test_what_lives_on_the_host_needs_a_bus(network):
    with pytest.raises(ValueError, match="needs a bus"):
        apply(network, with_blocks(sizes_of(network, *LENGTHS), SETUPS[1], None))
