"""Lesson 01: values on hand-made tables, and the known counts of the real NIH metadata."""
import math
import subprocess
import sys

import matplotlib
matplotlib.use('Agg')
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

import chestnb.data.checks as data_checks
import chestnb.data.cooccurrence as data_cooccurrence
import chestnb.data.eda as data_eda
import chestnb.data.followup as data_followup
import chestnb.data.prevalence as data_prevalence
import chestnb.data.shift as data_shift
from chestnb.data.findings import CLASSES, FINDINGS
from chestnb.data.nih import is_official_test, nih_metadata
from chestnb.core.errors import UserError


def make_table(*rows):
    table = pd.DataFrame(rows, columns=['patient_id', 'follow_up', 'labels'])
    for name in CLASSES: table[name] = [name in labels.split('|') for labels in table['labels']]
    table['view_position'], table['sex'], table['age'] = 'PA', 'F', 50.
    return table.drop(columns='labels')


@pytest.fixture
def toy():
    return make_table((1, 0, 'Mass'), (1, 1, 'Mass|Effusion'), (1, 2, 'No Finding'),
                      (2, 0, 'Effusion'), (3, 0, 'No Finding'), (3, 1, 'No Finding'))


@pytest.fixture(scope='module')
def nih(): return nih_metadata()


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close('all')


def test_finding_table_counts_images_and_patients(toy):
    counts = data_eda.finding_table(toy)
    assert list(counts.index[:1]) == ['No Finding'] and len(counts) == 15 and counts.index.is_unique
    assert counts.loc['Mass', ['images', 'patients']].tolist() == [2, 1]
    assert counts.loc['Effusion', ['images', 'patients']].tolist() == [2, 2]
    assert counts.loc['Mass', 'image_share'] == pytest.approx(2 / 6)
    assert counts.loc['Mass', 'patient_share'] == pytest.approx(1 / 3)
    assert counts.loc['Mass', 'negatives_per_positive'] == pytest.approx(2)
    assert np.isnan(counts.loc['Hernia', 'negatives_per_positive'])


def test_finding_table_of_the_real_metadata(nih):
    counts = data_eda.finding_table(nih)
    known = {'No Finding': 60361, 'Infiltration': 19894, 'Effusion': 13317, 'Atelectasis': 11559, 'Nodule': 6331,
             'Mass': 5782, 'Pneumothorax': 5302, 'Consolidation': 4667, 'Pleural_Thickening': 3385,
             'Cardiomegaly': 2776, 'Emphysema': 2516, 'Edema': 2303, 'Fibrosis': 1686, 'Pneumonia': 1431, 'Hernia': 227}
    assert counts['images'].to_dict() == known
    assert counts.loc['Hernia', 'patients'] == 134 and counts.loc['Pneumothorax', 'patients'] == 1487


def test_imbalance(toy, nih):
    assert data_eda.imbalance_ratio(toy, ('Mass', 'Effusion')) == 1
    assert math.isinf(data_eda.imbalance_ratio(toy))
    assert data_eda.imbalance_ratio(nih) == pytest.approx(19894 / 227)
    assert data_eda.imbalance_ratio(nih, CLASSES) == pytest.approx(60361 / 227)
    assert data_eda.batches_without(toy, 2)['Mass'] == pytest.approx((4 / 6) ** 2)
    assert data_eda.batches_without(nih, 32)['Hernia'] == pytest.approx(.937, abs=1e-3)


def test_labels_per_image(toy, nih):
    assert data_cooccurrence.labels_per_image(toy)['images'].to_dict() == {0: 3, 1: 2, 2: 1}
    known = {0: 60361, 1: 91324 - 60361, 2: 14306, 3: 4856, 4: 1247, 5: 301, 6: 67, 7: 16, 8: 1, 9: 2}
    per_image = data_cooccurrence.labels_per_image(nih)
    assert per_image['images'].to_dict() == known
    assert per_image['share'].sum() == pytest.approx(1)


def test_cooccurrence(toy, nih):
    pair = data_cooccurrence.cooccurrence(toy).set_index(['finding', 'other']).loc[('Effusion', 'Mass')]
    assert pair['observed'] == 1 and pair['expected'] == pytest.approx(4 / 6) and pair['ratio'] == pytest.approx(1.5)
    pairs = data_cooccurrence.cooccurrence(nih)
    assert len(pairs) == 91
    real = pairs.set_index(['finding', 'other'])
    assert real.loc[('Pneumonia', 'Edema'), 'observed'] == 340
    assert real.loc[('Pneumonia', 'Edema'), 'ratio'] == pytest.approx(11.57, abs=.01)
    for row in pairs.sample(5, random_state=0).itertuples():
        assert row.observed == (nih[row.finding] & nih[row.other]).sum()
        assert row.expected == pytest.approx(nih[row.finding].mean() * nih[row.other].sum())


def test_cooccurrence_within_a_column_removes_its_effect():
    "Two findings that are independent in each view but frequent in the same one"
    rng = np.random.default_rng(0)
    table = make_table(*[(i, 0, 'No Finding') for i in range(40_000)])
    table['view_position'] = np.where(np.arange(len(table)) % 2, 'AP', 'PA')
    chance = np.where(table['view_position'] == 'AP', .3, .03)
    for name in ('Edema', 'Effusion'): table[name] = rng.random(len(table)) < chance
    ratio = lambda within: data_cooccurrence.cooccurrence(table, within).set_index(['finding', 'other']).loc[('Effusion', 'Edema'), 'ratio']
    assert ratio(None) > 1.5
    assert ratio('view_position') == pytest.approx(1, abs=.1)


def test_wilson_interval():
    low, high = data_prevalence.wilson_interval(.5, 100)
    assert (low, high) == pytest.approx((.4038, .5962), abs=1e-4)
    assert data_prevalence.wilson_interval(0., 100) == pytest.approx((0, .0370), abs=1e-4)
    assert data_prevalence.wilson_interval(1., 100)[1] == pytest.approx(1)
    lows, highs = data_prevalence.wilson_interval(np.array([.1, .2]), np.array([50, 500]))
    assert (lows < [.1, .2]).all() and (highs > [.1, .2]).all()


def test_clustered_interval_ignores_copies_and_equals_wilson_for_single_images():
    present, patients = np.array([1, 0, 0, 0] * 25), np.arange(100)
    once = data_prevalence.prevalence_interval(present, patients)
    copied = data_prevalence.prevalence_interval(np.tile(present, 4), np.tile(patients, 4))
    assert once[:3] == pytest.approx(copied[:3], abs=1e-9)
    assert once[1:3] == pytest.approx(data_prevalence.wilson_interval(.25, 100), abs=2e-3)
    share, low, high, effective = data_prevalence.prevalence_interval(np.zeros(50), np.repeat([1, 2, 3, 4, 5], 10))
    assert share == low == 0 and 0 < high < 1 and effective == 5


def test_clustered_interval_covers():
    "Patients with their own rate: the 95 % interval holds the true rate in about 95 % of the samples"
    rng, hits, naive = np.random.default_rng(1), 0, 0
    for _ in range(400):
        patients = np.repeat(np.arange(150), rng.integers(1, 12, 150))
        rate = rng.beta(.4, 1.6, 150)[patients]              # mean .2
        present = rng.random(len(patients)) < rate
        share, low, high, _ = data_prevalence.prevalence_interval(present, patients)
        hits += low <= .2 <= high
        low, high = data_prevalence.wilson_interval(share, len(patients))
        naive += low <= .2 <= high
    assert .91 <= hits / 400 <= .98
    assert naive < hits - 40


def test_prevalence_by(toy, nih):
    toy['view_position'] = ['PA', 'AP', 'AP', 'PA', 'PA', 'PA']
    by_view = data_prevalence.prevalence_by(toy, 'view_position').set_index(['view_position', 'finding'])
    assert by_view.loc[('AP', 'Mass'), ['images', 'positives', 'prevalence']].tolist() == [2, 1, .5]
    assert ((by_view['low'] <= by_view['prevalence']) & (by_view['prevalence'] <= by_view['high'])).all()
    real = data_prevalence.prevalence_by(nih, 'view_position').set_index(['view_position', 'finding'])['prevalence']
    assert real[('AP', 'Edema')] == pytest.approx(.0452, abs=1e-4)
    assert real[('PA', 'Edema')] == pytest.approx(.0041, abs=1e-4)


def test_prevalence_by_a_series_and_unknown_group(toy):
    toy.loc[5, 'age'] = np.nan
    by_age = data_prevalence.prevalence_by(toy, data_prevalence.age_band(toy['age']), findings=('Mass',))
    assert by_age['age_band'].tolist() == ['40–59', 'unknown']
    assert by_age['images'].sum() == len(toy)


def test_age_band():
    ages = pd.Series([0, 17, 18, 39, 40, 59.5, 60, 95])
    assert data_prevalence.age_band(ages).tolist() == ['0–17', '0–17', '18–39', '18–39', '40–59', '40–59', '60+', '60+']
    assert data_prevalence.age_band(ages).cat.ordered
    with pytest.raises(UserError, match='increasing'): data_prevalence.age_band(ages, (0, 40, 18))
    with pytest.raises(UserError, match='youngest age is -3'): data_prevalence.age_band(pd.Series([-3.]))


def test_images_per_patient(toy, nih):
    assert data_followup.images_per_patient(toy).to_dict() == {1: 3, 3: 2, 2: 1}
    per_patient = data_followup.images_per_patient(nih)
    assert (len(per_patient), per_patient.max(), (per_patient == 1).sum()) == (30805, 184, 17503)
    assert per_patient.mean() == pytest.approx(3.64, abs=.01)


def test_consecutive_images_do_not_depend_on_row_order(toy, nih):
    before, after = data_followup.consecutive_images(toy.sample(frac=1, random_state=3))
    assert list(zip(before['patient_id'], before['follow_up'], after['follow_up'])) == [(1, 0, 1), (1, 1, 2), (3, 0, 1)]
    assert len(data_followup.consecutive_images(nih)[0]) == 112120 - 30805
    alone = make_table((1, 0, 'Mass'), (2, 0, 'Mass'))
    assert [len(part) for part in data_followup.consecutive_images(alone)] == [0, 0]
    assert data_followup.persistence(alone)['persistence'].isna().all()


def test_persistence(toy, nih):
    result = data_followup.persistence(toy)
    assert result.loc['Mass', 'persistence'] == .5 and result.loc['Effusion', 'persistence'] == 0
    assert result.loc['Effusion', ['appearance', 'new_images']].tolist() == [.5, 1]
    assert np.isnan(result.loc['Hernia', 'persistence'])
    real = data_followup.persistence(nih)
    assert real.index[0] == 'Pneumothorax' and real.index[-1] == 'Pneumonia'
    assert real.loc['Pneumothorax', 'persistence'] == pytest.approx(.5557, abs=1e-4)
    assert real.loc['Fibrosis', 'persistence'] == pytest.approx(.1967, abs=1e-4)
    assert (real['persistence_pairs'] + real['appearance_pairs'] == 112120 - 30805).all()


def test_after_first_label(toy, nih):
    mass = data_followup.after_first_label(toy).loc['Mass']
    assert mass.tolist() == [2, .5, .5]
    fibrosis = data_followup.after_first_label(nih).loc['Fibrosis']
    assert fibrosis['later_images'] == 6511 and fibrosis['labelled_again'] == pytest.approx(.0654, abs=1e-4)


def test_split_shift(nih):
    in_test = is_official_test(nih)
    shift = data_shift.split_shift(nih, in_test)
    assert shift.loc['Pneumothorax', ['train', 'test']].tolist() == pytest.approx([.0305, .1041], abs=1e-4)
    assert (shift.drop('No Finding')['ratio'] > 1).all() and shift.loc['No Finding', 'ratio'] < 1
    population = data_shift.population_shift(nih, in_test)
    assert population.loc['images'].tolist() == [86524, 25596]
    assert population.loc['patients'].tolist() == [28008, 2797]
    assert population.loc['images per patient'].tolist() == pytest.approx([3.09, 9.15], abs=.01)
    assert population.loc['AP views, %'].tolist() == pytest.approx([35, 57], abs=.7)


@pytest.mark.parametrize('value', [True, False])
def test_split_shift_needs_both_parts(toy, value):
    with pytest.raises(UserError, match='both parts'): data_shift.split_shift(toy, pd.Series(value, toy.index))


def test_all_negative_accuracy(toy, nih):
    assert data_eda.all_negative_accuracy(toy) == pytest.approx(1 - 4 / (6 * 14))
    assert data_eda.all_negative_accuracy(nih) == pytest.approx(.9483, abs=1e-4)


@pytest.mark.parametrize('call', [
    data_eda.finding_table, data_cooccurrence.labels_per_image, data_cooccurrence.cooccurrence, data_followup.images_per_patient, data_followup.persistence,
    data_followup.after_first_label, data_eda.imbalance_ratio, data_eda.batches_without, data_eda.all_negative_accuracy,
    lambda table: data_prevalence.prevalence_by(table, 'sex'), lambda table: data_shift.split_shift(table, pd.Series(dtype=bool))])
def test_bad_tables_are_named(call, toy):
    with pytest.raises(UserError, match='lacks the column'): call(pd.DataFrame({'image': ['a.png']}))
    with pytest.raises(UserError, match='0 rows'): call(toy[:0])


@pytest.fixture
def nameless(toy): return toy.assign(patient_id=np.nan)


@pytest.mark.filterwarnings('error')
@pytest.mark.parametrize('call', [
    data_checks.check_patients, data_followup.images_per_patient, data_followup.consecutive_images, data_followup.persistence, data_followup.after_first_label,
    lambda table: data_prevalence.prevalence_by(table, 'sex'), lambda table: data_followup.plot_images_per_patient(data_followup.images_per_patient(table))])
def test_unknown_patients_are_refused(call, nameless, toy):
    with pytest.raises(UserError, match=r'patients of 6 of the 6 images are unknown.*`labels_per_image`'): call(nameless)
    one_unknown = toy.assign(patient_id=[1., 1., np.nan, 2., 3., 3.])
    with pytest.raises(UserError, match='patients of 1 of the 6 images are unknown'): call(one_unknown)


@pytest.mark.filterwarnings('error')
def test_unknown_patients_are_not_counted_as_none(nameless, toy):
    counts, plain = data_eda.finding_table(nameless), data_eda.finding_table(toy)
    of_patients = ['patients', 'images_per_patient', 'patient_share']
    assert counts[of_patients].isna().all().all() and plain['patients'].notna().all()
    pd.testing.assert_frame_equal(counts.drop(columns=of_patients), plain.drop(columns=of_patients))
    assert data_eda.finding_table(toy.assign(patient_id=[1., 1., np.nan, 2., 3., 3.]))['patients'].isna().all()
    labels = lambda counts: [text.get_text() for text in data_eda.plot_finding_counts(counts).get_legend().get_texts()]
    assert labels(counts) == ['images', 'patients: unknown'] and labels(plain) == ['images', 'patients']
    population = data_shift.population_shift(nameless, pd.Series([True, False] * 3))
    assert population.loc['images'].tolist() == [3, 3] and population.loc[['patients', 'images per patient']].isna().all().all()
    with pytest.raises(UserError, match='patient_id is empty for 6 of 6'): data_prevalence.prevalence_interval(toy['Mass'], nameless['patient_id'])
    assert data_cooccurrence.labels_per_image(nameless)['images'].sum() == 6 and len(data_cooccurrence.cooccurrence(nameless)) == 91


def test_every_figure_draws_and_names_its_source(toy, nih):
    toy_and_real = [toy, nih.iloc[:3000]]
    for table in toy_and_real:
        half = pd.Series(np.arange(len(table)) % 2 == 0, table.index)
        axes = [data_eda.plot_finding_counts(data_eda.finding_table(table), 'synthetic'),
                data_cooccurrence.plot_labels_per_image(data_cooccurrence.labels_per_image(table), 'synthetic'),
                data_cooccurrence.plot_cooccurrence(data_cooccurrence.cooccurrence(table), 'synthetic'),
                data_prevalence.plot_prevalence(data_prevalence.prevalence_by(table, 'sex'), 'By sex', 'synthetic'),
                data_followup.plot_images_per_patient(data_followup.images_per_patient(table), 'synthetic'),
                data_followup.plot_persistence(data_followup.persistence(table), 'synthetic'),
                data_shift.plot_split_shift(data_shift.split_shift(table, half), 'synthetic')]
        for ax in axes:
            assert ax.get_title().endswith('(synthetic)')
            assert ax.get_xlabel() or ax.get_xticklabels()
            ax.figure.canvas.draw()
        plt.close('all')


def test_a_given_axes_is_used(toy):
    _, ax = plt.subplots()
    assert data_eda.plot_finding_counts(data_eda.finding_table(toy), ax=ax) is ax
    assert ax.get_title() and '(' not in ax.get_title()


def test_import_needs_no_torch():
    code = "import sys, chestnb.data.eda; assert not {'torch', 'fastai', 'torchxrayvision'} & set(sys.modules)"
    subprocess.run([sys.executable, '-c', code], check=True)


# ---- what is not known

@pytest.fixture
def gaps():
    "Six images of three patients: one label, one view and one sex are unknown."
    table = make_table((1, 0, 'Mass'), (1, 1, 'Mass|Effusion'), (1, 2, 'No Finding'), (2, 0, 'Effusion'), (3, 0, 'No Finding'), (3, 1, 'No Finding'))
    table['Mass'] = [1, 1, np.nan, 0, 0, 0]
    table['view_position'] = ['PA', 'AP', None, 'PA', 'PA', None]
    return table


def test_unknown_labels_are_left_out_of_every_count(gaps):
    counts = data_eda.finding_table(gaps)
    assert counts.loc['Mass', ['images', 'patients', 'image_share', 'negatives_per_positive']].tolist() == [2, 1, .4, 1.5]
    assert data_cooccurrence.labels_per_image(gaps)['images'].to_dict() == {0: 2, 1: 2, 2: 1}
    assert data_eda.batches_without(gaps, 1)['Mass'] == pytest.approx(.6)
    assert data_eda.all_negative_accuracy(gaps) == pytest.approx(1 - 4 / (6 * 14 - 1))
    pair = data_cooccurrence.cooccurrence(gaps).set_index(['finding', 'other']).loc[('Effusion', 'Mass')]
    assert (pair['observed'], pair['expected']) == (1, pytest.approx(2 * 2 / 5))
    shift = data_shift.split_shift(gaps, pd.Series([True, False] * 3))
    assert shift.loc['Mass', ['train', 'test']].tolist() == [pytest.approx(1 / 3), .5]


def test_unknown_views_are_a_group_of_their_own_or_left_out(gaps):
    by_view = data_prevalence.prevalence_by(gaps, 'view_position', ('Mass',)).set_index('view_position')
    assert by_view['images'].to_dict() == {'AP': 1, 'PA': 3, 'unknown': 1}
    population = data_shift.population_shift(gaps, pd.Series([False] * 3 + [True] * 3))
    assert population.loc['AP views, %'].tolist() == [50, 0]
    pairs = data_cooccurrence.cooccurrence(gaps.assign(Mass=1.), within='view_position').set_index(['finding', 'other'])
    assert pairs.loc[('Effusion', 'Mass'), 'observed'] == 2          # images without a view are counted, too


@pytest.mark.filterwarnings('error')
def test_sex_and_view_unknown_for_all_are_not_zero_percent(toy):
    nobody = toy.assign(sex=pd.Series([np.nan] * 6, dtype='str'), view_position=pd.Series([np.nan] * 6, dtype='str'), age=np.nan)
    population = data_shift.population_shift(nobody, pd.Series([True, False] * 3))
    assert population.loc[['AP views, %', 'men, %', 'median age, years']].isna().all().all()
    with pytest.raises(UserError, match='sex is unknown for all 6 images'): data_prevalence.prevalence_by(nobody, 'sex')


def test_persistence_does_not_order_arbitrarily(toy):
    with pytest.raises(UserError, match='order of the images is unknown for all'):
        data_followup.persistence(toy[toy.patient_id != 2].assign(follow_up=np.nan))
    partly = toy.assign(follow_up=[0, 1, np.nan, 0, 0, 1])               # patient 1 has a gap
    result = data_followup.persistence(partly)
    assert result.attrs['left_out'] == 3 and result.loc['Mass', 'persistence_pairs'] == 0
    for order in (partly, partly[::-1], partly.sample(frac=1, random_state=1)):
        pd.testing.assert_frame_equal(data_followup.persistence(order), result)
    twice = toy.assign(follow_up=[0, 1, 1, 0, 0, 1])                     # patient 1 has two images with one number
    pd.testing.assert_frame_equal(data_followup.persistence(twice), result)
    assert '3 images' in data_followup.plot_persistence(data_followup.persistence(pd.concat([partly, make_table((4, 0, 'Mass'), (4, 1, 'Mass'))]))).get_title()


def test_own_findings_and_a_single_one(toy):
    own = toy.rename(columns={'Mass': 'Fracture'})[['patient_id', 'follow_up', 'Fracture', 'Effusion', 'No Finding']]
    own.attrs['findings'] = ('Fracture', 'Effusion')
    assert list(data_eda.finding_table(own).index) == ['No Finding', 'Fracture', 'Effusion']
    assert data_cooccurrence.cooccurrence(own)[['finding', 'other', 'observed']].values.tolist() == [['Fracture', 'Effusion', 1]]
    assert data_cooccurrence.plot_cooccurrence(data_cooccurrence.cooccurrence(own), minimum_expected=0).get_title().startswith('Fracture and Effusion')
    assert data_followup.persistence(own).loc['Fracture', 'persistence'] == .5
    single = own.drop(columns='Effusion')
    single.attrs['findings'] = ('Fracture',)
    assert data_eda.imbalance_ratio(single) == 1 and len(data_cooccurrence.cooccurrence(single)) == 0
    with pytest.raises(UserError, match='1 finding, expected two'): data_cooccurrence.plot_cooccurrence(data_cooccurrence.cooccurrence(single))
