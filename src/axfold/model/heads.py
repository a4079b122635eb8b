"""What is predicted beside the structure: supplement 1.9.6 to 1.9.10, Algorithm 29."""

from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor, nn

from axfold.config import Model
from axfold.model.layers import RowUpdate

LOGITS = 1 << 22  # of the aligned error that exist at once where only their means are wanted


class Confidence(nn.Module):
    """Logits of the predicted lDDT-Cα of each residue: Algorithm 29."""

    def __init__(self, c_s: int, c_hidden: int, bins: int):
        super().__init__()
        self.norm = nn.LayerNorm(c_s)
        self.layers = nn.Sequential(
            nn.Linear(c_s, c_hidden),
            nn.ReLU(),
            nn.Linear(c_hidden, c_hidden),
            nn.ReLU(),
            nn.Linear(c_hidden, bins),
        )

    def forward(self, s: Float[Tensor, "*b n c_s"]) -> Float[Tensor, "*b n bins"]:
        return self.layers(self.norm(s))


class Distogram(RowUpdate):
    """Logits of the distance of two residues' pseudo-beta atoms: supplement 1.9.8."""

    stage = "distogram"

    def __init__(self, c_z: int, bins: int):
        super().__init__()
        self.project = nn.Linear(c_z, bins)

    def prepare(
        self, z: Float[Tensor, "*b i n c_z"], transposed: Float[Tensor, "*b i n c_z"]
    ) -> Float[Tensor, "*b i n bins"]:
        return self.project(z) + self.project(transposed)

    def forward(self, z: Float[Tensor, "*b n n c_z"]) -> Float[Tensor, "*b n n bins"]:
        axis = z.dim() - 3
        return self.context(z, z.transpose(-2, -3), axis=axis, out_axis=axis)


class AlignedError(RowUpdate):
    """Logits of the error of residue j when the structures are aligned on residue i: supplement 1.9.7."""

    stage = "aligned error"

    def __init__(self, c_z: int, bins: int):
        super().__init__()
        self.project = nn.Linear(c_z, bins)

    def prepare(self, z: Float[Tensor, "*b i n c_z"]) -> Float[Tensor, "*b i n bins"]:
        return self.project(z)

    def forward(self, z: Float[Tensor, "*b n n c_z"]) -> Float[Tensor, "*b n n bins"]:
        axis = z.dim() - 3
        return self.context(z, axis=axis, out_axis=axis)

    def expected(
        self, z: Float[Tensor, "n n c_z"], errors: Float[Tensor, " bins"], scores: Float[Tensor, " bins"]
    ) -> tuple[Float[Tensor, "n n"], Float[Tensor, " n"]]:
        """What is expected of each pair's error, and of its score averaged over a row; float32, on the host.

        errors, scores: what each bin stands for. Logits exist for LOGITS pairs and bins at a time, whatever the
        plan says of whole ones.
        """
        bins = len(errors)
        size = max(LOGITS // (len(z) * bins), 1)
        means: list[Tensor] = []

        def of_rows(rows: Float[Tensor, "i n c_z"]) -> Float[Tensor, "i n"]:
            shares = self.prepare(rows).float().softmax(dim=-1)
            terms = (shares * scores).sum(dim=-1)
            means.append(terms.mean(dim=-1, dtype=torch.float64).float())
            return (shares * errors).sum(dim=-1).cpu()

        # `gather` makes its result where the blocks are, which is the host
        expected = replace(self.rows, size=size).gather(of_rows, z, axis=0, out_axis=0)
        return expected, torch.cat(means).cpu()


class Heads(nn.Module):
    """The heads, each called by who needs it: the large ones are O(N²) logits.

    aligned_error is None for models that were not fine-tuned for pTM (supplement 1.9.7).
    """

    def __init__(self, sizes: Model):
        super().__init__()
        heads = sizes.heads
        self.confidence = Confidence(sizes.c_s, heads.c_plddt, heads.plddt_bins)
        self.distogram = Distogram(sizes.c_z, heads.distogram_bins)
        self.masked_msa = nn.Linear(sizes.c_m, heads.masked_msa_classes)
        self.resolved = nn.Linear(sizes.c_s, 37)  # 1.9.10: which atoms an experiment would see
        self.aligned_error = (
            AlignedError(sizes.c_z, heads.aligned_error_bins) if heads.aligned_error else None
        )
