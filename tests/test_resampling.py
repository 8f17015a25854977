"Resampling of patients, operating scores, DeLong, Holm: against the plain loop, scikit-learn and the definitions."
import subprocess
import sys
import warnings

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sklearn.metrics import (average_precision_score, brier_score_loss, f1_score, precision_score, recall_score,
                             roc_auc_score)

from chestnb.core.errors import UserError
from chestnb.evaluation.intervals import (auroc_influence, average_precision_influence, influence_on_difference, jackknife_bias, mean_influence, operating_influence,
    ratio_influence, score_influence, student_interval, score_interval)
from chestnb.evaluation.metrics import RankedScores, auroc, average_precision, weighted_scores
from chestnb.evaluation.resampling import (MEANS, OPERATING, UNITS, bootstrap_p, common_pot, delong, difference_test, holm, interval, operating_columns,
    operating_scores, patient_bootstrap, present_findings, resample_weights, resampled_sums, structural_components, with_means)
from chestnb.evaluation.simulation import STUDY_THRESHOLDS, simulated_study, study_truth


def study(seed=0, n_patients=25, k=3, ties=False, prevalence=.3):
    "Targets, scores and patients; patients have one to six images that resemble each other."
    random = np.random.default_rng(seed)
    patients = np.repeat(np.arange(n_patients)*7 + 3, random.integers(1, 7, n_patients))
    number = np.unique(patients, return_inverse=True)[1]
    targets = random.random((len(patients), k)) < prevalence
    scores = 1/(1 + np.exp(-(targets + random.normal(size=(n_patients, k))[number] + random.normal(size=targets.shape))))
    order = random.permutation(len(patients))
    return targets[order], (scores.round(1) if ties else scores)[order], patients[order]


def copied(number, column):
    "Rows of one resample, copied out."
    return np.arange(len(number)).repeat(column[number])


# -- weights, sums, intervals

def test_the_draw_has_not_changed():
    "Numbers of a seed are part of every published interval."
    number, weights = resample_weights([7, 7, 7, 9, 4, 4], 4, seed=0)
    assert number.tolist() == [1, 1, 1, 2, 0, 0]
    assert weights.T.tolist() == [[0, 2, 1], [3, 0, 0], [3, 0, 0], [0, 1, 2]]
    assert (resample_weights([7, 7, 9, 4], 9, 0)[1] == resample_weights([4, 9, 7], 9, 0)[1]).all()


def test_units():
    ids = np.array(['a', 'b', 'a', 'c'])
    _, by_patient = resample_weights(ids, 30)
    _, by_image = resample_weights(ids, 30, unit='image')
    assert by_patient.shape == (3, 30) and (by_patient.sum(axis=0) == 3).all()
    assert by_image.shape == (4, 30) and (by_image.sum(axis=0) == 4).all()
    assert resample_weights(ids, 0)[1].shape == (3, 0)
    for bad in (dict(unit='study'), dict(n_resamples=-1)):
        with pytest.raises(UserError, match='expected'): resample_weights(ids, **bad)
    assert UNITS == ('patient', 'image')


@given(st.integers(0, 10**6), st.integers(1, 4))
@settings(max_examples=60, deadline=None)
def test_sums_are_those_of_the_copied_images(seed, k):
    random = np.random.default_rng(seed)
    ids = random.integers(0, 9, random.integers(1, 40))
    number, weights = resample_weights(ids, 5, seed)
    values = random.normal(size=(len(ids), k))
    sums = resampled_sums(values, number, weights)
    expected = [values[copied(number, column)].sum(axis=0) for column in weights.T]
    np.testing.assert_allclose(sums, expected, rtol=1e-12, atol=1e-12)


def test_sums_of_counts_are_exact_and_shapes_hold():
    number, weights = resample_weights(np.arange(5000)//2, 2500)
    ones = resampled_sums(np.ones(5000, bool), number, weights)
    assert ones.shape == (2500, 1) and (ones == 5000).all()
    assert resampled_sums(np.ones((5000, 2)), number, weights[:, :0]).shape == (0, 2)
    for bad in (np.nan, np.inf):
        with pytest.raises(UserError, match='NaN or infinite'): resampled_sums(np.full(5000, bad), number, weights)


def test_interval():
    low, high, used = interval(np.arange(1001.))
    assert (low, high, used) == (25, 975, 1001)
    assert interval(np.arange(1001.), level=.9)[:2] == (50, 950)
    low, high, used = interval(np.empty((0, 2)))
    assert np.isnan(low).all() and np.isnan(high).all() and used.tolist() == [0, 0]
    for level in (0, 1, 95):
        with pytest.raises(UserError, match='0.95'): interval([1.], level)


# -- scores in resamples

@pytest.mark.parametrize('ties', [False, True])
@pytest.mark.parametrize('unit', UNITS)
@pytest.mark.parametrize('seed', range(4))
def test_bootstrap_equals_the_plain_loop(seed, unit, ties):
    targets, scores, patients = study(seed, ties=ties)
    draws = patient_bootstrap(targets, scores, patients, 25, seed, unit)
    number, weights = resample_weights(patients, 25, seed, unit)
    for i, column in enumerate(weights.T):
        rows = copied(number, column)
        t, s = targets[rows], scores[rows]
        assert present_findings(t).all()
        for name, score in (('auroc', roc_auc_score), ('average_precision', average_precision_score)):
            expected = np.r_[score(t, s, average=None), [score(t, s, average=mean) for mean in MEANS]]
            np.testing.assert_allclose(draws[name][i], expected, rtol=0, atol=1e-12)


@given(st.data())
@settings(max_examples=80, deadline=None)
def test_any_small_set_equals_the_plain_loop(data):
    "Few images, heavy ties, empty classes."
    n = data.draw(st.integers(2, 14))
    targets = data.draw(hnp.arrays(bool, (n, 2)))
    scores = data.draw(hnp.arrays(float, (n, 2), elements=st.sampled_from([0., .1, .5, .500001, 1.])))
    patients = data.draw(hnp.arrays(np.int64, n, elements=st.integers(0, 4)))
    draws = patient_bootstrap(targets, scores, patients, 6, seed=1)
    number, weights = resample_weights(patients, 6, seed=1)
    for f in range(2):
        alone = min(len(np.unique(patients[targets[:, f]])), len(np.unique(patients[~targets[:, f]]))) < 2
        for i, column in enumerate(weights.T):
            t, s = targets[copied(number, column), f], scores[copied(number, column), f]
            if alone or t.all() or not t.any():
                assert np.isnan(draws['auroc'][i, f]) and np.isnan(draws['average_precision'][i, f])
            else:
                assert draws['auroc'][i, f] == pytest.approx(roc_auc_score(t, s), abs=1e-12)
                assert draws['average_precision'][i, f] == pytest.approx(average_precision_score(t, s), abs=1e-12)


def test_heavy_patients_do_not_overflow():
    "A resample with more than 65,535 images leaves 16 bits."
    random = np.random.default_rng(0)
    patients = np.repeat([0, 1, 2], [60_000, 300, 300])
    targets, scores = random.random((60_600, 1)) < .3, random.random((60_600, 1)).round(3)
    draws = patient_bootstrap(targets, scores, patients, 12, seed=0)
    number, weights = resample_weights(patients, 12, seed=0)
    assert weights[0].max() >= 2
    for i, column in enumerate(weights.T):
        rows = copied(number, column)
        assert draws['auroc'][i, 0] == pytest.approx(roc_auc_score(targets[rows, 0], scores[rows, 0]), abs=1e-12)
        assert draws['average_precision'][i, 0] == pytest.approx(average_precision_score(targets[rows, 0], scores[rows, 0]), abs=1e-12)


def test_chunks_do_not_matter():
    targets, scores, patients = study(1)
    many, few = patient_bootstrap(targets, scores, patients, 300), patient_bootstrap(targets, scores, patients, 7)
    number, weights = resample_weights(patients, 300)
    assert many['auroc'].shape == (300, 6) and few['auroc'].shape == (7, 6)
    whole = weighted_scores(RankedScores(targets[:, 1], scores[:, 1], number, len(weights)), weights)
    np.testing.assert_array_equal(many['auroc'][:, 1], whole[0])
    np.testing.assert_array_equal(patient_bootstrap(targets, scores, patients, 300)['auroc'], many['auroc'])
    assert patient_bootstrap(targets, scores, patients, 0)['auroc'].shape == (0, 6)


def test_one_patient_with_all_negatives_has_no_interval():
    targets, scores, patients = study(2)
    targets[:, 0] = patients != patients[0]
    draws = patient_bootstrap(targets, scores, patients, 20)['auroc']
    assert np.isnan(draws[:, [0, 3, 5]]).all() and np.isfinite(draws[:, [1, 2, 4]]).all()


def test_weighted_mean_survives_a_finding_that_is_not_drawn():
    targets, scores, patients = study(3)
    targets[:, 0] = np.isin(patients, patients[:2])
    assert len(np.unique(patients[:2])) == 2
    draws = patient_bootstrap(targets, scores, patients, 200)['auroc']
    gone = np.isnan(draws[:, 0])
    assert 5 < gone.sum() < 100
    assert np.isnan(draws[gone, 3]).all() and np.isfinite(draws[:, 5]).all()
    number, weights = resample_weights(patients, 200)
    positives = resampled_sums(targets, number, weights)
    at = np.flatnonzero(gone)[0]
    assert draws[at, 5] == pytest.approx(np.average(draws[at, 1:3], weights=positives[at, 1:]), abs=1e-12)


@pytest.mark.parametrize('bad, says', [(np.nan, 'NaN'), (None, 'shape')])
def test_bootstrap_refuses(bad, says):
    targets, scores, patients = study()
    scores = scores[1:] if bad is None else np.where(scores == scores[3, 1], bad, scores)
    with pytest.raises(UserError, match=says): patient_bootstrap(targets, scores, patients, 3)


def test_with_means_leaves_out_what_is_not_present():
    each = np.array([[.5, np.nan, .7], [np.nan, .2, .7]])
    result = with_means(each, [.1, .2], [[2, 0, 6], [0, 5, 5]], np.array([True, False, True]))
    np.testing.assert_allclose(result[:, 3:], [[.6, .1, (2*.5 + 6*.7)/8], [np.nan, .2, .7]])
    nothing = with_means([np.nan], .3, [0], np.array([False]))
    assert np.isnan(nothing[[0, 1, 3]]).all() and nothing[2] == .3


# -- operating scores

def sklearn_operating(t, s, cut):
    "By scikit-learn, NaN where we promise NaN."
    marked, nan = s >= cut, np.nan
    some, any_negative = t.any(), not t.all()
    return [recall_score(t, marked) if some else nan,
            recall_score(~t, ~marked) if any_negative else nan,
            precision_score(t, marked) if some and marked.any() else nan,
            precision_score(~t, ~marked) if any_negative and not marked.all() else nan,
            f1_score(t, marked) if some else nan,
            brier_score_loss(t.astype(int), s, labels=[0, 1]) if len(t) else nan]


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_operating_scores_equal_scikit_learn(data):
    n = data.draw(st.integers(1, 30))
    target = data.draw(hnp.arrays(bool, n))
    score = data.draw(hnp.arrays(float, n, elements=st.one_of(st.floats(0, 1), st.sampled_from([0., .25, .5, 1.]))))
    cut = data.draw(st.sampled_from([0., .25, .5, .3, 1.]))
    ours = operating_scores(target[:, None], score[:, None], cut)
    np.testing.assert_allclose([ours[name][0] for name in OPERATING], sklearn_operating(target, score, cut), rtol=0, atol=1e-12)


@pytest.mark.filterwarnings('error')
def test_operating_scores_with_nothing_to_say():
    targets, scores, patients = study(6)
    targets[:, 0], targets[:, 1] = False, True
    point = operating_scores(targets, scores, .5)
    assert np.isnan([point[name][0] for name in ('sensitivity', 'ppv', 'f1')]).all()
    assert np.isnan([point[name][1] for name in ('specificity', 'npv')]).all()
    assert np.isfinite([point['specificity'][0], point['sensitivity'][1], *point['brier']]).all()
    for name in OPERATING: assert point[name][3] == pytest.approx(point[name][2])  # the macro mean is over the third finding alone
    unmarked = operating_scores(targets, scores, [.5, .5, 1.])
    assert np.isnan(unmarked['ppv'][[2, 3, 5]]).all() and unmarked['sensitivity'][2] == unmarked['f1'][2] == 0


def test_unknown_labels_are_left_out_of_operating_scores_and_resamples():
    targets, scores, patients = study(7)
    partly, last = targets.astype(float), patients > np.median(patients)
    partly[last] = np.nan
    for function in (lambda t, s, p: operating_scores(t, s, .5), lambda t, s, p: patient_bootstrap(t, s, p, 0)):
        one, two = function(partly, scores, patients), function(targets[~last], scores[~last], patients[~last])
        for name in one: np.testing.assert_allclose(one[name], two[name], atol=1e-12)
    partly = np.where(np.arange(3) == 1, partly, targets)
    draws, number, weights = patient_bootstrap(partly, scores, patients, 20), *resample_weights(patients, 20)
    for i, column in enumerate(weights.T):
        rows = copied(number, column)
        known = rows[~np.isnan(partly[rows, 1])]
        assert draws['auroc'][i, 1] == pytest.approx(roc_auc_score(targets[known, 1], scores[known, 1]), abs=1e-12)
    area, cov = delong(partly[:, 1], scores[:, :1], patients)
    np.testing.assert_allclose(cov, delong(targets[~last, 1], scores[~last, :1], patients[~last])[1], atol=1e-12)


def test_the_micro_mean_is_over_findings_with_both_classes():
    targets, scores, patients = study(7)
    targets[:, 0], targets[:, 1] = False, True
    draws = patient_bootstrap(targets, scores, patients, 20)
    np.testing.assert_allclose(draws['auroc'][:, 4], draws['auroc'][:, 2], atol=1e-12)
    assert common_pot(targets).sum() == len(targets)
    point = operating_scores(targets, scores, .5)
    for name in OPERATING: assert point[name][4] == pytest.approx(point[name][2])


@pytest.mark.parametrize('cut, scores, says', [(1.5, None, 'from 0 to 1'), (-.1, None, 'from 0 to 1'), (np.nan, None, 'from 0 to 1'),
                                               (.5, 7., 'sigmoid'), (.5, np.nan, 'NaN')])
def test_operating_refuses(cut, scores, says):
    targets, good, _ = study()
    with pytest.raises(UserError, match=says): operating_columns(targets, good if scores is None else np.full(good.shape, scores), cut)


# -- DeLong

def pairs_won(positive, negative):
    "1 if the positive image wins, a half for a tie: the definition, without ranks"
    return np.sign(positive[:, None] - negative[None, :])/2 + .5


def slow_delong(target, scores, clusters):
    "Obuchowski (1997), equations written out with loops over clusters; with clusters of one image, DeLong (1988)"
    k = scores.shape[1]
    won = [pairs_won(s[target], s[~target]) for s in scores.T]
    areas = np.array([w.mean() for w in won])
    m, n = target.sum(), (~target).sum()
    owner_up, owner_down = clusters[target], clusters[~target]
    ids = sorted(set(clusters.tolist()))
    i10, i01, everyone = len(set(owner_up.tolist())), len(set(owner_down.tolist())), len(ids)
    cov = np.zeros((k, k))
    for a in range(k):
        for b in range(k):
            s10 = s01 = s11 = s11_swapped = 0.
            for c in ids:
                up, down = owner_up == c, owner_down == c
                xa, xb = (won[j][up].mean(axis=1).sum() - up.sum()*areas[j] if up.any() else 0. for j in (a, b))
                ya, yb = (won[j][:, down].mean(axis=0).sum() - down.sum()*areas[j] if down.any() else 0. for j in (a, b))
                s10, s01, s11, s11_swapped = s10 + xa*xb, s01 + ya*yb, s11 + xa*yb, s11_swapped + xb*ya
            cov[a, b] = (i10/((i10 - 1)*m)*s10/m + i01/((i01 - 1)*n)*s01/n + everyone/(everyone - 1)*(s11 + s11_swapped)/(m*n))
    return areas, cov


@st.composite
def paired(draw):
    n = draw(st.integers(4, 25))
    target = draw(hnp.arrays(bool, n))
    target[:2], target[2:4] = True, False
    scores = draw(hnp.arrays(float, (n, 2), elements=draw(st.sampled_from([st.floats(0, 1), st.sampled_from([0., .2, .5, 1.])]))))
    clusters = draw(hnp.arrays(np.int64, n, elements=st.integers(0, 6)))
    clusters[:4] = [0, 1, 2, 3]
    return target, scores, clusters


@given(paired())
@settings(max_examples=60, deadline=None)
def test_delong_equals_the_definition(data):
    target, scores, clusters = data
    for given_clusters, slow in ((None, np.arange(len(target))), (clusters, clusters)):
        areas, cov = delong(target, scores, given_clusters)
        slow_areas, slow_cov = slow_delong(target, scores, slow)
        np.testing.assert_allclose(areas, slow_areas, rtol=0, atol=1e-12)
        np.testing.assert_allclose(cov, slow_cov, rtol=0, atol=1e-12)
    for s, area in zip(scores.T, areas): assert area == pytest.approx(roc_auc_score(target, s), abs=1e-12)


@given(paired())
@settings(max_examples=60, deadline=None)
def test_delong_is_the_covariance_of_structural_components(data):
    "Sun and Xu's form: numpy's sample covariance of the components over the number of images."
    target, scores, _ = data
    up, down = (np.stack(v) for v in zip(*(structural_components(target, s) for s in scores.T)))
    np.testing.assert_allclose(delong(target, scores)[1], np.cov(up)/target.sum() + np.cov(down)/(~target).sum(), rtol=0, atol=1e-12)
    won = pairs_won(scores[target, 0], scores[~target, 0])
    np.testing.assert_allclose(up[0], won.mean(axis=1), atol=1e-12)
    np.testing.assert_allclose(down[0], won.mean(axis=0), atol=1e-12)


@pytest.mark.filterwarnings('error')
def test_delong_with_too_little():
    scores = np.array([[.9, .8], [.3, .4], [.2, .6]])
    areas, cov = delong([1, 0, 0], scores)
    assert areas.tolist() == [1, 1] and np.isnan(cov).all()
    areas, cov = delong([0, 0, 0], scores)
    assert np.isnan(areas).all() and np.isnan(cov).all()
    assert np.isnan(delong([1, 1, 0, 0], np.ones((4, 2)), clusters=[5, 5, 6, 7])[1]).all(), 'all positives of one patient'
    with pytest.raises(UserError, match='NaN'): delong([1, 0, 0], scores*np.nan)
    with pytest.raises(UserError, match='shape'): delong([1, 0], scores)


def test_difference_test():
    from scipy.stats import norm
    areas, cov = np.array([.8, .75]), np.array([[.0004, .0001], [.0001, .0005]])
    difference, low, high, p = difference_test(areas, cov)
    error = np.sqrt(.0007)
    assert difference == pytest.approx(-.05)
    assert (low, high) == pytest.approx((-.05 - norm.ppf(.975)*error, -.05 + norm.ppf(.975)*error), abs=1e-12)
    assert p == pytest.approx(2*norm.sf(.05/error), abs=1e-12)
    assert difference_test([.7, .7], np.full((2, 2), .003)) == (0, 0, 0, 1)
    assert np.isnan(difference_test([.5, 1.], np.zeros((2, 2)))[1:]).all()
    assert np.isnan(difference_test([.5, 1.], np.full((2, 2), np.nan))[1:]).all()


def test_the_same_model_twice_does_not_differ():
    targets, scores, patients = study(8)
    for clusters in (None, patients):
        assert difference_test(*delong(targets[:, 0], np.repeat(scores[:, :1], 2, axis=1), clusters)) == (0, 0, 0, 1)


def test_false_positives_of_the_tests():
    "Equal models, follow-ups that resemble each other: only tests that know of patients keep their promise."
    random, wrong, n = np.random.default_rng(3), np.zeros(4), 120
    for i in range(n):
        ids = np.repeat(np.arange(50), 5)
        target = np.repeat(np.arange(50) % 2, 5)
        scores = target[:, None] + random.normal(size=(50, 2))[ids] + .4*random.normal(size=(250, 2))
        p = [difference_test(*delong(target, scores, clusters))[3] for clusters in (None, ids)]
        one, two = (patient_bootstrap(target[:, None], s[:, None], ids, 200, seed=i)['auroc'][:, 0] for s in scores.T)
        both = [score_influence(target[:, None], s[:, None], ids, 50)['auroc'] for s in scores.T]
        wrong += np.array([*p, bootstrap_p(two - one), student_interval(influence_on_difference(*both))[2][0]]) < .05
    assert wrong[0]/n > .2 and wrong[1]/n < .11 and wrong[2]/n < .12 and wrong[3]/n < .09


# -- p-values

def test_bootstrap_p_belongs_to_its_interval():
    random = np.random.default_rng(0)
    for shift in np.linspace(-3, 3, 25):
        draws = random.normal(shift, 1, 999)
        low, high, _ = interval(draws)
        p = bootstrap_p(draws)
        assert 2/1000 <= p <= 1
        if abs(p - .05) > .006: assert (p < .05) == (low > 0 or high < 0)
    table = bootstrap_p(np.array([[1, np.nan, 0], [2, np.nan, 0], [-1, np.nan, 0]]))
    assert table[0] == 1 and np.isnan(table[1]) and table[2] == 1


@given(hnp.arrays(float, st.integers(1, 20), elements=st.one_of(st.floats(0, 1), st.just(np.nan), st.sampled_from([.01, .02]))), st.floats(.001, .3))
@settings(max_examples=80, deadline=None)
def test_holm_rejects_what_the_procedure_rejects(p, level):
    "The procedure in Holm's own words: test the smallest at level/n, the next at level/(n - 1), stop at the first that fails."
    adjusted = holm(p)
    assert (np.isnan(adjusted) == np.isnan(p)).all()
    tested = p[~np.isnan(p)]
    rejected, left = set(), len(tested)
    for value in sorted(tested):
        if value*left > level: break
        rejected.add(value)
        left -= 1
    for value, corrected in zip(p, adjusted):
        if np.isnan(value): continue
        assert value <= corrected <= 1 and (corrected <= level) == (value in rejected)


def test_holm_refuses():
    for bad in ([1.2], [-.1, .5]):
        with pytest.raises(UserError, match='outside 0 to 1'): holm(bad)
    assert holm([]).shape == (0,)


# -- module

def test_import_is_light():
    code = ('import sys, chestnb.evaluation.resampling; heavy = {"torch", "pandas", "matplotlib", "sklearn", "scipy.stats"} & set(sys.modules);'
            'assert not heavy, heavy')
    subprocess.run([sys.executable, '-c', code], check=True)


@pytest.mark.filterwarnings('error')
def test_no_warnings_on_empty_classes():
    targets, scores, patients = study(9)
    targets[:, 0] = False
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        patient_bootstrap(targets, scores, patients, 5)
        number = np.unique(patients, return_inverse=True)[1]
        for influence in (score_influence(targets, scores, number, number.max() + 1), operating_influence(targets, scores, .5, number, number.max() + 1)):
            for each in influence.values(): score_interval(mean_influence(each, targets, number))


@pytest.mark.parametrize('ids', [[1., np.nan, 2.], [None, 1, 2], pd.array([1, pd.NA, 2], dtype='Int64')])
def test_images_without_a_patient_are_no_patient(ids):
    with pytest.raises(UserError, match='1 of 3 images have no patient_id'): resample_weights(ids, 5)
    assert resample_weights(ids, 5, unit='image')[1].shape == (3, 5)


# -- intervals

@given(st.integers(0, 10**6), st.booleans())
@settings(max_examples=40, deadline=None)
def test_influence_is_the_derivative_of_the_score(seed, ties):
    random = np.random.default_rng(seed)
    number = random.integers(12, size=50)
    target, score = random.random(50) < .4, random.random(50).round(1 if ties else 9)
    target[:2] = True, False
    weights, step = np.ones((12, 1)), 1e-4
    for function, which in ((auroc_influence, 0), (average_precision_influence, 1)):
        point, bias, *sides = function(target, score, number, 12)
        moved = [weighted_scores(RankedScores(target, score, number, 12), np.concatenate([weights + step*np.eye(12), weights - step*np.eye(12)], axis=1))[which]]
        np.testing.assert_allclose(sum(sides), (moved[0][:12] - moved[0][12:])/(2*step), atol=1e-6)
        assert abs(sum(sides).sum()) < 1e-9 and point == pytest.approx((auroc, average_precision)[which](target, score), abs=1e-12)


def test_jackknife_leaves_out_each_patient_or_each_group():
    targets, scores, patients = study(4, n_patients=30, k=1)
    number = np.unique(patients, return_inverse=True)[1]
    target, score = targets[:, 0], scores[:, 0]
    without = [average_precision(target[number != i], score[number != i]) for i in range(30)]
    assert jackknife_bias(target, score, number, 30) == pytest.approx(29*(np.mean(without) - average_precision(target, score)), abs=1e-12)
    random = np.random.default_rng(0) # 900 patients in 200 groups say about the same as 900 one by one
    target, score, number = random.random(900) < .1, random.random(900), np.arange(900)
    without = np.array([average_precision(np.delete(target, i), np.delete(score, i)) for i in range(900)])
    assert jackknife_bias(target, score, number, 900) == pytest.approx(899*(without.mean() - average_precision(target, score)), abs=.01)


def test_wilson_interval_of_independent_patients_is_wilsons():
    from scipy.stats import binomtest, t
    for hits, n in ((40, 100), (150, 1000)):
        one = ratio_influence((np.arange(n) < hits).astype(float)[:, None], np.ones((n, 1)), np.array([n]))
        reference = binomtest(hits, n).proportion_ci(method='wilson')
        assert np.concatenate(score_interval(one)) == pytest.approx([reference.low, reference.high], abs=.006)
    nine = ratio_influence(np.ones((9, 1)), np.ones((9, 1)), np.array([9]))
    assert np.concatenate(score_interval(nine)) == pytest.approx([9/(9 + t.ppf(.975, 8)**2), 1])


def test_intervals_of_copied_images_do_not_shrink_and_doubled_patients_do():
    targets, scores, patients = study(2, n_patients=40)
    number = np.unique(patients, return_inverse=True)[1]
    def width(t, s, n): return np.diff(score_interval(mean_influence(score_influence(t, s, n, n.max() + 1)['auroc'], t, n)), axis=0)[0]
    once, copied_images = width(targets, scores, number), width(np.r_[targets, targets], np.r_[scores, scores], np.r_[number, number])
    np.testing.assert_allclose(once, copied_images, atol=1e-9)
    assert (width(np.r_[targets, targets], np.r_[scores, scores], np.r_[number, number + 40]) < .8*once).all()


@pytest.mark.parametrize('n_patients, n_studies', [(100, 150), (400, 40)])
def test_intervals_cover_the_truth(n_patients, n_studies):
    "Percentile intervals of the macro average precision held it in .40 of such studies of 100 patients."
    random, truth, hits = np.random.default_rng(n_patients), study_truth(), {}
    for _ in range(n_studies):
        targets, scores, number = simulated_study(random, n_patients)
        present, influence = present_findings(targets), score_influence(targets, scores, number, n_patients)
        influence['sensitivity'] = operating_influence(targets, scores, STUDY_THRESHOLDS, number, n_patients)['sensitivity']
        for name, each in influence.items():
            low, high = score_interval(mean_influence(each, targets, number))
            true = np.r_[np.where(present, truth[name], np.nan), truth[name][present].mean()]
            known = np.isfinite(low[:15]) & np.isfinite(true)
            inside = (low[:15] <= true) & (true <= high[:15])
            hits.setdefault(f'{name}, each', []).extend(inside[:14][known[:14]])
            hits.setdefault(f'{name}, macro', []).append(inside[14])
    slack = 3*np.sqrt(.05*.95/n_studies)
    for name, inside in hits.items(): assert .94 - slack < np.mean(inside) <= .98 + slack, (name, np.mean(inside))


def test_the_percentile_bootstrap_does_not_cover_the_macro_average_precision():
    random, truth, inside = np.random.default_rng(0), study_truth()['average_precision'], []
    for seed in range(60):
        targets, scores, number = simulated_study(random, 100)
        low, high, _ = interval(patient_bootstrap(targets, scores, number, 100, seed, disable=True)['average_precision'][:, 14])
        if np.isfinite(low): inside.append(low <= truth[present_findings(targets)].mean() <= high)
    assert len(inside) > 20 and np.mean(inside) < .7
