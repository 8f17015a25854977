"Predictions, scores, intervals, comparison and the ROC figure."
import os
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from chestnb.data.findings import CLASSES, FINDINGS, FIRST_SYNTHETIC_PATIENT, NO_FINDING
from chestnb.evaluation.predictions import (COLUMNS, IMAGE, ListedError, data_note, prediction_arrays, predictions_frame, protocol_rows, read_predictions, write_predictions)
from chestnb.evaluation.comparison import check_same_labels, compare_models, compare_per_finding
from chestnb.evaluation.resampling import interval, patient_bootstrap, resample_weights
from chestnb.evaluation.roc import plot_roc
from chestnb.evaluation.scores import prevalence_baseline, readable_scores, score_note, score_table
from chestnb.evaluation.results import save_evaluation
from chestnb.evaluation.operating import threshold_table
from chestnb.core.errors import UserError


def made_up(n_patients=40, per_patient=3, seed=0, prevalence=.25, first=1):
    "A table and predictions with some skill; images of a patient are alike."
    random = np.random.default_rng(seed)
    patients = np.repeat(np.arange(n_patients), per_patient)
    truth = (random.random((n_patients, 14)) < prevalence)[patients]
    habit = random.normal(size=(n_patients, 14))[patients]
    scores = 1/(1 + np.exp(-(truth + habit + .1*random.normal(size=truth.shape))))
    table = pd.DataFrame({'image': [f'{p + first:08d}_{i % per_patient:03d}.png' for i, p in enumerate(patients)],
                          'patient_id': patients + first})
    table[list(FINDINGS)] = truth
    table[NO_FINDING] = ~truth.any(axis=1)
    return table, predictions_frame(table['image'], scores)


@pytest.fixture(scope='module')
def data(): return made_up()


def changed(predictions, **columns): return predictions.assign(**columns)


# -- predictions

def test_round_trip_is_exact(data, tmp_path):
    _, predictions = data
    written = write_predictions(predictions, tmp_path/'sub'/'predictions.csv')
    pd.testing.assert_frame_equal(read_predictions(written), predictions)
    assert tuple(pd.read_csv(written).columns) == COLUMNS
    assert [path.name for path in written.parent.iterdir()] == ['predictions.csv']


def test_float32_keeps_its_value(tmp_path):
    scores = np.random.default_rng(0).random((20, 14), dtype=np.float32)
    frame = predictions_frame([f'{i}.png' for i in range(20)], scores)
    back = read_predictions(write_predictions(frame, tmp_path/'p.csv'))
    np.testing.assert_array_equal(back[list(COLUMNS[1:])].to_numpy().astype(np.float32), scores)


def test_arrays_follow_the_table_whatever_the_order(data):
    table, predictions = data
    targets, scores, patients = prediction_arrays(predictions.sample(frac=1, random_state=3), table)
    np.testing.assert_array_equal(scores, predictions[list(COLUMNS[1:])])
    np.testing.assert_array_equal(targets, table[list(FINDINGS)])
    np.testing.assert_array_equal(patients, table['patient_id'])


def test_missing_extra_and_duplicated_images(data):
    table, predictions = data
    name = table['image'].iloc[5]
    with pytest.raises(UserError, match=f'1 of the table.*120 images have no prediction: {name}'):
        score_table(predictions.drop(index=5), table)
    with pytest.raises(UserError, match=f'1 predicted images are not in the table: {name}'):
        score_table(predictions, table.drop(index=5))
    with pytest.raises(UserError, match=f'more than one row for {name}'):
        score_table(pd.concat([predictions, predictions.iloc[[5]]]), table)
    with pytest.raises(UserError, match=f'The table: more than one row for {name}'):
        score_table(predictions, pd.concat([table, table.iloc[[5]]]))


@pytest.mark.parametrize('value, says', [(np.nan, 'not a number'), ('high', 'not a number'), (1.5, 'outside 0 to 1.*sigmoid'),
                                         (-.01, 'outside 0 to 1'), (np.inf, 'outside 0 to 1')])
def test_bad_values_name_image_and_finding(data, tmp_path, value, says):
    table, predictions = data
    column = predictions['prob_Edema'].astype(object)
    column.iloc[7] = value
    bad = changed(predictions, prob_Edema=column)
    for call in (lambda: score_table(bad, table), lambda: write_predictions(bad, tmp_path/'p.csv'),
                 lambda: plot_roc(bad, table), lambda: compare_models({'bad': bad}, table)):
        with pytest.raises(UserError, match=f'prob_Edema of {predictions[IMAGE].iloc[7]}.*{says}'): call()
    assert not (tmp_path/'p.csv').exists()


def test_only_the_first_bad_values_are_listed(data):
    table, predictions = data
    with pytest.raises(UserError, match=r'\(120 values in all\)') as error:
        score_table(changed(predictions, prob_Hernia=-3.), table)
    assert len(str(error.value)) < 400


def test_missing_columns_and_files(data, tmp_path):
    _, predictions = data
    predictions.drop(columns='prob_Mass').to_csv(tmp_path/'p.csv', index=False)
    with pytest.raises(UserError, match='p.csv: no column prob_Mass'): read_predictions(tmp_path/'p.csv')
    with pytest.raises(UserError, match='no such file'): read_predictions(tmp_path/'none.csv')
    (tmp_path/'empty.csv').write_text('')
    with pytest.raises(UserError, match='empty.csv: cannot be read'): read_predictions(tmp_path/'empty.csv')
    (tmp_path/'header.csv').write_text(','.join(COLUMNS) + '\n')
    with pytest.raises(UserError, match='no rows'): read_predictions(tmp_path/'header.csv')
    (tmp_path/'image.csv').write_bytes(bytes(range(128, 256))*10)
    with pytest.raises(UserError, match='image.csv'): read_predictions(tmp_path/'image.csv')
    with pytest.raises(UserError, match='shape'): predictions_frame(['a.png'], np.zeros((1, 13)))


def test_other_columns_and_column_order_do_not_matter(data):
    table, predictions = data
    other = predictions[list(COLUMNS)[::-1]].assign(**{'prob_No Finding': 7.})
    pd.testing.assert_frame_equal(score_table(other, table, 20), score_table(predictions, table, 20))


# -- scores

def test_scores_equal_scikit_learn(data):
    table, predictions = data
    targets, scores, _ = prediction_arrays(predictions, table)
    result = score_table(predictions, table, n_resamples=0)
    assert list(result.index) == [*FINDINGS, 'macro', 'micro', 'weighted']
    np.testing.assert_allclose(result['auroc'].iloc[:14], roc_auc_score(targets, scores, average=None), atol=1e-12)
    np.testing.assert_allclose(result['average_precision'].iloc[:14], average_precision_score(targets, scores, average=None), atol=1e-12)
    for kind in ('macro', 'micro', 'weighted'):
        assert result.loc[kind, 'auroc'] == pytest.approx(roc_auc_score(targets, scores, average=kind), abs=1e-12)
        assert result.loc[kind, 'average_precision'] == pytest.approx(average_precision_score(targets, scores, average=kind), abs=1e-12)
    assert result[['auroc_low', 'auroc_high', 'ap_low', 'ap_high']].isna().all().all()
    assert 'resamples' not in score_note(result)


def test_counts(data):
    table, predictions = data
    row = score_table(predictions, table, n_resamples=0).loc['Edema']
    assert row['images'] == 120 and row['patients'] == 40
    assert row['positives'] == table['Edema'].sum() and row['prevalence'] == table['Edema'].mean()
    assert row['positive_patients'] == table.loc[table['Edema'], 'patient_id'].nunique()
    assert row['patient_prevalence'] == row['positive_patients']/40


def test_bootstrap_equals_the_plain_loop(data):
    table, predictions = data
    targets, scores, patients = prediction_arrays(predictions, table)
    fast = patient_bootstrap(targets, scores, patients, n_resamples=40, seed=5)
    number, weights = resample_weights(patients, 40, seed=5)
    for i, column in enumerate(weights.T):
        rows = np.concatenate([np.flatnonzero(number == patient).repeat(times) for patient, times in enumerate(column)])
        t, s = targets[rows], scores[rows]
        for name, function in (('auroc', roc_auc_score), ('average_precision', average_precision_score)):
            np.testing.assert_allclose(fast[name][i, :14], function(t, s, average=None), atol=1e-12)
            for at, mean in enumerate(('macro', 'micro', 'weighted'), start=14):
                assert fast[name][i, at] == pytest.approx(function(t, s, average=mean), abs=1e-12)


def test_patients_are_drawn_whole(data):
    table, _ = data
    number, weights = resample_weights(table['patient_id'].to_numpy(), 50)
    assert weights.shape == (40, 50) and (weights.sum(axis=0) == 40).all()
    assert len(np.unique(number)) == 40
    _, by_image = resample_weights(table['patient_id'].to_numpy(), 50, unit='image')
    assert by_image.shape == (120, 50)


def test_same_seed_same_intervals_in_any_order(data):
    table, predictions = data
    first = score_table(predictions, table, 50, seed=2)
    again = score_table(predictions.sample(frac=1, random_state=0), table.sample(frac=1, random_state=1), 50, seed=2)
    pd.testing.assert_frame_equal(first, again, check_exact=False, rtol=1e-12)
    assert not np.allclose(first['auroc_low'], score_table(predictions, table, 50, seed=3)['auroc_low'])


def width(scores): return scores['auroc_high'] - scores['auroc_low']


def test_image_level_intervals_are_too_narrow_on_clustered_images():
    table, predictions = made_up(n_patients=60, per_patient=6)
    patients, images = (width(score_table(predictions, table, 400, unit=unit)) for unit in ('patient', 'image'))
    assert (patients > images).all()
    assert (patients/images).mean() > 1.7


def test_copies_of_images_do_not_narrow_patient_intervals(data):
    table, predictions = data
    copies = table.assign(image='copy_' + table['image']), predictions.assign(**{IMAGE: 'copy_' + predictions[IMAGE]})
    doubled = [pd.concat([one, two], ignore_index=True) for one, two in zip((table, predictions), copies)]
    once, twice = score_table(predictions, table, 100), score_table(doubled[1], doubled[0], 100)
    np.testing.assert_allclose(once[['auroc_low', 'auroc_high']], twice[['auroc_low', 'auroc_high']], atol=1e-12)


def test_interval_covers_the_truth():
    "In repeated studies the 95 % interval holds the true AUROC in most; image-level fails often."
    hits = {'patient': 0, 'image': 0}
    for study in range(25):
        table, predictions = made_up(n_patients=60, per_patient=5, seed=100 + study, prevalence=.4)
        for unit in hits:
            row = score_table(predictions, table, 200, unit=unit).iloc[:14]
            hits[unit] += ((row['auroc_low'] < .7592) & (.7592 < row['auroc_high'])).sum()
    assert hits['patient']/350 > .90
    assert hits['image']/350 < .80


def test_interval_leaves_out_and_counts_nan():
    low, high, used = interval(np.array([[1., np.nan], [2., np.nan], [np.nan, np.nan], [3., np.nan]]))
    assert used.tolist() == [3, 0]
    assert low[0] == pytest.approx(1.05) and high[0] == pytest.approx(2.95)
    assert np.isnan(low[1]) and np.isnan(high[1])


# -- classes with nothing to measure

@pytest.fixture(scope='module')
def sparse():
    "Hernia absent, Edema in all images, Mass in one patient only, Fibrosis in two."
    table, predictions = made_up()
    table = table.assign(Hernia=False, Edema=True, Mass=table['patient_id'] == 3, Fibrosis=table['patient_id'].isin([4, 5]))
    return table, predictions


@pytest.mark.filterwarnings('error')
def test_absent_class_is_nan_and_named(sparse, tmp_path):
    table, predictions = sparse
    scores = save_evaluation(predictions, table, tmp_path, n_resamples=200, disable=True)
    for finding in ('Hernia', 'Edema'):
        assert scores.loc[finding, ['auroc', 'auroc_low', 'auroc_high', 'average_precision', 'ap_low']].isna().all()
    assert scores.attrs['absent'] == ['Edema', 'Hernia']
    assert scores.loc['macro', 'auroc'] == pytest.approx(scores['auroc'].iloc[:14].mean())
    assert 'Edema, Hernia' in score_note(scores)
    assert readable_scores(scores).loc['Hernia', 'AUROC'] == 'no score'
    labels = [text.get_text() for text in plot_roc(predictions, table).axes[0].get_legend().get_texts()]
    assert 'Hernia: no score' in labels and 'Edema: no score' in labels


def test_one_positive_patient_has_no_interval(sparse):
    table, predictions = sparse
    scores = score_table(predictions, table, 100)
    assert np.isfinite(scores.loc['Mass', 'auroc']) and scores.loc['Mass', ['auroc_low', 'auroc_high']].isna().all()
    assert scores.loc['macro', ['auroc_low', 'auroc_high']].isna().all(), 'a constant finding would make the macro interval too narrow'
    assert scores.loc['weighted', ['auroc_low', 'ap_high']].isna().all() and np.isfinite(scores.loc['micro', 'auroc_low'])
    assert scores.attrs['no_interval'] == ['Mass', 'macro', 'weighted'] and 'one patient: Mass, macro, weighted' in score_note(scores)
    compared = compare_models({'one': predictions, 'other': predictions}, table, 100)
    assert compared[['auroc_low', 'difference_low']].isna().all().all() and 'one patient: macro' in score_note(compared)


def test_resamples_without_positives_are_counted(sparse):
    table, predictions = sparse
    table = table.assign(Mass=table['patient_id'].isin([3, 6])) # of one patient only, it would take the macro interval away
    scores = score_table(predictions, table, 400)
    assert 250 < scores.loc['Fibrosis', 'resamples'] < 400
    assert scores.loc['Effusion', 'resamples'] == 400
    assert scores.loc['macro', 'resamples'] < scores.loc['Fibrosis', 'resamples']
    assert f'{scores.loc["macro", "resamples"]:,} remain' in score_note(scores)


@pytest.mark.filterwarnings('error')
def test_nothing_to_score_at_all(data):
    table, predictions = data
    table = table.assign(**{finding: False for finding in FINDINGS}, **{NO_FINDING: True})
    scores = score_table(predictions, table, 10)
    assert scores['auroc'].isna().all() and len(scores.attrs['absent']) == 14
    assert 'No finding has' in plot_roc(predictions, table).get_suptitle()
    with pytest.raises(UserError, match='leaves no image'): score_table(predictions, table, protocol='without_no_finding')


def test_constant_predictions(data):
    table, predictions = data
    scores = score_table(prevalence_baseline(table, table['image']), table, 50)
    assert (scores['auroc'].iloc[:15] == .5).all()
    assert (scores['auroc_low'].iloc[:14] == .5).all() and (scores['auroc_high'].iloc[:14] == .5).all()
    np.testing.assert_allclose(scores['average_precision'].iloc[:14], scores['prevalence'].iloc[:14])


# -- protocols

def test_protocol_counts(data):
    table, predictions = data
    table = table.assign(**{finding: table[finding] & (table['patient_id'] > 20) for finding in FINDINGS})
    table[NO_FINDING] = ~table[list(FINDINGS)].any(axis=1)
    standard, original = (score_table(predictions, table, 20, protocol=p) for p in ('standard', 'without_no_finding'))
    assert standard['images'].iloc[0] == 120
    assert original['images'].iloc[0] == 120 - table[NO_FINDING].sum() == protocol_rows(table, 'without_no_finding').sum()
    assert (standard['positives'] == original['positives']).all()
    assert (standard['prevalence'] < original['prevalence']).all()
    assert 'without_no_finding' in score_note(original)
    assert 'No Finding images left out' in plot_roc(predictions, table, protocol='without_no_finding').get_suptitle()
    with pytest.raises(UserError, match="'original'"): score_table(predictions, table, protocol='original')


@pytest.mark.parametrize('arguments, says', [(dict(unit='study'), "'study'"), (dict(n_resamples=-1), '-1')])
def test_unknown_options(data, arguments, says):
    with pytest.raises(UserError, match=says): score_table(data[1], data[0], **arguments)


# -- comparison

def test_comparison_is_paired(data):
    table, predictions = data
    random = np.random.default_rng(0)
    worse = predictions_frame(predictions[IMAGE], (predictions[list(COLUMNS[1:])] + random.normal(0, .05, (120, 14))).clip(0, 1))
    baseline = prevalence_baseline(table, table['image'])
    result = compare_models({'model': predictions, 'worse': worse, 'baseline': baseline}, table, 200)
    assert list(result.index) == ['model', 'worse', 'baseline']
    assert result.loc['model', 'difference'] == result.loc['model', 'difference_high'] == 0
    np.testing.assert_allclose(result['difference'], result['auroc'] - result['auroc'].iloc[0])
    assert result.loc['baseline', 'auroc'] == .5 and result.loc['baseline', 'difference_high'] < 0
    unpaired = result.loc['worse', 'auroc_high'] - result.loc['worse', 'auroc_low']
    assert result.loc['worse', 'difference_high'] - result.loc['worse', 'difference_low'] < unpaired
    alone = score_table(worse, table, 200).loc['macro']
    np.testing.assert_allclose(result.loc['worse', ['auroc', 'auroc_low', 'ap_high']].astype(float),
                               alone[['auroc', 'auroc_low', 'ap_high']].astype(float))
    assert readable_scores(result)['AUROC difference'].iloc[0] == 'reference'
    assert '200 resamples of patients' in score_note(result)
    one = compare_models({'model': predictions, 'worse': worse}, table, 50, finding='Edema')
    assert one.loc['model', 'auroc'] == pytest.approx(score_table(predictions, table, 0).loc['Edema', 'auroc'])


def test_different_images_are_refused(data):
    table, predictions = data
    with pytest.raises(UserError, match=f"'a' and 'b' did not predict the same images: 1 .*{predictions[IMAGE].iloc[0]}"):
        compare_models({'a': predictions, 'b': predictions.drop(index=0)}, table)
    with pytest.raises(UserError, match='^b: '): compare_models({'a': predictions, 'b': predictions.assign(prob_Mass=3)}, table)
    with pytest.raises(UserError, match='No models'): compare_models({}, table)
    with pytest.raises(UserError, match="'Tumour'"): compare_models({'a': predictions}, table, finding='Tumour')


# -- figure and files

def test_roc_figure(data):
    table, predictions = data
    ax = plot_roc(predictions, table, note='a test').axes[0]
    labels = [text.get_text() for text in ax.get_legend().get_texts()]
    values = [float(label.split()[-2]) for label in labels[2:]]
    assert len(labels) == 16 and labels[0].startswith('macro mean') and labels[1].startswith('micro mean')
    assert values == sorted(values, reverse=True)
    looks = {(line.get_color(), line.get_linestyle(), str(line._dash_pattern)) for line in ax.get_lines()}
    assert len(looks) == 17
    assert ax.get_xlabel() and ax.get_ylabel()


def test_synthetic_is_said():
    table, predictions = made_up(first=FIRST_SYNTHETIC_PATIENT)
    assert data_note(table) == '120 synthetic images of 40 patients'
    assert 'synthetic' in plot_roc(predictions, table).get_suptitle()
    assert 'Synthetic' in score_note(score_table(predictions, table, 0))


def test_saved_evaluation(data, tmp_path):
    table, predictions = data
    scores = save_evaluation(predictions, table, tmp_path/'run', note='fusion', n_resamples=30, disable=True)
    assert sorted(path.name for path in (tmp_path/'run').iterdir()) == ['metrics.csv', 'metrics.json', 'roc.png']
    saved = pd.read_csv(tmp_path/'run'/'metrics.csv').set_index('finding')
    np.testing.assert_allclose(saved['auroc'], scores['auroc'])
    assert (saved['resampled'] == 'patients').all() and (saved['resamples'] <= 30).all()
    from PIL import Image
    with Image.open(tmp_path/'run'/'roc.png') as image: assert image.width > 600


def test_bad_input_leaves_no_files(data, tmp_path):
    table, predictions = data
    with pytest.raises(UserError): save_evaluation(predictions.assign(prob_Mass=2), table, tmp_path/'run')
    assert not (tmp_path/'run').exists()


def contents(folder): return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize('what, says', [
    (dict(predictions=made_up(seed=1)[1]), 'metrics.csv holds the scores of other predictions. '),
    (dict(table=made_up(seed=1)[0]), 'scores of other labels. '), (dict(n_resamples=20), r'other n_resamples \(30 there, 20 asked for\)'),
    (dict(seed=5), 'other seed'), (dict(protocol='without_no_finding'), r'other protocol \(standard there')])
def test_other_scores_are_not_overwritten(data, tmp_path, what, says):
    given = dict(zip(('table', 'predictions'), data), n_resamples=30, disable=True)
    save_evaluation(**given, out=tmp_path)
    before = contents(tmp_path)
    with pytest.raises(UserError, match=says) as error: save_evaluation(**{**given, **what}, out=tmp_path)
    assert str(tmp_path/'metrics.csv') in str(error.value) and '--overwrite' in str(error.value) and contents(tmp_path) == before
    save_evaluation(**{**given, **what}, out=tmp_path, overwrite=True)
    assert set(contents(tmp_path)) == set(before) and contents(tmp_path) != before


def test_the_same_scores_may_be_written_again(data, tmp_path):
    table, predictions = data
    save_evaluation(predictions, table, tmp_path/'run', n_resamples=30, disable=True)
    before = contents(tmp_path/'run')
    again = read_predictions(write_predictions(predictions.sample(frac=1, random_state=0), tmp_path/'p.csv'))
    save_evaluation(again, table.astype({'patient_id': object, 'image': object}), tmp_path/'run', n_resamples=30, disable=True)
    assert contents(tmp_path/'run') == before


@pytest.mark.parametrize('name, text', [('metrics.csv', 'mine'), ('roc.png', ''), ('metrics.json', '{}'), ('metrics.json', '{"identity": 3}'),
                                        ('metrics.json', '[1]'), ('metrics.json', '{"made"')])
def test_files_of_unknown_origin_are_left_alone(data, tmp_path, name, text):
    (tmp_path/name).write_text(text)
    with pytest.raises(UserError, match=f'{name} exists, and nothing beside it says.*--overwrite'):
        save_evaluation(*reversed(data), tmp_path, n_resamples=0, disable=True)
    assert contents(tmp_path) == {name: text.encode()}


@pytest.mark.parametrize('step', ['write_csv', 'write_json', 'save_figure', '2nd move', '3rd move'])
def test_an_evaluation_is_whole_or_the_old_one(data, tmp_path, monkeypatch, step):
    "Whatever fails, the three files that lie there belong together"
    import chestnb.evaluation.results as module
    table, predictions = data
    save_evaluation(predictions, table, tmp_path/'old', n_resamples=10, disable=True)
    before, moves, plain = contents(tmp_path/'old'), [], os.replace
    def full(*given, **named): raise OSError(28, 'No space left on device')
    def move(source, target):
        if Path(source).parent.name == 'new' and Path(source).name == Path(target).name: moves.append(target)
        return full() if moves[-1:] == [target] and len(moves) == int(step[0]) else plain(source, target)
    if 'move' in step: monkeypatch.setattr(os, 'replace', move)
    else: monkeypatch.setattr(module, step, full)
    for folder in ('old', 'fresh'):
        moves.clear()
        with pytest.raises(OSError, match='No space'):
            save_evaluation(predictions, table, tmp_path/folder, n_resamples=20, disable=True, overwrite=True)
    assert contents(tmp_path/'old') == before and contents(tmp_path/'fresh') == {}


def test_import_is_light():
    code = ('import sys, chestnb.evaluation.results; heavy = {"torch", "fastai", "torchxrayvision", "matplotlib.pyplot", "sklearn"} & set(sys.modules);'
            'assert not heavy, heavy')
    subprocess.run([sys.executable, '-c', code], check=True)


# -- real

def test_published_predictions(shared_nih):
    from chestnb.data.nih import nih_metadata
    predictions = read_predictions(shared_nih/'chexnet_predictions.csv')
    metadata = nih_metadata()
    table = metadata[metadata['image'].isin(predictions[IMAGE])]
    scores = score_table(predictions, table, 300, disable=True)
    assert scores['images'].iloc[0] == 22_433 and scores['patients'].iloc[0] == 6_187
    assert f'{scores.loc["macro", "auroc"]:.4f}' == '0.8383'
    assert scores.loc['macro', 'auroc_low'] == pytest.approx(.8312, abs=.002)
    assert scores.loc['macro', 'auroc_high'] == pytest.approx(.8425, abs=.003)
    images = score_table(predictions, table, 300, unit='image', disable=True)
    assert (width(scores)/width(images)).loc['Pneumothorax'] > 1.5


# -- prevalence, lists in errors

def test_prevalence_intervals_equal_the_plain_loop(data):
    table, predictions = data
    scores = score_table(predictions, table, 200, seed=1)
    number, weights = resample_weights(table['patient_id'].to_numpy(), 200, seed=1)
    shares, patient_shares = [], []
    for column in weights.T:
        images = np.arange(120).repeat(column[number])
        drawn = pd.concat([table[number == patient].assign(patient=i) for i, patient in enumerate(np.arange(40).repeat(column))])
        shares.append(table['Edema'].to_numpy()[images].mean())
        patient_shares.append(drawn.groupby('patient')['Edema'].any().mean())
    for name, values in (('prevalence', shares), ('patient_prevalence', patient_shares)):
        np.testing.assert_allclose(scores.loc['Edema', [f'{name}_low', f'{name}_high']].astype(float), np.percentile(values, [2.5, 97.5]), atol=1e-12)
    assert (scores['prevalence_low'] < scores['prevalence']).all() and (scores['prevalence'] < scores['prevalence_high']).all()
    by_image = score_table(predictions, table, 200, unit='image')
    assert by_image['patient_prevalence_low'].isna().all() and by_image['prevalence_low'].notna().all()


def test_prevalence_of_the_means_is_what_a_blind_model_gets(data):
    table, predictions = data
    scores = score_table(prevalence_baseline(table, table['image']), table, 0)
    for mean in ('macro', 'weighted', 'micro'): assert scores.loc[mean, 'auroc'] == pytest.approx(.5) or mean == 'micro'
    for mean in ('macro', 'weighted'): assert scores.loc[mean, 'average_precision'] == pytest.approx(scores.loc[mean, 'prevalence'])


def cases(call):
    "The list that an error carries, as rows."
    with pytest.raises(ListedError) as error: call()
    assert isinstance(error.value, UserError)
    return error.value.cases


def test_errors_carry_the_whole_list(data, tmp_path):
    table, predictions = data
    names = predictions[IMAGE]
    bad = predictions.assign(prob_Mass=predictions['prob_Mass'].where(predictions.index >= 30))
    listed = cases(lambda: score_table(bad, table))
    assert listed['image'].tolist() == names[:30].tolist() and set(listed['column']) == {'prob_Mass'}
    assert len(cases(lambda: score_table(changed(predictions, prob_Mass=2., prob_Edema=-1.), table))) == 240
    assert cases(lambda: score_table(predictions[17:], table))['image'].tolist() == names[:17].tolist()
    assert cases(lambda: score_table(predictions, table[17:]))['image'].tolist() == names[:17].tolist()
    twice = cases(lambda: score_table(pd.concat([predictions, predictions[:9], predictions[:2]]), table))
    assert twice['image'].tolist() == names[:9].tolist() and twice['rows'].tolist() == [3, 3] + [2]*7
    assert len(cases(lambda: score_table(predictions, pd.concat([table, table[:5]])))) == 5


# -- thresholds

THRESHOLDS = {finding: .3 + .02*i for i, finding in enumerate(FINDINGS)}


def test_threshold_table_equals_scikit_learn(data):
    from sklearn.metrics import brier_score_loss, f1_score, precision_score, recall_score
    table, predictions = data
    frame = threshold_table(predictions, table, THRESHOLDS, 0)
    assert list(frame.index) == [*FINDINGS, 'macro', 'micro', 'weighted'] and frame.index.name == 'finding'
    each = []
    for finding, cut in THRESHOLDS.items():
        t, s = table[finding].to_numpy(bool), predictions[f'prob_{finding}'].to_numpy()
        m = s >= cut
        each.append([recall_score(t, m), recall_score(~t, ~m), precision_score(t, m), precision_score(~t, ~m), f1_score(t, m), brier_score_loss(t, s)])
    each, values = np.array(each), frame[['sensitivity', 'specificity', 'ppv', 'npv', 'f1', 'brier']]
    np.testing.assert_allclose(values[:14], each, rtol=0, atol=1e-12)
    np.testing.assert_allclose(values.loc['macro'], each.mean(axis=0), rtol=0, atol=1e-12)
    np.testing.assert_allclose(values.loc['weighted'], np.average(each, axis=0, weights=table[list(FINDINGS)].sum()), rtol=0, atol=1e-12)
    targets, scores, _ = prediction_arrays(predictions, table)
    t, m = targets.ravel(), (scores >= list(THRESHOLDS.values())).ravel()
    micro = [recall_score(t, m), recall_score(~t, ~m), precision_score(t, m), precision_score(~t, ~m), f1_score(t, m), ((targets - scores)**2).mean()]
    np.testing.assert_allclose(values.loc['micro'], micro, rtol=0, atol=1e-12)
    assert frame['threshold'][:14].tolist() == list(THRESHOLDS.values()) and frame['threshold'][14:].isna().all()
    assert frame['sensitivity_low'].isna().all() and (frame['resamples'] == 0).all() and frame.attrs['no_interval'] == []


def test_threshold_intervals(data):
    table, predictions = data
    frame = threshold_table(predictions, table, pd.Series(THRESHOLDS)[::-1], 300, seed=3)
    for name in ('sensitivity', 'specificity', 'ppv', 'npv', 'f1', 'brier'):
        assert (frame[f'{name}_low'] <= frame[name]).all() and (frame[name] <= frame[f'{name}_high']).all()
    number, weights = resample_weights(table['patient_id'].to_numpy(), 300, seed=3)
    t, s = table['Edema'].to_numpy(bool), predictions['prob_Edema'].to_numpy()
    loop = []
    for column in weights.T:
        rows = np.arange(120).repeat(column[number])
        if t[rows].any(): loop.append((s[rows][t[rows]] >= THRESHOLDS['Edema']).mean())
    np.testing.assert_allclose(frame.loc['Edema', ['sensitivity_low', 'sensitivity_high']].astype(float), np.percentile(loop, [2.5, 97.5]), atol=1e-12)
    assert 290 < len(loop) < 300 and frame.loc['Edema', 'resamples'] <= len(loop), 'resamples without a positive image are left out'
    by_image = threshold_table(predictions, table, THRESHOLDS, 300, unit='image')
    assert ((frame['brier_high'] - frame['brier_low']) > (by_image['brier_high'] - by_image['brier_low'])).mean() > .9
    assert '300 resamples of patients' in score_note(frame)
    pd.testing.assert_frame_equal(frame, threshold_table(predictions, table, THRESHOLDS, 300, seed=3))
    one = threshold_table(predictions, table, .5, 0)
    assert (one['threshold'][:14] == .5).all()


def test_thresholds_where_nothing_can_be_said(sparse):
    table, predictions = sparse
    frame = threshold_table(predictions, table, {**THRESHOLDS, 'Nodule': 1.}, 50)
    assert frame.loc['Hernia', ['sensitivity', 'ppv', 'f1']].isna().all() and frame.loc['Hernia', ['specificity', 'npv', 'brier']].notna().all()
    assert frame.loc['Edema', ['specificity', 'npv']].isna().all() and frame.loc['Edema', ['sensitivity', 'ppv']].notna().all()
    assert np.isnan(frame.loc['Nodule', 'ppv']) and frame.loc['Nodule', 'sensitivity'] == 0 == frame.loc['Nodule', 'f1']
    assert np.isnan(frame.loc['macro', 'ppv']) and np.isnan(frame.loc['weighted', 'ppv']) and np.isfinite(frame.loc['micro', 'ppv'])
    assert frame.attrs['undefined']['ppv'] == ['Nodule', 'Hernia', 'macro', 'weighted']
    assert np.isfinite(frame.loc['Mass', 'sensitivity']) and np.isnan(frame.loc['Mass', 'sensitivity_low'])
    assert {'Mass', 'macro', 'weighted'} <= set(frame.attrs['no_interval']) and 'Mass' in score_note(frame)


def test_same_share_in_every_resample_gets_exact_bounds(data):
    "An interval of no width would look like certainty; a share of 0 or 1 gets exact bounds by patients, all else none."
    table, predictions = data
    predictions = predictions.assign(prob_Mass=table['Mass'].to_numpy(float)) # a perfect order
    frame = threshold_table(predictions, table, {**THRESHOLDS, 'Nodule': 1., 'Mass': .5}, 50)
    patients = lambda rows: table.loc[rows, 'patient_id'].nunique()
    nodule, mass = patients(table['Nodule']), patients(table['Mass'])
    assert frame.loc['Nodule', ['sensitivity', 'sensitivity_low']].tolist() == [0, 0]
    assert frame.loc['Nodule', 'sensitivity_high'] == pytest.approx(1 - .025**(1/nodule))
    for name, n in (('sensitivity', mass), ('ppv', mass), ('specificity', patients(~table['Mass'])), ('npv', patients(~table['Mass']))):
        assert frame.loc['Mass', [f'{name}_low', f'{name}_high']].tolist() == pytest.approx([.025**(1/n), 1])
    assert frame.loc['Mass', ['f1_low', 'f1_high', 'brier_low', 'brier_high']].isna().all() and np.isnan(frame.loc['Nodule', 'f1_low'])
    assert {'Mass', 'Nodule'} <= set(frame.attrs['exact']['sensitivity']) and 'Mass' not in frame.attrs['exact'].get('f1', []) and 'ppv of Mass' in score_note(frame)
    scores = score_table(predictions, table, 50)
    assert scores.loc['Mass', 'auroc'] == 1 and scores.loc['Mass', ['auroc_low', 'auroc_high', 'ap_low', 'ap_high']].isna().all()
    assert 'every resample gives the same score: Mass' in score_note(scores)


@pytest.mark.parametrize('thresholds, says', [
    ({k: v for k, v in THRESHOLDS.items() if k != 'Edema'}, 'none for Edema'), ({**THRESHOLDS, 'Tumour': .5}, 'unknown finding Tumour'),
    ({**THRESHOLDS, 'Mass': 1.2}, 'Mass not between 0 and 1'), ({**THRESHOLDS, 'Mass': np.nan}, 'Mass not between'),
    ({**THRESHOLDS, 'Mass': 'high'}, 'Mass not between'), (3., 'not between 0 and 1'), (np.nan, 'not between'), ([.5]*14, 'no names')])
def test_bad_thresholds(data, thresholds, says):
    with pytest.raises(UserError, match=says): threshold_table(data[1], data[0], thresholds)


# -- finding by finding

def jittered(predictions, seed=0, size=.05):
    noise = np.random.default_rng(seed).normal(0, size, (len(predictions), 14))
    return predictions_frame(predictions[IMAGE], (predictions[list(COLUMNS[1:])] + noise).clip(0, 1))


def test_per_finding_comparison(data):
    from chestnb.evaluation.resampling import bootstrap_p, delong, difference_test, holm
    table, predictions = data
    other = jittered(predictions)
    frame = compare_per_finding(predictions, other, table, 150, seed=2, disable=True)
    targets, scores, patients = prediction_arrays(predictions, table)
    _, others, _ = prediction_arrays(other, table)
    one, two = (patient_bootstrap(targets, s, patients, 150, seed=2) for s in (scores, others))
    for short, name in (('auroc', 'auroc'), ('ap', 'average_precision')):
        low, high, _ = interval(two[name] - one[name])
        np.testing.assert_allclose(frame[[f'{short}_low', f'{short}_high']], np.c_[low, high])
        np.testing.assert_allclose(frame[f'{short}_p'], bootstrap_p(two[name] - one[name]))
        np.testing.assert_allclose(frame[f'{short}_p_holm'][:14], holm(frame[f'{short}_p'][:14]))
        np.testing.assert_allclose(frame[f'{short}_difference'], frame[f'{short}_second'] - frame[f'{short}_first'])
        assert frame[f'{short}_p_holm'][14:].isna().all()
    np.testing.assert_allclose(frame['auroc_first'], score_table(predictions, table, 0)['auroc'])
    for name, clusters in (('delong', None), ('clustered', patients)):
        at = list(FINDINGS).index('Edema')
        expected = difference_test(*delong(targets[:, at], np.c_[scores[:, at], others[:, at]], clusters))
        np.testing.assert_allclose(frame.loc['Edema', [f'{name}_low', f'{name}_high', f'{name}_p']].astype(float), expected[1:])
        assert frame[f'{name}_p'][14:].isna().all() and frame[f'{name}_p'][:14].notna().all()
    swapped = compare_per_finding(other, predictions, table, 150, seed=2, disable=True)
    np.testing.assert_allclose(swapped['auroc_low'], -frame['auroc_high'], atol=1e-12)
    np.testing.assert_allclose(swapped['delong_p'], frame['delong_p'])
    macro = compare_models({'a': predictions, 'b': other}, table, 150, seed=2).loc['b']
    np.testing.assert_allclose(frame.loc['macro', ['auroc_difference', 'auroc_low', 'auroc_high']].astype(float),
                               macro[['difference', 'difference_low', 'difference_high']].astype(float))
    assert '150 resamples of patients' in score_note(frame)


def test_a_model_does_not_differ_from_itself(data):
    table, predictions = data
    frame = compare_per_finding(predictions, predictions.sample(frac=1, random_state=0), table, 40)
    assert (frame[['auroc_difference', 'auroc_low', 'auroc_high', 'ap_difference']] == 0).all().all()
    for name in ('auroc_p', 'ap_p', 'delong_p', 'clustered_p'): assert (frame[name].dropna() == 1).all()


@pytest.mark.filterwarnings('error')
def test_per_finding_with_absent_and_lonely_findings(sparse):
    table, predictions = sparse
    frame = compare_per_finding(predictions, jittered(predictions), table, 40)
    assert frame.loc[['Hernia', 'Edema']].filter(regex='auroc|delong|clustered').isna().all().all()
    assert frame.attrs['absent'] == ['Edema', 'Hernia'] and frame.attrs['no_interval'] == ['Mass', 'macro', 'weighted']
    assert frame.loc['Mass', ['auroc_low', 'auroc_p', 'clustered_low', 'clustered_p']].isna().all()
    assert np.isfinite(frame.loc['Mass', 'delong_p']), 'DeLong takes the three images of one patient for independent'
    tested = frame['clustered_p'][:14].notna()
    assert tested.sum() == 11 and (frame['clustered_p_holm'][:14].notna() == tested).all()


def test_what_cannot_be_compared_is_listed(data):
    table, predictions = data
    other, names = jittered(predictions), predictions[IMAGE]
    listed = cases(lambda: compare_per_finding(predictions[:110], other[5:], table, names=('ours', 'theirs')))
    assert listed.set_index('image')['only_in'].to_dict() == {**dict.fromkeys(names[:5], 'ours'), **dict.fromkeys(names[110:], 'theirs')}
    assert len(cases(lambda: compare_per_finding(predictions, pd.concat([other, other[:4]]), table))) == 4
    with pytest.raises(UserError, match='^theirs: '):
        compare_per_finding(predictions, changed(other, prob_Mass=3), table, names=('ours', 'theirs'))
    with pytest.raises(UserError, match='two different names'): compare_per_finding(predictions, other, table, names=('a', 'a'))
    with pytest.raises(UserError, match='leaves no image'):
        compare_per_finding(predictions, other, table.assign(**{NO_FINDING: True}), protocol='without_no_finding')


def test_other_labels_are_listed(data):
    table, predictions = data
    relabelled = table.sample(frac=1, random_state=1)
    assert check_same_labels(table, relabelled) is None
    wrong = relabelled['image'].isin(table['image'][:7])
    relabelled['Pneumonia'] = relabelled['Pneumonia'] ^ wrong
    relabelled.loc[relabelled['image'] == table['image'][50], 'patient_id'] = 999
    with pytest.raises(ListedError, match='8 values of 8 images differ.*label releases: subset/unknown and subset/unknown') as error:
        compare_per_finding(predictions, predictions, table, second_table=relabelled)
    listed = error.value.cases.set_index('image')
    assert (listed.loc[table['image'][:7], 'first'] == table['Pneumonia'][:7].astype(int).to_numpy()).all()
    assert (listed.loc[table['image'][:7], 'second'] == 1 - listed.loc[table['image'][:7], 'first']).all()
    assert listed.loc[table['image'][50], ['column', 'first', 'second']].tolist() == ['patient_id', table['patient_id'][50], 999]
    assert len(cases(lambda: check_same_labels(table, table[3:]))) == 3
    assert len(cases(lambda: check_same_labels(table, pd.concat([table, table[:3]])))) == 3


def test_label_releases_of_real_tables(shared_nih):
    "The two NIH releases differ in Pneumonia and others: a comparison across them is refused and named."
    from chestnb.data.nih import nih_metadata
    table = nih_metadata().head(3000)
    older = table.assign(Pneumonia=table['Pneumonia'] & (table['image'] != table.loc[table['Pneumonia'], 'image'].iloc[0]))
    with pytest.raises(ListedError, match='label releases: 2020 and subset/unknown'): check_same_labels(table, older)


def test_unknown_patients_are_not_counted_as_none(data):
    "Without a patient id nothing can be said of patients: no warning, no 0, and intervals by image alone."
    table, predictions = data
    nameless = table.assign(patient_id=np.nan)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        with pytest.raises(UserError, match='no patient_id'): score_table(predictions, nameless, 20)
        with pytest.raises(UserError, match='no patient_id'): threshold_table(predictions, nameless, .5, 20)
        scores = score_table(predictions, nameless, 20, unit='image')
    assert scores[['patients', 'positive_patients', 'patient_prevalence']].isna().all(axis=None) and scores['auroc_low'].notna().any()
    assert data_note(nameless).endswith('images of unknown patients')
