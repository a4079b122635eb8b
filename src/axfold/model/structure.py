"""The structure module: Algorithms 20, 22 and 23."""

from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from axfold import ops
from axfold.config import StructureModule as Sizes
from axfold.model.atoms import atom14_of_frames, atom37_of_atom14, frames_of_torsions
from axfold.model.layers import RowUpdate
from axfold.model.rigid import Rigid, rotation_of, turn


@dataclass(frozen=True)
class Structure:
    """What the structure module predicts, in Å; L layers, N residues.

    atom37, mask: (*b, N, 37, 3) and (*b, N, 37)
    atom14: (*b, N, 14, 3) of the last layer
    single: (*b, N, c_s), its last activations
    layers: for each layer "quaternion" (*b, N, 4), "translation" (*b, N, 3), "torsions" and "unnormalised_torsions"
        (*b, N, 7, 2), "frames_rotation" (*b, N, 8, 3, 3), "frames_translation" (*b, N, 8, 3), "atom14"
    """

    atom37: Tensor
    mask: Tensor
    atom14: Tensor
    single: Tensor
    layers: tuple[dict[str, Tensor], ...]


class InvariantPointAttention(RowUpdate):
    """Attention among residues by their representation, their pairs, and points in their frames: Algorithm 22.

    Rows are the residues that attend. The projections have AlphaFold's layouts: points come as
    [xyz][head][point], the keys of a head before its values.
    """

    stage = "invariant point attention"

    def __init__(self, c_s: int, c_z: int, sizes: Sizes):
        super().__init__()
        self.sizes = sizes
        heads, points = sizes.heads, sizes.query_points + sizes.value_points
        self.q = nn.Linear(c_s, heads * sizes.c_hidden)
        self.kv = nn.Linear(c_s, 2 * heads * sizes.c_hidden)
        self.q_points = nn.Linear(c_s, 3 * heads * sizes.query_points)
        self.kv_points = nn.Linear(c_s, 3 * heads * points)
        self.bias = nn.Linear(c_z, heads)
        self.point_weights = nn.Parameter(torch.full((heads,), 0.541324854612918))  # softplus(x) = 1; line 7
        self.output = nn.Linear(heads * (sizes.c_hidden + 4 * sizes.value_points + c_z), c_s)

    def _points(self, flat: Tensor, frames: Rigid, points: int) -> Tensor:
        """(*b, n, heads * points, 3) in the global frame."""
        local = flat.unflatten(-1, (3, self.sizes.heads * points)).transpose(-1, -2)
        return frames.apply(local).unflatten(-2, (self.sizes.heads, points))

    def update(
        self,
        s: Float[Tensor, "*b i c_s"],
        z: Float[Tensor, "*b i n c_z"],
        mask: Float[Tensor, "*b i"],
        rotation: Float[Tensor, "*b i 3 3"],
        translation: Float[Tensor, "*b i 3"],
        norm_pair: nn.LayerNorm,
        kv: Float[Tensor, "*b n h two_c"],
        kv_points: Float[Tensor, "*b n h p 3"],
        masks: Float[Tensor, "*b n"],
    ) -> Float[Tensor, "*b i c_s"]:
        sizes, frames = self.sizes, Rigid(rotation, translation)
        q = self.q(s).unflatten(-1, (sizes.heads, -1))
        q_points = self._points(self.q_points(s), frames, sizes.query_points)
        k, v = kv.chunk(2, dim=-1)
        k_points, v_points = kv_points.split([sizes.query_points, sizes.value_points], dim=-2)
        layers = norm_pair.weight, norm_pair.bias, self.bias.weight, self.bias.bias
        values, points, pairs = ops.invariant_point_attention(
            q, k, v, q_points, k_points, v_points, self.point_weights, z, *layers, mask, masks
        )
        points = frames.invert(points.flatten(-3, -2))
        lengths = (points.square().sum(-1) + 1e-8).sqrt()
        features = [values.flatten(-2), *points.unbind(-1), lengths, pairs.flatten(-2)]
        return s + self.output(torch.cat(features, dim=-1))

    def forward(
        self,
        s: Float[Tensor, "*b n c_s"],
        z: Float[Tensor, "*b n n c_z"],
        mask: Float[Tensor, "*b n"],
        frames: Rigid,
        norm_pair: nn.LayerNorm,
    ) -> Float[Tensor, "*b n c_s"]:
        """s with its update added; z is normalised by `norm_pair` row by row. Leaves s as it is."""
        points = self.sizes.query_points + self.sizes.value_points
        context = {
            "kv": self.kv(s).unflatten(-1, (self.sizes.heads, -1)),
            "kv_points": self._points(self.kv_points(s), frames, points),
            "masks": mask,
        }
        update = partial(self.update, norm_pair=norm_pair, **context)
        rows = z, mask, frames.rotation, frames.translation
        return self.rows.update(update, s.clone(), *rows, axis=s.dim() - 2)


class TorsionAngles(nn.Module):
    """(sin, cos) of the seven torsions of each residue: Algorithm 20, lines 11 to 14."""

    def __init__(self, c_s: int, sizes: Sizes):
        super().__init__()
        c = sizes.c_angles
        self.current, self.initial = nn.Linear(c_s, c), nn.Linear(c_s, c)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.ReLU(), nn.Linear(c, c), nn.ReLU(), nn.Linear(c, c))
            for _ in range(sizes.angle_blocks)
        )
        self.output = nn.Linear(c, 14)

    def forward(
        self, s: Float[Tensor, "*b n c_s"], initial: Float[Tensor, "*b n c_s"]
    ) -> Float[Tensor, "*b n 7 2"]:
        """Not normalised."""
        a = self.current(s.relu()) + self.initial(initial.relu())
        for block in self.blocks:
            a = a + block(a)
        return self.output(a.relu()).unflatten(-1, (7, 2))


class StructureModule(nn.Module):
    """Algorithm 20 without its losses. Its layers share their weights. Runs in float32 whatever the trunk's type."""

    def __init__(self, c_s: int, c_z: int, sizes: Sizes):
        super().__init__()
        self.sizes = sizes
        self.norm_single, self.norm_pair = nn.LayerNorm(c_s), nn.LayerNorm(c_z)
        self.project = nn.Linear(c_s, c_s)
        self.attention = InvariantPointAttention(c_s, c_z, sizes)
        self.norm_attention, self.norm_transition = nn.LayerNorm(c_s), nn.LayerNorm(c_s)
        self.transition = nn.ModuleList(nn.Linear(c_s, c_s) for _ in range(sizes.transition_layers))
        self.backbone = nn.Linear(c_s, 6)
        self.angles = TorsionAngles(c_s, sizes)
        self.dropout = nn.Dropout(sizes.dropout)

    def forward(
        self,
        single: Float[Tensor, "*b n c_s"],
        pair: Float[Tensor, "*b n n c_z"],
        aatype: Int[Tensor, "*b n"],
        mask: Float[Tensor, "*b n"],
    ) -> Structure:
        initial = self.norm_single(single.to(self.project.weight.dtype))  # line 1
        s = self.project(initial)  # line 3; line 2, of the pair, row by row where it is used
        mask = mask.to(s.dtype)
        quaternion = s.new_zeros(*s.shape[:-1], 4)  # line 4
        quaternion[..., 0] = 1
        translation = s.new_zeros(*s.shape[:-1], 3)
        layers = []
        for _ in range(self.sizes.layers):
            s, quaternion, translation, layer = self.layer(
                pair, s, initial, quaternion, translation, aatype, mask
            )
            layers.append(layer)
            quaternion = quaternion.detach()  # line 20: no gradient through the rotations between layers
        atom14 = layers[-1]["atom14"]
        atom37, atom_mask = atom37_of_atom14(atom14, aatype)
        return Structure(atom37, atom_mask, atom14, s, tuple(layers))

    def layer(
        self,
        pair: Float[Tensor, "*b n n c_z"],
        s: Float[Tensor, "*b n c_s"],
        initial: Float[Tensor, "*b n c_s"],
        quaternion: Float[Tensor, "*b n 4"],
        translation: Float[Tensor, "*b n 3"],
        aatype: Int[Tensor, "*b n"],
        mask: Float[Tensor, "*b n"],
    ) -> tuple[Tensor, Tensor, Tensor, dict[str, Tensor]]:
        """s, quaternion and translation after one more layer, and what `Structure` keeps of it."""
        frames = Rigid(rotation_of(quaternion), translation)
        s = self.attention(s, pair, mask, frames, self.norm_pair)  # line 6
        s = self.norm_attention(self.dropout(s))  # line 7
        hidden = s  # line 8
        for i, linear in enumerate(self.transition):
            hidden = linear(hidden if i == 0 else hidden.relu())
        s = self.norm_transition(self.dropout(s + hidden))  # line 9
        update = self.backbone(s)  # line 10, Algorithm 23
        quaternion = turn(quaternion, update[..., :3])
        translation = translation + (frames.rotation @ update[..., 3:, None]).squeeze(-1)

        unnormalised = self.angles(s, initial)  # lines 11 to 14
        torsions = unnormalised / unnormalised.square().sum(-1, keepdim=True).clamp(min=1e-12).sqrt()
        backbone = Rigid(rotation_of(quaternion), translation).scale(self.sizes.position_scale)
        groups = frames_of_torsions(backbone, torsions, aatype)
        return (
            s,
            quaternion,
            translation,
            {
                "quaternion": quaternion,
                "translation": backbone.translation,
                "torsions": torsions,
                "unnormalised_torsions": unnormalised,
                "frames_rotation": groups.rotation,
                "frames_translation": groups.translation,
                "atom14": atom14_of_frames(groups, aatype),  # line 24
            },
        )
