"""The unpenalised directions of a map: an orthogonal projection onto shifts of boundaries and changes of contrast."""

import numpy as np
import pytest

from elastofast.inversion.unpenalised import UnpenalisedDirections, plateau_range

SHAPE = 48, 40
ROW, COLUMN = np.mgrid[: SHAPE[0], : SHAPE[1]].astype(float)


def disc(radius=11.0, contrast=1.3, edge=1.5):
    """log x of a disc with a soft edge."""
    return contrast / (1 + np.exp((np.hypot(ROW - 22, COLUMN - 19) - radius) / edge))


def layer(displacement=0.0, contrast=1.0, width=3.0):
    """log x that rises by twice the contrast across a straight boundary, displaced by a number of nodes."""
    return contrast * np.tanh((ROW - 23.5 - displacement) / width)


def edges(z):
    """|grad z|: what a boundary that shifts by one node changes, but for the sign."""
    return np.hypot(*np.gradient(z))


def directions(z, *arguments):
    return UnpenalisedDirections(z.reshape(*z.shape[:-2], -1), SHAPE, *arguments)


def left(project, change):
    """The share of a change that a projection leaves."""
    return np.linalg.norm(change.ravel() - project(change.ravel())) / np.linalg.norm(change)


@pytest.fixture(scope="module", params=[disc, layer], ids=["disc", "layer"])
def matrices(request):
    """The map, and the matrices of the projection and of its contrast, assembled column by column."""
    z = request.param()
    found = directions(np.broadcast_to(z, (z.size, *SHAPE)))
    identity = np.eye(z.size)
    return z, found.project(identity).T, found.project_contrast(identity).T


def test_projection_is_idempotent_and_symmetric(matrices):
    """In the plain inner product over the nodes, so that it is the nearest change that costs nothing."""
    _, projection, _ = matrices
    np.testing.assert_allclose(projection, projection.T, atol=1e-8)
    np.testing.assert_allclose(projection @ projection, projection, atol=1e-6)


def test_projection_has_a_few_dimensions(matrices):
    """An idempotent matrix's trace is its rank: a window or two along each axis, for shifts and for contrast."""
    _, projection, _ = matrices
    rank = np.trace(projection)
    assert rank == pytest.approx(round(rank), abs=1e-5)
    assert 4 <= rank <= 30  # of 1920 nodes


def test_what_is_left_is_orthogonal_to_smooth_shifts_and_contrasts(matrices):
    z, projection, _ = matrices
    rest = np.random.default_rng(0).standard_normal(z.size)
    rest -= projection @ rest
    for change in (edges(z), z - np.median(z), (z - np.median(z)) * COLUMN):
        assert abs(rest @ change.ravel()) < 0.03 * np.linalg.norm(rest) * np.linalg.norm(change)


def test_contrast_keeps_changes_of_contrast_and_drops_shifts(matrices):
    z, projection, contrast = matrices
    stiffer, shift = ((weight * (3 + 0.05 * ROW - 0.02 * COLUMN)).ravel() for weight in (z - np.median(z), edges(z)))
    for change in (stiffer, shift):
        assert np.linalg.norm(projection @ change - change) < 0.02 * np.linalg.norm(change)
    assert np.linalg.norm(contrast @ stiffer - stiffer) < 0.02 * np.linalg.norm(stiffer)
    assert np.linalg.norm(contrast @ shift) < 0.02 * np.linalg.norm(shift)


@pytest.mark.parametrize("displacement", [1.0, COLUMN / 20, np.abs(COLUMN - 16) / 16], ids=["whole", "tilted", "bent"])
def test_small_shifts_of_a_boundary_are_free(displacement):
    """To first order: only the grid's own error is left of small shifts, more of larger ones."""
    z = layer(width=6.0)
    shares = [left(directions(z).project, layer(size * displacement, width=6.0) - z) for size in (0.05, 1.0, 4.0)]
    assert shares[0] < 0.02 and shares[1] < 0.03
    assert shares[2] > 3 * shares[1]


def test_a_disc_that_grows_is_free_and_one_with_a_wider_margin_is_not():
    z = disc()
    assert left(directions(z).project, disc(radius=11.05) - z) < 0.03
    assert left(directions(z).project, disc(edge=1.55) - z) > 0.4


@pytest.mark.parametrize("factor", [1.5, 1 + 0.01 * COLUMN, 0.7 - 0.005 * ROW], ids=["stiffer", "sideways", "softer"])
def test_changes_of_contrast_are_free_whatever_their_size(factor):
    z = disc()
    z -= np.median(z)
    found = directions(z)
    for size in (0.01, 1.0, 10.0):
        change = size * (factor - 1) * z
        assert left(found.project, change) < 1e-3 and left(found.project_contrast, change) < 1e-3


def test_other_changes_are_left_alone():
    z, rng = disc(), np.random.default_rng(0)
    project = directions(z).project
    others = {
        "speckle": rng.standard_normal(SHAPE),
        "a rough boundary": edges(z) * np.cos(8 * np.arctan2(COLUMN - 19, ROW - 22)),
        "a blot": np.exp(-((ROW - 22) ** 2 + (COLUMN - 19) ** 2) / 8),  # inside the disc
    }
    for name, change in others.items():
        assert left(project, change) > 0.8, name


def test_maps_without_boundaries_have_no_free_directions():
    flat = directions(np.full(SHAPE, 2.0))
    v = np.random.default_rng(0).standard_normal(ROW.size)
    assert not flat.project(v).any() and not flat.project_contrast(v).any()


def test_members_have_their_own_directions_and_only_those_chosen_have_any():
    maps = np.stack([disc(), layer(), disc(8.0, -0.6)])
    v = np.random.default_rng(0).standard_normal((3, maps[0].size))
    found = directions(maps, np.array([True, False, True]))
    for k in (0, 2):
        alone = directions(maps[k])
        np.testing.assert_allclose(found.project(v)[k], alone.project(v[k]), atol=1e-12)
        np.testing.assert_allclose(found.project_contrast(v)[k], alone.project_contrast(v[k]), atol=1e-12)
    assert not found.project(v)[1].any() and not found.project_contrast(v)[1].any()


def test_plateau_range_spans_both_levels_near_a_boundary_only_and_ignores_specks():
    z = np.where(ROW < 20, 0.0, 1.0)
    z[6, 9] = 5.0
    z[40, 30:32] = -5.0
    low, high = plateau_range(z)
    near = (ROW >= 20 - 3) & (ROW < 20 + 3)  # three nodes to either side
    np.testing.assert_array_equal(low, np.where(near, 0.0, np.where(ROW < 20, 0.0, 1.0)))
    np.testing.assert_array_equal(high, np.where(near, 1.0, np.where(ROW < 20, 0.0, 1.0)))
