import subprocess
import sys
from io import BytesIO

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread

from axfold.output import plots

SIGNATURE = b"\x89PNG\r\n\x1a\n"


@pytest.fixture
def drawn(monkeypatch) -> list[Figure]:
    """The figures that were saved while the test ran."""
    figures: list[Figure] = []
    save = Figure.savefig

    def keep(self, *args, **kwargs):
        figures.append(self)
        return save(self, *args, **kwargs)

    monkeypatch.setattr(Figure, "savefig", keep)
    return figures


def curves(count: int, n_res: int) -> list[plots.Curve]:
    rng = np.random.default_rng(0)
    return [
        plots.Curve(
            label=f"rank {rank}",
            plddt=rng.uniform(0, 100, n_res),
            pae=rng.uniform(0, 31, (n_res, n_res)),
        )
        for rank in range(1, count + 1)
    ]


@pytest.mark.parametrize("n_res", [1, 2, 37])
@pytest.mark.parametrize("count", [1, 7])
def test_plddt_draws_the_best_five(drawn, count, n_res):
    given = curves(count, n_res)
    png = plots.plddt("name", given)
    assert png.startswith(SIGNATURE)
    (axes,) = drawn[0].axes
    lines = {line.get_label(): line.get_ydata() for line in axes.lines}
    assert len(lines) == min(count, 5)
    np.testing.assert_array_equal(lines[f"rank 1, mean {given[0].plddt.mean():.1f}"], given[0].plddt)
    assert axes.get_xlabel() == "residue"
    assert "0 to 100" in axes.get_ylabel()


@pytest.mark.parametrize("n_res", [1, 37])
def test_pae_has_a_panel_a_model_and_a_scale_in_angstrom(drawn, n_res):
    given = curves(3, n_res)
    assert plots.pae("name", given).startswith(SIGNATURE)
    *panels, scale = drawn[0].axes
    assert [panel.get_title() for panel in panels] == ["rank 1", "rank 2", "rank 3"]
    np.testing.assert_array_equal(panels[1].images[0].get_array(), given[1].pae)
    assert panels[0].get_ylabel() == "aligned residue"
    assert panels[0].get_xlabel() == "scored residue"
    assert "Å" in scale.get_ylabel()


def test_coverage_orders_rows_by_identity_and_counts_them(drawn):
    rows = ["ACDE", "GCDE", "----", "AC--", "GGGE"]
    assert plots.coverage("name", rows).startswith(SIGNATURE)
    picture = np.ma.filled(drawn[0].axes[0].images[0].get_array(), np.nan)
    nothing = np.nan
    expected = [[1] * 4, [1, 1, nothing, nothing], [0.75] * 4, [0.25] * 4, [nothing] * 4]
    np.testing.assert_array_equal(picture, expected)
    (steps,) = drawn[0].axes[0].patches
    assert steps.get_data().values.tolist() == [4, 4, 3, 3]


def test_coverage_of_a_deep_alignment_is_thinned(drawn):
    rng = np.random.default_rng(0)
    rows = ["".join(rng.choice(list("ACDE-"), 6)) for _ in range(9000)]
    plots.coverage("name", ["ACDEAC", *rows])
    axes = drawn[0].axes[0]
    assert axes.images[0].get_array().shape == (4000, 6)
    assert axes.images[0].get_extent() == [0.5, 6.5, 0, 9001]
    assert "9,001 sequences" in axes.get_title()


def test_coverage_of_a_single_sequence_of_one_residue():
    assert plots.coverage("name", ["M"]).startswith(SIGNATURE)


def test_meaningless_predictions_say_so(drawn):
    plots.plddt("name", curves(1, 3), meaningless=True)
    plots.pae("name", curves(1, 3), meaningless=True)
    assert "MEANINGLESS" in drawn[0].axes[0].get_title()
    assert "MEANINGLESS" in drawn[1].get_suptitle()


def test_the_picture_is_not_blank():
    picture = imread(BytesIO(plots.plddt("name", curves(1, 50))))
    assert len(np.unique(picture.reshape(-1, picture.shape[-1]), axis=0)) > 20


def test_pyplot_and_its_global_state_are_not_used():
    code = (
        "import sys; from axfold.output import plots; assert 'matplotlib' not in sys.modules;"
        "plots.coverage('name', ['MKT']); assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
