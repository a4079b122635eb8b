"""A prediction as ModelCIF, with its confidences as quality metrics of the model."""

import re
from io import StringIO

import ihm
import modelcif
import modelcif.data
import modelcif.dumper
import modelcif.model
import modelcif.protocol
import modelcif.qa_metric
import numpy as np

from axfold import __version__
from axfold.output.prediction import WARNING, Prediction
from axfold.residues import ATOM_TYPES, RESTYPES_WITH_X

_ALPHABET = ihm.LPeptideAlphabet()
_UNKNOWN = _ALPHABET["UNK"]

_CITATION = ihm.Citation(
    pmid="34265844",
    title="Highly accurate protein structure prediction with AlphaFold",
    journal="Nature",
    volume="596",
    page_range=("583", "589"),
    year=2021,
    authors=["Jumper, J.", "Evans, R.", "Pritzel, A.", "Green, T.", "Figurnov, M."],
    doi="10.1038/s41586-021-03819-2",
)


class _GlobalPlddt(modelcif.qa_metric.Global, modelcif.qa_metric.PLDDT):
    """Mean pLDDT of all residues."""

    name = "pLDDT"
    software = None


class _LocalPlddt(modelcif.qa_metric.Local, modelcif.qa_metric.PLDDT):
    """pLDDT of a residue."""

    name = "pLDDT"
    software = None


class _Ptm(modelcif.qa_metric.Global, modelcif.qa_metric.PTM):
    """Predicted TM-score."""

    name = "pTM"
    software = None


class _Iptm(modelcif.qa_metric.Global, modelcif.qa_metric.IpTM):
    """Predicted TM-score of the interfaces."""

    name = "ipTM"
    software = None


class _Model(modelcif.model.AbInitioModel):
    """One predicted structure; its atoms are made while they are written."""

    def __init__(self, prediction: Prediction, units: list[modelcif.AsymUnit], assembly: modelcif.Assembly):
        super().__init__(assembly=assembly, name=f"{prediction.model}, seed {prediction.seed}")
        self._prediction = prediction
        self._units = units

    def get_atoms(self):
        prediction = self._prediction
        for unit, residues in zip(self._units, _chains(prediction), strict=True):
            for number, i in enumerate(residues, start=1):
                for atom in np.flatnonzero(prediction.atom_mask[i] >= 0.5):
                    x, y, z = (float(value) for value in prediction.atom_positions[i, atom])
                    yield modelcif.model.Atom(
                        asym_unit=unit,
                        seq_id=number,
                        atom_id=ATOM_TYPES[atom],
                        type_symbol=ATOM_TYPES[atom][0],
                        x=x,
                        y=y,
                        z=z,
                        biso=float(prediction.plddt[i]),
                        occupancy=1.0,
                    )


def write(prediction: Prediction) -> str:
    """The text of a ModelCIF file, with the pLDDT as B factor.

    Chains are named A to Z, then AA and so on; `label_seq_id` counts a chain's residues from 1, `auth_seq_id`
    is the residue's index.
    """
    system = modelcif.System(
        title=f"{_plain(prediction.name)}: prediction by {prediction.model}, seed {prediction.seed}",
        id=re.sub(r"[^A-Za-z0-9_.-]", "_", prediction.name),
        model_details=WARNING if prediction.meaningless else None,
    )
    system.authors.append("axfold")
    units, entities = _units(prediction)
    system.entities.extend(entities)
    system.asym_units.extend(units)
    model = _Model(prediction, units, modelcif.Assembly(units, name="protein"))
    model.qa_metrics.extend(_metrics(prediction, units))
    group = modelcif.model.ModelGroup([model], name=WARNING if prediction.meaningless else "prediction")
    system.model_groups.append(group)
    system.protocols.append(_protocol(prediction, entities, model))
    text = StringIO()
    modelcif.dumper.write(text, [system])
    return text.getvalue()


def _plain(text: str) -> str:
    """`text` on one line, with "?" for what CIF's alphabet lacks."""
    return re.sub(r"[^ -~]", "?", " ".join(text.split()))


def _chains(prediction: Prediction) -> list[np.ndarray]:
    """Indices of each chain's residues."""
    if prediction.chain_index is None:
        return [np.arange(len(prediction.aatype))]
    return [np.flatnonzero(prediction.chain_index == chain) for chain in np.unique(prediction.chain_index)]


def _units(prediction: Prediction) -> tuple[list[modelcif.AsymUnit], list[modelcif.Entity]]:
    """A unit for each chain, an entity for each different sequence."""
    units = []
    entities: dict[str, modelcif.Entity] = {}
    for residues in _chains(prediction):
        sequence = "".join(RESTYPES_WITH_X[residue] for residue in prediction.aatype[residues])
        if sequence not in entities:
            entity = modelcif.Entity(
                [_UNKNOWN if letter == "X" else letter for letter in sequence],
                description=_plain(prediction.name) + (f", {len(entities) + 1}" if entities else ""),
            )
            entity._force_polymer = True  # of one residue, too
            entities[sequence] = entity
        numbers = {
            position: int(index) + 1
            for position, index in enumerate(prediction.residue_index[residues], start=1)
        }
        units.append(modelcif.AsymUnit(entities[sequence], auth_seq_id_map=numbers))
    return units, list(entities.values())


def _metrics(prediction: Prediction, units: list[modelcif.AsymUnit]) -> list:
    metrics: list = [_GlobalPlddt(float(prediction.plddt.mean(dtype=np.float64)))]
    if prediction.ptm is not None:
        metrics.append(_Ptm(prediction.ptm))
    if prediction.iptm is not None:
        metrics.append(_Iptm(prediction.iptm))
    for unit, residues in zip(units, _chains(prediction), strict=True):
        metrics += [
            _LocalPlddt(unit.residue(number), float(score))
            for number, score in enumerate(prediction.plddt[residues], start=1)
        ]
    return metrics


def _protocol(
    prediction: Prediction, entities: list[modelcif.Entity], model: modelcif.model.Model
) -> modelcif.protocol.Protocol:
    software = modelcif.Software(
        name="axfold",
        classification="model building",
        description="Prediction of protein structures with the AlphaFold 2 network",
        location=None,
        version=__version__,
        citation=_CITATION,
    )
    recycles = f", {len(prediction.change)} recycles" if prediction.change else ""
    weights = f", parameters {prediction.parameters}" if prediction.parameters else ""
    protocol = modelcif.protocol.Protocol()
    protocol.steps.append(
        modelcif.protocol.ModelingStep(
            name="prediction",
            input_data=modelcif.data.DataGroup(entities),
            output_data=model,
            software=software,
            details=_plain(f"Network {prediction.model}, seed {prediction.seed}{recycles}{weights}.")
            + (f" {WARNING}" if prediction.meaningless else ""),
        )
    )
    return protocol
