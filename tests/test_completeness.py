"""ROAD: which pixels go, what fills them, and what the score makes of it."""
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings, strategies as st

from chestnb.core.errors import UserError
from chestnb.evaluation.completeness import NEIGHBOURS, impute, linear_system, removed_pixels, road_scores


def holes(random, shape, share=.5):
    removed = random.random(shape) < share
    removed[random.integers(shape[0]), random.integers(shape[1])] = False
    return removed


def test_weights_of_the_neighbours_are_the_papers():
    weights = {(down, across): weight for down, across, weight in NEIGHBOURS}
    assert len(weights) == 8 and sum(weights.values()) == pytest.approx(1)
    assert weights[0, 1] == weights[-1, 0] == 1/6 and weights[1, 1] == weights[-1, 1] == 1/12


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 9), st.integers(2, 9))
def test_system_against_a_plain_loop(seed, height, width):
    "One equation a removed pixel: the weighted mean of the neighbours that exist."
    random = np.random.default_rng(seed)
    image, removed = random.random((height, width)), holes(random, (height, width))
    matrix, right = linear_system(image, removed)
    spots = [tuple(spot) for spot in np.argwhere(removed)]
    wanted, known = np.zeros((len(spots), len(spots))), np.zeros(len(spots))
    for i, (r, c) in enumerate(spots):
        for down, across, weight in NEIGHBOURS:
            other = (r + down, c + across)
            if not (0 <= other[0] < height and 0 <= other[1] < width): continue
            wanted[i, i] += weight
            if other in spots: wanted[i, spots.index(other)] -= weight
            else: known[i] += weight*image[other]
    np.testing.assert_allclose(matrix.toarray(), wanted, atol=1e-12)
    np.testing.assert_allclose(right, known, atol=1e-12)
    filled = impute(image, removed, noise=0)
    if spots: np.testing.assert_allclose(filled[removed], np.linalg.solve(wanted, known), atol=1e-8)
    assert (filled[~removed] == image[~removed]).all()


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6))
def test_filled_pixels_lie_between_the_known_ones(seed):
    "A weighted mean is never outside of its neighbours, and what was in the hole does not matter."
    random = np.random.default_rng(seed)
    image, removed = random.random((12, 15)), holes(random, (12, 15), .8)
    filled = impute(image, removed, noise=0)
    assert image[~removed].min() - 1e-9 <= filled.min() and filled.max() <= image[~removed].max() + 1e-9
    np.testing.assert_allclose(impute(np.where(removed, 7, image), removed, noise=0), filled, atol=1e-9)
    np.testing.assert_allclose(impute(3*image + 2, removed, noise=0), 3*filled + 2, atol=1e-8)


def test_a_corner_has_three_neighbours():
    image, removed = np.array([[0., 4], [1, 7]]), np.array([[True, False], [False, False]])
    assert impute(image, removed, noise=0)[0, 0] == pytest.approx((2*4 + 2*1 + 7)/5)


def test_noise_is_seeded_and_only_in_the_hole():
    image, removed = np.full((40, 40), .5), np.zeros((40, 40), bool)
    removed[5:35, 5:35] = True
    one, two, other = (impute(image, removed, .1, seed) for seed in (1, 1, 2))
    assert (one == two).all() and (one != other)[removed].all() and (one == .5)[~removed].all()
    assert one[removed].std() == pytest.approx(.1, rel=.1)


def test_impossible_removals_are_refused():
    with pytest.raises(UserError, match='nothing to fill them from'): impute(np.ones((3, 3)), np.ones((3, 3), bool))
    with pytest.raises(UserError, match='same two sides'): impute(np.ones((3, 3)), np.ones((3, 4), bool))
    for share in (0, 1, -1, np.nan):
        with pytest.raises(UserError, match='share is'): removed_pixels(np.ones((4, 4)), share)
    with pytest.raises(UserError, match='order is'): removed_pixels(np.ones((4, 4)), .5, 'random')


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.floats(.01, .99), st.sampled_from(['most', 'least']))
def test_the_removed_pixels_are_the_highest_or_lowest(seed, share, order):
    random = np.random.default_rng(seed)
    map_, ties = random.integers(0, 3, (9, 11)).astype(float), random.random((9, 11))
    removed = removed_pixels(map_, share, order, ties)
    assert removed.sum() == min(max(1, round(share*99)), 98)
    sign = 1 if order == 'most' else -1
    assert (sign*map_[removed]).min() >= (sign*map_[~removed]).max()
    level = (sign*map_[removed]).min()*sign                                   # at the last height taken, the ties decide
    taken, left = ties[removed & (map_ == level)], ties[~removed & (map_ == level)]
    if len(left): assert (sign*taken).min() >= (sign*left).max()


def test_road_of_a_linear_score_by_hand():
    "A white square: a map of the square loses all, the pixels around it nothing."
    images = np.zeros((3, 8, 8)); images[:, 2:6, 2:6] = 1
    score = lambda changed: changed[:, 2:6, 2:6].mean((1, 2))
    table = road_scores(images, images, score, shares=[.25], noise=0, progress=False)
    assert list(table.columns) == ['most 25 %', 'least 25 %', 'ROAD']
    np.testing.assert_allclose(table, [[-1, 0, .5]]*3, atol=1e-9)


def test_a_model_that_takes_grey_from_0_to_1_only_gets_no_other_values():
    def score(changed):
        assert changed.min() >= 0 and changed.max() <= 1
        return changed.mean((1, 2))
    images = np.random.default_rng(0).integers(0, 2, (3, 16, 16)).astype(float)
    road_scores(images, images, score, noise=.5, progress=False)


def test_road_is_the_mean_over_shares_and_a_score_that_ignores_images_has_none():
    random = np.random.default_rng(0)
    images, maps = random.random((4, 16, 16)), random.random((4, 16, 16))
    table = road_scores(images, maps, lambda changed: changed.max((1, 2))**2, shares=(.2, .6), progress=False)
    wanted = (table['least 20 %'] + table['least 60 %'] - table['most 20 %'] - table['most 60 %'])/4
    pd.testing.assert_series_equal(table.ROAD, wanted, check_names=False)
    assert not road_scores(images, maps, lambda changed: np.ones(4), progress=False).any(axis=None)
    pd.testing.assert_frame_equal(table, road_scores(images, maps, lambda changed: changed.max((1, 2))**2, shares=(.2, .6), progress=False))
    with pytest.raises(UserError, match='one map for each image'): road_scores(images, maps[:2], lambda changed: np.ones(4))
