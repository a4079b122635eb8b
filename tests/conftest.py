"""What all tests share."""

import os
from dataclasses import replace
from pathlib import Path

import pytest

from axfold import config
from axfold.config import Heads, Model, MsaStack, StructureModule, Templates, TriangleStack


@pytest.fixture(scope="session")
def parity() -> Path:
    """Folder with DeepMind's recorded numbers, beside the checkout; a clone alone tests its own subset."""
    beside = Path(__file__).parents[2] / "shared" / "parity"
    folder = Path(os.environ.get("AXFOLD_PARITY", beside))
    if not folder.is_dir():
        pytest.skip(f"DeepMind's recorded numbers are not in {folder}; AXFOLD_PARITY names another folder")
    return folder


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small networks and few rows in the places of all presets, so that a prediction takes moments."""
    pair = TriangleStack(heads=2, c_attention=4, c_multiplication=8, transition_factor=2)
    stack = MsaStack(blocks=2, heads=2, c_attention=4, c_outer_product=4, transition_factor=2, pair=pair)
    sizes = Model(
        c_m=16,
        c_z=12,
        c_e=8,
        c_s=20,
        extra_stack=replace(stack, blocks=1, global_column_attention=True),
        evoformer=stack,
        structure=StructureModule(layers=2, heads=2, c_hidden=4, c_angles=8),
    )
    templates = Templates(c_t=8, blocks=1, pair=pair, heads=2, c_attention=4)
    for name, preset in list(config.PRESETS.items()):
        model = replace(
            sizes,
            templates=preset.model.templates and templates,
            heads=Heads(aligned_error=preset.model.heads.aligned_error),
        )
        data = replace(preset.data, msa_clusters=8, extra_msa=8)
        monkeypatch.setitem(config.PRESETS, name, replace(preset, model=model, data=data))
