"""A step in one of several processes: `two_ranks.py FILE`, in the environment that torchrun makes."""

import sys
from dataclasses import replace

import torch
from safetensors.torch import save_file
from samples import TINY, TRAINING, Examples, stack

from axfold.model.alphafold import AlphaFold
from axfold.train.feed import Feed, order
from axfold.train.initial import initialise
from axfold.train.loop import Trainer
from axfold.train.ranks import Ranks, joined


def steps(ranks: Ranks, number: int = 2) -> tuple[Trainer, list[dict[str, float]]]:
    """So many steps of small networks, and their records."""
    network = AlphaFold(TINY)
    initialise(network, 0)
    trainer = Trainer(network, replace(TRAINING, at_once=1), ranks=ranks)
    records = []
    with Feed(Examples(), order(0, 4, 1, ranks.rank, ranks.size), stack, ranks.device) as feed:
        for _ in range(number):
            trainer.step(feed, {"asks": float(ranks.rank)})
            records += [record.values for record in trainer.records()]
    return trainer, records


if __name__ == "__main__":
    torch.set_num_threads(1)
    with joined("cpu") as ranks:
        trainer, records = steps(ranks)
        if ranks.first:
            loss = torch.tensor([record["loss"] for record in records])
            asks = torch.tensor([record["asks"] for record in records])
            save_file({"values": trainer.masters.values, "loss": loss, "asks": asks}, sys.argv[1])
