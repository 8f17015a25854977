"The counted scores against scikit-learn, and what has no score."
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve

from chestnb.core.errors import UserError
from chestnb.evaluation.metrics import (RankedScores, absent_findings, auroc, auroc_by_pairs, auroc_per_finding, average_precision, average_precision_per_finding,
    macro_auroc, mean_ranks, roc_points, weighted_scores)


@st.composite
def one_finding(draw):
    "Targets with both classes and scores, often tied."
    n = draw(st.integers(2, 60))
    target = draw(hnp.arrays(bool, n))
    target[0], target[-1] = True, False
    values = draw(st.sampled_from([st.floats(0, 1), st.sampled_from([0., .25, .5, 1.]), st.floats(-50, 50, width=32)]))
    return target, draw(hnp.arrays(float, n, elements=values))


@given(one_finding())
@settings(max_examples=100, deadline=None)
def test_equal_to_scikit_learn(data):
    target, score = data
    assert auroc(target, score) == pytest.approx(roc_auc_score(target, score), abs=1e-12)
    assert auroc(target, score) == pytest.approx(auroc_by_pairs(target, score), abs=1e-12)
    assert average_precision(target, score) == pytest.approx(average_precision_score(target, score), abs=1e-12)
    false_rate, true_rate, _ = roc_curve(target, score, drop_intermediate=False)
    ours = roc_points(target, score)
    np.testing.assert_allclose(ours[0], false_rate, atol=1e-12)
    np.testing.assert_allclose(ours[1], true_rate, atol=1e-12)
    assert np.trapezoid(ours[1], ours[0]) == pytest.approx(auroc(target, score), abs=1e-12)


@given(one_finding(), st.data())
@settings(max_examples=80, deadline=None)
def test_weights_are_repeated_images(data, more):
    target, score = data
    units = more.draw(hnp.arrays(np.int64, len(target), elements=st.integers(0, 9)))
    weights = more.draw(hnp.arrays(np.int64, (10, 3), elements=st.integers(0, 3)))
    areas, precisions = weighted_scores(RankedScores(target, score, units, 10), weights.astype(float))
    for column, area, precision in zip(weights.T, areas, precisions):
        times = column[units]
        t, s = target.repeat(times), score.repeat(times)
        if len(t) == 0 or t.all() or not t.any():
            assert np.isnan(area) and np.isnan(precision)
        else:
            assert area == pytest.approx(roc_auc_score(t, s), abs=1e-12)
            assert precision == pytest.approx(average_precision_score(t, s), abs=1e-12)


@given(hnp.arrays(float, st.integers(1, 50), elements=st.sampled_from([0., 1., 2., 3., 4.5])))
@settings(deadline=None)
def test_mean_ranks(score):
    from scipy.stats import rankdata
    np.testing.assert_array_equal(mean_ranks(score), rankdata(score))


@pytest.mark.parametrize('value', [0, 1])
def test_a_class_that_is_empty_is_nan_without_a_warning(value):
    random = np.random.default_rng(0)
    targets, scores = random.random((40, 3)) < .3, random.random((40, 3))
    targets[:, 1] = value
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        areas, precisions = auroc_per_finding(targets, scores), average_precision_per_finding(targets, scores)
        macro = macro_auroc(targets, scores)
        assert np.isnan(macro_auroc(np.full((5, 2), value), scores[:5, :2]))
    assert np.isnan(areas).tolist() == np.isnan(precisions).tolist() == [False, True, False]
    assert macro == pytest.approx((areas[0] + areas[2])/2)
    assert absent_findings(targets, ['a', 'b', 'c']) == ['b']


def test_constant_scores_know_nothing():
    target = np.arange(20) < 5
    assert auroc(target, np.full(20, .7)) == .5
    assert average_precision(target, np.full(20, .7)) == .25


def test_order_is_all_that_counts():
    random = np.random.default_rng(1)
    target, logit = random.random(200) < .3, random.normal(size=200)
    assert auroc(target, logit) == pytest.approx(auroc(target, 1/(1 + np.exp(-logit))), abs=1e-12)
    assert auroc(target, -logit) == pytest.approx(1 - auroc(target, logit), abs=1e-12)


@pytest.mark.parametrize('targets, scores, says', [
    (np.zeros((4, 2)), np.zeros((3, 2)), r'\(4, 2\).*\(3, 2\)'),
    (np.zeros(4), np.zeros(4), 'shape'),
    (np.zeros((2, 2)), np.array([[0, 1], [np.nan, 0]]), '1 of the scores are NaN.*row 1, column 0'),
    (np.full((2, 2), .5), np.zeros((2, 2)), 'other than 0 and 1'),
    (np.full((2, 2), -1.), np.zeros((2, 2)), 'other than 0 and 1'),
])
def test_refused(targets, scores, says):
    for function in (auroc_per_finding, average_precision_per_finding, macro_auroc):
        with pytest.raises(UserError, match=says): function(targets, scores)


def test_unknown_labels_are_left_out_of_their_finding():
    "0.1 took NaN for a positive."
    random = np.random.default_rng(2)
    targets, scores = (random.random((90, 2)) < .3).astype(float), random.random((90, 2))
    targets[:40, 1] = np.nan
    for function, one in ((auroc_per_finding, auroc), (average_precision_per_finding, average_precision)):
        np.testing.assert_allclose(function(targets, scores), [one(targets[:, 0], scores[:, 0]), one(targets[40:, 1], scores[40:, 1])], atol=1e-12)
    assert absent_findings(np.full((5, 1), np.nan), ['a']) == ['a'] and np.isnan(macro_auroc(np.full((5, 1), np.nan), np.zeros((5, 1))))
