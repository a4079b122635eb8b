"""What must hold for any parameters: symmetries, masks, blocks of rows, gradients."""

import copy

import pytest
import torch
from small import make_features, small_model

from axfold.memory.rows import Rows
from axfold.model.layers import RowUpdate, SharedDropout

CLOSE = {"atol": 1e-9, "rtol": 1e-9}
SAMPLED = (
    "msa_feat",
    "msa_mask",
    "extra_msa",
    "extra_has_deletion",
    "extra_deletion_value",
    "extra_msa_mask",
)


@pytest.fixture(scope="module")
def model():
    return small_model()


def run(model, features, passes: int = 2):
    recycled = None
    with torch.no_grad():
        for _ in range(passes):
            result = model([features], recycled)
            recycled = result.recycled()
    return result


def assert_same(a, b, **close):
    close = close or CLOSE
    torch.testing.assert_close(a.pair, b.pair, **close)
    torch.testing.assert_close(a.msa, b.msa, **close)
    torch.testing.assert_close(a.single, b.single, **close)
    torch.testing.assert_close(a.structure.atom37, b.structure.atom37, **close)


@pytest.mark.parametrize("n", [1, 2, 17])
def test_any_length(model, n):
    result = run(model, make_features(n))
    assert result.structure.atom37.shape == (n, 37, 3)
    assert torch.isfinite(result.structure.atom37).all()


@pytest.mark.parametrize("size", [1, 3, 4, 11, 100])
def test_blocks_of_rows_change_nothing(model, size):
    """Block sizes that divide N = 11 and that don't."""
    features = make_features(11)
    whole = run(model, features)
    blocked = copy.deepcopy(model)
    for module in blocked.modules():
        if isinstance(module, RowUpdate):
            module.rows = Rows(size)
    assert_same(run(blocked, features), whole)


@pytest.mark.parametrize("columns", [1, 64, 65, 200])
def test_parts_of_a_context_change_nothing(model, columns):
    """70 residues: at least 64 of them go at once."""
    features = make_features(70)
    whole = run(model, features)
    parted = copy.deepcopy(model)
    for stack in (parted.trunk.extra_stack, parted.trunk.evoformer):
        for block in stack.blocks:
            mean = block.outer_product_mean
            depth = len(features["extra_msa" if stack is parted.trunk.extra_stack else "msa_feat"])
            limit = columns * depth * mean.b.out_features * 4
            mean.rows = Rows(9, context_bytes=limit)
            assert len(list(mean.rows.parts(70, limit // columns))) == (1 if columns == 200 else 2)
    assert_same(run(parted, features), whole)
    recorded = parted([features], parted([features]).recycled())
    assert_same(recorded, whole)


def test_recording_gradients_changes_nothing(model):
    """The update in place and the one that autograd records are the same."""
    features = make_features(9)
    recorded = model([features], model([features]).recycled())
    assert_same(run(model, features), recorded)


def test_every_parameter_has_a_gradient(model):
    model = copy.deepcopy(model)
    result = model([make_features(6)], model([make_features(6)]).recycled())
    heads = model.heads
    outputs = [
        result.structure.atom37,
        heads.confidence(result.structure.single),
        heads.distogram(result.pair),
        heads.masked_msa(result.msa),
        heads.resolved(result.single),
        heads.aligned_error(result.pair),
    ]
    sum(x.square().mean() for x in outputs).backward()
    without = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert without == []


def test_gradient_is_that_of_finite_differences(model):
    """Of the trunk: between the structure module's layers the gradient of the rotations is stopped on purpose."""
    features = make_features(4)
    target = features["target_feat"].clone().requires_grad_()

    def loss(target):
        result = model([{**features, "target_feat": target}])
        return result.single.square().mean() + result.pair.square().mean()

    loss(target).backward()
    step = torch.zeros_like(target)
    step[1, 3] = 1e-6
    with torch.no_grad():
        difference = (loss(target + step) - loss(target - step)) / 2e-6
    torch.testing.assert_close(target.grad[1, 3], difference, rtol=1e-5, atol=1e-8)


def test_batch_axis(model):
    """Two proteins of one length at once give what each gives alone."""
    pair = [make_features(7, seed=seed) for seed in (1, 2)]
    both = {name: torch.stack([features[name] for features in pair]) for name in pair[0]}
    together = run(model, both)
    for i, features in enumerate(pair):
        alone = run(model, features)
        torch.testing.assert_close(together.structure.atom37[i], alone.structure.atom37, **CLOSE)
        torch.testing.assert_close(together.pair[i], alone.pair, **CLOSE)


def test_padding_changes_nothing(model):
    """Masked residues, clusters, extra rows and templates may hold anything."""
    n, features = 6, make_features(6)
    noise = make_features(9, clusters=8, extra=9, templates=3, seed=5)
    padded = {}
    for name, x in features.items():
        padded[name] = noise[name].clone()
        if name.endswith(("mask", "masks")):
            padded[name].zero_()
        padded[name][tuple(slice(size) for size in x.shape)] = x
    padded["residue_index"] = torch.arange(9)
    small, large = run(model, features), run(model, padded)
    torch.testing.assert_close(large.structure.atom37[:n], small.structure.atom37, **CLOSE)
    torch.testing.assert_close(large.pair[:n, :n], small.pair, **CLOSE)
    torch.testing.assert_close(large.msa[:5, :n], small.msa, **CLOSE)


def test_order_of_the_msa_below_the_query_does_not_matter(model):
    features = make_features(8)
    shuffled = dict(features)
    order = {"msa": [0, 3, 1, 4, 2], "extra": [6, 2, 4, 0, 1, 5, 3]}
    for name in SAMPLED:
        shuffled[name] = features[name][order["msa" if name.startswith("msa") else "extra"]]
    one, other = run(model, features), run(model, shuffled)
    torch.testing.assert_close(other.pair, one.pair, **CLOSE)
    torch.testing.assert_close(other.structure.atom37, one.structure.atom37, **CLOSE)


def test_order_of_the_templates_does_not_matter(model):
    features = make_features(8, templates=3)
    swapped = {name: x[[2, 0, 1]] if name.startswith("template") else x for name, x in features.items()}
    one, other = run(model, features), run(model, swapped)
    torch.testing.assert_close(other.structure.atom37, one.structure.atom37, **CLOSE)


def test_where_inputs_lie_in_space_does_not_matter(model):
    """Moving templates and recycled positions as rigid bodies changes nothing: only distances and torsions enter."""
    features = make_features(8)
    with torch.no_grad():
        first = model([features]).recycled()
    turn = torch.linalg.qr(
        torch.randn(3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    ).Q
    turn = turn * torch.linalg.det(turn)
    shift = torch.tensor([10.0, -4.0, 3.0], dtype=torch.float64)
    moved = dict(features)
    for name in ("template_all_atom_positions", "template_pseudo_beta"):
        moved[name] = features[name] @ turn.T + shift
    copied = copy.deepcopy(first)
    elsewhere = type(first)(copied.msa_first_row, copied.pair, first.positions @ turn.T + shift)
    with torch.no_grad():
        assert_same(model([features], first), model([moved], elsewhere), atol=1e-6, rtol=1e-6)


def test_samples_are_averaged(model):
    """Ensembling is linear in what the trunk gives: two equal samples are one."""
    features = make_features(5)
    with torch.no_grad():
        one = model([features], model([features]).recycled())
        recycled = model([features]).recycled()
        two = model([features, features], recycled)
    torch.testing.assert_close(two.pair, one.pair, **CLOSE)
    torch.testing.assert_close(two.structure.atom37, one.structure.atom37, **CLOSE)
    with torch.no_grad():
        other = make_features(5, seed=3) | {name: features[name] for name in ("aatype", "target_feat")}
        mixed = model([features, other])
        singles = [model([sample]).single for sample in (features, other)]
    torch.testing.assert_close(mixed.single, (singles[0] + singles[1]) / 2, **CLOSE)


def test_one_template_counts_as_if_the_others_were_masked(model):
    features = make_features(6)
    alone = {name: x[:1] if name.startswith("template") else x for name, x in features.items()}
    features["template_mask"] = torch.tensor([1.0, 0.0], dtype=torch.float64)
    pair, mask = torch.randn(6, 6, 24, dtype=torch.float64), torch.ones(6, 6, dtype=torch.float64)
    names = ("aatype", "all_atom_masks", "pseudo_beta", "pseudo_beta_mask", "mask")
    with torch.no_grad():
        one, two = (
            model.trunk.template_pair(pair.clone(), mask, *(given[f"template_{name}"] for name in names))
            for given in (alone, features)
        )
    assert not torch.equal(one, pair)
    torch.testing.assert_close(one, two, **CLOSE)


def test_masked_templates_leave_the_pair_as_it_is(model):
    features = make_features(5)
    features["template_mask"] = torch.zeros(2, dtype=torch.float64)
    pair = torch.randn(5, 5, 24, dtype=torch.float64)
    names = ("aatype", "all_atom_masks", "pseudo_beta", "pseudo_beta_mask")
    with torch.no_grad():
        after = model.trunk.template_pair(
            pair.clone(),
            torch.ones(5, 5, dtype=torch.float64),
            *(features[f"template_{name}"] for name in names),
            features["template_mask"],
        )
    torch.testing.assert_close(after, pair)


def test_no_state_is_left(model):
    features = make_features(6)
    before = {name: x.clone() for name, x in model.state_dict().items()}
    first = run(model, features)
    run(model, make_features(9, seed=4))
    assert_same(run(model, features), first, atol=0, rtol=0)
    assert all(torch.equal(x, before[name]) for name, x in model.state_dict().items())


def test_features_are_left_as_they_are(model):
    features = make_features(6)
    before = {name: x.clone() for name, x in features.items()}
    run(model, features)
    assert all(torch.equal(x, before[name]) for name, x in features.items())


@pytest.mark.parametrize("shared", [-3, -2])
def test_dropout_is_shared_along_one_axis(shared):
    torch.manual_seed(0)
    dropout = SharedDropout(0.5, shared)
    x = torch.ones(20, 20, 4)
    dropped = dropout.keep(x).expand_as(x)
    assert set(dropped.unique().tolist()) == {0.0, 2.0}
    assert (dropped.diff(dim=shared) == 0).all()
    assert not (dropped.diff(dim=-5 - shared) == 0).all()
    assert dropout.eval().keep(x) is None


def test_a_lower_precision_rounds_no_parameter_of_the_structure_module():
    exact, rounded = small_model().float(), small_model().float().to_precision(torch.bfloat16)
    for name, parameter in rounded.named_parameters():
        before = exact.get_parameter(name)
        wide = name.startswith(("structure.", "heads.confidence."))
        assert parameter.dtype == (torch.float32 if wide else torch.bfloat16), name
        assert torch.equal(parameter, before.to(parameter.dtype)), name
