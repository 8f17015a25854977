"""Subgroups and shortcuts against plain loops over scikit-learn, and their behaviour where there is too little to tell."""
import math
import subprocess
import sys
import warnings

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings, strategies as st
from sklearn.metrics import roc_auc_score

from chestnb.data.findings import FINDINGS
from chestnb.data.nih import nih_metadata
from chestnb.evaluation.predictions import IMAGE, predictions_frame, read_predictions
from chestnb.evaluation.scores import score_table
from chestnb.core.errors import UserError
from chestnb.evaluation.resampling import resample_weights
from chestnb.data.leakage import LeakageError
from chestnb.evaluation.thresholds import choose_thresholds
from chestnb.evaluation.subgroups import (AGE_EDGES, ANY, EVERYONE, SUBGROUP_MEASURES, NOT_KNOWN, age_bands, first_or_later, group_draws, named_groups, outcomes,
    patients_with, plot_subgroups, readable_subgroups, subgroup_columns, subgroup_note, subgroup_table, threshold_array)
from chestnb.evaluation.shortcuts import MODEL, SHORTCUTS, plot_shortcuts, shortcut_features, shortcut_note, shortcut_predictions, shortcut_table
from chestnb.evaluation.simulation import simulated_predictions


@pytest.fixture(autouse=True)
def strict():
    "A warning in these functions would land in a notebook."
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        yield


def make_table(n_patients=150, seed=0, share=.12):
    "A small metadata table with several images a patient, of both views."
    random = np.random.default_rng(seed)
    patient = np.repeat(np.arange(1, n_patients + 1), random.integers(1, 5, n_patients))
    n = len(patient)
    follow_up = pd.Series(patient).groupby(patient).cumcount().to_numpy()
    age, sex = random.integers(1, 95, n_patients + 1).astype(float), random.choice(['M', 'F'], n_patients + 1)
    table = pd.DataFrame({'image': [f'{p:08}_{f:03}.png' for p, f in zip(patient, follow_up)], 'patient_id': patient, 'follow_up': follow_up,
                          'age': age[patient], 'sex': sex[patient], 'view_position': random.choice(['AP', 'PA'], n)})
    labels = pd.DataFrame(random.random((n, 14)) < share, columns=FINDINGS)
    return pd.concat([table, labels, pd.Series(~labels.any(axis=1), name='No Finding')], axis=1)


@pytest.fixture(scope='module')
def table(): return make_table()


@pytest.fixture(scope='module')
def predictions(table): return simulated_predictions(table, seed=3)


@pytest.fixture(scope='module')
def subgroups(table, predictions):
    return subgroup_table(predictions, table, dict.fromkeys(FINDINGS, .3), n_resamples=25, seed=4, disable=True)


def row(frame, group, finding): return frame[(frame['group'] == group) & (frame['finding'] == finding)].squeeze()


# groups

@settings(max_examples=60, deadline=None)
@given(ages=st.lists(st.one_of(st.floats(0, 119), st.just(math.nan)), min_size=1, max_size=30),
       inner=st.sets(st.integers(1, 100), min_size=1, max_size=5))
def test_each_age_lies_in_its_band(ages, inner):
    edges = (0, *sorted(inner))
    bands = age_bands(ages, edges)
    assert bands.ordered and len(bands) == len(ages)
    for age, band in zip(ages, bands):
        if math.isnan(age): assert band == NOT_KNOWN
        elif band.startswith('under'): assert age < int(band.split()[1])
        elif band.endswith('and over'): assert age >= int(band.split()[0]) == edges[-1]
        else: assert int(band.split()[0]) <= age < int(band.split()[2]) + 1


def test_bands_that_do_not_start_at_zero():
    assert list(age_bands([20, 39, 40], (20, 40))) == ['20 to 39', '20 to 39', '40 and over']
    with pytest.raises(UserError, match='youngest age is 3'): age_bands([3, 40], (20, 40))


@pytest.mark.parametrize('edges', [(18,), (40, 18), (0, 0, 18), (0, 17.5)])
def test_bad_edges(edges):
    with pytest.raises(UserError, match='edges of the age bands'): age_bands([30], edges)


def test_first_or_later():
    assert list(first_or_later([0, 1, 7, np.nan])) == ['first image', 'later image', 'later image', NOT_KNOWN]


@pytest.mark.parametrize('values, expected', [
    (['b', 'a', None], ['b', 'a', NOT_KNOWN]), ([True, False, True], ['yes', 'no', 'yes']), ([True, None, False], ['yes', NOT_KNOWN, 'no']),
    ([1, 2, 10], ['1', '2', '10']), ([1., np.nan, .5], ['1', NOT_KNOWN, '0.5']), (['x', ' ', ''], ['x', NOT_KNOWN, NOT_KNOWN]),
    (['x', NOT_KNOWN, None], ['x', NOT_KNOWN, NOT_KNOWN]), ([1, 'a', None], ['1', 'a', NOT_KNOWN])])
def test_named_groups(values, expected):
    assert list(named_groups(pd.Series(values, dtype=object))) == expected


def test_groups_are_in_a_sensible_order():
    assert list(named_groups(pd.Series([10, 9, 1])).categories) == ['1', '9', '10']
    assert list(named_groups(pd.Series(['b', np.nan, 'a'])).categories) == ['a', 'b', NOT_KNOWN]


def test_a_categorical_column_and_a_foreign_index(table):
    odd = table.assign(site=pd.Categorical(['x', 'y']*(len(table)//2) + ['x']*(len(table) % 2)))
    odd.index = odd.index[::-1] + 1000
    groups = subgroup_columns(odd, ['site', 'sex', 'site'])
    assert list(groups) == ['site', 'sex'] and list(groups.index) == list(range(len(odd)))
    assert list(groups['sex']) == odd['sex'].tolist()


@pytest.mark.parametrize('columns, message', [('scanner', "no column 'scanner'"), ([], 'no column to group by'), ('image', 'distinct values')])
def test_refused_columns(table, columns, message):
    with pytest.raises(UserError, match=message): subgroup_columns(table, columns)


def test_measurements_lists_and_empty_columns_are_refused(table):
    with pytest.raises(UserError, match='Cut it into bands first'): subgroup_columns(table.assign(dose=np.linspace(0, 1, len(table))), 'dose')
    with pytest.raises(UserError, match='lists or the like'): subgroup_columns(table.assign(x=[[1]]*len(table)), 'x')
    with pytest.raises(UserError, match='empty for all'): subgroup_columns(table.assign(x=np.nan), 'x')


def test_unknown_values_are_a_group(table, predictions):
    holes = table.assign(age=table['age'].where(table.index % 3 > 0), drain=pd.Series([True, None, False]*len(table))[:len(table)])
    frame = subgroup_table(predictions, holes, columns=['age', 'drain'], n_resamples=0)
    for column in ('age', 'drain'):
        macro = frame[(frame['column'] == column) & (frame['finding'] == 'macro')]
        assert NOT_KNOWN in macro['group'].tolist() and macro['images'].sum() == len(table)


# thresholds and what they do

def test_thresholds_in_every_form():
    wanted = np.linspace(.1, .9, 14)
    for given_ in (dict(zip(FINDINGS, wanted)), pd.Series(wanted, FINDINGS), dict(zip(FINDINGS[::-1], wanted[::-1]))):
        np.testing.assert_array_equal(threshold_array(given_), wanted)
    assert np.isnan(threshold_array(None)).all()
    assert np.isnan(threshold_array(dict.fromkeys(FINDINGS, .5) | {'Hernia': np.nan})[-1])


@pytest.mark.parametrize('bad', ['high', '', [1]])
def test_bad_thresholds(bad):
    with pytest.raises(UserError, match='threshold of Hernia'): threshold_array(dict.fromkeys(FINDINGS, .5) | {'Hernia': bad})
    with pytest.raises(UserError, match='No threshold for Hernia'): threshold_array(dict.fromkeys(FINDINGS[:-1], .5))


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 12))
def test_outcomes_equal_plain_loops(seed, n):
    random = np.random.default_rng(seed)
    targets, scores, thresholds = random.random((n, 14)) < .2, random.random((n, 14)).round(1), random.random(14).round(1)
    events = outcomes(targets, scores, thresholds)
    for i in range(n):
        marks = [scores[i, j] >= thresholds[j] for j in range(14)]
        for j in range(14):
            assert events[i, j].tolist() == [targets[i, j] and not marks[j], targets[i, j], marks[j] and not targets[i, j], not targets[i, j]]
        assert events[i, 14].tolist() == [any(targets[i]) and not any(marks), any(targets[i]), any(marks) and not any(targets[i]), not any(targets[i])]


def test_patients_are_counted_once():
    targets = np.zeros((5, 14), bool)
    targets[[0, 1, 3], 2] = True
    held = patients_with(targets, np.array([0, 0, 1, 1, 2]))
    assert held[2].tolist() == [2, 2] and held[0].tolist() == [0, 3] and held[-1].tolist() == [2, 2]


# the table against a plain loop over scikit-learn on the same resamples

def plain(targets, scores, threshold):
    "The three measures of one finding, straightforwardly."
    area = roc_auc_score(targets, scores) if 0 < targets.sum() < len(targets) else np.nan
    rate = lambda part, whole: part.sum()/whole.sum() if whole.sum() else np.nan
    return [area, rate(targets & (scores < threshold), targets), rate(~targets & (scores >= threshold), ~targets)]


@pytest.mark.parametrize('finding', ['Mass', 'Hernia'])
@pytest.mark.parametrize('column, group', [('sex', 'F'), ('view_position', 'AP'), ('age', '60 to 79'), ('follow_up', 'later image')])
def test_subgroups_equal_the_plain_loop(table, predictions, subgroups, column, group, finding):
    scores = predictions.set_index(IMAGE).loc[table['image'], f'prob_{finding}'].to_numpy()
    inside = (subgroup_columns(table, column)[column] == group).to_numpy()
    number, weights = resample_weights(table['patient_id'].to_numpy(), 25, 4)
    draws = []
    for draw in range(26):
        copies = np.ones(len(table), int) if draw == 0 else weights[number, draw - 1]
        rows = np.repeat(np.arange(len(table)), copies)
        targets, values, here = table[finding].to_numpy()[rows], scores[rows], inside[rows]
        draws.append([plain(targets[here], values[here], .3), plain(targets[~here], values[~here], .3)])
    draws, found = np.array(draws), row(subgroups[subgroups['column'] == column], group, finding)
    for i, name in enumerate(SUBGROUP_MEASURES):
        for key, values in ((name, draws[:, 0, i]), (f'{name}_difference', draws[:, 0, i] - draws[:, 1, i])):
            low, high = np.nanpercentile(values[1:], [2.5, 97.5])
            if low == high: low = high = np.nan
            np.testing.assert_allclose([found[key], found[f'{key}_low'], found[f'{key}_high']], [values[0], low, high], atol=1e-12)


def test_everyone_equals_the_score_table(table, predictions, subgroups):
    scores = score_table(predictions, table, 25, seed=4, disable=True)
    for finding in (*FINDINGS, 'macro'):
        found = row(subgroups, EVERYONE, finding)
        np.testing.assert_allclose([found['auroc'], found['auroc_low'], found['auroc_high']],
                                   scores.loc[finding, ['auroc', 'auroc_low', 'auroc_high']].astype(float), atol=1e-12)
    assert subgroups.loc[subgroups['column'] == EVERYONE, 'auroc_difference'].isna().all()


def test_the_shape_of_the_table(table, subgroups):
    per_group = subgroups.groupby(['column', 'group'], sort=False)
    assert all(part['finding'].tolist() == [*FINDINGS, ANY, 'macro'] for _, part in per_group)
    for column in ('sex', 'age', 'view_position', 'follow_up'):
        macro = subgroups[(subgroups['column'] == column) & (subgroups['finding'] == 'macro')]
        assert macro['images'].sum() == len(table) and macro['positives'].sum() == table[list(FINDINGS)].to_numpy().sum()


def test_two_groups_mirror_each_other(subgroups):
    for finding in ('Mass', ANY, 'macro'):
        ap, pa = row(subgroups, 'AP', finding), row(subgroups, 'PA', finding)
        for name in SUBGROUP_MEASURES if finding != ANY else SUBGROUP_MEASURES[1:]:
            np.testing.assert_allclose([ap[f'{name}_difference'], ap[f'{name}_difference_low']],
                                       [-pa[f'{name}_difference'], -pa[f'{name}_difference_high']], atol=1e-12)
            np.testing.assert_allclose(ap[f'{name}_p_holm'], pa[f'{name}_p_holm'], atol=1e-12)


def test_holm_covers_each_test_once(subgroups):
    "Two groups of a column are one test; the correction equals a plain one over the distinct p-values."
    tested = subgroups[~subgroups['finding'].isin([ANY, 'macro']) & subgroups['auroc_p'].notna()]
    once = tested[~tested['group'].isin(['M', 'PA', 'later image'])].sort_values('auroc_p')
    assert subgroups.attrs['tests']['auroc, single findings'] == len(once)
    plain_holm, worst = [], 0.
    for i, p in enumerate(once['auroc_p']):
        worst = max(worst, min(1, p*(len(once) - i)))
        plain_holm.append(worst)
    np.testing.assert_allclose(once['auroc_p_holm'], plain_holm)


def test_order_of_rows_does_not_matter(table, predictions, subgroups):
    "The images' order is that of files; draws go by patient number."
    mixed = predictions.sample(frac=1, random_state=1)
    again = subgroup_table(mixed, table.sample(frac=1, random_state=2), dict.fromkeys(FINDINGS, .3), n_resamples=25, seed=4, disable=True)
    pd.testing.assert_frame_equal(again, subgroups, rtol=1e-9)


def test_same_seed_same_table_and_another_seed_not(table, predictions):
    first, second, third = (subgroup_table(predictions, table, columns='sex', n_resamples=20, seed=seed) for seed in (1, 1, 2))
    pd.testing.assert_frame_equal(first, second)
    assert not first['auroc_low'].equals(third['auroc_low'])


# too little to tell

@pytest.fixture(scope='module')
def thin():
    "Women have no Hernia; Mass among men is of one patient; nobody has Edema; Nodule is rare."
    table = make_table(150, seed=5)
    female = table['sex'] == 'F'
    table.loc[female, 'Hernia'] = False
    table['Mass'] &= female
    man = table.loc[~female, 'patient_id'].iloc[0]
    table.loc[table['patient_id'] == man, 'Mass'] = True
    table['Edema'] = False
    few = table.loc[female, 'patient_id'].unique()[:3]
    table['Nodule'] = table['patient_id'].isin(few) | (table['Nodule'] & ~female)
    return table, subgroup_table(simulated_predictions(table), table, dict.fromkeys(FINDINGS, .3), ['sex'], 50, smallest=5, disable=True)


def test_a_finding_that_a_group_lacks(thin):
    hernia = row(thin[1], 'F', 'Hernia')
    assert np.isnan(hernia['auroc']) and np.isnan(hernia['false_negative_rate']) and np.isfinite(hernia['false_positive_rate'])
    assert 'no positive image' in hernia['note'] and hernia['positives'] == 0 and hernia['small']
    other = row(thin[1], 'M', 'Hernia')
    assert np.isfinite(other['auroc_low']) and np.isnan(other['auroc_difference']) and 'no positive image in the rest' in other['note']


def test_a_finding_of_one_patient(thin):
    mass = row(thin[1], 'M', 'Mass')
    assert np.isfinite(mass['auroc']) and np.isnan(mass['auroc_low']) and mass['resamples'] == 0
    assert 'all positive images are of one patient' in mass['note'] and mass['small']
    assert np.isnan(mass['false_negative_rate_low']) and np.isfinite(mass['false_positive_rate_low'])


def test_the_macro_mean_is_of_findings_with_enough_patients_on_both_sides(thin):
    table, frame = thin
    for group in 'FM':
        macro = row(frame, group, 'macro')
        used = [finding for finding in FINDINGS if finding not in ('Hernia', 'Mass', 'Nodule', 'Edema')]
        assert macro['note'] == 'mean of 10 findings, without Mass, Nodule, Edema, Hernia' and macro['averaged'] == 10
        part = frame[(frame['group'] == group) & frame['finding'].isin(used)]
        np.testing.assert_allclose(macro['auroc'], part['auroc'].mean())
        np.testing.assert_allclose(macro['auroc_difference'], part['auroc_difference'].mean())


def test_small_groups_are_shown_marked_and_not_tested(thin):
    nodule = row(thin[1], 'F', 'Nodule')
    assert nodule['small'] and nodule['positive_patients'] == 3
    assert np.isfinite([nodule['auroc'], nodule['auroc_low'], nodule['auroc_difference_high']]).all()
    assert np.isnan(nodule['auroc_p']) and np.isnan(nodule['auroc_p_holm'])
    large = row(thin[1], 'M', 'Nodule')
    assert not large['small'] and 'the rest is small' in large['note'] and np.isnan(large['auroc_p'])


def test_every_missing_score_has_a_reason(thin):
    frame = thin[1]
    assert (frame.loc[frame['auroc'].isna() & (frame['finding'] != ANY), 'note'] != '').all()


def test_one_group_has_no_rest(table, predictions):
    frame = subgroup_table(predictions, table.assign(site='only'), columns='site', n_resamples=10)
    assert frame.loc[frame['group'] == 'only', [f'{name}_difference' for name in SUBGROUP_MEASURES]].isna().all(axis=None)
    assert frame.loc[(frame['group'] == 'only') & (frame['finding'] == 'macro'), 'auroc'].notna().all()


def test_no_resamples(table, predictions):
    frame = subgroup_table(predictions, table, columns='sex', n_resamples=0)
    assert frame['auroc'].notna().any() and frame[['auroc_low', 'auroc_p', 'auroc_p_holm']].isna().all(axis=None)
    assert 'resamples' not in subgroup_note(frame)


def test_without_thresholds_and_with_one_missing(table, predictions):
    without = subgroup_table(predictions, table, columns='sex', n_resamples=10)
    assert without[['false_negative_rate', 'false_positive_rate']].isna().all(axis=None) and 'no thresholds' in subgroup_note(without)
    some = subgroup_table(predictions, table, dict.fromkeys(FINDINGS, .3) | {'Hernia': np.nan}, 'sex', n_resamples=10)
    rates = some[some['finding'] == 'Hernia']
    assert rates['false_negative_rate'].isna().all() and rates['note'].str.contains('no threshold').all()
    assert some.loc[some['finding'].isin([ANY, 'macro']), 'false_negative_rate'].notna().all()


def test_nothing_missed_is_not_certainty(table, predictions):
    "Thresholds of 0 mark everything: rates of 0 and 1, without an interval of width zero."
    frame = subgroup_table(predictions, table, dict.fromkeys(FINDINGS, 0.), 'sex', n_resamples=10)
    assert (frame['false_negative_rate'] == 0).all() and (frame['false_positive_rate'] == 1).all()
    assert frame[['false_negative_rate_low', 'false_positive_rate_high', 'false_negative_rate_p']].isna().all(axis=None)


def test_no_event_in_a_group_is_no_proof_of_a_difference(table):
    "Nobody of a group is missed: the rest's interval alone must not make the difference look certain."
    scores = np.where(table[list(FINDINGS)], .9, .1)
    female = (table['sex'] == 'F').to_numpy()
    scores[~female & (np.arange(len(table)) % 3 == 0)] = .1
    frame = subgroup_table(predictions_frame(table['image'], scores), table, dict.fromkeys(FINDINGS, .5), 'sex', n_resamples=30)
    for finding in ('Mass', ANY):
        women, men = row(frame, 'F', finding), row(frame, 'M', finding)
        assert women['false_negative_rate'] == 0 and np.isfinite(men['false_negative_rate_low']) and men['false_negative_rate'] > 0
        for side in (women, men):
            assert side['false_negative_rate_difference'] != 0
            assert np.isnan([side['false_negative_rate_difference_low'], side['false_negative_rate_p'], side['false_negative_rate_p_holm']]).all()


def test_thresholds_of_the_appendix_are_taken_and_remember_their_patients(table, predictions):
    valid = make_table(150, seed=77).assign(part='valid', Hernia=False)
    valid = valid.assign(patient_id=valid['patient_id'] + 5000, image='v' + valid['image'])
    chosen = choose_thresholds(simulated_predictions(valid), valid)
    assert np.isnan(threshold_array(chosen)[-1]) and np.isfinite(threshold_array(chosen)[:-1]).all()
    frame = subgroup_table(predictions, table, chosen, 'sex', n_resamples=5)
    assert frame.loc[frame['finding'] == 'Hernia', 'note'].str.contains('no threshold').all()
    with pytest.raises(LeakageError, match='used to choose these thresholds'):
        subgroup_table(simulated_predictions(valid), valid, chosen, 'sex', n_resamples=5)


def test_constant_predictions(table):
    frame = subgroup_table(predictions_frame(table['image'], np.full((len(table), 14), .5)), table, columns='sex', n_resamples=10)
    assert (frame.loc[frame['finding'] != ANY, 'auroc'] == .5).all() and frame['auroc_p'].isna().all()


def test_other_images_are_refused(table, predictions):
    with pytest.raises(UserError, match='have no prediction'): subgroup_table(predictions[1:], table)
    with pytest.raises(UserError, match='not in the table'): subgroup_table(predictions, table[1:])


# does it find what is there, and only that?

def test_a_planted_difference_is_found(table):
    big = make_table(600, seed=8)
    scores = simulated_predictions(big, np.where(big['view_position'] == 'AP', .6, 1.8))
    frame = subgroup_table(scores, big, columns=['view_position', 'sex'], n_resamples=200, disable=True)
    assert row(frame, 'AP', 'macro')['auroc_p_holm'] < 1e-6 and row(frame, 'F', 'macro')['auroc_p_holm'] > .05


def test_a_group_drawn_by_lot_differs_about_as_often_as_it_should():
    "Under the null about 5 % of p are below 0.05: of 20 lots, more than 5 would be a chance of 1 in 3,000."
    big, below = make_table(250, seed=9), 0
    scores = simulated_predictions(big, seed=9)
    for seed in range(20):
        lot = np.random.default_rng(seed).random(big['patient_id'].max() + 1) < .5
        frame = subgroup_table(scores, big.assign(lot=lot[big['patient_id']]), columns='lot', n_resamples=60, seed=seed, disable=True)
        below += row(frame, 'yes', 'macro')['auroc_p'] < .05
    assert below <= 5


def test_underdiagnosis_by_hand():
    table = make_table(4, seed=0).iloc[:4].assign(sex=['F', 'F', 'M', 'M'], image=list('abcd'), patient_id=[1, 2, 3, 4])
    table[list(FINDINGS)] = False
    table.loc[table.index[[0, 1, 2]], 'Mass'] = True
    scores = np.zeros((4, 14))
    scores[0, 0] = .9 # marked, though for another finding
    frame = subgroup_table(predictions_frame(table['image'], scores), table, dict.fromkeys(FINDINGS, .5), 'sex', n_resamples=0)
    assert row(frame, 'F', ANY)['false_negative_rate'] == .5 and row(frame, 'M', ANY)['false_negative_rate'] == 1
    assert row(frame, 'F', 'Mass')['false_negative_rate'] == 1 and row(frame, 'M', ANY)['false_positive_rate'] == 0


# texts and figures

def test_readable_and_note(subgroups):
    text = readable_subgroups(subgroups, 'Mass', 'false_negative_rate', digits=2)
    assert list(text.columns)[-4:] == ['false-negative rate', 'minus the rest', 'p (Holm)', 'small'] and text.index.is_unique
    assert 'Holm' in subgroup_note(subgroups) and '25 resamples of patients (seed 4)' in subgroup_note(subgroups)
    with pytest.raises(UserError, match='measure is'): readable_subgroups(subgroups, measure='f1')
    with pytest.raises(UserError, match='finding is'): readable_subgroups(subgroups, 'micro')


@pytest.mark.parametrize('finding, measure', [('macro', 'auroc'), (ANY, 'false_negative_rate'), ('Mass', 'false_positive_rate')])
def test_forest_plot_says_what_it_found(subgroups, finding, measure):
    figure = plot_subgroups(subgroups, finding, measure, note='made up')
    rows = subgroups[(subgroups['finding'] == finding) & (subgroups['column'] != EVERYONE) & ~subgroups['small']]
    title = figure.get_suptitle()
    values, form = (rows[f'{measure}_difference'], '+.3f') if finding == 'macro' else (rows[measure], '.3f') # means over other findings are not ranked
    assert f'({values.min():{form}})' in title and f'({values.max():{form}})' in title and 'made up' in title
    assert ('minus that of all other images' in title) == (finding == 'macro')
    lines = [line.get_xdata() for line in figure.axes[0].lines if line.get_color() == '0.7']
    assert len(lines) == (finding != 'macro') # the line of all images, only where the groups can be compared with it
    assert all(ax.get_xlabel() for ax in figure.axes) and not plt.get_fignums()


def test_forest_plot_with_empty_and_small_groups(thin):
    figure = plot_subgroups(thin[1], 'Hernia')
    assert 'no two groups are large enough' in figure.get_suptitle()
    assert 'no value' in [text.get_text() for text in figure.axes[0].texts]
    plot_subgroups(thin[1], 'Edema')


# shortcuts

@pytest.fixture(scope='module')
def tilted():
    "Mass depends on the view alone, Hernia on age alone, all else on nothing; two disjoint tables."
    tables = []
    for seed in (1, 2):
        table, random = make_table(500, seed), np.random.default_rng(seed)
        table['Mass'] = random.random(len(table)) < np.where(table['view_position'] == 'AP', .5, .1)
        table['Hernia'] = random.random(len(table)) < np.where(table['age'] > 60, .4, .05)
        tables.append(table.assign(patient_id=table['patient_id'] + 1000*seed, image=[f'{seed}{name}' for name in table['image']]))
    return tables


def test_a_shortcut_is_found_where_it_is_planted(tilted):
    frame = shortcut_table(*tilted, n_resamples=40, disable=True).set_index(['source', 'finding'])
    view = tilted[1]['view_position'] == 'AP'
    assert frame.loc[('view', 'Mass'), 'auroc'] == pytest.approx(roc_auc_score(tilted[1]['Mass'], view), abs=1e-12)
    assert frame.loc[('age', 'Hernia'), 'auroc'] > .7 and frame.loc[('view', 'Hernia'), 'auroc_low'] < .5
    assert abs(frame.loc[('view and age', 'Nodule'), 'auroc'] - .5) < .08
    assert abs(frame.loc[('follow-up', 'Mass'), 'auroc'] - .5) < .08 # the follow-up number alone does not know the view
    assert set(frame.index.get_level_values(0)) == set(SHORTCUTS) and frame['model_minus'].isna().all()


def test_the_model_beside_the_shortcuts(tilted):
    fit, score = tilted
    guesses = simulated_predictions(score, seed=6)
    frame = shortcut_table(fit, score, guesses, {'view': ('view_position',)}, n_resamples=30, disable=True)
    assert frame['source'].unique().tolist() == [MODEL, f'{MODEL}, PA only', f'{MODEL}, AP only', 'view']
    values, ap = guesses.set_index(IMAGE).loc[score['image'], 'prob_Mass'].to_numpy(), (score['view_position'] == 'AP').to_numpy()
    mass = frame[frame['finding'] == 'Mass'].set_index('source')
    for source, rows in ((MODEL, ap | True), (f'{MODEL}, AP only', ap), (f'{MODEL}, PA only', ~ap)):
        assert mass.loc[source, 'auroc'] == pytest.approx(roc_auc_score(score['Mass'][rows], values[rows]), abs=1e-12)
        assert mass.loc[source, 'images'] == rows.sum()
    assert mass.loc['view', 'model_minus'] == pytest.approx(mass.loc[MODEL, 'auroc'] - mass.loc['view', 'auroc'])
    assert mass.loc['view', 'model_minus_low'] < mass.loc['view', 'model_minus'] < mass.loc['view', 'model_minus_high']
    np.testing.assert_allclose(mass.loc[MODEL, 'auroc_low'], score_table(guesses, score, 30).loc['Mass', 'auroc_low'], atol=1e-12)


def test_folds_keep_patients_apart(tilted):
    "A model that could remember patients would find labels that are the patient's own; five folds must not."
    table = tilted[1].copy()
    own = np.random.default_rng(0).random(table['patient_id'].max() + 1) < .5
    table['Mass'] = own[table['patient_id']]
    guesses = shortcut_predictions(None, table.assign(number=table['patient_id']), ('number',))
    assert abs(roc_auc_score(table['Mass'], guesses['prob_Mass']) - .5) < .12
    with pytest.raises(UserError, match='too few for five folds'): shortcut_predictions(None, make_table(4))


def test_shared_patients_are_refused(tilted):
    with pytest.raises(UserError, match='500 patients are in both tables'): shortcut_predictions(tilted[0], tilted[0])


def test_shortcuts_are_deterministic_and_take_missing_values(tilted):
    fit, score = tilted
    score = score.assign(age=score['age'].where(score.index % 2 > 0))
    first, second = (shortcut_predictions(fit, score, ('age', 'sex')) for _ in range(2))
    pd.testing.assert_frame_equal(first, second)
    assert first.notna().all(axis=None)


def test_an_absent_finding_cannot_be_fitted(tilted):
    fit, score = tilted[0].assign(Edema=False), tilted[1]
    assert (shortcut_predictions(fit, score)['prob_Edema'] == 0).all()
    frame = shortcut_table(tilted[0], score.assign(Edema=False), n_resamples=5, shortcuts={'view': ('view_position',)})
    edema = frame[frame['finding'] == 'Edema'].squeeze()
    assert np.isnan(edema['auroc']) and edema['note'] == 'no positive image'
    assert frame[frame['finding'] == 'macro'].squeeze()['note'] == 'mean of 13 findings, without Edema'


def test_features_that_are_no_numbers(table):
    with pytest.raises(UserError, match='no column'): shortcut_features(table, ['scanner'])
    with pytest.raises(UserError, match='does not hold numbers'): shortcut_features(table, ['image'])
    assert shortcut_features(table, ['sex', 'Mass']).shape == (len(table), 2)


def test_shortcut_figure_and_note(tilted):
    frame = shortcut_table(*tilted, simulated_predictions(tilted[1]), n_resamples=10, disable=True)
    figure = plot_shortcuts(frame, note='made up')
    assert 'View and age alone' in figure.get_suptitle() and 'made up' in figure.get_suptitle() and not plt.get_fignums()
    assert 'never on the patient they score' in shortcut_note(frame)
    with pytest.raises(UserError, match='source is'): plot_shortcuts(frame, 'weight')


# simulated scores

def test_simulated_scores_are_calibrated_and_separated():
    big = make_table(3000, seed=11, share=.2)
    guesses = simulated_predictions(big, separation=1.4, seed=2)
    targets, scores = big[list(FINDINGS)].to_numpy(), guesses.iloc[:, 1:].to_numpy()
    areas = [roc_auc_score(target, score) for target, score in zip(targets.T, scores.T)]
    assert np.mean(areas) == pytest.approx(.839, abs=.01) and scores.mean() == pytest.approx(targets.mean(), abs=.01)
    for low in (.1, .4, .7):
        bin_ = (scores >= low) & (scores < low + .1)
        assert targets[bin_].mean() == pytest.approx(scores[bin_].mean(), abs=.03)
    pushed = simulated_predictions(big, separation=1.4, seed=2, view_push=1.).iloc[:, 1:].to_numpy()
    ap = (big['view_position'] == 'AP').to_numpy()
    assert (pushed[ap] > scores[ap]).all() and (pushed[~ap] == scores[~ap]).all()


# the real thing, and the module's weight

def test_published_predictions(shared_nih):
    "Figures that others computed on the same predictions: macro by view, sex and age."
    predictions, metadata = read_predictions(shared_nih/'chexnet_predictions.csv'), nih_metadata()
    table = metadata[metadata['image'].isin(predictions[IMAGE])]
    frame = subgroup_table(predictions, table, n_resamples=0, edges=(0, 18, 40, 60), columns=['view_position', 'sex', 'age'], smallest=2)
    macro = frame[frame['finding'] == 'macro'].set_index('group')['auroc'].round(3)
    expected = {EVERYONE: .838, 'PA': .834, 'AP': .819, 'M': .834, 'F': .837, '18 to 39': .845, '40 to 59': .836, '60 and over': .811}
    assert macro[list(expected)].to_dict() == expected


def test_importing_is_light():
    code = 'import sys, chestnb.evaluation.subgroups, chestnb.evaluation.shortcuts; print([m for m in ("torch", "sklearn", "matplotlib") if m in sys.modules])'
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == '[]'
