"Reliability, ECE, Brier parts, the three repairs and their guards, prevalence shift."
import json
import subprocess
import sys
import warnings
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from scipy.special import expit
from sklearn.calibration import calibration_curve
from sklearn.isotonic import IsotonicRegression
from sklearn.metrics import brier_score_loss

from chestnb.core.errors import UserError
from chestnb.data.findings import FINDINGS
from chestnb.data.leakage import LeakageError
from chestnb.data.nih import is_official_test, nih_metadata, official_test_patients
from chestnb.data.provenance import Provenance
from chestnb.evaluation.calibration import (CALIBRATION_METHODS, Calibration, apply_curve, fit_calibration, fit_isotonic, fit_platt,
    fit_temperature)
from chestnb.evaluation.fitted import FittedOn, check_validation, patient_keys
from chestnb.evaluation.metrics import auroc
from chestnb.evaluation.predictions import read_predictions
from chestnb.evaluation.prevalence_shift import class_shift, estimate_prevalence, prevalences, shift_prevalence
from chestnb.evaluation.recognition import IMAGE
from chestnb.evaluation.reliability import (BRIER_PARTS, CALIBRATION_MEASURES, bin_edges, bin_numbers, brier_parts, brier_score, calibration_error,
    calibration_line, calibration_note, calibration_table, compare_calibration, log_odds_of, readable_calibration, reliability_curve,
    reliability_with_intervals)
from chestnb.evaluation.reliability_plot import plot_reliability
from chestnb.evaluation.resampling import resample_weights
from chestnb.evaluation.scored import join
from chestnb.evaluation.simulation import known_probabilities

FIRST = 90_000_001


def made_up(n_patients=300, per_patient=2, seed=0, first=FIRST, slope=1., shift=0., log_odds=-1.5, findings=FINDINGS):
    "Synthetic patients with known log-odds; the model says sigmoid(slope*log_odds + shift)."
    honest = known_probabilities(n_patients, per_patient, seed, first, log_odds, findings)
    return honest.with_scores(expit(slope*log_odds_of(honest.scores) + shift))


def other(**options): return made_up(first=FIRST + 10_000, **{'seed': 1} | options)


def column(scored, finding='Edema'): return scored.finding(finding)[:2]


def with_labels(scored, **labels):
    "The same with other labels of some findings: an array, or one value for all images."
    targets = scored.targets.copy()
    for finding, values in labels.items(): targets[:, scored.position(finding)] = values
    return replace(scored, targets=targets, table=scored.table.assign(**labels))


def with_score(scored, **scores):
    "The same with other scores of some findings."
    values = scored.scores.copy()
    for finding, score in scores.items(): values[:, scored.position(finding)] = score
    return scored.with_scores(values)


def renamed(scored):
    "Other images of the same patients."
    images = np.array([f'x{name}' for name in scored.images])
    return replace(scored, images=images, table=scored.table.assign(image=images))


def cases(n=st.integers(1, 60), levels=st.sampled_from([3, 10, None])):
    "Targets and scores, tied or not."
    def draw(n, levels, seed):
        random = np.random.default_rng(seed)
        score = random.random(n) if levels is None else random.integers(0, levels + 1, n)/levels
        return random.random(n) < .4, score
    return st.builds(draw, n, levels, st.integers(0, 10**6))


# -- bins and reliability

@given(cases(), st.integers(1, 12), st.sampled_from(['quantile', 'width']))
@settings(max_examples=60, deadline=None)
def test_reliability_equals_scikit_learn(case, n_bins, binning):
    target, score = case
    curve = reliability_curve(target, score, n_bins, binning)
    assert curve['images'].sum() == len(target) and curve['positives'].sum() == target.sum() and (curve['images'] > 0).all()
    if len(np.unique(target)) == 2: # scikit-learn wants both
        observed, said = calibration_curve(target, score, n_bins=n_bins, strategy={'width': 'uniform'}.get(binning, binning))
        np.testing.assert_allclose(curve['observed'], observed, atol=1e-12)
        np.testing.assert_allclose(curve['mean_score'], said, atol=1e-12)


def test_bins_hold_what_they_say():
    score = np.r_[0, np.random.default_rng(0).random(500), 1]
    for binning in ('quantile', 'width'):
        edges = bin_edges(score, 7, binning)
        number = bin_numbers(score, edges)
        assert (np.diff(edges) >= 0).all() and number.min() == 0 and number.max() == len(edges) - 2
        assert ((score <= edges[number + 1]) & ((score > edges[number]) | (number == 0))).all()


@pytest.mark.parametrize('target, score, words', [
    ([0, 1], [.1], 'expected \\(n_images,\\)'), ([], [], 'at least one image'), ([0, 2], [.1, .2], 'other than 0 and 1'),
    ([0, 1], [.1, np.nan], 'NaN'), ([0, 1], [-3, 2.], 'sigmoid'), ([[0, 1]], [[.1, .2]], 'expected \\(n_images,\\)')])
def test_bad_input_is_refused(target, score, words):
    for function in (reliability_curve, calibration_error, brier_score, brier_parts, calibration_line, fit_platt):
        with pytest.raises(UserError, match=words): function(target, score)


def test_bad_binning_is_refused():
    with pytest.raises(UserError, match='quantile, width'): calibration_error([0, 1], [.1, .9], binning='uniform')
    with pytest.raises(UserError, match='n_bins is 0'): calibration_error([0, 1], [.1, .9], n_bins=0)
    with pytest.raises(UserError, match='l1, l2, max'): calibration_error([0, 1], [.1, .9], norm='l3')


def test_interval_of_a_bin_is_wilsons_for_as_many_patients_as_leaving_one_out_says():
    scored = made_up(60, 3, log_odds=0)
    target, score, patients = scored.finding('Edema')
    curve = reliability_with_intervals(target, score, patients, 4)
    place = bin_numbers(score, bin_edges(score, 4))
    for k, row in curve.iterrows():
        t, p = target[place == k], patients[place == k]
        variance = sum((t[p != one].mean() - t.mean())**2 for one in np.unique(p)) # jackknife
        n = t.mean()*(1 - t.mean())/variance
        for z in (1.97, 2.1): # Student's quantile of some 40 to 60 patients
            wide = z/(1 + z*z/n)*np.sqrt(t.mean()*(1 - t.mean())/n + z*z/4/n/n)
            middle = (t.mean() + z*z/2/n)/(1 + z*z/n)
            if z < 2: assert row['observed_low'] <= middle - wide and row['observed_high'] >= middle + wide
            else: assert row['observed_low'] >= middle - wide - .01 and row['observed_high'] <= middle + wide + .01


def test_a_bin_of_one_patient_has_no_interval_and_one_without_positives_has_one():
    curve = reliability_with_intervals([0, 0, 1, 1, 1, 1], [.1, .1, .9, .9, .9, .9], [1, 2, 3, 3, 3, 3], 2, 'width')
    assert curve['observed_low'].isna().tolist() == [False, True] and curve['observed_low'][0] == 0 < curve['observed_high'][0] < 1
    assert reliability_with_intervals([0, 1], [.1, .9], [1, 1])['observed_low'].isna().all()


# -- ECE and Brier

@given(cases(), st.integers(1, 20))
@settings(max_examples=60, deadline=None)
def test_calibration_error_against_a_loop(case, n_bins):
    target, score = case
    gaps, shares = [], []
    for k in range(n_bins): # right-closed bins, the first one closed on both sides
        edges = np.linspace(0, 1, n_bins + 1)
        rows = (score <= edges[k + 1]) & ((score > edges[k]) if k else True) if k < n_bins - 1 else (score > edges[k]) | (n_bins == 1)
        if rows.any():
            gaps.append(abs(score[rows].mean() - target[rows].mean()))
            shares.append(rows.mean())
    gaps, shares = np.array(gaps), np.array(shares)
    assert calibration_error(target, score, n_bins) == pytest.approx((gaps*shares).sum(), abs=1e-12)
    assert calibration_error(target, score, n_bins, norm='l2') == pytest.approx((gaps**2*shares).sum()**.5, abs=1e-12)
    assert calibration_error(target, score, n_bins, norm='max') == pytest.approx(gaps.max(), abs=1e-12)


@given(cases(), st.sampled_from([None, 1, 3, 10]), st.sampled_from(['quantile', 'width']))
@settings(max_examples=100, deadline=None)
def test_brier_parts_add_up_exactly(case, n_bins, binning):
    target, score = case
    parts = brier_parts(target, score, n_bins, binning)
    total = parts['reliability'] - parts['resolution'] + parts['uncertainty'] + parts['within_variance'] - parts['within_covariance']
    assert abs(total - brier_score_loss(target, score, labels=[False, True])) < 1e-12 and total == pytest.approx(brier_score(target, score))
    assert min(parts['reliability'], parts['resolution'], parts['uncertainty'], parts['within_variance']) >= 0
    if n_bins is None: assert abs(parts['within_variance']) + abs(parts['within_covariance']) < 1e-12 # Murphy's three parts


def test_murphys_parts_by_hand():
    parts = brier_parts([0, 1, 1, 1], [.2, .2, .8, .8]) # groups: said .2 happened .5; said .8 happened 1; overall .75
    assert parts['reliability'] == pytest.approx((.3**2 + .2**2)/2)
    assert parts['resolution'] == pytest.approx((.25**2 + .25**2)/2)
    assert parts['uncertainty'] == pytest.approx(.75*.25)


# -- the line

def test_line_against_direct_maximum_likelihood():
    target, score = column(made_up(slope=1.7, shift=.8))
    x = log_odds_of(score)
    loss = lambda b: np.logaddexp(0, -np.where(target, 1, -1)*(b[0] + b[1]*x)).sum()
    line = calibration_line(target, score)
    assert line['slope'] == pytest.approx(minimize(loss, [0, 1], method='Nelder-Mead', options={'xatol': 1e-9, 'fatol': 1e-12, 'maxiter': 5000}).x[1], abs=1e-5)
    large = minimize(lambda b: loss([b[0], 1]), [0], method='Nelder-Mead', options={'xatol': 1e-9, 'fatol': 1e-12}).x[0]
    assert line['calibration_intercept'] == pytest.approx(large, abs=1e-5)


def test_line_without_an_answer_is_nan():
    assert np.isnan(calibration_line([0, 0], [.1, .2])['slope']) and np.isnan(calibration_line([1, 1], [.1, .2])['calibration_intercept'])
    assert np.isnan(calibration_line([0, 0, 1, 1], [.1, .2, .8, .9])['slope']) # separated: infinite
    constant = calibration_line([0, 0, 0, 1], [.5]*4)
    assert np.isnan(constant['slope']) and constant['calibration_intercept'] == pytest.approx(np.log(1/3))
    exact = calibration_line([0, 1, 0, 1], [0, 1, 1, 0.]) # certainties, half of them wrong
    assert np.isfinite(exact['calibration_intercept'])


# -- the table

def test_table_equals_the_single_functions():
    data = made_up(slope=1.5, shift=.5)
    frame = calibration_table(data, n_resamples=0)
    for finding in FINDINGS:
        target, score = column(data, finding)
        row, parts = frame.loc[finding], brier_parts(target, score, 15, 'width')
        assert row['ece'] == pytest.approx(calibration_error(target, score), abs=1e-12)
        assert row['brier'] == pytest.approx(brier_score_loss(target, score), abs=1e-12)
        assert row['brier_skill'] == pytest.approx(1 - row['brier']/row['uncertainty'], abs=1e-9)
        assert row['prevalence'] == target.mean() and row['mean_score'] == pytest.approx(score.mean())
        for name, value in calibration_line(target, score).items(): assert row[name] == pytest.approx(value, abs=1e-6)
        for name in BRIER_PARTS: assert row[name] == pytest.approx(parts[name])
    for name in (*CALIBRATION_MEASURES, *BRIER_PARTS): assert frame.loc['macro', name] == pytest.approx(frame.loc[list(FINDINGS), name].mean())
    assert frame['ece_low'].isna().all() and frame['ece_chance'].isna().all() and frame['brier_low'].notna().all() # only the ECE is resampled


def test_intervals_of_the_table_are_as_wide_as_leaving_out_each_patient_says():
    data = made_up(120, 3, slope=1.4, shift=.3)
    frame = calibration_table(data, n_resamples=0).loc['Edema']
    target, score, ids = data.finding('Edema')
    def measured(rows):
        t, s = target[rows], score[rows]
        return [s.mean(), t.mean(), brier_score(t, s), brier_score(t, s)/t.mean()/(1 - t.mean()), *calibration_line(t, s).values()]
    whole = np.array(measured(ids > 0))
    errors = np.sqrt(((np.array([measured(ids != one) for one in np.unique(ids)]) - whole)**2).sum(axis=0)) # jackknife
    for name, value, error in zip(('mean_score', 'prevalence', 'brier', 'brier_skill', 'slope', 'calibration_intercept'), whole, errors):
        low, high = frame[f'{name}_low'], frame[f'{name}_high']
        if name == 'brier_skill': low, high, value, error = np.log(1 - high), np.log(1 - low), np.log(value), error/value
        assert low < value < high and 1.93*error < (high - low)/2 < 2.15*error, name


def test_interval_of_the_ece_against_resampling_in_a_loop():
    data = made_up(250, 3, slope=1.4, shift=.3)
    frame = calibration_table(data, n_resamples=200, seed=5).loc['Edema']
    target, score, ids = data.finding('Edema')
    number, weights = resample_weights(ids, 200, 5)
    place, draws, chance = bin_numbers(score, bin_edges(score, 15, 'width')), [], []
    def gaps(rows): return np.bincount(place[rows], score[rows] - target[rows], 15)/len(rows)
    for w in weights.T:
        rows = np.repeat(np.arange(len(ids)), w[number])
        draws.append(calibration_error(target[rows], score[rows]))
        chance.append(np.abs(gaps(rows) - gaps(np.arange(len(ids)))).sum())
    low, high = np.percentile(draws, [2.5, 97.5])
    up = max(frame['ece'] - low, high - np.mean(draws))
    assert frame['ece_chance'] == pytest.approx(np.mean(chance), abs=1e-12)
    assert frame[['ece_low', 'ece_high']].to_numpy() == pytest.approx([max(0, frame['ece'] - np.percentile(chance, 97.5)), frame['ece'] + up], abs=1e-12)


def test_intervals_of_a_hundred_patients_hold_the_truth_as_often_as_they_say():
    "Percentile intervals held it in .82 to .92 of such studies."
    names, options = ('mean_score', 'prevalence', 'brier', 'brier_skill', 'slope', 'calibration_intercept'), dict(slope=1.3, shift=.3, log_odds=None)
    truth = calibration_table(made_up(40_000, 3, seed=999, **options), n_resamples=0)
    studies = [calibration_table(made_up(100, 3, seed=seed, **options), n_resamples=0) for seed in range(60)]
    def truth_of(study): # the mean is over the findings that the study has
        return pd.concat([truth.drop('macro'), truth.drop(['macro', *study.attrs['absent']]).mean().to_frame('macro').T])
    for name in names:
        inside = pd.concat([((s[f'{name}_low'] <= truth_of(s)[name]) & (truth_of(s)[name] <= s[f'{name}_high']))[s[f'{name}_low'].notna()] for s in studies])
        single, macro = inside.drop('macro').astype(float), inside['macro'].astype(float)
        assert len(single) > 600 and .925 <= single.mean() <= .99, name
        assert len(macro) > 25 and macro.mean() >= .84, (name, macro.mean(), len(macro)) # of 1,000 studies with .94 one would be below


@pytest.mark.parametrize('slope, shift', [(1, 0), (1.4, .3)])
def test_ece_interval_contains_the_ece_of_a_very_large_set(slope, shift):
    "Perfectly calibrated, the truth is nearly 0 and the estimate never is; also where the truth is far from 0."
    very_large = made_up(30_000, 3, seed=99, slope=slope, shift=shift)
    large = np.array([calibration_error(*column(very_large, f)) for f in FINDINGS])
    inside, chance = [], []
    for seed in range(15):
        frame = calibration_table(made_up(200, 2, seed=seed, slope=slope, shift=shift), n_resamples=100)
        single = frame.loc[list(FINDINGS)]
        assert (single['ece_low'] <= single['ece']).all() and (single['ece'] < single['ece_high']).all()
        inside.append((single['ece_low'] <= large) & (large <= single['ece_high']))
        inside[-1]['macro'] = frame.loc['macro', 'ece_low'] <= large.mean() <= frame.loc['macro', 'ece_high']
        chance.append(frame.loc['macro', 'ece']/frame.loc['macro', 'ece_chance'])
    assert np.mean(inside) > .94 and np.mean([row['macro'] for row in inside]) > .9
    if slope == 1: assert np.mean(chance) == pytest.approx(1, abs=.25) # what chance alone gives is what a perfect model has


def test_absent_and_one_patient_findings_are_named():
    scored = made_up(60)
    scored = with_labels(scored, Hernia=0., Edema=(scored.patients == FIRST).astype(float))
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        frame = calibration_table(scored, n_resamples=50)
    assert frame.attrs['absent'] == ['Hernia'] and 'Edema' in frame.attrs['no_interval'] and 'macro' in frame.attrs['no_interval']
    assert np.isnan(frame.loc['Hernia', 'slope']) and np.isnan(frame.loc['Hernia', 'brier_skill'])
    assert frame.loc['Hernia', 'ece'] == pytest.approx(scored.finding('Hernia')[1].mean()) # it still says too much
    others = [f for f in FINDINGS if f != 'Hernia']
    assert frame.loc['macro', 'ece'] == pytest.approx(frame.loc[others, 'ece'].mean())
    assert 'Hernia' in calibration_note(frame) and 'Edema' in calibration_note(frame) and '15 bins of equal width' in calibration_note(frame)
    assert 'as much as chance may have added' in calibration_note(frame)
    assert readable_calibration(frame).loc['Hernia', 'slope'] == 'no score'


def test_unknown_labels_are_left_out_of_their_finding_and_counted():
    scored = made_up(200)
    half = np.arange(len(scored)) % 2 == 0
    holes = with_labels(scored, Edema=np.where(half, np.nan, scored.targets[:, 9]), Hernia=np.nan)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        frame, known = calibration_table(holes, n_resamples=30), calibration_table(scored.rows(~half), n_resamples=30)
    assert frame.loc[['Edema', 'Mass'], 'images'].tolist() == [200, 400] and frame.loc[['Edema', 'Hernia'], 'unknown'].tolist() == [200, 400]
    for name in ('prevalence', 'mean_score', 'ece', 'brier', 'slope', 'calibration_intercept', *BRIER_PARTS):
        assert frame.loc['Edema', name] == pytest.approx(known.loc['Edema', name], abs=1e-9)
    assert frame.loc['Hernia', list(CALIBRATION_MEASURES)].isna().all() and np.isfinite(frame.loc['macro', 'ece'])
    assert frame.loc['Edema', 'ece_low'] <= frame.loc['Edema', 'ece'] < frame.loc['Edema', 'ece_high']
    assert frame.attrs['unknown'] == {'Edema': 200, 'Hernia': 400} and 'Edema (200), Hernia (400)' in calibration_note(frame)


def test_one_finding_is_enough():
    scored = made_up(findings=('Fracture',))
    frame = calibration_table(scored, n_resamples=20)
    assert frame.index.tolist() == ['Fracture', 'macro'] and frame.loc['macro', 'ece'] == frame.loc['Fracture', 'ece']
    fit = fit_calibration(scored)
    assert fit.findings == ('Fracture',) and list(fit.curves) == ['Fracture'] and Calibration.from_dict(fit.to_dict()) == fit
    assert plot_reliability(scored) is not None and class_shift(scored, other(findings=('Fracture',)), disable=True).index.tolist() == ['Fracture']


def test_table_is_reproducible_and_follows_names_not_rows():
    scored = made_up(60)
    first = calibration_table(scored, n_resamples=30)
    shuffled = join(scored.predictions.sample(frac=1, random_state=1), scored.table)
    pd.testing.assert_frame_equal(first, calibration_table(shuffled, n_resamples=30))


# -- the repairs

def test_platt_against_direct_minimisation():
    target, score = column(made_up(slope=2, shift=1))
    x, p = log_odds_of(score), target.sum()
    hope = np.where(target, (p + 1)/(p + 2), 1/(len(target) - p + 2))
    loss = lambda b: (hope*np.logaddexp(0, -b[0] - b[1]*x) + (1 - hope)*np.logaddexp(0, b[0] + b[1]*x)).sum()
    best = minimize(loss, [0, 1], method='Nelder-Mead', options={'xatol': 1e-9, 'fatol': 1e-12, 'maxiter': 5000}).x
    curve = fit_platt(target, score)
    assert [curve['intercept'], curve['slope']] == pytest.approx(best, abs=1e-5)


def test_platt_stays_finite_when_separated():
    curve = fit_platt(np.r_[np.zeros(50), np.ones(50)], np.r_[np.full(50, .1), np.full(50, .9)])
    assert 0 < curve['slope'] < 10


def test_temperature_finds_the_doubling_and_is_the_best():
    target, score = column(made_up(3000, slope=2))
    found = fit_temperature(target, score)['temperature']
    assert found == pytest.approx(2, abs=.15)
    loss = lambda t: np.logaddexp(0, -np.where(target, 1, -1)*log_odds_of(score)/t).mean()
    assert loss(found) <= min(loss(t) for t in np.linspace(.5, 5, 500)) + 1e-12


def test_isotonic_equals_scikit_learn_and_stays_off_the_ends():
    target, score = column(made_up(seed=3))
    _, new = column(other())
    n = len(target)
    curve = fit_isotonic(target, score)
    expected = IsotonicRegression(out_of_bounds='clip').fit(score, target).predict(np.r_[new, 0, 1]).clip(1/(n + 2), 1 - 1/(n + 2))
    ours = apply_curve('isotonic', curve, np.r_[new, 0, 1])
    inner = (expected > 1/(n + 2)) & (expected < 1 - 1/(n + 2))
    assert ours.min() >= 1/(n + 2) - 1e-15 and ours.max() <= 1 - 1/(n + 2) + 1e-15
    assert (np.diff(ours[np.argsort(np.r_[new, 0, 1], kind='stable')]) >= 0).all()
    np.testing.assert_allclose(ours[inner], expected[inner], atol=2/(n + 2)) # near the ends the lines start from the held value


@pytest.fixture(scope='module')
def fitted():
    bad = dict(slope=1.5, shift=2.)
    valid, test = made_up(400, **bad), other(n_patients=400, **bad)
    return valid, test, {method: fit_calibration(valid, method) for method in CALIBRATION_METHODS}


def test_repairs_repair(fitted):
    _, test, calibrations = fitted
    before = calibration_table(test, n_resamples=0).loc['macro', 'ece']
    after = {m: calibration_table(c.apply(test), n_resamples=0).loc['macro', 'ece'] for m, c in calibrations.items()}
    assert before > .2 and after['platt'] < .05 and after['isotonic'] < .06
    assert after['temperature'] > .1 # a shift is beyond it


@pytest.mark.parametrize('method', ['platt', 'temperature'])
def test_rising_curves_keep_the_auroc_exactly(fitted, method):
    _, test, calibrations = fitted
    after = calibrations[method].apply(test)
    for finding in FINDINGS: assert auroc(*column(after, finding)) == auroc(*column(test, finding))


def test_isotonic_never_turns_an_order_round(fitted):
    _, test, calibrations = fitted
    after = calibrations['isotonic'].apply(test)
    for before, repaired in zip(test.scores.T, after.scores.T):
        assert (np.diff(repaired[before.argsort()]) >= 0).all() and len(np.unique(repaired)) < len(np.unique(before))


def test_few_patients_and_bad_order_are_left_alone_and_named():
    scored = made_up(400)
    scored = with_labels(scored, Hernia=(scored.patients < FIRST + 9).astype(float)) # 9 patients, 18 images
    scored = with_score(scored, Edema=1 - scored.scores[:, 9])
    fit = fit_calibration(scored)
    assert set(fit.left_out) == {'Hernia', 'Edema'} and set(fit.curves) == set(FINDINGS) - {'Hernia', 'Edema'}
    assert '9 positive patients' in fit.left_out['Hernia'] and 'AUROC' in fit.left_out['Edema'] and 'Hernia' in repr(fit)
    test = other()
    after = fit.apply(test)
    for i in (9, 13): np.testing.assert_array_equal(after.scores[:, i], test.scores[:, i])
    assert (after.scores[:, 4] != test.scores[:, 4]).any()
    ten = scored.patients < FIRST + 10
    enough = with_score(with_labels(scored, Hernia=ten.astype(float)), Hernia=np.where(ten, .9, scored.scores[:, 13]))
    assert 'Hernia' in fit_calibration(enough).curves # ten are enough
    assert 'Mass' in fit_calibration(with_labels(scored, Mass=1.)).left_out # no negative patient


def test_unknown_labels_teach_a_calibration_nothing():
    scored = made_up(200)
    half = np.arange(len(scored)) % 2 == 0
    fit = fit_calibration(with_labels(scored, Edema=np.where(half, np.nan, scored.targets[:, 9]), Hernia=np.nan))
    assert fit.curves['Edema'] == fit_platt(scored.targets[~half, 9], scored.scores[~half, 9])
    assert fit.unknown == {'Edema': 200, 'Hernia': 400} and fit.left_out == {'Hernia': '0 positive patients on validation, at least 10 are needed'}


def test_findings_that_were_not_there_when_it_was_fitted_are_refused():
    fit = fit_calibration(made_up(findings=('Mass', 'Edema')))
    with pytest.raises(UserError, match='have Fracture, which the calibration was not fitted on; it knows Mass, Edema'): fit.apply(other(findings=('Mass', 'Fracture')))
    fewer = fit.apply(other(findings=('Edema',)))
    assert fewer.findings == ('Edema',)


def test_certainties_survive():
    scored = made_up(200)
    scored = with_score(scored, Edema=np.r_[0, 1, 0, 1, scored.scores[4:, 9]])
    for method in CALIBRATION_METHODS:
        after = fit_calibration(scored, method).apply(scored, allow_fitted=True)
        assert ((after.scores >= 0) & (after.scores <= 1)).all()


def test_order_of_rows_does_not_matter_and_predictions_alone_will_do(fitted):
    valid, test, calibrations = fitted
    random = np.random.default_rng(2)
    again = pd.DataFrame(fit_calibration(valid.rows(random.permutation(len(valid)))).curves)
    pd.testing.assert_frame_equal(again, pd.DataFrame(calibrations['platt'].curves))
    shuffled = test.predictions.sample(frac=1, random_state=3)
    after = calibrations['platt'].apply(shuffled)
    assert after[IMAGE].tolist() == shuffled[IMAGE].tolist()
    pd.testing.assert_frame_equal(after.sort_values(IMAGE, ignore_index=True), calibrations['platt'].apply(test).predictions.sort_values(IMAGE, ignore_index=True))
    with pytest.raises(UserError, match='logits|0 to 1'): calibrations['platt'].apply(test.predictions.assign(prob_Mass=-3.))


# -- the guards

def test_only_validation_is_accepted():
    scored = made_up(30)
    for bad in ('test', 'train', 'fold0'):
        for given_ in (replace(scored, part=bad), replace(scored, table=scored.table.assign(part=bad))):
            with pytest.raises(LeakageError, match=repr(bad)): fit_calibration(given_)
        with pytest.raises(LeakageError, match=repr(bad)): fit_calibration(scored, part=bad)
    mixed = replace(scored, table=scored.table.assign(part=['valid']*(len(scored) - 1) + ['test']))
    for part in ('', 'valid'):
        with pytest.raises(LeakageError, match="'test'"): fit_calibration(mixed, part=part)
    assert fit_calibration(replace(scored, table=scored.table.assign(part='valid'), part='valid'), part='valid').fitted_on.images


def test_official_test_patients_are_refused_unless_said():
    first, scored = min(official_test_patients()), made_up(30, first=1)
    official = is_official_test(scored.table).to_numpy()
    assert official.any() and not official.all()
    with pytest.raises(LeakageError, match='official test list') as caught: fit_calibration(scored)
    assert set(caught.value.shared['patient_id']) == set(scored.patients[official]) and first in set(caught.value.shared['patient_id'])
    assert len(fit_calibration(scored, allow_official_test=True).fitted_on.patients) == 30
    assert len(fit_calibration(scored.rows(~official)).fitted_on.patients) == 30 - len(set(scored.patients[official]))
    check_validation(renamed(scored)) # the same numbers, another hospital


def test_fitted_patients_are_refused(fitted):
    valid, test, calibrations = fitted
    platt = calibrations['platt']
    for judged in (valid, valid.predictions, renamed(valid)): # the images, their names alone, other images of the same patients
        with pytest.raises(LeakageError, match='may not be used to judge'): platt.apply(judged)
    with pytest.raises(LeakageError, match='1 image '): platt.apply(pd.concat([test.predictions, valid.predictions[:1]]))
    assert len(platt.apply(valid, allow_fitted=True)) == len(valid)
    assert platt.fitted_on.patients == sorted(map(str, set(valid.patients)))


@pytest.mark.parametrize('id_', ['7', 7, 7., '7.0', '007', np.int64(7)])
def test_one_patient_written_differently_is_the_same_patient(id_):
    memory = FittedOn.of(pd.DataFrame({'image': ['a.png'], 'patient_id': [7]}))
    with pytest.raises(LeakageError, match='1 patient '): memory.refuse(pd.DataFrame({'image': ['b.png'], 'patient_id': [id_]}))
    memory.refuse(pd.DataFrame({'image': ['b.png'], 'patient_id': ['8']}))
    assert patient_keys([id_]) == {'7'}


def test_unknown_patients_are_not_one_patient():
    "Two images of nobody known are not of the same person, and cannot be refused for that."
    memory = FittedOn.of(pd.DataFrame({'image': ['a.png'], 'patient_id': [np.nan]}))
    memory.refuse(pd.DataFrame({'image': ['b.png'], 'patient_id': [None]}))
    assert memory.patients == [] and 'unknown patients' in repr(memory)
    with pytest.raises(LeakageError, match='1 image '): memory.refuse(pd.DataFrame({'image': ['a.png'], 'patient_id': [None]}))


def test_unknown_method_is_refused():
    with pytest.raises(UserError, match='platt, temperature, isotonic'): fit_calibration(made_up(20), 'beta')
    with pytest.raises(UserError, match='platt, temperature, isotonic'):
        Calibration(method='beta', curves={}, findings=(), left_out={}, fitted_on=FittedOn([], []))


# -- files

@pytest.mark.parametrize('method', CALIBRATION_METHODS)
def test_round_trip_is_exact(fitted, method, tmp_path):
    _, test, calibrations = fitted
    path = calibrations[method].save(tmp_path/'sub'/'c.json')
    again = Calibration.load(path)
    assert again == calibrations[method] and repr(again) == repr(calibrations[method]) and again.findings == FINDINGS
    np.testing.assert_array_equal(again.apply(test).scores, calibrations[method].apply(test).scores)
    assert json.loads(path.read_text())['format'] == 'chestnb calibration 2'
    assert [p.name for p in path.parent.iterdir()] == ['c.json']


def test_bad_files_are_explained(tmp_path, fitted):
    with pytest.raises(UserError, match='no such file'): Calibration.load(tmp_path/'no.json')
    (tmp_path/'a.json').write_text('{')
    with pytest.raises(UserError, match='cannot be read'): Calibration.load(tmp_path/'a.json')
    good = fitted[2]['platt'].to_dict()
    for broken in ({}, good | {'format': 'chestnb thresholds 2'}, good | {'format': 'chestnb calibration 3'}, {k: v for k, v in good.items() if k != 'curves'},
                   good | {'fitted_on': {'x': 1}}, good | {'method': 'beta'}, []):
        (tmp_path/'b.json').write_text(json.dumps(broken))
        with pytest.raises(UserError, match='a calibration file|no calibration file of the form'): Calibration.load(tmp_path/'b.json')
    for curves in ({'Edma': {'intercept': 0, 'slope': 1}}, {'Edema': {'temperature': 1}}, {'Edema': {'intercept': 0, 'slope': 'x'}}):
        with pytest.raises(UserError, match='no calibration file of the form'): Calibration.from_dict(good | {'curves': curves})


def test_a_file_of_version_1_is_read():
    old = {'format': 'chestnb calibration 1', 'method': 'platt', 'curves': {'Mass': {'intercept': -1., 'slope': 2.}}, 'left_out': {'Hernia': '2 positive patients'},
           'fitted_on': {'images': ['a.png', 'b.png'], 'patients': ['7'], 'synthetic': False}}
    fit = Calibration.from_dict(old)
    assert fit.findings == ('Mass', 'Hernia') and repr(fit.fitted_on) == '2 real images of 1 patient'
    with pytest.raises(LeakageError): fit.fitted_on.refuse(pd.DataFrame({'image': ['c.png'], 'patient_id': [7]}))


# -- before and after

def test_comparison_is_paired(fitted):
    _, test, calibrations = fitted
    models = {'before': test, 'same': test, 'platt': calibrations['platt'].apply(test)}
    frame = compare_calibration(models, n_resamples=60)
    assert (frame.loc['same', ['ece_difference', 'ece_difference_low', 'ece_difference_high', 'brier_difference_high']] == 0).all(axis=None)
    assert frame.loc[('platt', 'macro'), 'ece_difference_high'] < 0 and frame.loc[('platt', 'macro'), 'brier_difference_high'] < 0
    single = calibration_table(models['platt'], n_resamples=60)
    for name in CALIBRATION_MEASURES:
        for end in ('', '_low', '_high'): np.testing.assert_allclose(frame.loc['platt', name + end], single[name + end])
    difference = single.loc['macro', 'ece'] - frame.loc[('before', 'macro'), 'ece']
    assert frame.loc[('platt', 'macro'), 'ece_difference'] == pytest.approx(difference)
    with pytest.raises(UserError, match='No models'): compare_calibration({})


def test_models_of_other_images_or_labels_are_not_compared():
    scored = made_up(30)
    with pytest.raises(UserError, match='did not predict the same images'): compare_calibration({'all': scored, 'half': scored.rows(np.arange(len(scored)) < 30)})
    with pytest.raises(UserError, match='different labels'): plot_reliability({'one': scored, 'two': with_labels(scored, Mass=0.)})
    mixed = compare_calibration({'one': scored, 'two': scored.rows(np.arange(len(scored))[::-1])}, n_resamples=0) # another order is no other set
    assert (mixed.loc['two', 'ece_difference'].abs() < 1e-12).all()


# -- prevalence

def of_scores(scores, findings=FINDINGS):
    "Predictions of a few images with the same scores for every finding."
    return pd.DataFrame(np.tile(np.reshape(scores, (-1, 1)), len(findings)), columns=[f'prob_{f}' for f in findings]).assign(
        **{IMAGE: [f'{i}.png' for i in range(len(scores))]})


def test_shift_is_bayes_rule():
    "A known mixture: 3 scores with known densities among positives and negatives."
    among_positive, among_negative = np.array([.1, .3, .6]), np.array([.6, .3, .1])
    posterior = lambda p: p*among_positive/(p*among_positive + (1 - p)*among_negative)
    for before, after in ((.03, .1), (.5, .001), (.2, .2)):
        frame = of_scores(posterior(before))
        moved = shift_prevalence(frame, {'Edema': before}, {'Edema': after})
        np.testing.assert_allclose(moved['prob_Edema'], posterior(after), atol=1e-12)
        np.testing.assert_array_equal(moved['prob_Mass'], frame['prob_Mass'])


@given(st.floats(1e-4, 1 - 1e-4), st.floats(1e-3, 1 - 1e-3), st.floats(1e-3, 1 - 1e-3)) # the shifted probability stays above 1e-12, where it is cut
@settings(max_examples=40, deadline=None)
def test_shift_there_and_back(score, before, after):
    back = shift_prevalence(shift_prevalence(of_scores([score]), {'Mass': before}, {'Mass': after}), {'Mass': after}, {'Mass': before})
    assert back['prob_Mass'][0] == pytest.approx(score, rel=1e-6)


def test_shift_keeps_certainties_and_refuses_nonsense():
    frame = of_scores([0., 1.])
    assert shift_prevalence(frame, {'Mass': .1}, {'Mass': .5})['prob_Mass'].tolist() == [0, 1]
    for before, after, words in (({'Mass': 0}, {'Mass': .1}, 'strictly'), ({'Mas': .1}, {'Mas': .1}, 'Mas'), ({'Mass': .1}, {'Edema': .1}, 'different findings'),
                                 ({}, {}, 'none given'), ({'Mass': np.nan}, {'Mass': .1}, 'strictly')):
        with pytest.raises(UserError, match=words): shift_prevalence(frame, before, after)


def test_shift_takes_any_finding_and_leaves_labels_alone():
    scored = made_up(findings=('Fracture', 'Mass'))
    moved = shift_prevalence(scored, {'Fracture': .2}, {'Fracture': .4})
    assert (moved.scores[:, 0] > scored.scores[:, 0]).all() and (moved.scores[:, 1] == scored.scores[:, 1]).all()
    np.testing.assert_array_equal(moved.targets, scored.targets)


def test_prevalences_are_of_known_labels():
    scored = with_labels(made_up(10), Edema=np.r_[1., 0., np.full(18, np.nan)], Hernia=np.nan)
    assert prevalences(scored)['Edema'] == .5 and np.isnan(prevalences(scored)['Hernia'])


def test_em_recovers_a_pure_shift():
    scored = made_up(8000, 1, log_odds=-2)
    keep = (scored.targets[:, 9] == 1) | (np.random.default_rng(1).random(len(scored)) < .3)
    found = estimate_prevalence(scored.rows(keep), prevalences(scored)[['Edema']]).loc['Edema']
    assert found['converged'] and found['estimate'] == pytest.approx(prevalences(scored.rows(keep))['Edema'], abs=.02)
    same = estimate_prevalence(scored.predictions, prevalences(scored)).loc['Edema']
    assert same['estimate'] == pytest.approx(prevalences(scored)['Edema'], abs=.02)
    assert not estimate_prevalence(scored, {'Edema': .1}, max_steps=1).loc['Edema', 'converged']


def test_em_estimate_is_the_maximum_likelihood():
    scored = made_up(500, 1)
    before, score = .3, scored.finding('Mass')[1]
    likelihood = lambda share: np.log(share*score/before + (1 - share)*(1 - score)/(1 - before)).sum()
    grid = np.linspace(.001, .999, 5000)
    best = grid[np.argmax([likelihood(share) for share in grid])]
    assert estimate_prevalence(scored, {'Mass': before}).loc['Mass', 'estimate'] == pytest.approx(best, abs=5e-4)


def test_class_shift_sees_what_is_not_a_pure_shift():
    first, second = made_up(400), other(n_patients=400)
    same = class_shift(first, second, disable=True)
    inside = ((same['negatives_low'] <= .5) & (same['negatives_high'] >= .5)).sum()
    assert inside >= 11
    moved = with_score(second, Mass=expit(log_odds_of(second.scores[:, 4]) + 1))
    changed = class_shift(first, moved, disable=True).loc['Mass']
    assert changed['negatives_low'] > .5 and changed['positives_low'] > .5
    empty = class_shift(with_labels(first, Mass=0.), with_labels(second, Mass=0.), disable=True).loc['Mass']
    assert np.isnan(empty['positives']) and np.isnan(empty['positives_low'])


def test_the_same_number_in_two_hospitals_is_two_patients():
    first, second = made_up(40, 4), renamed(made_up(40, 4, seed=1)) # the same numbers
    elsewhere = replace(second, provenance=Provenance('elsewhere'))
    apart, together = (class_shift(first, place, disable=True) for place in (elsewhere, second))
    np.testing.assert_allclose(apart['negatives'], together['negatives'])
    truly_apart = class_shift(first, renamed(replace(second, patients=second.patients + 1000)), disable=True)
    np.testing.assert_allclose(apart[['negatives_low', 'positives_high']], truly_apart[['negatives_low', 'positives_high']], atol=1e-12)
    assert not np.allclose(apart['negatives_low'], together['negatives_low'])
    with pytest.raises(UserError, match='share no finding'): class_shift(made_up(findings=('Mass',)), other(findings=('Edema',)))


# -- figures, start-up, real data

def test_figures(fitted):
    _, test, calibrations = fitted
    whole = plot_reliability({'before': test, 'after': calibrations['platt'].apply(test)})
    assert 'synthetic' in whole.get_suptitle() and 'bins of equal width' in whole.get_suptitle() and 'bins of equal counts' in whole.get_suptitle()
    assert [ax.get_title() for ax in whole.axes if ax.get_title()] == [f.replace('_', ' ') for f in FINDINGS]
    single = plot_reliability(test, 'Mass')
    assert len(single.axes) == 1 and f'{calibration_error(*column(test, "Mass")):.4f}' in single.get_suptitle()
    assert len(plot_reliability(with_labels(test, Hernia=0.)).axes) == 13 # absent: not drawn
    with pytest.raises(UserError, match='Mas'): plot_reliability(test, 'Mas')
    with pytest.raises(UserError, match='No finding'): plot_reliability(with_labels(test, **{f: 0. for f in FINDINGS}))


def test_import_is_light():
    code = ('import sys, chestnb.evaluation.calibration, chestnb.evaluation.reliability; '
            'print([m for m in ("torch", "sklearn", "matplotlib", "scipy.optimize", "jinja2") if m in sys.modules])')
    assert subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout.strip() == '[]'


def test_published_predictions(shared_nih):
    "Fitted outside the official test list, judged inside; the label shift is not pure."
    scored = join(read_predictions(shared_nih/'chexnet_predictions.csv'), nih_metadata().pipe(
        lambda table: table[table['image'].isin(pd.read_csv(shared_nih/'chexnet_predictions.csv')['Image Index'])]))
    inside = is_official_test(scored.table).to_numpy()
    with pytest.raises(LeakageError): fit_calibration(scored.rows(inside))
    fit, test = fit_calibration(scored.rows(~inside)), scored.rows(inside)
    assert not fit.left_out and len(fit.fitted_on.patients) == 5597
    frame = compare_calibration({'before': test, 'platt': fit.apply(test)}, n_resamples=100)
    assert frame.loc[('platt', 'macro'), 'ece_difference_high'] < 0
    assert frame.loc[('platt', 'Pneumothorax'), 'ece_difference'] > 0
    assert prevalences(scored.rows(~inside))['Pneumothorax'] < .035 < .1 < prevalences(test)['Pneumothorax']


def test_nih_prevalence_shift_of_pneumothorax():
    table = nih_metadata()
    official = is_official_test(table)
    assert [round(100*table[rows]['Pneumothorax'].mean(), 2) for rows in (~official, official)] == [3.05, 10.41]
