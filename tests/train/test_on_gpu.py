"""Training on a GPU: run by hand, `pytest -m gpu tests/train`."""

from dataclasses import replace
from itertools import islice

import pytest
import torch
from samples import TINY, TRAINING, Examples, stack

from axfold.config import Training
from axfold.model.alphafold import AlphaFold
from axfold.train.checkpoint import restore, save
from axfold.train.feed import Feed, order
from axfold.train.finite import tensors
from axfold.train.initial import initialise
from axfold.train.loop import Trainer
from axfold.train.recompute import recompute
from axfold.train.run import _arithmetic

pytestmark = pytest.mark.gpu
CUDA = torch.device("cuda", 0)


@pytest.fixture(autouse=True)
def gpu() -> None:
    if not torch.cuda.is_available():
        pytest.skip("there is no GPU")


def trainer(seed: int, again: bool, training: Training = TRAINING) -> Trainer:
    network = AlphaFold(TINY)
    initialise(network, seed)
    network.to(CUDA)
    made = Trainer(network, training, precision=torch.bfloat16)
    if again:
        recompute(network)
    return made


def steps(made: Trainer, number: int, workers: int = 0) -> list[dict[str, float]]:
    training, records = made.training, []
    places = order(made.steps, training.batch, training.at_once)
    with (
        _arithmetic("bf16", deterministic=True),
        Feed(Examples(batch=training.batch), places, stack, CUDA, workers=workers) as feed,
    ):
        for _ in range(number):
            made.step(feed)
            records += [record.values for record in made.records(behind=1)]
    return [*records, *(record.values for record in made.records())]


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("again", [False, True], ids=["kept", "recomputed"])
def test_a_resumed_run_is_the_same_bit_for_bit(tmp_path, again):
    whole = trainer(0, again)
    records = steps(whole, 6)
    killed = trainer(0, again)
    steps(killed, 3)
    path = save(tmp_path, killed, {})
    resumed = trainer(5, again)
    restore(path, resumed, {})
    resumed.seed = killed.seed
    assert steps(resumed, 3) == records[3:]
    assert resumed.masters.values.equal(whole.masters.values)
    assert resumed.optimizer.average.equal(whole.optimizer.average)


@pytest.mark.filterwarnings("default")
def test_samples_arrive_whole():
    examples = Examples()
    with Feed(examples, order(0, 4, 2), stack, CUDA, workers=2) as feed:
        for micro_batch, indices in zip(islice(feed, 8), order(0, 4, 2), strict=False):
            torch.randn(4096, 4096, device=CUDA) @ torch.randn(4096, 4096, device=CUDA)  # the device has work
            expected = dict(tensors(stack([examples[i] for i in indices])))
            for name, x in tensors(micro_batch):
                assert x.device == CUDA
                assert x.cpu().equal(expected[name]), name


@pytest.mark.filterwarnings("default")
def test_the_loss_falls_in_bfloat16():
    made = trainer(0, False, replace(TRAINING, learning_rate=1e-2, warm_up=0))
    records = steps(made, 30)
    assert records[-1]["distogram"] < 0.7 * records[0]["distogram"]
