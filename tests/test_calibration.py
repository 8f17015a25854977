"Reliability, ECE, Brier parts, the three repairs and their guards, prevalence shift."
import json
import subprocess
import sys
import warnings

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

from chestnb.evaluation.reliability import (CALIBRATION_MEASURES, bin_edges, bin_numbers, brier_parts, brier_score, calibration_error, calibration_line, calibration_note,
    calibration_table, compare_calibration, log_odds_of, plot_reliability, readable_calibration, reliability_curve,
    reliability_with_intervals)
from chestnb.evaluation.calibration import (CALIBRATION_METHODS, Calibration, FittedOn, apply_curve, check_validation, fit_calibration, fit_isotonic, fit_platt,
    fit_temperature)
from chestnb.evaluation.prevalence_shift import class_shift, estimate_prevalence, prevalences, shift_prevalence
from chestnb.data.findings import FINDINGS, FIRST_SYNTHETIC_PATIENT, NO_FINDING
from chestnb.data.nih import is_official_test, nih_metadata, official_test_patients
from chestnb.evaluation.predictions import COLUMNS, IMAGE, predictions_frame, read_predictions
from chestnb.core.errors import UserError
from chestnb.evaluation.metrics import auroc
from chestnb.evaluation.resampling import resample_weights
from chestnb.data.leakage import LeakageError


def made_up(n_patients=300, per_patient=2, seed=0, first=FIRST_SYNTHETIC_PATIENT, slope=1., shift=0., base=-1.5):
    "Synthetic patients with known log-odds; the model says sigmoid(slope*log_odds + shift)."
    random = np.random.default_rng(seed)
    ids = np.repeat(first + np.arange(n_patients), per_patient)
    log_odds = base + random.normal(size=(n_patients, 14)).repeat(per_patient, axis=0) + random.normal(size=(len(ids), 14))
    truth = random.random(log_odds.shape) < expit(log_odds)
    table = pd.DataFrame(truth, columns=FINDINGS).assign(patient_id=ids, **{NO_FINDING: ~truth.any(axis=1)})
    table['image'] = [f'{p:08d}_{i % per_patient:03d}.png' for i, p in enumerate(ids)]
    return table, predictions_frame(table['image'], expit(slope*log_odds + shift))


def other(**options): return made_up(first=FIRST_SYNTHETIC_PATIENT + 10_000, **{'seed': 1} | options)


def column(data, finding='Edema'):
    table, predictions = data
    return table[finding].to_numpy(), predictions[f'prob_{finding}'].to_numpy()


def cases(n=st.integers(1, 60), levels=st.sampled_from([3, 10, None])):
    "Targets and scores, tied or not."
    def draw(n, levels, seed):
        random = np.random.default_rng(seed)
        score = random.random(n) if levels is None else random.integers(0, levels + 1, n)/levels
        return random.random(n) < .4, score
    return st.builds(draw, n, levels, st.integers(0, 10**6))


# -- bins and reliability

@given(cases(), st.integers(1, 12), st.sampled_from(['quantile', 'width']))
@settings(max_examples=150, deadline=None)
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


def test_intervals_equal_a_plain_loop():
    data = made_up(40, 3, base=0)
    (target, score), ids = column(data), data[0]['patient_id'].to_numpy()
    curve = reliability_with_intervals(target, score, ids, 4, n_resamples=50, seed=3)
    number, weights = resample_weights(ids, 50, 3)
    place = bin_numbers(score, bin_edges(score, 4))
    loop = []
    for w in weights.T:
        rows = np.repeat(np.arange(len(ids)), w[number])
        loop.append([target[rows][place[rows] == k].mean() for k in range(4)])
    np.testing.assert_allclose(curve[['observed_low', 'observed_high']].to_numpy().T, np.percentile(loop, [2.5, 97.5], axis=0), atol=1e-12)


def test_nothing_to_resample_gives_no_interval():
    curve = reliability_with_intervals([0, 0, 1, 1, 0, 1], [.1, .1, .9, .9, .9, .9], [1, 2, 3, 3, 4, 3], n_bins=2, n_resamples=20)
    assert curve['observed_low'].isna().all() and curve['observed_high'].isna().all()
    enough = reliability_with_intervals([0, 1, 0, 1], [.1, .1, .1, .1], [1, 2, 3, 4], n_bins=2, n_resamples=20)
    assert enough['observed_low'].notna().all()
    assert reliability_with_intervals([0, 1], [.1, .9], [1, 2], n_resamples=0)['observed_low'].isna().all()


# -- ECE and Brier

@given(cases(), st.integers(1, 20))
@settings(max_examples=150, deadline=None)
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
@settings(max_examples=300, deadline=None)
def test_brier_parts_add_up_exactly(case, n_bins, binning):
    target, score = case
    parts = brier_parts(target, score, n_bins, binning)
    total = parts['reliability'] - parts['resolution'] + parts['uncertainty'] + parts['within_variance'] - parts['within_covariance']
    assert abs(total - parts['brier']) < 1e-12
    assert abs(parts['brier'] - brier_score_loss(target, score, labels=[False, True])) < 1e-12 and parts['brier'] == pytest.approx(brier_score(target, score))
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
    assert line['in_the_large'] == pytest.approx(large, abs=1e-5)


def test_line_without_an_answer_is_nan():
    assert np.isnan(calibration_line([0, 0], [.1, .2])['slope']) and np.isnan(calibration_line([1, 1], [.1, .2])['in_the_large'])
    assert np.isnan(calibration_line([0, 0, 1, 1], [.1, .2, .8, .9])['slope']) # separated: infinite
    constant = calibration_line([0, 0, 0, 1], [.5]*4)
    assert np.isnan(constant['slope']) and constant['in_the_large'] == pytest.approx(np.log(1/3))
    exact = calibration_line([0, 1, 0, 1], [0, 1, 1, 0.]) # certainties, half of them wrong
    assert np.isfinite(exact['in_the_large'])


# -- the table

def test_table_equals_the_single_functions():
    data = made_up(slope=1.5, shift=.5)
    frame = calibration_table(data[1], data[0], n_resamples=0)
    for finding in FINDINGS:
        target, score = column(data, finding)
        row, parts = frame.loc[finding], brier_parts(target, score, 15, 'width')
        assert row['ece'] == pytest.approx(calibration_error(target, score), abs=1e-12)
        assert row['brier'] == pytest.approx(brier_score_loss(target, score), abs=1e-12)
        assert row['brier_skill'] == pytest.approx(1 - row['brier']/row['uncertainty'], abs=1e-9)
        assert row['prevalence'] == target.mean() and row['mean_score'] == pytest.approx(score.mean())
        for name, value in calibration_line(target, score).items(): assert row[name] == pytest.approx(value, abs=1e-6)
        for name in ('reliability', 'resolution', 'uncertainty', 'within_variance', 'within_covariance'): assert row[name] == pytest.approx(parts[name])
    for name in CALIBRATION_MEASURES: assert frame.loc['macro', name] == pytest.approx(frame.loc[list(FINDINGS), name].mean())
    assert frame[[f'{name}_low' for name in CALIBRATION_MEASURES]].isna().all(axis=None)


def test_intervals_of_the_table_against_refitting_in_a_loop():
    data = made_up(250, 3, slope=1.4, shift=.3)
    table, predictions = data
    frame = calibration_table(predictions, table, n_resamples=200, seed=5).loc['Edema']
    (target, score), ids = column(data), table['patient_id'].to_numpy()
    number, weights = resample_weights(ids, 200, 5)
    loop = []
    for w in weights.T:
        rows = np.repeat(np.arange(len(ids)), w[number])
        line = calibration_line(target[rows], score[rows])
        loop.append([brier_score(target[rows], score[rows]), calibration_error(target[rows], score[rows]), line['slope'], line['in_the_large']])
    low, high = np.percentile(loop, [2.5, 97.5], axis=0)
    assert frame[['brier_low', 'brier_high']].to_numpy() == pytest.approx([low[0], high[0]], abs=1e-12)
    up = max(frame['ece'] - low[1], high[1] - np.mean(loop, axis=0)[1])
    place, chance = bin_numbers(score, bin_edges(score, 15, 'width')), []
    def gaps(rows): return np.bincount(place[rows], score[rows] - target[rows], 15)/len(rows)
    for w in weights.T: chance.append(np.abs(gaps(np.repeat(np.arange(len(ids)), w[number])) - gaps(np.arange(len(ids)))).sum())
    assert frame['ece_chance'] == pytest.approx(np.mean(chance), abs=1e-12)
    assert frame[['ece_low', 'ece_high']].to_numpy() == pytest.approx([max(0, frame['ece'] - np.percentile(chance, 97.5)), frame['ece'] + up], abs=1e-12)
    # expanded to the second order instead of refitted: within 3 % of the interval's width
    for i, name in ((2, 'slope'), (3, 'in_the_large')):
        width = high[i] - low[i]
        assert abs(frame[f'{name}_low'] - low[i]) < .03*width and abs(frame[f'{name}_high'] - high[i]) < .03*width


@pytest.mark.parametrize('slope, shift', [(1, 0), (1.4, .3)])
def test_ece_interval_contains_the_ece_of_a_very_large_set(slope, shift):
    "Perfectly calibrated, the truth is nearly 0 and the estimate never is; also where the truth is far from 0."
    table, predictions = made_up(30_000, 3, seed=99, slope=slope, shift=shift)
    large = np.array([calibration_error(table[f], predictions[f'prob_{f}']) for f in FINDINGS])
    inside, chance = [], []
    for seed in range(15):
        data = made_up(200, 2, seed=seed, slope=slope, shift=shift)
        frame = calibration_table(data[1], data[0], n_resamples=100)
        single = frame.loc[list(FINDINGS)]
        assert (single['ece_low'] <= single['ece']).all() and (single['ece'] < single['ece_high']).all()
        inside.append((single['ece_low'] <= large) & (large <= single['ece_high']))
        inside[-1]['macro'] = frame.loc['macro', 'ece_low'] <= large.mean() <= frame.loc['macro', 'ece_high']
        chance.append(frame.loc['macro', 'ece']/frame.loc['macro', 'ece_chance'])
    assert np.mean(inside) > .94 and np.mean([row['macro'] for row in inside]) > .9
    if slope == 1: assert np.mean(chance) == pytest.approx(1, abs=.25) # what chance alone gives is what a perfect model has


def test_absent_and_one_patient_findings_are_named():
    table, predictions = made_up(60)
    table['Hernia'] = False
    table['Edema'] = table['patient_id'] == FIRST_SYNTHETIC_PATIENT
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        frame = calibration_table(predictions, table, n_resamples=50)
    assert frame.attrs['absent'] == ['Hernia'] and 'Edema' in frame.attrs['no_interval'] and 'macro' in frame.attrs['no_interval']
    assert np.isnan(frame.loc['Hernia', 'slope']) and np.isnan(frame.loc['Hernia', 'brier_skill'])
    assert frame.loc['Hernia', 'ece'] == pytest.approx(predictions['prob_Hernia'].mean()) # it still says too much
    others = [f for f in FINDINGS if f != 'Hernia']
    assert frame.loc['macro', 'ece'] == pytest.approx(frame.loc[others, 'ece'].mean())
    assert 'Hernia' in calibration_note(frame) and 'Edema' in calibration_note(frame) and '15 bins of equal width' in calibration_note(frame)
    assert 'as much as chance may have added' in calibration_note(frame)
    assert readable_calibration(frame).loc['Hernia', 'slope'] == 'none'


def test_table_is_reproducible_and_follows_names_not_rows():
    table, predictions = made_up(60)
    first = calibration_table(predictions, table, n_resamples=30)
    pd.testing.assert_frame_equal(first, calibration_table(predictions.sample(frac=1, random_state=1), table, n_resamples=30))
    with pytest.raises(UserError, match='no prediction'): calibration_table(predictions[1:], table, n_resamples=0)


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
    return valid, test, {method: fit_calibration(valid[1], valid[0], method) for method in CALIBRATION_METHODS}


def test_repairs_repair(fitted):
    _, (table, predictions), calibrations = fitted
    before = calibration_table(predictions, table, n_resamples=0).loc['macro', 'ece']
    after = {m: calibration_table(c.apply(predictions, table), table, n_resamples=0).loc['macro', 'ece'] for m, c in calibrations.items()}
    assert before > .2 and after['platt'] < .05 and after['isotonic'] < .06
    assert after['temperature'] > .1 # a shift is beyond it


@pytest.mark.parametrize('method', ['platt', 'temperature'])
def test_rising_curves_keep_the_auroc_exactly(fitted, method):
    _, (table, predictions), calibrations = fitted
    after = calibrations[method].apply(predictions, table)
    for finding in FINDINGS: assert auroc(table[finding], after[f'prob_{finding}']) == auroc(table[finding], predictions[f'prob_{finding}'])


def test_isotonic_never_turns_an_order_round(fitted):
    _, (table, predictions), calibrations = fitted
    after = calibrations['isotonic'].apply(predictions, table)
    for finding in FINDINGS:
        order = predictions[f'prob_{finding}'].argsort()
        assert (np.diff(after[f'prob_{finding}'].to_numpy()[order]) >= 0).all()
        assert after[f'prob_{finding}'].nunique() < predictions[f'prob_{finding}'].nunique()


def test_few_patients_and_bad_order_are_left_alone_and_named():
    table, predictions = made_up(400)
    table['Hernia'] = False
    table.loc[table['patient_id'] < FIRST_SYNTHETIC_PATIENT + 9, 'Hernia'] = True # 9 patients, 18 images
    predictions['prob_Edema'] = 1 - predictions['prob_Edema']
    fit = fit_calibration(predictions, table)
    assert set(fit.left_out) == {'Hernia', 'Edema'} and set(fit.curves) == set(FINDINGS) - {'Hernia', 'Edema'}
    assert '9 positive patients' in fit.left_out['Hernia'] and 'AUROC' in fit.left_out['Edema'] and 'Hernia' in repr(fit)
    table2, predictions2 = other()
    after = fit.apply(predictions2, table2)
    for finding in ('Hernia', 'Edema'): np.testing.assert_array_equal(after[f'prob_{finding}'], predictions2[f'prob_{finding}'])
    assert (after['prob_Mass'] != predictions2['prob_Mass']).any()
    table['Hernia'] = table['patient_id'] < FIRST_SYNTHETIC_PATIENT + 10
    predictions.loc[table['Hernia'], 'prob_Hernia'] = .9
    assert 'Hernia' in fit_calibration(predictions, table).curves # ten are enough
    assert 'Mass' in fit_calibration(predictions, table.assign(Mass=True)).left_out # no negative patient


def test_certainties_survive():
    table, predictions = made_up(200)
    predictions.loc[:3, 'prob_Edema'] = [0, 1, 0, 1]
    for method in CALIBRATION_METHODS:
        after = fit_calibration(predictions, table, method).apply(predictions, allow_fitted=True)
        assert after['prob_Edema'].between(0, 1).all() and np.isfinite(after['prob_Edema']).all()


def test_order_and_row_order_do_not_matter(fitted):
    (table, predictions), (table2, predictions2), calibrations = fitted
    again = fit_calibration(predictions.sample(frac=1, random_state=2), table)
    assert again.to_dict() == calibrations['platt'].to_dict()
    shuffled = predictions2.sample(frac=1, random_state=3)
    after = calibrations['platt'].apply(shuffled, table2)
    assert after[IMAGE].tolist() == shuffled[IMAGE].tolist()


# -- the guards

def test_only_validation_is_accepted():
    table, predictions = made_up(30)
    for bad in ('test', 'train', 'fold0'):
        with pytest.raises(LeakageError, match=repr(bad)): fit_calibration(predictions, table, part=bad)
        with pytest.raises(LeakageError, match=repr(bad)): fit_calibration(predictions, table.assign(part=bad))
    mixed = table.assign(part=['valid']*(len(table) - 1) + ['test'])
    with pytest.raises(LeakageError, match="'test'"): fit_calibration(predictions, mixed)
    with pytest.raises(LeakageError, match="'test'"): fit_calibration(predictions, mixed, part='valid')
    fit_calibration(predictions, table.assign(part='valid'), part='valid')


def test_official_test_patients_are_refused_unless_said():
    first = min(official_test_patients())
    table, predictions = made_up(30, first=1)
    assert is_official_test(table).any() and not is_official_test(table).all()
    with pytest.raises(LeakageError, match='official test list') as caught: fit_calibration(predictions, table)
    assert set(caught.value.shared['patient_id']) == set(table['patient_id'][is_official_test(table)]) and first in set(caught.value.shared['patient_id'])
    fit_calibration(predictions, table, allow_official_test=True)
    rest = table[~is_official_test(table)]
    fit_calibration(predictions[predictions[IMAGE].isin(rest['image'])], rest)
    check_validation(table.assign(image=[f'hospital_{i}.png' for i in range(len(table))])) # the same numbers, another hospital


def test_fitted_patients_are_refused(fitted):
    (table, predictions), (table2, predictions2), calibrations = fitted
    platt = calibrations['platt']
    with pytest.raises(LeakageError, match='may not be used to judge'): platt.apply(predictions)
    with pytest.raises(LeakageError, match='image'): platt.apply(pd.concat([predictions2, predictions[:1]]))
    renamed = table.assign(image='x' + table['image'])
    frame = predictions.assign(**{IMAGE: 'x' + predictions[IMAGE]})
    with pytest.raises(LeakageError, match='patients'): platt.apply(frame, renamed) # other images of the same patients
    assert len(platt.apply(predictions, table, allow_fitted=True)) == len(predictions)
    assert platt.fitted_on.patients == sorted(map(str, set(table['patient_id'])))


def test_patients_in_other_rows_of_the_table_do_not_matter(fitted):
    (table, _), (table2, predictions2), calibrations = fitted
    calibrations['platt'].apply(predictions2, pd.concat([table, table2])) # only the predicted images count


def test_text_and_number_ids_are_the_same_patient():
    memory = FittedOn(['a.png'], [7])
    with pytest.raises(LeakageError): memory.refuse(['b.png'], ['7'])
    memory.refuse(['b.png'], ['8'])


def test_unknown_method_is_refused():
    table, predictions = made_up(20)
    with pytest.raises(UserError, match='platt, temperature, isotonic'): fit_calibration(predictions, table, 'beta')
    with pytest.raises(UserError, match='platt, temperature, isotonic'): Calibration('beta', {}, {}, FittedOn([], []))


# -- files

@pytest.mark.parametrize('method', CALIBRATION_METHODS)
def test_round_trip_is_exact(fitted, method, tmp_path):
    _, (table, predictions), calibrations = fitted
    path = calibrations[method].save(tmp_path/'sub'/'c.json')
    again = Calibration.load(path)
    assert again.to_dict() == calibrations[method].to_dict() and repr(again) == repr(calibrations[method])
    pd.testing.assert_frame_equal(again.apply(predictions, table), calibrations[method].apply(predictions, table))
    assert [p.name for p in path.parent.iterdir()] == ['c.json']


def test_bad_files_are_explained(tmp_path, fitted):
    with pytest.raises(UserError, match='no such file'): Calibration.load(tmp_path/'no.json')
    (tmp_path/'a.json').write_text('{')
    with pytest.raises(UserError, match='cannot be read as JSON'): Calibration.load(tmp_path/'a.json')
    good = fitted[2]['platt'].to_dict()
    for broken in ({}, good | {'format': 'chestnb thresholds 1'}, {k: v for k, v in good.items() if k != 'curves'}, good | {'fitted_on': {'x': 1}}, []):
        (tmp_path/'b.json').write_text(json.dumps(broken))
        with pytest.raises(UserError, match='no calibration of the form'): Calibration.load(tmp_path/'b.json')
    for curves in ({'Edma': {'intercept': 0, 'slope': 1}}, {'Edema': {'temperature': 1}}, {'Edema': {'intercept': 0, 'slope': 'x'}}):
        with pytest.raises(UserError, match='no calibration of the form'): Calibration.from_dict(good | {'curves': curves})


# -- before and after

def test_comparison_is_paired(fitted):
    _, (table, predictions), calibrations = fitted
    models = {'before': predictions, 'same': predictions, 'platt': calibrations['platt'].apply(predictions, table)}
    frame = compare_calibration(models, table, n_resamples=60)
    assert (frame.loc['same', ['ece_difference', 'ece_difference_low', 'ece_difference_high', 'brier_difference_high']] == 0).all(axis=None)
    assert frame.loc[('platt', 'macro'), 'ece_difference_high'] < 0 and frame.loc[('platt', 'macro'), 'brier_difference_high'] < 0
    single = calibration_table(models['platt'], table, n_resamples=60)
    for name in CALIBRATION_MEASURES:
        for end in ('', '_low', '_high'): np.testing.assert_allclose(frame.loc['platt', name + end], single[name + end])
    difference = single.loc['macro', 'ece'] - frame.loc[('before', 'macro'), 'ece']
    assert frame.loc[('platt', 'macro'), 'ece_difference'] == pytest.approx(difference)
    with pytest.raises(UserError, match='No models'): compare_calibration({}, table)


# -- prevalence

def test_shift_is_bayes_rule():
    "A known mixture: 3 scores with known densities among positives and negatives."
    among_positive, among_negative = np.array([.1, .3, .6]), np.array([.6, .3, .1])
    posterior = lambda p: p*among_positive/(p*among_positive + (1 - p)*among_negative)
    for before, after in ((.03, .1), (.5, .001), (.2, .2)):
        frame = predictions_frame(['a', 'b', 'c'], np.tile(posterior(before)[:, None], 14))
        moved = shift_prevalence(frame, {'Edema': before}, {'Edema': after})
        np.testing.assert_allclose(moved['prob_Edema'], posterior(after), atol=1e-12)
        np.testing.assert_array_equal(moved['prob_Mass'], frame['prob_Mass'])


@given(st.floats(1e-6, 1 - 1e-6), st.floats(1e-4, 1 - 1e-4), st.floats(1e-4, 1 - 1e-4))
@settings(max_examples=100, deadline=None)
def test_shift_there_and_back(score, before, after):
    frame = predictions_frame(['a'], np.full((1, 14), score))
    back = shift_prevalence(shift_prevalence(frame, {'Mass': before}, {'Mass': after}), {'Mass': after}, {'Mass': before})
    assert back['prob_Mass'][0] == pytest.approx(score, rel=1e-6)


def test_shift_keeps_certainties_and_refuses_nonsense():
    frame = predictions_frame(['a', 'b'], np.array([[0.]*14, [1.]*14]))
    assert shift_prevalence(frame, {'Mass': .1}, {'Mass': .5})['prob_Mass'].tolist() == [0, 1]
    for before, after, words in (({'Mass': 0}, {'Mass': .1}, 'strictly'), ({'Mas': .1}, {'Mas': .1}, 'Mas'), ({'Mass': .1}, {'Edema': .1}, 'different findings'),
                                 ({}, {}, 'none given'), ({'Mass': np.nan}, {'Mass': .1}, 'strictly')):
        with pytest.raises(UserError, match=words): shift_prevalence(frame, before, after)


def test_em_recovers_a_pure_shift():
    table, predictions = made_up(8000, 1, base=-2)
    keep = (table['Edema'] | (np.random.default_rng(1).random(len(table)) < .3)).to_numpy()
    found = estimate_prevalence(predictions[keep], prevalences(table)[['Edema']]).loc['Edema']
    assert found['converged'] and found['estimate'] == pytest.approx(table['Edema'][keep].mean(), abs=.02)
    same = estimate_prevalence(predictions, prevalences(table)).loc['Edema']
    assert same['estimate'] == pytest.approx(table['Edema'].mean(), abs=.02)
    assert not estimate_prevalence(predictions, {'Edema': .1}, max_steps=1).loc['Edema', 'converged']


def test_em_estimate_is_the_maximum_likelihood():
    table, predictions = made_up(500, 1)
    before, score = .3, predictions['prob_Mass'].to_numpy()
    likelihood = lambda share: np.log(share*score/before + (1 - share)*(1 - score)/(1 - before)).sum()
    grid = np.linspace(.001, .999, 5000)
    best = grid[np.argmax([likelihood(share) for share in grid])]
    assert estimate_prevalence(predictions, {'Mass': before}).loc['Mass', 'estimate'] == pytest.approx(best, abs=5e-4)


def test_class_shift_sees_what_is_not_a_pure_shift():
    first, second = made_up(400), other(n_patients=400)
    same = class_shift(first[1], first[0], second[1], second[0], n_resamples=60, disable=True)
    inside = ((same['negatives_low'] <= .5) & (same['negatives_high'] >= .5)).sum()
    assert inside >= 11
    moved = second[1].assign(prob_Mass=expit(log_odds_of(second[1]['prob_Mass']) + 1))
    changed = class_shift(first[1], first[0], moved, second[0], n_resamples=60, disable=True).loc['Mass']
    assert changed['negatives_low'] > .5 and changed['positives_low'] > .5
    empty = class_shift(first[1], first[0].assign(Mass=False), second[1], second[0].assign(Mass=False), n_resamples=10, disable=True).loc['Mass']
    assert np.isnan(empty['positives']) and np.isnan(empty['positives_low'])


# -- figures, start-up, real data

def test_figures(fitted):
    _, (table, predictions), calibrations = fitted
    models = {'before': predictions, 'after': calibrations['platt'].apply(predictions, table)}
    whole = plot_reliability(models, table, n_resamples=10)
    assert 'synthetic' in whole.get_suptitle() and 'bins of equal width' in whole.get_suptitle() and 'bins of equal counts' in whole.get_suptitle()
    assert [ax.get_title() for ax in whole.axes if ax.get_title()] == [f.replace('_', ' ') for f in FINDINGS]
    single = plot_reliability(predictions, table, 'Mass', n_resamples=0)
    assert len([ax for ax in single.axes]) == 1 and f'{calibration_error(table["Mass"], predictions["prob_Mass"]):.4f}' in single.get_suptitle()
    assert 'absent' not in plot_reliability(predictions, table.assign(Hernia=False), n_resamples=0).get_suptitle()
    with pytest.raises(UserError, match='Mas'): plot_reliability(predictions, table, 'Mas')
    with pytest.raises(UserError, match='No finding'): plot_reliability(predictions, table.assign(**{f: False for f in FINDINGS}))


def test_import_is_light():
    code = ('import sys, chestnb.evaluation.calibration, chestnb.evaluation.reliability; '
            'print([m for m in ("torch", "sklearn", "matplotlib", "scipy.optimize", "jinja2") if m in sys.modules])')
    assert subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout.strip() == '[]'


def test_published_predictions(shared_nih):
    "Fitted outside the official test list, judged inside; the label shift is not pure."
    predictions, table = read_predictions(shared_nih/'chexnet_predictions.csv'), nih_metadata()
    table = table[table['image'].isin(predictions[IMAGE])]
    inside = is_official_test(table)
    take = lambda rows: (predictions[predictions[IMAGE].isin(table['image'][rows])], table[rows])
    with pytest.raises(LeakageError): fit_calibration(*take(inside))
    fit = fit_calibration(*take(~inside))
    assert not fit.left_out and len(fit.fitted_on.patients) == 5597
    p, t = take(inside)
    frame = compare_calibration({'before': p, 'platt': fit.apply(p, t)}, t, n_resamples=100)
    assert frame.loc[('platt', 'macro'), 'ece_difference_high'] < 0
    assert frame.loc[('platt', 'Pneumothorax'), 'ece_difference'] > 0
    assert prevalences(table[~inside])['Pneumothorax'] < .035 < .1 < prevalences(t)['Pneumothorax']


def test_nih_prevalence_shift_of_pneumothorax():
    table = nih_metadata()
    official = is_official_test(table)
    assert round(100*prevalences(table[~official])['Pneumothorax'], 2) == 3.05
    assert round(100*prevalences(table[official])['Pneumothorax'], 2) == 10.41
