"""What goes into a store comes out, and nothing else does."""

import errno
import json
import pickle

import numpy as np
import pytest
from chains import make_chain, make_store

from axfold.data.templates import Template
from axfold.errors import AxfoldError, InputError
from axfold.train import store
from axfold.train.store import Store


def template(n: int, seed: int) -> Template:
    rng = np.random.default_rng(seed)
    mask = (rng.random((n, 37)) < 0.3).astype(np.float32)
    positions = (rng.normal(0, 20, (n, 37, 3)) * mask[..., None]).astype(np.float32)
    return Template("t", rng.integers(0, 22, n).astype(np.int32), positions, mask, float(seed))


def test_chains_come_back(tmp_path):
    told = {"set": "predicted", "split": "valid", "cluster": "c7", "entry": "1abc", "released": "2020-01-31"}
    profile = np.random.default_rng(1).integers(0, 255, (33, 20)).astype(np.uint8)
    given = [
        make_chain("a", 1, seed=1),
        make_chain(
            "b", 17, rows=300, seed=2, templates=(template(17, 1), template(17, 2)), resolution=2.35, **told
        ),
        make_chain('c, "quoted"', 33, rows=0, seed=3, profile=profile, backbone_only=True),
        make_chain("d", 5, seed=4),
    ]
    opened = Store(make_store(tmp_path / "s", *given))
    assert len(opened) == 4
    assert opened.places["d"] == 3
    for place in (3, 1, 2, 0):
        found, wanted = opened[place], given[place]
        for name in ("aatype", "residue_index", "mask", "msa", "deletions"):
            np.testing.assert_array_equal(getattr(found, name), getattr(wanted, name), name)
        for name in ("name", "set", "split", "cluster", "entry", "released", "resolution", "backbone_only"):
            assert getattr(found, name) == getattr(wanted, name)
        seen = wanted.mask > 0
        shift = wanted.positions[seen][0]
        np.testing.assert_allclose(found.positions[seen], wanted.positions[seen] - shift, atol=0.0101)
        assert not found.positions[~seen].any()
        assert len(found.templates) == len(wanted.templates)
    np.testing.assert_array_equal(opened[2].profile, profile)
    assert opened[1].profile is None
    # all templates of a chain are packed together, and keep their places to each other
    found, wanted = opened[1].templates, given[1].templates
    for one, other in zip(found, wanted, strict=True):
        np.testing.assert_array_equal(one.aatype, other.aatype)
        np.testing.assert_array_equal(one.mask, other.mask)
        assert one.sum_probs == other.sum_probs
        seen = other.mask > 0
        shift = wanted[0].positions[wanted[0].mask > 0][0]
        np.testing.assert_allclose(one.positions[seen], other.positions[seen] - shift, atol=0.0101)


def test_rounding_does_not_add_up(tmp_path):
    chain = make_chain("a", 2000, rows=0)
    chain.positions[:] = np.linspace(0, 999.777, 2000)[:, None, None]
    found = Store(make_store(tmp_path / "s", chain))[0]
    seen = chain.mask > 0
    off = found.positions[seen] - (chain.positions[seen] - chain.positions[seen][0])
    assert np.abs(off).max() < 0.0101


def test_an_alignment_that_chains_share_is_stored_once(tmp_path):
    one, other, third = (make_chain(name, 40, seed=5) for name in "abc")
    with store.writing(tmp_path / "s") as writer:
        writer.add(one, "same")
        writer.add(third)
        writer.add(other, "same")
    opened = Store(tmp_path / "s")
    assert (tmp_path / "s" / "alignments.bin").stat().st_size == 2 * one.msa.size
    np.testing.assert_array_equal(opened[2].msa, one.msa)
    np.testing.assert_array_equal(opened[2].deletions, one.deletions)


def test_a_copy_for_another_process_opens_the_files_itself(tmp_path):
    opened = Store(make_store(tmp_path / "s", make_chain("a", 30)))
    sent = pickle.dumps(opened)  # as PyTorch hands it to the processes that make examples
    assert len(sent) < 500
    np.testing.assert_array_equal(pickle.loads(sent)[0].msa, opened[0].msa)


def test_names_are_unique(tmp_path):
    with pytest.raises(InputError, match="a: the store has a chain of that name already"):
        make_store(tmp_path / "s", make_chain("a", 9), make_chain("a", 9))
    assert not list(tmp_path.iterdir())


def test_atoms_out_of_reach_are_refused(tmp_path):
    chain = make_chain("far", 9)
    chain.positions[4] += 400
    with pytest.raises(InputError, match="far: an atom is more than 328 Å from the one before it"):
        make_store(tmp_path / "s", chain)


def test_what_is_there_is_kept_unless_it_may_be_replaced(tmp_path):
    path = make_store(tmp_path / "s", make_chain("a", 9))
    with pytest.raises(InputError, match="is there already"):
        make_store(path, make_chain("b", 9))
    assert Store(path).rows[0].name == "a"
    with store.writing(path, overwrite=True) as writer:
        writer.add(make_chain("b", 9))
    assert [row.name for row in Store(path).rows] == ["b"]


def test_a_failure_leaves_nothing_and_keeps_what_was_there(tmp_path):
    path = make_store(tmp_path / "s", make_chain("a", 9))

    def fail():
        with store.writing(path, overwrite=True) as writer:
            writer.add(make_chain("b", 9))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert [p.name for p in tmp_path.iterdir()] == ["s"]
    assert Store(path).rows[0].name == "a"


def test_a_full_disk_is_one_sentence(tmp_path, monkeypatch):
    def full(self, chain, alignment=""):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(store.Writer, "add", full)
    with pytest.raises(AxfoldError, match=r"s: the disk is full. Free some space .* nothing of it is kept\."):
        make_store(tmp_path / "s", make_chain("a", 9))
    assert not list(tmp_path.iterdir())


def test_leftovers_of_a_killed_run_are_replaced(tmp_path):
    (tmp_path / ".s.partial").mkdir()
    (tmp_path / ".s.partial" / "old.bin").write_bytes(b"x")
    path = make_store(tmp_path / "s", make_chain("a", 9))
    assert not (path / "old.bin").exists()


@pytest.fixture
def made(tmp_path):
    return make_store(tmp_path / "s", make_chain("a", 30), make_chain("b", 40))


def test_no_store(tmp_path):
    with pytest.raises(InputError, match=r"there is no training store here.+makes one"):
        Store(tmp_path)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": "something"}'])
def test_a_head_of_something_else(made, text):
    (made / "store.json").write_text(text)
    with pytest.raises(InputError, match="this is not the head of a training store"):
        Store(made)


def test_another_version(made):
    head = json.loads((made / "store.json").read_text())
    (made / "store.json").write_text(json.dumps({**head, "version": 99}))
    with pytest.raises(InputError, match="the store has version 99, and this axfold reads version 1"):
        Store(made)


def test_a_damaged_table(made):
    table = made / "chains.csv"
    table.write_text(table.read_text().replace("train", "valid", 1))
    with pytest.raises(InputError, match="the store's table is damaged or cut"):
        Store(made)


@pytest.mark.parametrize("name", ["atoms", "alignments", "residue_types"])
def test_a_cut_array(made, name):
    file = made / f"{name}.bin"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(
        InputError, match=rf"{name}\.bin: the file has [\d,]+ bytes in place of [\d,]+: it is cut"
    ):
        Store(made)


def test_a_missing_array(made):
    (made / "atoms.bin").unlink()
    with pytest.raises(InputError, match=r"atoms\.bin: the store can't be read \(No such file"):
        Store(made)


@pytest.mark.parametrize("name", ["atoms", "alignments", "residue_numbers", "deletion_counts"])
def test_damage_to_a_chain_is_found_when_it_is_read(made, name):
    file = made / f"{name}.bin"
    content = bytearray(file.read_bytes())
    content[-2] ^= 1
    file.write_bytes(content)
    opened = Store(made)
    assert opened[0].name == "a"
    with pytest.raises(InputError, match="the data of b are damaged"):
        opened.verify()
