"""Subgroups and shortcuts against plain loops over scikit-learn, and their behaviour where there is too little to tell."""
import math
import subprocess
import sys
import warnings
from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings, strategies as st
from sklearn.metrics import roc_auc_score

from chestnb.core.errors import UserError
from chestnb.data.findings import FINDINGS
from chestnb.data.leakage import LeakageError
from chestnb.data.nih import nih_metadata
from chestnb.evaluation.predictions import predictions_frame, read_predictions
from chestnb.evaluation.scored import join
from chestnb.evaluation.scores import score_table
from chestnb.evaluation.shortcut_tables import MODEL, SHORTCUTS, plot_shortcuts, shortcut_note, shortcut_table
from chestnb.evaluation.shortcuts import shortcut_features, shortcut_predictions
from chestnb.evaluation.simulation import known_probabilities, simulated_predictions
from chestnb.evaluation.subgroups import (ANY, EVERYONE, NOT_KNOWN, SUBGROUP_MEASURES, age_groups, first_or_later, named_groups, outcomes,
    patients_with, plot_subgroups, readable_subgroups, subgroup_columns, subgroup_note, subgroup_table, threshold_array)
from chestnb.evaluation.thresholds import choose_thresholds


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
def scored(table): return join(simulated_predictions(table, seed=3), table)


@pytest.fixture(scope='module')
def subgroups(scored): return subgroup_table(scored, dict.fromkeys(FINDINGS, .3), disable=True)


def row(frame, group, finding): return frame[(frame['group'] == group) & (frame['finding'] == finding)].squeeze()


def simulated(table, *arguments, **options): return join(simulated_predictions(table, *arguments, **options), table)


def with_scores(table, scores): return join(predictions_frame(table['image'], scores), table)


# groups

@settings(max_examples=60, deadline=None)
@given(ages=st.lists(st.one_of(st.floats(0, 119), st.just(math.nan)), min_size=1, max_size=30),
       inner=st.sets(st.integers(1, 100), min_size=1, max_size=5))
def test_each_age_lies_in_its_band(ages, inner):
    edges = (0, *sorted(inner))
    bands = age_groups(ages, edges)
    assert bands.ordered and len(bands) == len(ages)
    for age, band in zip(ages, bands):
        if math.isnan(age): assert band == NOT_KNOWN
        elif band.endswith('+'): assert age >= int(band[:-1]) == edges[-1]
        else: assert int(band.split('–')[0]) <= age < int(band.split('–')[1]) + 1


def test_bands_that_do_not_start_at_zero():
    assert list(age_groups([20, 39, 40], (20, 40))) == ['20–39', '20–39', '40+']
    with pytest.raises(UserError, match='youngest age is 3'): age_groups([3, 40], (20, 40))


@pytest.mark.parametrize('ages', [[30, None], pd.Series([30, pd.NA], dtype='Int64'), pd.Series([30, pd.NA], dtype=object), [30., np.inf]])
def test_an_unknown_age_is_a_band_of_its_own(ages):
    assert list(age_groups(ages)) == ['18–39', NOT_KNOWN]


def test_an_age_that_is_no_number_is_refused():
    with pytest.raises(UserError, match="'age' holds something else than numbers"): age_groups(pd.Series(['30', '012D'], name='age'))


@pytest.mark.parametrize('numbers', [[0, 1, 7, np.nan], pd.Series([0, 1, 7, None], dtype='Int64'), [0, 1, 7, None]])
def test_first_or_later(numbers):
    assert list(first_or_later(numbers)) == ['first image', 'later image', 'later image', NOT_KNOWN]


@pytest.mark.parametrize('values, expected', [
    (['b', 'a', None], ['b', 'a', NOT_KNOWN]), ([True, False, True], ['yes', 'no', 'yes']), ([True, None, False], ['yes', NOT_KNOWN, 'no']),
    ([1, 2, 10], ['1', '2', '10']), ([1., np.nan, .5], ['1', NOT_KNOWN, '0.5']), (['x', ' ', ''], ['x', NOT_KNOWN, NOT_KNOWN]),
    (['x', NOT_KNOWN, None], ['x', NOT_KNOWN, NOT_KNOWN]), ([1, 'a', None], ['1', 'a', NOT_KNOWN])])
def test_named_groups(values, expected):
    assert list(named_groups(pd.Series(values, dtype=object))) == expected


@pytest.mark.parametrize('codes', [[1234567., 1234568.], [.1234567, .1234568], [np.float32(16777215), np.float32(16777214)]])
def test_codes_that_differ_in_a_late_digit_are_two_groups(codes):
    assert len(named_groups(pd.Series(codes)).categories) == 2


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
    with pytest.raises(UserError, match="'x': unknown for all"): subgroup_columns(table.assign(x=np.nan), 'x')


def test_unknown_values_are_a_group(scored):
    table = scored.table
    holes = table.assign(age=table['age'].where(table.index % 3 > 0), sex=table['sex'].where(table.index % 2 > 0, None),
                         drain=pd.Series([True, None, False]*len(table))[:len(table)])
    frame = subgroup_table(replace(scored, table=holes), columns=['age', 'sex', 'drain'])
    for column, unknown in (('age', table.index % 3 == 0), ('sex', table.index % 2 == 0), ('drain', holes['drain'].isna())):
        macro = frame[(frame['column'] == column) & (frame['finding'] == 'macro')].set_index('group')
        assert macro.loc[NOT_KNOWN, 'images'] == unknown.sum() and macro['images'].sum() == len(table)


def test_a_table_that_knows_no_sex_no_view_no_age_and_no_follow_up_is_still_judged(scored):
    "Never 'female 0 %, AP 0 %': what nobody knows is left out, and named."
    nothing = scored.table.assign(sex=None, view_position='', age=np.nan).drop(columns='follow_up')
    frame = subgroup_table(replace(scored, table=nothing), dict.fromkeys(FINDINGS, .3))
    assert frame['group'].unique().tolist() == [EVERYONE] and frame.loc[frame['finding'] == 'macro', 'auroc'].notna().all()
    assert frame.attrs['left_out'] == {'follow_up': 'not in the table', 'sex': 'unknown for all images', 'age': 'unknown for all images',
                                       'view_position': 'unknown for all images'}
    for said in ('sex is left out: unknown for all images', 'follow_up is left out: not in the table'): assert said in subgroup_note(frame)
    assert 'no two groups are large enough' in plot_subgroups(frame).get_suptitle()


# thresholds and what they do

def test_thresholds_in_every_form():
    wanted = np.linspace(.1, .9, 14)
    for given_ in (dict(zip(FINDINGS, wanted)), pd.Series(wanted, FINDINGS), dict(zip(FINDINGS[::-1], wanted[::-1]))):
        np.testing.assert_array_equal(threshold_array(given_, FINDINGS), wanted)
    assert np.isnan(threshold_array(None, FINDINGS)).all() and threshold_array({'Mass': .1, 'Edema': .2}, ('Edema',)).tolist() == [.2]
    assert np.isnan(threshold_array(dict.fromkeys(FINDINGS, .5) | {'Hernia': np.nan}, FINDINGS)[-1])


@pytest.mark.parametrize('bad', ['high', '', [1]])
def test_bad_thresholds(bad):
    with pytest.raises(UserError, match='threshold of Hernia'): threshold_array(dict.fromkeys(FINDINGS, .5) | {'Hernia': bad}, FINDINGS)
    with pytest.raises(UserError, match='No threshold for Hernia'): threshold_array(dict.fromkeys(FINDINGS[:-1], .5), FINDINGS)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 12))
def test_outcomes_equal_plain_loops(seed, n):
    random = np.random.default_rng(seed)
    targets, scores, thresholds = random.choice([0, 0, 0, 1, np.nan], (n, 14)), random.random((n, 14)).round(1), random.random(14).round(1)
    events = outcomes(targets, scores, thresholds)
    for i in range(n):
        flags = [scores[i, j] >= thresholds[j] for j in range(14)]
        for j in range(14):
            positive, negative = targets[i, j] == 1, targets[i, j] == 0
            assert events[i, j].tolist() == [positive and not flags[j], positive, flags[j] and negative, negative]
        positive, negative = any(targets[i] == 1), all(targets[i] == 0)
        assert events[i, 14].tolist() == [positive and not any(flags), positive, any(flags) and negative, negative]


def test_patients_are_counted_once():
    targets = np.zeros((5, 14))
    targets[[0, 1, 3], 2], targets[4, 3] = 1, np.nan
    counts = patients_with(targets, np.array([0, 0, 1, 1, 2]))
    assert counts[2].tolist() == [2, 2] and counts[0].tolist() == [0, 3] and counts[3].tolist() == [0, 2] and counts[-1].tolist() == [2, 1]


# the table against scikit-learn and against leaving out one patient after another

def plain(targets, scores, threshold):
    "The three measures of one finding, straightforwardly."
    area = roc_auc_score(targets, scores) if 0 < targets.sum() < len(targets) else np.nan
    rate = lambda part, whole: part.sum()/whole.sum() if whole.sum() else np.nan
    return [area, rate(targets & (scores < threshold), targets), rate(~targets & (scores >= threshold), ~targets)]


@pytest.mark.parametrize('finding', ['Mass', 'Hernia'])
@pytest.mark.parametrize('column, group', [('sex', 'F'), ('view_position', 'AP'), ('age', '60–79'), ('follow_up', 'later image')])
def test_subgroups_equal_scikit_learn_and_the_jackknife(scored, subgroups, column, group, finding):
    "Estimates equal a plain calculation; the interval of a difference is as wide as leaving out one patient after another says."
    target, score, patients = scored.finding(finding)
    inside = (subgroup_columns(scored.table, column)[column] == group).to_numpy()
    def both(rows): return np.array([plain(target[side & rows], score[side & rows], .3) for side in (inside, ~inside)])
    point = both(np.ones(len(target), bool))
    left_out = np.array([both(patients != one) for one in np.unique(patients)])
    found = row(subgroups[subgroups['column'] == column], group, finding)
    for i, name in enumerate(SUBGROUP_MEASURES):
        np.testing.assert_allclose([found[name], found[f'{name}_difference']], [point[0, i], point[0, i] - point[1, i]], atol=1e-12)
        error = np.sqrt(((left_out[:, 0, i] - left_out[:, 1, i] - point[0, i] + point[1, i])**2).sum())
        half = (found[f'{name}_difference_high'] - found[f'{name}_difference_low'])/2
        assert 1.9*error < half < 2.7*error, name # Student's quantile of 8 patients or more; for the AUROC nearly the jackknife
        assert found[f'{name}_low'] < found[name] < found[f'{name}_high'] or found[name] in (0, 1)


def test_everyone_equals_the_score_table(scored, subgroups):
    scores = score_table(scored)
    for finding in FINDINGS:
        found = row(subgroups, EVERYONE, finding)
        np.testing.assert_allclose([found['auroc'], found['auroc_low'], found['auroc_high']],
                                   scores.loc[finding, ['auroc', 'auroc_low', 'auroc_high']].astype(float), atol=1e-3)
    macro = row(subgroups, EVERYONE, 'macro')
    np.testing.assert_allclose([macro['auroc'], macro['auroc_low'], macro['auroc_high']],
                               scores.loc['macro', ['auroc', 'auroc_low', 'auroc_high']].astype(float), atol=2e-3)
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
    assert subgroups.attrs['tests']['auroc, single findings'] == len(once) > 20
    plain_holm, worst = [], 0.
    for i, p in enumerate(once['auroc_p']):
        worst = max(worst, min(1, p*(len(once) - i)))
        plain_holm.append(worst)
    np.testing.assert_allclose(once['auroc_p_holm'], plain_holm)


def test_order_of_rows_does_not_matter(scored, subgroups):
    mixed = join(scored.predictions.sample(frac=1, random_state=1), scored.table.sample(frac=1, random_state=2))
    pd.testing.assert_frame_equal(subgroup_table(mixed, dict.fromkeys(FINDINGS, .3), disable=True), subgroups, rtol=1e-9)


# unknown labels and other findings

def test_unknown_labels_are_left_out_of_a_group_and_counted(scored):
    half = np.arange(len(scored)) % 2 == 0
    targets = scored.targets.copy()
    targets[half, 4] = np.nan
    frame = subgroup_table(replace(scored, targets=targets), dict.fromkeys(FINDINGS, .3), 'sex')
    female = (scored.table['sex'] == 'F').to_numpy()
    mass = row(frame, 'F', 'Mass')
    target, score = scored.targets[female & ~half, 4] == 1, scored.scores[female & ~half, 4]
    np.testing.assert_allclose([mass[name] for name in SUBGROUP_MEASURES], plain(target, score, .3), atol=1e-12)
    assert mass['unknown'] == (female & half).sum() and mass['positives'] == target.sum() and mass['images'] == female.sum()
    anything = row(frame, 'F', ANY) # with an unknown label and no positive one an image is neither
    assert anything['unknown'] == (female & half & ~(np.delete(scored.targets, 4, axis=1) == 1).any(axis=1)).sum()


def test_one_finding_is_enough():
    honest = known_probabilities(200, 2, findings=('Fracture',))
    table = honest.table.assign(sex=np.resize(['F', 'M', 'M'], len(honest)), view_position='AP', age=40., follow_up=np.resize([0, 1], len(honest)))
    frame = subgroup_table(replace(honest, table=table), {'Fracture': .1})
    assert frame['finding'].unique().tolist() == ['Fracture', ANY, 'macro']
    female = row(frame, 'F', 'macro')
    assert female['auroc'] == row(frame, 'F', 'Fracture')['auroc'] and np.isnan(female['auroc_p']) # a mean of one finding is that finding
    shortcuts = shortcut_table(None, replace(honest, table=table), {'follow-up': ('follow_up',)}, disable=True)
    assert shortcuts['finding'].unique().tolist() == ['Fracture', 'macro'] and shortcuts['auroc'].notna().all()
    assert plot_shortcuts(shortcuts, 'follow-up') is not None


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
    return table, subgroup_table(simulated(table), dict.fromkeys(FINDINGS, .3), ['sex'], smallest=5, disable=True)


def test_a_finding_that_a_group_lacks(thin):
    hernia = row(thin[1], 'F', 'Hernia')
    assert np.isnan(hernia['auroc']) and np.isnan(hernia['false_negative_rate']) and np.isfinite(hernia['false_positive_rate'])
    assert 'no positive image' in hernia['note'] and hernia['positives'] == 0 and hernia['small']
    other = row(thin[1], 'M', 'Hernia')
    assert np.isfinite(other['auroc_low']) and np.isnan(other['auroc_difference']) and 'no positive image in the rest' in other['note']


def test_a_finding_of_one_patient(thin):
    mass = row(thin[1], 'M', 'Mass')
    assert np.isfinite(mass['auroc']) and np.isnan(mass['auroc_low']) and np.isnan(mass['auroc_difference_low'])
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
    lacking = thin[1][thin[1]['auroc'].isna() & (thin[1]['finding'] != ANY)]
    assert len(lacking) and (lacking['note'] != '').all()


def test_one_group_has_no_rest(scored):
    frame = subgroup_table(replace(scored, table=scored.table.assign(site='only')), columns='site')
    assert frame.loc[frame['group'] == 'only', [f'{name}_difference' for name in SUBGROUP_MEASURES]].isna().all(axis=None)
    assert frame.loc[(frame['group'] == 'only') & (frame['finding'] == 'macro'), 'auroc'].notna().all()


def test_without_thresholds_and_with_one_missing(scored):
    without = subgroup_table(scored, columns='sex')
    assert without[['false_negative_rate', 'false_positive_rate']].isna().all(axis=None) and 'no thresholds' in subgroup_note(without)
    some = subgroup_table(scored, dict.fromkeys(FINDINGS, .3) | {'Hernia': np.nan}, 'sex')
    rates = some[some['finding'] == 'Hernia']
    assert rates['false_negative_rate'].isna().all() and rates['note'].str.contains('no threshold').all()
    assert some.loc[some['finding'].isin([ANY, 'macro']), 'false_negative_rate'].notna().all()


def test_nothing_missed_is_not_certainty(scored):
    "Thresholds of 0 flag everything: rates of 0 and 1, whose intervals have a width, and no difference that is sure."
    frame = subgroup_table(scored, dict.fromkeys(FINDINGS, 0.), 'sex')
    assert (frame['false_negative_rate'] == 0).all() and (frame['false_positive_rate'] == 1).all()
    assert (frame['false_negative_rate_high'] > .01).all() and (frame['false_positive_rate_low'] < .99).all()
    assert frame[['false_negative_rate_difference_low', 'false_positive_rate_difference_high', 'false_negative_rate_p']].isna().all(axis=None)


def test_no_event_in_a_group_is_no_proof_of_a_difference(table):
    "Nobody of a group is missed: the rest's variance alone must not make the difference look certain."
    scores = np.where(table[list(FINDINGS)], .9, .1)
    female = (table['sex'] == 'F').to_numpy()
    scores[~female & (np.arange(len(table)) % 3 == 0)] = .1
    frame = subgroup_table(with_scores(table, scores), dict.fromkeys(FINDINGS, .5), 'sex')
    for finding in ('Mass', ANY):
        women, men = row(frame, 'F', finding), row(frame, 'M', finding)
        assert women['false_negative_rate'] == 0 < women['false_negative_rate_high'] and np.isfinite(men['false_negative_rate_low']) and men['false_negative_rate'] > 0
        for side in (women, men):
            assert side['false_negative_rate_difference'] != 0
            assert np.isnan([side['false_negative_rate_difference_low'], side['false_negative_rate_p'], side['false_negative_rate_p_holm']]).all()


def test_chosen_thresholds_are_taken_and_remember_their_patients(scored):
    valid = make_table(150, seed=77).assign(part='valid', Hernia=False)
    valid = simulated(valid.assign(patient_id=valid['patient_id'] + 5000, image='v' + valid['image']))
    chosen = choose_thresholds(valid)
    assert np.isnan(threshold_array(chosen, FINDINGS)[-1]) and np.isfinite(threshold_array(chosen, FINDINGS)[:-1]).all()
    frame = subgroup_table(scored, chosen, 'sex')
    assert frame.loc[frame['finding'] == 'Hernia', 'note'].str.contains('no threshold').all()
    with pytest.raises(LeakageError, match='used to choose these thresholds'): subgroup_table(valid, chosen, 'sex')


def test_constant_predictions(table):
    frame = subgroup_table(with_scores(table, np.full((len(table), 14), .5)), columns='sex')
    assert (frame.loc[frame['finding'] != ANY, 'auroc'] == .5).all() and frame['auroc_p'].isna().all()


# does it find what is there, and only that?

def test_a_planted_difference_is_found():
    big = make_table(600, seed=8)
    frame = subgroup_table(simulated(big, np.where(big['view_position'] == 'AP', .6, 1.8)), columns=['view_position', 'sex'], disable=True)
    assert row(frame, 'AP', 'macro')['auroc_p_holm'] < 1e-6 and row(frame, 'F', 'macro')['auroc_p_holm'] > .05


def test_the_interval_of_a_difference_holds_the_truth_as_often_as_it_says():
    "Groups by lot differ in nothing: of 60 lots in four sets about 95 % of the intervals hold 0, and 5 % of p are below 0.05."
    inside, below = [], []
    for seed in range(4):
        base = simulated(make_table(200, seed=20 + seed), seed=seed)
        for lot in range(15):
            yes = np.random.default_rng(lot).random(base.patients.max() + 1) < .5
            frame = subgroup_table(replace(base, table=base.table.assign(lot=yes[base.patients])), dict.fromkeys(FINDINGS, .2), 'lot', disable=True)
            rows = frame[(frame['group'] == 'yes') & ~frame['small']]
            for name in SUBGROUP_MEASURES:
                found = rows[rows[f'{name}_difference_low'].notna()]
                inside += ((found[f'{name}_difference_low'] <= 0) & (found[f'{name}_difference_high'] >= 0)).tolist()
                below += (rows[f'{name}_p'].dropna() < .05).tolist()
    assert len(inside) > 1500 and .93 <= np.mean(inside) <= .98 and np.mean(below) < .07


def test_underdiagnosis_by_hand():
    table = make_table(4, seed=0).iloc[:4].assign(sex=['F', 'F', 'M', 'M'], image=list('abcd'), patient_id=[1, 2, 3, 4])
    table[list(FINDINGS)] = False
    table.loc[table.index[[0, 1, 2]], 'Mass'] = True
    scores = np.zeros((4, 14))
    scores[0, 0] = .9 # flagged, though for another finding
    frame = subgroup_table(with_scores(table, scores), dict.fromkeys(FINDINGS, .5), 'sex')
    assert row(frame, 'F', ANY)['false_negative_rate'] == .5 and row(frame, 'M', ANY)['false_negative_rate'] == 1
    assert row(frame, 'F', 'Mass')['false_negative_rate'] == 1 and row(frame, 'M', ANY)['false_positive_rate'] == 0


# texts and figures

def test_readable_and_note(subgroups):
    text = readable_subgroups(subgroups, 'Mass', 'false_negative_rate', digits=2)
    assert list(text.columns)[-4:] == ['false-negative rate', 'minus the rest', 'p (Holm)', 'small'] and text.index.is_unique
    assert 'Holm' in subgroup_note(subgroups) and 'intervals over patients (Wilson; differences: Student)' in subgroup_note(subgroups)
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


def test_a_forest_plot_draws_every_group_and_grows(scored):
    sites = [f'hospital {i}' for i in range(18)]
    many = subgroup_table(replace(scored, table=scored.table.assign(site=np.resize(sites, len(scored)))), columns='site')
    figure = plot_subgroups(many, ANY, 'auroc')
    labels = [text.get_text() for text in figure.axes[0].get_yticklabels()]
    assert len(labels) == 19 and all(any(f'site {site} (' in label for label in labels) for site in sites)
    assert figure.get_figheight() > plot_subgroups(subgroup_table(scored, columns='sex')).get_figheight() + 4


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
    frame = shortcut_table(tilted[0], simulated(tilted[1]), with_model=False, disable=True).set_index(['source', 'finding'])
    view = tilted[1]['view_position'] == 'AP'
    assert frame.loc[('view', 'Mass'), 'auroc'] == pytest.approx(roc_auc_score(tilted[1]['Mass'], view), abs=1e-12)
    assert frame.loc[('age', 'Hernia'), 'auroc'] > .7 and frame.loc[('view', 'Hernia'), 'auroc_low'] < .5
    assert abs(frame.loc[('view and age', 'Nodule'), 'auroc'] - .5) < .08
    assert abs(frame.loc[('follow-up', 'Mass'), 'auroc'] - .5) < .08 # the follow-up number alone does not know the view
    assert set(frame.index.get_level_values(0)) == set(SHORTCUTS) and frame['model_minus'].isna().all()


def test_the_model_beside_the_shortcuts(tilted):
    fit, scored = tilted[0], simulated(tilted[1], seed=6)
    frame = shortcut_table(fit, scored, {'view': ('view_position',)}, disable=True)
    assert frame['source'].unique().tolist() == [MODEL, f'{MODEL}, PA only', f'{MODEL}, AP only', 'view']
    (target, score, _), ap = scored.finding('Mass'), (tilted[1]['view_position'] == 'AP').to_numpy()
    mass = frame[frame['finding'] == 'Mass'].set_index('source')
    for source, rows in ((MODEL, ap | True), (f'{MODEL}, AP only', ap), (f'{MODEL}, PA only', ~ap)):
        assert mass.loc[source, 'auroc'] == pytest.approx(roc_auc_score(target[rows], score[rows]), abs=1e-12)
        assert mass.loc[source, 'images'] == rows.sum()
    assert mass.loc['view', 'model_minus'] == pytest.approx(mass.loc[MODEL, 'auroc'] - mass.loc['view', 'auroc'])
    assert mass.loc['view', 'model_minus_low'] < mass.loc['view', 'model_minus'] < mass.loc['view', 'model_minus_high']
    np.testing.assert_allclose(mass.loc[MODEL, 'auroc_low'], score_table(scored).loc['Mass', 'auroc_low'], atol=1e-3)


def test_folds_keep_patients_apart(tilted):
    "A model that could remember patients would find labels that are the patient's own; five folds must not."
    table = tilted[1].copy()
    own = np.random.default_rng(0).random(table['patient_id'].max() + 1) < .5
    table['Mass'] = own[table['patient_id']]
    guesses = shortcut_predictions(None, simulated(table.assign(number=table['patient_id'])), ('number',))
    assert abs(roc_auc_score(*guesses.finding('Mass')[:2]) - .5) < .12
    with pytest.raises(UserError, match='too few for five folds'): shortcut_predictions(None, simulated(make_table(4)))


def test_shared_patients_are_refused(tilted):
    with pytest.raises(LeakageError, match='500 patients .* were used to choose the shortcuts'): shortcut_predictions(tilted[0], simulated(tilted[0]))


def test_shortcuts_are_deterministic_and_take_missing_values(tilted):
    fit, table = tilted
    scored = simulated(table.assign(age=table['age'].where(table.index % 2 > 0), sex=table['sex'].where(table.index % 3 > 0, None)))
    first, second = (shortcut_predictions(fit, scored, ('age', 'sex')) for _ in range(2))
    np.testing.assert_array_equal(first.scores, second.scores)
    assert np.isfinite(first.scores).all() and (first.targets == scored.targets).all()


def test_a_shortcut_that_nobody_knows_is_left_out_and_named(tilted):
    fit, table = tilted
    scored = simulated(table.assign(sex=None, age=np.nan).drop(columns='follow_up'))
    frame = shortcut_table(fit, scored, disable=True)
    assert [source for source in frame['source'].unique() if not source.startswith(MODEL)] == ['view']
    assert frame.attrs['left_out']['age'] == 'age is unknown for all images' and frame.attrs['left_out']['follow-up'] == 'follow_up is not in the table'
    assert 'Left out: age (age is unknown for all images)' in shortcut_note(frame)
    no_view = shortcut_table(None, simulated(table.assign(view_position=None)), {'view': ('view_position',)}, disable=True)
    assert no_view['source'].unique().tolist() == [MODEL]
    with pytest.raises(UserError, match='No shortcut can be tried: view'): shortcut_table(None, simulated(table.drop(columns='view_position')), {'view': ('view_position',)}, with_model=False)


def test_unknown_labels_teach_a_shortcut_nothing(tilted):
    fit, scored = tilted[0].astype({'Mass': float}), simulated(tilted[1])
    fit.loc[fit['view_position'] == 'AP', 'Mass'] = np.nan
    guess = shortcut_predictions(fit, scored, ('view_position',)).finding('Mass')[1]
    np.testing.assert_allclose(guess, fit['Mass'].mean(), atol=1e-6) # only PA images are known, so the view says nothing


def test_an_absent_finding_cannot_be_fitted(tilted):
    scored = simulated(tilted[1])
    assert (shortcut_predictions(tilted[0].assign(Edema=False), scored).scores[:, 9] == 0).all()
    frame = shortcut_table(tilted[0], simulated(tilted[1].assign(Edema=False)), {'view': ('view_position',)}, with_model=False)
    edema = frame[frame['finding'] == 'Edema'].squeeze()
    assert np.isnan(edema['auroc']) and edema['note'] == 'no positive image'
    assert frame[frame['finding'] == 'macro'].squeeze()['note'] == 'mean of 13 findings, without Edema'


def test_features_that_are_no_numbers(table):
    with pytest.raises(UserError, match='no column'): shortcut_features(table, ['scanner'])
    with pytest.raises(UserError, match='does not hold numbers'): shortcut_features(table, ['image'])
    assert shortcut_features(table, ['sex', 'Mass']).shape == (len(table), 2)


def test_shortcut_figure_and_note(tilted):
    frame = shortcut_table(tilted[0], simulated(tilted[1]), disable=True)
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
    scored = join(predictions, metadata[metadata['image'].isin(predictions['Image Index'])])
    frame = subgroup_table(scored, edges=(0, 18, 40, 60), columns=['view_position', 'sex', 'age'], smallest=2)
    macro = frame[frame['finding'] == 'macro'].set_index('group')['auroc'].round(3)
    expected = {EVERYONE: .838, 'PA': .834, 'AP': .819, 'M': .834, 'F': .837, '18–39': .845, '40–59': .836, '60+': .811}
    assert macro[list(expected)].to_dict() == expected


def test_importing_is_light():
    code = 'import sys, chestnb.evaluation.subgroups, chestnb.evaluation.shortcuts; print([m for m in ("torch", "sklearn", "matplotlib") if m in sys.modules])'
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == '[]'
