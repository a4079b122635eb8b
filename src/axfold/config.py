"""What a model is made of. Defaults are AlphaFold 2's; each says where it stands in the supplement of
Jumper et al. (2021) or, as "config", in AlphaFold's own configuration. A preset is a difference from them."""

from dataclasses import dataclass, replace


@dataclass(frozen=True, kw_only=True)
class TriangleStack:
    """Sizes of the updates of a pair representation (Algorithms 11 to 15)."""

    heads: int = 4  # Algorithms 13, 14
    c_attention: int = 32  # per head; Algorithms 13, 14
    c_multiplication: int = 128  # Algorithms 11, 12
    transition_factor: int = 4  # Algorithm 15


@dataclass(frozen=True, kw_only=True)
class Templates:
    """Supplement 1.7.1. Sizes of the template embedding."""

    c_t: int = 64
    blocks: int = 2  # Algorithm 16
    pair: TriangleStack = TriangleStack(c_attention=16, c_multiplication=64, transition_factor=2)  # config
    bins: int = 39  # distances of pseudo-beta atoms; config: dgram_features
    min_distance: float = 3.25  # Å
    max_distance: float = 50.75  # Å
    heads: int = 4  # Algorithm 17
    c_attention: int = 16  # per head: key_dim 64 over four heads; config
    torsion_angles: bool = True  # rows of template torsion angles in the MSA; config: embed_torsion_angles


@dataclass(frozen=True, kw_only=True)
class MsaStack:
    """Sizes of one kind of Evoformer block: the main stack's or the extra MSA's."""

    blocks: int = 48  # Algorithm 6
    heads: int = 8  # Algorithms 7, 8
    c_attention: int = 32  # per head
    c_outer_product: int = 32  # Algorithm 10
    transition_factor: int = 4  # Algorithm 9
    global_column_attention: bool = False  # Algorithm 19 in place of 8
    pair: TriangleStack = TriangleStack()


@dataclass(frozen=True, kw_only=True)
class StructureModule:
    """Supplement 1.8, Algorithms 20 to 25."""

    layers: int = 8  # Algorithm 20; the layers share their weights
    heads: int = 12  # Algorithm 22
    c_hidden: int = 16  # Algorithm 22
    query_points: int = 4  # Algorithm 22
    value_points: int = 8  # Algorithm 22
    transition_layers: int = 3  # Algorithm 20, line 9
    c_angles: int = 128  # Algorithm 20, lines 11 to 14
    angle_blocks: int = 2
    position_scale: float = 10.0  # Å in a unit of the translations; config
    dropout: float = 0.1  # Algorithm 20, lines 7 and 9


@dataclass(frozen=True, kw_only=True)
class Heads:
    """Supplement 1.9.3, 1.9.6 to 1.9.10."""

    plddt_bins: int = 50  # 1.9.6
    c_plddt: int = 128  # Algorithm 29
    distogram_bins: int = 64  # 1.9.8
    distogram_min: float = 2.3125  # Å; config: first_break
    distogram_max: float = 21.6875  # Å; config: last_break
    masked_msa_classes: int = 23  # 1.9.9; config
    aligned_error: bool = False  # 1.9.7: the models fine-tuned for pTM have it
    aligned_error_bins: int = 64  # 1.9.7
    aligned_error_max: float = 31.0  # Å; config: max_error_bin


@dataclass(frozen=True, kw_only=True)
class Model:
    """The network's sizes."""

    c_m: int = 256  # MSA representation; supplement 1.6
    c_z: int = 128  # pair representation
    c_e: int = 64  # extra MSA representation; Algorithm 18
    c_s: int = 384  # single representation
    target_features: int = 22  # 21 residue types behind a flag of the segment's end; config
    msa_features: int = 49  # supplement Table 1
    extra_msa_features: int = 25  # Algorithm 2, line 15: 23 residue types and two of deletions
    max_relative: int = 32  # Algorithm 4
    recycle_bins: int = 15  # Algorithm 32
    recycle_min: float = 3.25  # Å; config: prev_pos
    recycle_max: float = 20.75  # Å
    templates: Templates | None = None
    extra_stack: MsaStack = MsaStack(blocks=4, c_attention=8, global_column_attention=True)  # Algorithm 18
    evoformer: MsaStack = MsaStack()
    structure: StructureModule = StructureModule()
    heads: Heads = Heads()


@dataclass(frozen=True, kw_only=True)
class Data:
    """How features are sampled for a prediction; supplement 1.2 and 1.11."""

    msa_clusters: int = 512  # Table 5; config: eval.max_msa_clusters. Template rows count where there are any
    extra_msa: int = 1024  # Table 5
    templates: int = 0  # config: eval.max_templates
    masked_fraction: float = 0.15  # 1.2.7; config: masked_msa_replace_fraction
    masked_uniform: float = 0.1  # 1.2.7
    masked_profile: float = 0.1
    masked_same: float = 0.1


@dataclass(frozen=True, kw_only=True)
class Config:
    """A preset: the network, its data, and how it is run."""

    name: str
    model: Model = Model()
    data: Data = Data()
    recycles: int = 3  # supplement 1.10; N_cycle = 4 passes
    tolerance: float = 0.0  # Å: stop recycling once the C-alpha distances change by less; 0 never stops early
    ensembles: int = 1  # samples of the MSA averaged in each pass; Algorithm 2, line 4


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """Which chains are trained on and what is drawn of them: supplement 1.2.4 to 1.2.8, 1.3, 1.11.5."""

    coarsest_resolution: float = 9.0  # Å, structures of this one and beyond are left out; 1.2.5
    commonest_share: float = 0.8  # and sequences with more of one residue type
    shortest: int = 256  # residues; chains weigh by their length between these two
    longest: int = 512
    distillation: float = 0.75  # share of examples from sets of predictions, where there are any; 1.3
    distillation_rows: int = 1000  # of an alignment, drawn at random for predictions; 1.3
    deleted_blocks: int = 5  # of rows of an alignment; Algorithm 1
    deleted_share: float = 0.3  # of its rows, in each block
    unclamped: float = 0.1  # share of examples whose backbone FAPE is not clamped; 1.11.5
    profile_rows: int = 64  # drawn for a chain that has a profile in place of an alignment; axfold's own


@dataclass(frozen=True, kw_only=True)
class Loss:
    """Weights and limits of the training loss: supplement 1.9, equation 7. Defaults are those of initial training."""

    backbone: float = 0.5  # FAPE of the backbone, a mean over layers; 1.9, Algorithm 20
    side_chains: float = 0.5  # FAPE of all atoms, of the last layer; 1.9
    torsions: float = 0.5  # Algorithm 27, with 0.5 for L_aux; config: chi_weight
    torsion_norm: float = 0.01  # Algorithm 27; config: angle_norm_weight
    distogram: float = 0.3  # 1.9, equation 7
    masked_msa: float = 2.0  # 1.9, equation 7
    plddt: float = 0.01  # 1.9, equation 7
    resolved: float = 0.0  # 1.9, equation 7: fine-tuning only
    violations: float = 0.0  # 1.9, equation 7: fine-tuning only
    aligned_error: float = 0.1  # 1.9.7, where the network has that head; config
    clamp: float = 10.0  # Å, the largest error that FAPE counts; Algorithm 28
    length_scale: float = 10.0  # Å in a unit of FAPE; Algorithm 28
    bond_tolerance: float = 12.0  # standard deviations that bonds and angles may be off; 1.9.11
    overlap_tolerance: float = 1.5  # Å that atoms may be nearer than their radii add up to; 1.9.11
    finest_resolution: float = (
        0.1  # Å; heads of confidence learn from structures in this range; 1.9.6, 1.9.10
    )
    coarsest_resolution: float = 3.0  # Å


FINE_TUNING = Loss(resolved=0.01, violations=1.0)
"""The loss of fine-tuning: supplement 1.9, equation 7."""


@dataclass(frozen=True, kw_only=True)
class Training:
    """How parameters are found. Defaults are those of initial training: supplement 1.11 and Table 4."""

    crop: int = 256  # residues; 1.2.8, Table 4
    msa_clusters: int = 128  # Table 4
    extra_msa: int = 1024  # Table 4
    recycles: int = 3  # at most: each step draws their number evenly; Algorithm 31, N_cycle = 4
    batch: int = 128  # samples in a step; 1.11.3
    at_once: int = 1  # samples that pass through the network together, and whose gradient is clipped together
    learning_rate: float = 1e-3  # 1.11.3
    warm_up: int = 128_000  # samples over which the learning rate rises; 1.11.3, Table 4
    decay: float = 0.95  # of the learning rate, once; 1.11.3
    decay_after: int = 6_400_000  # samples; 1.11.3
    beta_1: float = 0.9  # of Adam; 1.11.3
    beta_2: float = 0.999
    epsilon: float = 1e-6
    clip: float = 0.1  # norm of the gradient of each sample; 1.11.3
    average: float = 0.999  # share that the moving average keeps in a step; 1.11.7
    loss: Loss = Loss()


TRAININGS: dict[str, Training] = {
    "initial": Training(),
    "fine_tuning": Training(
        crop=384, msa_clusters=512, extra_msa=5120, learning_rate=5e-4, warm_up=0, loss=FINE_TUNING
    ),  # 1.11.3, Table 4
    # of the model that axfold ships: every number is our own choice. A gradient is that of a batch, and is clipped
    # nearly always; what is left of a parameter's small share of it must not drown in epsilon
    "demo": Training(
        crop=128,
        msa_clusters=64,
        extra_msa=1,
        batch=32,
        at_once=32,
        warm_up=16_000,
        clip=1.0,
        epsilon=1e-8,
    ),
}
"""The two stages of AlphaFold's training (supplement 1.11.1, Table 4), and how the small model is trained."""


_TEMPLATES = Model(templates=Templates())
_PTM = Heads(aligned_error=True)

_MONOMER = {  # named as in supplement Table 5
    "model_1": Config(name="model_1", model=_TEMPLATES, data=Data(extra_msa=5120, templates=4)),  # 1.1.1
    "model_2": Config(name="model_2", model=_TEMPLATES, data=Data(templates=4)),  # 1.1.2
    "model_3": Config(name="model_3", data=Data(extra_msa=5120)),  # 1.2.1
    "model_4": Config(name="model_4", data=Data(extra_msa=5120)),  # 1.2.2
    "model_5": Config(name="model_5"),  # 1.2.3
}

_PTM_MONOMER = {
    f"{name}_ptm": replace(config, name=f"{name}_ptm", model=replace(config.model, heads=_PTM))
    for name, config in _MONOMER.items()
}

# Every size is our own choice: as little as a GPU trains in minutes and a CPU runs in seconds. What costs the time of
# training is the pair representation's traffic, so that it is narrow; the MSA's channels are cheap at this depth.
_DEMO_PAIR = TriangleStack(c_attention=16, c_multiplication=64, transition_factor=2)
_DEMO_STACK = MsaStack(
    blocks=6, heads=4, c_attention=32, c_outer_product=16, transition_factor=2, pair=_DEMO_PAIR
)
DEMO = "demo"
"""The model whose parameters come with axfold."""

_DEMO = Config(
    name=DEMO,
    model=Model(
        c_m=128,
        c_z=64,
        c_e=8,
        c_s=128,
        # no blocks: most of its chains have no more rows than there are clusters, and Algorithm 10 divides its bias by
        # almost nothing where no row is left. Of the other rows the clusters' profiles tell
        extra_stack=replace(_DEMO_STACK, blocks=0, global_column_attention=True),
        evoformer=_DEMO_STACK,
        structure=StructureModule(layers=4, heads=8, c_angles=64),
        heads=replace(_PTM, c_plddt=64),
    ),
    data=Data(msa_clusters=64, extra_msa=1),
)

PRESETS: dict[str, Config] = _MONOMER | _PTM_MONOMER | {DEMO: _DEMO}
"""Every model by its name; `model_N_ptm` and `demo` also predict their aligned error (supplement 1.9.7)."""

CASP14_ENSEMBLES = 8
"""Features sampled and averaged in each pass in the CASP14 runs (config: monomer_casp14)."""
