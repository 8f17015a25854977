"Predictions and labels joined: anyone's findings, unknown labels, names as others write them."
import numpy as np
import pandas as pd
import pytest

from chestnb.core.errors import ListedError, UserError
from chestnb.data.findings import FINDINGS, NO_FINDING
from chestnb.data.provenance import PHANTOM_PROVENANCE, Provenance
from chestnb.evaluation.metrics import auroc
from chestnb.evaluation.operating import threshold_table
from chestnb.evaluation.predictions import IMAGE, predictions_frame
from chestnb.evaluation.recognition import recognise_columns
from chestnb.evaluation.forest import plot_forest
from chestnb.evaluation.roc import plot_roc
from chestnb.evaluation.scored import PROTOCOLS, Scored, join, protocol_rows
from chestnb.evaluation.scores import readable_scores, score_note, score_table


def made_up(findings=FINDINGS, n_patients=40, per_patient=3, seed=0):
    "A table and predictions with some skill; images of a patient are alike."
    random, k = np.random.default_rng(seed), len(findings)
    patients = np.repeat(np.arange(n_patients), per_patient)
    truth = (random.random((n_patients, k)) < .25)[patients]
    scores = 1/(1 + np.exp(-(truth + random.normal(size=(n_patients, k))[patients] + .1*random.normal(size=truth.shape))))
    table = pd.DataFrame({'image': [f'{p + 1:08d}_{i % per_patient:03d}.png' for i, p in enumerate(patients)], 'patient_id': patients + 1})
    table[list(findings)] = truth
    table[NO_FINDING] = ~truth.any(axis=1)
    table.attrs['findings'] = tuple(findings)
    return table, predictions_frame(table['image'], scores, findings)


@pytest.fixture(scope='module')
def data(): return made_up()


# -- unknown labels

@pytest.mark.parametrize('unknown', [np.nan, -1, None])
def test_unknown_labels_are_neither_positive_nor_negative(data, unknown):
    "0.1 made NaN and -1 positive: Hernia's AUROC fell from .91 to .55."
    table, predictions = data
    hidden = np.random.default_rng(1).random(len(table)) < .4
    partly = table.assign(Hernia=table['Hernia'].astype(float).astype(object).mask(hidden, unknown))
    scored = join(predictions, partly)
    known = ~hidden
    row = score_table(scored).loc['Hernia']
    assert row['auroc'] == pytest.approx(auroc(table['Hernia'][known], predictions['prob_Hernia'][known]), abs=1e-12)
    assert (row['images'], row['unknown'], row['positives']) == (known.sum(), hidden.sum(), table['Hernia'][known].sum())
    assert scored.unknown == {'Hernia': hidden.sum()} and f'{hidden.sum()} of Hernia' in score_note(score_table(scored))
    assert score_table(scored).loc['Mass', 'auroc'] == score_table(join(predictions, table)).loc['Mass', 'auroc']


def test_a_finding_with_unknown_labels_is_scored_like_the_known_images_alone(data):
    table, predictions = data
    last = table['patient_id'] > 30
    partly = join(predictions, table.assign(**{f: table[f].astype(float).mask(last) for f in FINDINGS}))
    alone = join(predictions[~last], table[~last])
    for function in (score_table, lambda scored: threshold_table(scored, .4)):
        one, two = function(partly), function(alone)
        columns = [c for c in one.select_dtypes('number') if c not in ('images', 'unknown')]
        bounds = [c for c in columns if c.endswith(('_low', '_high'))]
        np.testing.assert_allclose(one.loc[list(FINDINGS), columns].drop(columns=bounds), two.loc[list(FINDINGS), columns].drop(columns=bounds), rtol=1e-12)
        np.testing.assert_allclose(one.loc[list(FINDINGS), bounds], two.loc[list(FINDINGS), bounds], rtol=.01)
    assert score_table(partly).loc['macro', 'auroc'] == pytest.approx(score_table(alone).loc['macro', 'auroc'], abs=1e-12)


def test_a_policy_must_be_named_to_decide_unknown_labels(data):
    table, predictions = data
    partly = table.assign(Mass=table['Mass'].astype(float).mask(table.index < 20))
    positives = {policy: (join(predictions, partly, unknown=policy).targets[:20, 4] == 1).sum() for policy in ('mask', 'negative', 'positive')}
    assert positives == {'mask': 0, 'negative': 0, 'positive': 20}
    assert join(predictions, partly, unknown='negative').unknown == {}
    with pytest.raises(UserError, match='unknown'): join(predictions, partly, unknown='guess')


def test_labels_that_are_none_are_refused_with_their_list(data):
    table, predictions = data
    with pytest.raises(ListedError, match=f'Mass of {table["image"][3]} is no label') as error:
        join(predictions, table.assign(Mass=table['Mass'].astype(float).where(table.index != 3, .5)))
    assert error.value.cases.values.tolist() == [[table['image'][3], 'Mass']]


# -- any number of findings

def test_one_finding_has_equal_means():
    "0.1 padded one finding with 13 empty ones: micro .980 beside macro .576."
    table, predictions = made_up(('Fracture',))
    scores = score_table(join(predictions, table))
    assert list(scores.index) == ['Fracture', 'macro', 'micro', 'weighted']
    for column in ('auroc', 'average_precision', 'prevalence', 'auroc_low', 'ap_high'):
        assert scores[column].to_numpy() == pytest.approx([scores[column].iloc[0]]*4, abs=.03 if 'low' in column or 'high' in column else 1e-12)
    assert plot_roc(join(predictions, table)).get_suptitle().startswith('Fracture: AUROC')


def test_findings_without_labels_do_not_lift_the_micro_mean(data):
    table, predictions = data
    empty = [f for f in FINDINGS if f != 'Mass']
    scored = join(predictions, table.assign(**{f: False for f in empty}))
    scores, operating = score_table(scored), threshold_table(scored, .5)
    assert scores.loc['micro', 'auroc'] == scores.loc['macro', 'auroc'] == scores.loc['Mass', 'auroc']
    assert scores.loc['micro', 'prevalence'] == scores.loc['Mass', 'prevalence']
    assert operating.loc['micro', 'specificity'] == operating.loc['Mass', 'specificity']


def test_other_findings_and_more_than_fourteen():
    names = tuple(f'Finding {i}' for i in range(20))
    scored = join(*made_up(names)[::-1])
    assert scored.findings == names and len(plot_roc(scored).axes[0].get_legend().get_texts()) == 9
    assert sum(line.get_color() == '0.78' for line in plot_roc(scored).axes[0].get_lines()) == 14
    assert len(plot_forest(score_table(scored)).axes[0].get_yticklabels()) == 21


def test_only_common_findings_are_scored_and_the_others_said(data):
    table, predictions = data
    scored = join(predictions.drop(columns='prob_Mass').assign(prob_Fracture=.5), table)
    assert 'Mass' not in scored.findings and len(scored.findings) == 13
    assert any('not predicted: Mass' in note for note in scored.notes)
    with pytest.raises(UserError, match='No finding is both predicted and labelled|No column of probabilities'):
        join(predictions[[IMAGE]].assign(prob_Fracture=.5), table)


# -- who

@pytest.mark.parametrize('nobody', [np.nan, None, pd.NA])
def test_unknown_patients_do_not_stop_the_scores_and_are_said(data, nobody):
    table, predictions = data
    scored = join(predictions, table.assign(patient_id=pd.Series([nobody]*len(table), dtype=object)))
    by_image = score_table(join(predictions, table), unit='image')
    scores = score_table(scored)
    pd.testing.assert_frame_equal(scores[['auroc_low', 'auroc_high', 'ap_low']], by_image[['auroc_low', 'auroc_high', 'ap_low']])
    assert scored.n_patients == 0 and 'unknown patients' in scored.note
    assert scores[['patients', 'positive_patients', 'patient_prevalence', 'patient_prevalence_low']].isna().all(axis=None)
    assert 'No patient is known: images were taken for independent' in score_note(scores) and scores.attrs['unit'] == 'image'


def test_some_unknown_patients_count_as_patients_of_their_own(data):
    table, predictions = data
    some = join(predictions, table.assign(patient_id=table['patient_id'].where(table.index >= 6)))
    own = join(predictions, table.assign(patient_id=table['patient_id'].where(table.index >= 6, 1000 + table.index)))
    np.testing.assert_allclose(score_table(some)[['auroc_low', 'ap_high']], score_table(own)[['auroc_low', 'ap_high']])
    assert some.n_patients == 38 and '6 images without a patient' in score_note(score_table(some))


def test_text_patients_are_patients(data):
    table, predictions = data
    named = join(predictions, table.assign(patient_id='P-' + table['patient_id'].astype(str)))
    np.testing.assert_allclose(score_table(named)['auroc_low'], score_table(join(predictions, table))['auroc_low'])


def test_a_table_without_sex_view_and_age_is_scored(data):
    table, predictions = data
    assert not {'sex', 'age', 'view_position', 'follow_up'} & set(table)
    assert score_table(join(predictions, table))['auroc'].notna().all()


def test_synthetic_is_stated_and_never_inferred(data):
    "0.1 called a hospital whose patient numbers start at 90,000,000 synthetic."
    table, predictions = data
    numbers = table.assign(patient_id=table['patient_id'] + 90_000_000)
    assert join(predictions, numbers).note == '120 real images of 40 patients' and 'Synthetic' not in score_note(score_table(join(predictions, numbers)))
    stated = table.copy()
    stated.attrs['provenance'] = PHANTOM_PROVENANCE
    assert join(predictions, stated).note == '120 synthetic images of 40 patients'
    assert 'Synthetic' in score_note(score_table(join(predictions, stated))) and 'synthetic' in plot_roc(join(predictions, stated)).get_suptitle()
    stated.attrs['provenance'] = Provenance('Hospital')
    assert 'Hospital' in plot_roc(join(predictions, stated)).get_suptitle()


# -- names of images

@pytest.mark.parametrize('change', [lambda n: '/data/nih/images/' + n, lambda n: 'C:\\nih\\' + n, lambda n: n.str.replace('.png', '.jpg'),
                                    lambda n: n.str.replace('.png', ''), lambda n: 'x/' + n.str.replace('.png', '.JPEG'), lambda n: ' ' + n + ' '])
def test_folders_and_endings_of_names_do_not_matter(data, change):
    table, predictions = data
    scored = join(predictions.assign(**{IMAGE: change(predictions[IMAGE])}).sample(frac=1, random_state=0), table)
    np.testing.assert_array_equal(scored.scores, predictions.iloc[:, 1:])
    assert (scored.images == table['image']).all()


def test_names_of_an_imported_set_match_the_paths_of_its_source(data):
    "CheXpert's paths end alike for every study; chestnb_import joins their parts."
    table, predictions = data
    paths = [f'CheXpert-v1.0/train/patient{i:05}/study1/view1_frontal.jpg' for i in range(len(table))]
    imported = table.assign(image=[f'patient{i:05}_study1_view1_frontal.jpg' for i in range(len(table))])
    scored = join(predictions.assign(**{IMAGE: paths}), imported)
    np.testing.assert_array_equal(scored.scores, predictions.iloc[:, 1:])
    assert any('compared with two folders' in note for note in scored.notes)


def test_names_that_are_ambiguous_without_their_folder_stay_apart(data):
    table, predictions = data
    two = predictions.assign(**{IMAGE: ['a/1.png', 'b/1.png'] + predictions[IMAGE][2:].tolist()})
    with pytest.raises(UserError): join(two, table)
    scored = join(two, table.assign(image=two[IMAGE]))
    assert scored.images[:2].tolist() == ['a/1.png', 'b/1.png']


def test_predictions_of_other_images_show_both_kinds_of_names(data):
    "0.1: The protocol standard leaves no image to score."
    table, predictions = data
    other = predictions.assign(**{IMAGE: [f'img{i}.jpg' for i in range(len(table))]})
    for partial in (False, True):
        with pytest.raises(ListedError, match=r'None of the 120 predicted images.*120 real images of 40 patients.*img0.jpg.*endings: .jpg.*00000001_000.png'
                                              r'.*endings: .png.*--data') as error: join(other, table, partial=partial)
        assert len(error.value.cases) == 120


def test_a_larger_table_must_be_said_to_be_larger(data):
    table, predictions = data
    with pytest.raises(ListedError, match='have no prediction'): join(predictions[:30], table)
    assert len(join(predictions[:30], table, partial=True)) == 30
    with pytest.raises(ListedError, match='not in the table'): join(predictions, table[:30], partial=True)


# -- no probabilities

def test_labels_and_decisions_are_refused_with_their_cause(data):
    table, predictions = data
    labels = predictions_frame(table['image'], table[list(FINDINGS)].to_numpy(float))
    with pytest.raises(UserError, match='equal the labels'): join(labels, table)
    with pytest.raises(UserError, match='equal the labels'): join(labels, table.assign(Mass=table['Mass'].astype(float).mask(table.index < 5)))
    decisions = predictions_frame(table['image'], predictions.iloc[:, 1:] > .5)
    with pytest.raises(UserError, match='these are decisions'): join(decisions, table)
    assert isinstance(join(predictions_frame(table['image'], np.zeros((120, 14))), table), Scored), 'a model that always says no'


# -- protocols

def test_protocol_without_no_finding_keeps_certain_findings_only():
    table = pd.DataFrame({'Edema': [1, 0, np.nan, np.nan, 0], 'Mass': [0, 0, np.nan, 1, 0], NO_FINDING: [0, 1, np.nan, np.nan, 0]})
    assert protocol_rows(table, 'without_no_finding', ('Edema', 'Mass')).tolist() == [True, False, False, True, True]
    assert protocol_rows(table.drop(columns=NO_FINDING), 'without_no_finding', ('Edema', 'Mass')).tolist() == [True, False, False, True, False]
    assert PROTOCOLS == ('standard', 'without_no_finding')


# -- Scored itself

def test_rows_finding_and_other_scores(data):
    table, predictions = data
    scored = join(predictions, table, part='test', name='mine')
    few = scored.rows(table['patient_id'] == 3)
    assert len(few) == 3 and few.n_patients == 1 and (few.table['patient_id'] == 3).all() and few.name == 'mine' and few.part == 'test'
    np.testing.assert_array_equal(scored.rows([5, 2]).images, table['image'][[5, 2]])
    target, score, patients = scored.finding('Mass')
    assert target.dtype == bool and (target == table['Mass']).all() and (score == predictions['prob_Mass']).all() and (patients == table['patient_id']).all()
    half = scored.with_scores(scored.scores/2, 'half')
    assert half.name == 'half' and (half.scores == scored.scores/2).all() and (half.targets == scored.targets).all()
    with pytest.raises(UserError, match='outside 0 to 1'): scored.with_scores(scored.scores*3)
    with pytest.raises(UserError, match='shape'): scored.with_scores(scored.scores[1:])
    with pytest.raises(UserError, match="'Tumour' is not among"): scored.finding('Tumour')
    with pytest.raises(AttributeError): scored.name = 'other'
    pd.testing.assert_frame_equal(scored.predictions, predictions)
    assert 'mine: 120 real images of 40 patients, 14 findings, test' in repr(scored)


def test_columns_for_one_finding_twice_are_refused():
    with pytest.raises(UserError, match='Two columns for one finding'): recognise_columns([IMAGE, 'prob_Mass', 'Mass_prob'])
    with pytest.raises(UserError, match='Two columns with the name of the image'): recognise_columns(['image', 'Image', 'Mass'])
    assert recognise_columns([IMAGE, 'Effusion', 'Pleural Effusion'], ('Effusion', 'Pleural Effusion'))['Pleural Effusion'] == 'prob_Pleural Effusion'


def test_readable_scores_show_what_is_missing(data):
    table, predictions = data
    text = readable_scores(score_table(join(predictions, table.assign(Hernia=np.nan))))
    assert text.loc['Hernia', ['prevalence', 'AUROC', 'average precision']].tolist() == ['no label', 'no score', 'no score']
