"Predictions, scores, intervals, comparison and the ROC figure."
import os
import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score

from chestnb.core.errors import ListedError, UserError
from chestnb.core.text import listed
from chestnb.data.findings import FINDINGS, NO_FINDING
from chestnb.data.provenance import NIH_PROVENANCE
from chestnb.evaluation.comparison import aligned, compare_models, compare_per_finding
from chestnb.evaluation.intervals import (influence_on_difference, mean_influence, operating_influence, prevalence_influence, score_influence, student_interval,
    score_interval)
from chestnb.evaluation.operating import threshold_table
from chestnb.evaluation.predictions import COLUMNS, IMAGE, check_predictions, predictions_frame, read_predictions, write_predictions
from chestnb.evaluation.forest import plot_forest
from chestnb.evaluation.precision_recall import plot_precision_recall, precision_recall_points
from chestnb.evaluation.results import save_evaluation
from chestnb.evaluation.roc import plot_roc
from chestnb.evaluation.scored import join, protocol_rows
from chestnb.evaluation.scores import prevalence_baseline, readable_scores, score_note, score_table, top_errors


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


@pytest.fixture(scope='module')
def scored(data): return join(data[1], data[0])


def table_of(function, predictions, table, *rest, protocol='standard', **more): return function(join(predictions, table, protocol), *rest, **more)


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
    scored = join(predictions.sample(frac=1, random_state=3), table)
    np.testing.assert_array_equal(scored.scores, predictions[list(COLUMNS[1:])])
    np.testing.assert_array_equal(scored.targets, table[list(FINDINGS)])
    np.testing.assert_array_equal(scored.patients, table['patient_id'])


def test_missing_extra_and_duplicated_images(data):
    table, predictions = data
    name = table['image'].iloc[5]
    with pytest.raises(UserError, match=f'1 of the table.*120 images have no prediction: {name}'): join(predictions.drop(index=5), table)
    with pytest.raises(UserError, match=f'1 predicted images are not in the table: {name}'): join(predictions, table.drop(index=5))
    with pytest.raises(UserError, match=f'more than one row for {name}'): join(pd.concat([predictions, predictions.iloc[[5]]]), table)
    with pytest.raises(UserError, match=f'The table: more than one row for {name}'): join(predictions, pd.concat([table, table.iloc[[5]]]))


@pytest.mark.parametrize('value, says', [(np.nan, 'not a number'), ('high', 'not a number'), (1.5, 'outside 0 to 1.*go from .* to 1.5. Predict'),
                                         (-.01, 'outside 0 to 1'), (np.inf, 'outside 0 to 1')])
def test_bad_values_name_image_and_finding(data, tmp_path, value, says):
    table, predictions = data
    column = predictions['prob_Edema'].astype(object)
    column.iloc[7] = value
    bad = changed(predictions, prob_Edema=column)
    for call in (lambda: join(bad, table), lambda: write_predictions(bad, tmp_path/'p.csv'), lambda: check_predictions(bad)):
        with pytest.raises(UserError, match=f'prob_Edema of {predictions[IMAGE].iloc[7]}.*{says}'): call()
    assert not (tmp_path/'p.csv').exists()


def test_only_the_first_bad_values_are_listed(data):
    table, predictions = data
    with pytest.raises(UserError, match=r'\(120 values in all\)') as error:
        join(changed(predictions, prob_Hernia=-3.), table)
    assert len(str(error.value)) < 400


def test_missing_columns_and_files(data, tmp_path):
    _, predictions = data
    predictions.drop(columns='prob_Mass').to_csv(tmp_path/'p.csv', index=False)
    assert len(read_predictions(tmp_path/'p.csv').columns) == 14, 'thirteen findings are predicted'
    with pytest.raises(UserError, match='no column prob_Mass'): check_predictions(read_predictions(tmp_path/'p.csv'), findings=FINDINGS)
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
    pd.testing.assert_frame_equal(table_of(score_table, other, table), table_of(score_table, predictions, table))


# -- scores

def test_scores_equal_scikit_learn(scored):
    targets, scores = scored.targets, scored.scores
    result = score_table(scored)
    assert list(result.index) == [*FINDINGS, 'macro', 'micro', 'weighted']
    np.testing.assert_allclose(result['auroc'].iloc[:14], roc_auc_score(targets, scores, average=None), atol=1e-12)
    np.testing.assert_allclose(result['average_precision'].iloc[:14], average_precision_score(targets, scores, average=None), atol=1e-12)
    for kind in ('macro', 'micro', 'weighted'):
        assert result.loc[kind, 'auroc'] == pytest.approx(roc_auc_score(targets, scores, average=kind), abs=1e-12)
        assert result.loc[kind, 'average_precision'] == pytest.approx(average_precision_score(targets, scores, average=kind), abs=1e-12)


def test_counts(data, scored):
    table, row = data[0], score_table(scored).loc['Edema']
    assert row['images'] == 120 and row['patients'] == 40 and row['unknown'] == 0
    assert row['positives'] == table['Edema'].sum() and row['prevalence'] == table['Edema'].mean()
    assert row['positive_patients'] == table.loc[table['Edema'], 'patient_id'].nunique()
    assert row['patient_prevalence'] == row['positive_patients']/40


def test_intervals_hold_their_scores_and_need_no_seed(data, scored):
    first, (table, predictions) = score_table(scored), data
    again = table_of(score_table, predictions.sample(frac=1, random_state=0), table.sample(frac=1, random_state=1))
    pd.testing.assert_frame_equal(first, again, check_exact=False, rtol=1e-9)
    for name, prefix in (('auroc', 'auroc'), ('average_precision', 'ap'), ('prevalence', 'prevalence'), ('patient_prevalence', 'patient_prevalence')):
        assert (first[f'{prefix}_low'] < first[name]).all() and (first[name] < first[f'{prefix}_high']).all()


def width(scores): return scores['auroc_high'] - scores['auroc_low']


def test_image_level_intervals_are_too_narrow_on_clustered_images():
    scored = join(*made_up(n_patients=60, per_patient=6)[::-1])
    patients, images = (width(score_table(scored, unit=unit)) for unit in ('patient', 'image'))
    assert (patients > images).all()
    assert (patients/images).mean() > 1.7


def test_copies_of_images_do_not_narrow_patient_intervals(data, scored):
    table, predictions = data
    copies = table.assign(image='copy_' + table['image']), predictions.assign(**{IMAGE: 'copy_' + predictions[IMAGE]})
    doubled = [pd.concat([one, two], ignore_index=True) for one, two in zip((table, predictions), copies)]
    once, twice = score_table(scored), table_of(score_table, *doubled[::-1])
    np.testing.assert_allclose(once[['auroc_low', 'auroc_high']], twice[['auroc_low', 'auroc_high']], atol=1e-12)


# -- classes with nothing to measure

@pytest.fixture(scope='module')
def sparse():
    "Hernia absent, Edema in all images, Mass in one patient only, Fibrosis in two."
    table, predictions = made_up()
    return join(predictions, table.assign(Hernia=False, Edema=True, Mass=table['patient_id'] == 3, Fibrosis=table['patient_id'].isin([4, 5])))


@pytest.mark.filterwarnings('error')
def test_absent_class_is_nan_and_named(sparse, tmp_path):
    scores = save_evaluation(sparse, tmp_path)
    for finding in ('Hernia', 'Edema'):
        assert scores.loc[finding, ['auroc', 'auroc_low', 'auroc_high', 'average_precision', 'ap_low']].isna().all()
    assert scores.attrs['absent'] == ['Edema', 'Hernia']
    assert scores.loc['macro', 'auroc'] == pytest.approx(scores['auroc'].iloc[:14].mean())
    assert 'Edema, Hernia' in score_note(scores)
    assert readable_scores(scores).loc['Hernia', 'AUROC'] == 'no score'
    labels = [text.get_text() for text in plot_roc(sparse).axes[0].get_legend().get_texts()]
    assert 'Hernia: no score' in labels and 'Edema: no score' in labels


def test_one_positive_patient_has_no_interval_and_does_not_take_the_macro_mean_away(sparse):
    "In 56 of 100 studies of 100 patients 0.1 gave no interval of the macro mean."
    scores = score_table(sparse)
    assert np.isfinite(scores.loc['Mass', 'auroc']) and scores.loc['Mass', ['auroc_low', 'auroc_high', 'ap_low']].isna().all()
    assert scores.loc[['macro', 'micro', 'weighted'], ['auroc_low', 'ap_high']].notna().all(axis=None)
    assert scores.attrs['no_interval'] == ['Mass'] and 'one patient: Mass' in score_note(scores)
    compared = compare_models({'one': sparse, 'other': sparse}, finding='Mass')
    assert compared['auroc_low'].isna().all() and 'one patient: Mass' in score_note(compared)


@pytest.mark.filterwarnings('error')
def test_nothing_to_score_at_all(data):
    table, predictions = data
    table = table.assign(**{finding: False for finding in FINDINGS}, **{NO_FINDING: True})
    scores = table_of(score_table, predictions, table)
    assert scores['auroc'].isna().all() and scores['auroc_low'].isna().all() and len(scores.attrs['absent']) == 14
    assert 'No finding has' in plot_roc(join(predictions, table)).get_suptitle()
    with pytest.raises(UserError, match='leaves no image'): join(predictions, table, 'without_no_finding')


def test_constant_predictions(data):
    table = data[0]
    scores = table_of(score_table, prevalence_baseline(table, table['image']), table)
    assert (scores['auroc'].iloc[:15] == .5).all()
    assert (scores['auroc_low'].iloc[:14] == .5).all() and (scores['auroc_high'].iloc[:14] == .5).all()
    np.testing.assert_allclose(scores['average_precision'].iloc[:14], scores['prevalence'].iloc[:14])


def test_a_perfect_order_is_not_certain(data):
    "An interval of no width would look like certainty."
    table, predictions = data
    perfect = predictions.assign(prob_Mass=table['Mass'].to_numpy(float))
    scores, operating = table_of(score_table, perfect, table).loc['Mass'], table_of(threshold_table, perfect, table, {**THRESHOLDS, 'Nodule': 1., 'Mass': .5})
    n = score_table(join(predictions, table)).loc['Mass', 'positive_patients']
    assert scores['auroc'] == scores['auroc_high'] == 1 and .5 < scores['auroc_low'] < 1 and scores['ap_low'] < 1
    assert operating.loc['Mass', ['sensitivity', 'sensitivity_high']].tolist() == [1, 1]
    assert n/(n + 5.5) < operating.loc['Mass', 'sensitivity_low'] < .025**(1/n) # a little wider than the exact bound of Clopper and Pearson
    assert operating.loc['Nodule', 'sensitivity'] == 0 < operating.loc['Nodule', 'sensitivity_high'] < .5


# -- protocols

def test_protocol_counts(data):
    table, predictions = data
    table = table.assign(**{finding: table[finding] & (table['patient_id'] > 20) for finding in FINDINGS})
    table[NO_FINDING] = ~table[list(FINDINGS)].any(axis=1)
    standard, original = (table_of(score_table, predictions, table, protocol=p) for p in ('standard', 'without_no_finding'))
    assert standard['images'].iloc[0] == 120
    assert original['images'].iloc[0] == 120 - table[NO_FINDING].sum() == protocol_rows(table, 'without_no_finding', FINDINGS).sum()
    assert (standard['positives'] == original['positives']).all()
    assert (standard['prevalence'] < original['prevalence']).all()
    assert 'without_no_finding' in score_note(original)
    assert 'No Finding images left out' in plot_roc(join(predictions, table, 'without_no_finding')).get_suptitle()
    with pytest.raises(UserError, match="'original'"): join(predictions, table, 'original')


def test_unknown_units(scored):
    for call in (lambda: score_table(scored, unit='study'), lambda: threshold_table(scored, .5, unit='study')):
        with pytest.raises(UserError, match="'study'"): call()


# -- comparison

def noisy(predictions, seed=0, size=.05):
    noise = np.random.default_rng(seed).normal(0, size, (len(predictions), 14))
    return predictions_frame(predictions[IMAGE], (predictions[list(COLUMNS[1:])] + noise).clip(0, 1))


def test_comparison_is_paired(data, scored):
    table, predictions = data
    worse, baseline = join(noisy(predictions), table), join(prevalence_baseline(table, table['image']), table)
    result = compare_models({'model': scored, 'worse': worse, 'baseline': baseline})
    assert list(result.index) == ['model', 'worse', 'baseline']
    assert result.loc['model', 'difference'] == result.loc['model', 'difference_high'] == 0 and result.loc['model', 'p'] == 1
    np.testing.assert_allclose(result['difference'], result['auroc'] - result['auroc'].iloc[0])
    assert result.loc['baseline', 'auroc'] == .5 and result.loc['baseline', 'difference_high'] < 0
    unpaired = result.loc['worse', 'auroc_high'] - result.loc['worse', 'auroc_low']
    assert result.loc['worse', 'difference_high'] - result.loc['worse', 'difference_low'] < unpaired
    alone = score_table(worse).loc['macro']
    np.testing.assert_allclose(result.loc['worse', ['auroc', 'auroc_low', 'ap_high']].astype(float), alone[['auroc', 'auroc_low', 'ap_high']].astype(float))
    assert readable_scores(result)['AUROC difference'].iloc[0] == 'reference'
    assert '95 % intervals over patients' in score_note(result)
    one = compare_models({'model': scored, 'worse': worse}, finding='Edema')
    assert one.loc['model', 'auroc'] == pytest.approx(score_table(scored).loc['Edema', 'auroc'])


def test_different_images_are_refused(data, scored):
    table, predictions = data
    fewer = join(predictions.drop(index=0), table.drop(index=0))
    for call in (lambda: compare_models({'a': scored, 'b': fewer}), lambda: compare_models({'a': scored, 'c': scored, 'b': fewer})):
        with pytest.raises(UserError, match=f"'a' and 'b' did not predict the same images: 1 .*{predictions[IMAGE].iloc[0]}"): call()
    with pytest.raises(UserError, match='No models'): compare_models({})
    with pytest.raises(UserError, match="'Tumour'"): compare_models({'a': scored}, finding='Tumour')
    other = join(predictions, table, 'without_no_finding')
    with pytest.raises(UserError, match='protocol standard.*without_no_finding'): aligned({'a': scored, 'b': other})


def test_models_are_compared_on_the_findings_that_both_know(data, scored):
    table, predictions = data
    five = join(predictions[[IMAGE, 'prob_Edema', 'prob_Mass']], table)
    result = compare_models({'all': scored, 'two': five})
    assert result.loc['all', 'auroc'] == pytest.approx(score_table(scored).loc[['Edema', 'Mass'], 'auroc'].mean())
    assert result.loc['two', 'difference'] == 0 and result.attrs['findings'] == ['Mass', 'Edema']


# -- figure and files

def test_roc_figure(scored):
    "The means, the three best, one line for the others, the three worst; the others are grey."
    ax = plot_roc(scored, note='a test').axes[0]
    labels = [text.get_text() for text in ax.get_legend().get_texts()]
    assert len(labels) == 9 and labels[0].startswith('macro mean') and labels[1].startswith('micro mean') and labels[5].startswith('8 others, ')
    areas = score_table(scored)['auroc'].iloc[:14].sort_values(ascending=False)
    named = [label.rsplit(' ', 2) for label in labels[2:5] + labels[6:]]
    assert [name.replace(' ', '_') for name, _, _ in named] == [*areas.index[:3], *areas.index[-3:]]
    assert [value for _, value, _ in named] == [f'{a:.3f}' for a in [*areas[:3], *areas[-3:]]]
    assert labels[5] == f'8 others, {areas.iloc[10]:.3f} to {areas.iloc[3]:.3f}'
    lines = ax.get_lines()
    assert sum(line.get_color() == '0.78' for line in lines) == 8 and len({(line.get_color(), str(line._dash_pattern)) for line in lines}) == 10
    assert ax.get_xlabel() and ax.get_ylabel()


def test_forest_figure(scored):
    figure = plot_forest(score_table(scored), 'a test')
    names = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert len(names) == 15 and names[-1] == 'macro mean' and all('patients)' in name for name in names[:-1])
    assert 'a test' in figure.get_suptitle() and figure.axes[1].get_xscale() == 'log'


def test_precision_recall_panels(scored):
    figure = plot_precision_recall(scored, ['Mass', 'Edema'], 'a test')
    assert [ax.get_title().split(':')[0] for ax in figure.axes] == ['Mass', 'Edema'] and 'a test' in figure.get_suptitle()
    recall, precision = precision_recall_points(*scored.finding('Mass')[:2])
    theirs = precision_recall_curve(*scored.finding('Mass')[:2])
    np.testing.assert_allclose([precision, recall], [theirs[0][:-1][::-1], theirs[1][:-1][::-1]])
    assert recall[-1] == 1 and precision[-1] == pytest.approx(scored.finding('Mass')[0].mean())


def test_top_errors_are_the_worst_one_of_each_patient(scored):
    errors = top_errors(scored, 'Mass', 3)
    target, score, patients = scored.finding('Mass')
    assert errors['error'].tolist() == ['false positive']*3 + ['missed']*3 and errors.groupby('error')['patient'].nunique().eq(3).all()
    assert errors['score'].iloc[0] == score[~target].max() and errors['score'].iloc[3] == score[target].min()
    assert errors['score'][:3].is_monotonic_decreasing and errors['score'][3:].is_monotonic_increasing
    unknown = replace(scored, patients=np.full(len(scored), np.nan))
    assert len(top_errors(unknown, 'Mass', 4)) == 8
    with pytest.raises(UserError, match="'Tumour'"): top_errors(scored, 'Tumour')


def test_saved_evaluation(scored, tmp_path):
    scores = save_evaluation(scored, tmp_path/'run', note='fusion')
    assert sorted(path.name for path in (tmp_path/'run').iterdir()) == ['metrics.csv', 'metrics.json', 'roc.png']
    saved = pd.read_csv(tmp_path/'run'/'metrics.csv').set_index('finding')
    np.testing.assert_allclose(saved['auroc'], scores['auroc'])
    assert (saved['unit'] == 'patient').all() and (saved['protocol'] == 'standard').all()
    from PIL import Image
    with Image.open(tmp_path/'run'/'roc.png') as image: assert image.width > 600


def contents(folder): return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize('what, says', [
    (lambda table, predictions: join(made_up(seed=1)[1], table), 'metrics.csv holds the scores of other predictions. '),
    (lambda table, predictions: join(predictions, made_up(seed=1)[0]), 'scores of other labels. '),
    (lambda table, predictions: join(predictions, table.assign(Mass=table['Mass'].astype(float).mask(table.index < 3))), 'scores of other labels. '),
    (lambda table, predictions: join(predictions, table, 'without_no_finding'), r'protocol \(standard there')])
def test_other_scores_are_not_overwritten(data, scored, tmp_path, what, says):
    save_evaluation(scored, tmp_path)
    before, other = contents(tmp_path), what(*data)
    with pytest.raises(UserError, match=says) as error: save_evaluation(other, tmp_path)
    assert str(tmp_path/'metrics.csv') in str(error.value) and '--overwrite' in str(error.value) and contents(tmp_path) == before
    save_evaluation(other, tmp_path, overwrite=True)
    assert set(contents(tmp_path)) == set(before) and contents(tmp_path) != before


@pytest.mark.parametrize('name', ['metrics.csv', 'roc.png'])
def test_a_file_that_is_not_as_written_is_left_alone(scored, tmp_path, name):
    "Edited by somebody, or left by a process that was killed between two moves."
    save_evaluation(scored, tmp_path)
    (tmp_path/name).write_bytes(b'mine')
    with pytest.raises(UserError, match=f'{name}: not as it was written'): save_evaluation(scored, tmp_path)
    assert (tmp_path/name).read_bytes() == b'mine'
    save_evaluation(scored, tmp_path, overwrite=True)
    assert (tmp_path/name).read_bytes() != b'mine'


def test_the_same_scores_may_be_written_again(data, scored, tmp_path):
    table, predictions = data
    save_evaluation(scored, tmp_path/'run')
    before = contents(tmp_path/'run')
    again = read_predictions(write_predictions(predictions.sample(frac=1, random_state=0), tmp_path/'p.csv'))
    save_evaluation(join(again, table.astype({'patient_id': object, 'image': object})), tmp_path/'run')
    assert contents(tmp_path/'run') == before


@pytest.mark.parametrize('name, text', [('metrics.csv', 'mine'), ('roc.png', ''), ('metrics.json', '{}'), ('metrics.json', '{"identity": 3}'),
                                        ('metrics.json', '[1]'), ('metrics.json', '{"made"')])
def test_files_of_unknown_origin_are_left_alone(scored, tmp_path, name, text):
    (tmp_path/name).write_text(text)
    with pytest.raises(UserError, match=f'{name} exists, and nothing beside it says.*--overwrite'):
        save_evaluation(scored, tmp_path)
    assert contents(tmp_path) == {name: text.encode()}


@pytest.mark.parametrize('step', ['write_csv', 'write_json', 'save_figure', '2nd move', '3rd move'])
def test_an_evaluation_is_whole_or_the_old_one(data, scored, tmp_path, monkeypatch, step):
    "Whatever fails, the three files that lie there belong together"
    import chestnb.evaluation.results as module
    other = join(noisy(data[1]), data[0])
    save_evaluation(scored, tmp_path/'old')
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
            save_evaluation(other, tmp_path/folder, overwrite=True)
    assert contents(tmp_path/'old') == before and contents(tmp_path/'fresh') == {}


def test_import_is_light():
    code = ('import sys, chestnb.evaluation.results; heavy = {"torch", "fastai", "torchxrayvision", "matplotlib.pyplot", "sklearn"} & set(sys.modules);'
            'assert not heavy, heavy')
    subprocess.run([sys.executable, '-c', code], check=True)


# -- real

def test_published_predictions(shared_nih):
    from chestnb.data.nih import nih_metadata
    scored = join(read_predictions(shared_nih/'chexnet_predictions.csv'), nih_metadata(), partial=True)
    scores, images = score_table(scored), score_table(scored, unit='image')
    assert scores['images'].iloc[0] == 22_433 and scores['patients'].iloc[0] == 6_187 and scored.provenance == NIH_PROVENANCE
    assert f'{scores.loc["macro", "auroc"]:.4f}' == '0.8383'
    assert scores.loc['macro', 'auroc_low'] == pytest.approx(.8318, abs=.0005)
    assert scores.loc['macro', 'auroc_high'] == pytest.approx(.8445, abs=.0005)
    assert (width(scores)/width(images)).loc['Pneumothorax'] > 1.5


# -- prevalence, lists in errors

def test_prevalence_of_the_means_is_what_a_blind_model_gets(data):
    table = data[0]
    scores = table_of(score_table, prevalence_baseline(table, table['image']), table)
    for mean in ('macro', 'weighted'):
        assert scores.loc[mean, 'auroc'] == pytest.approx(.5)
        assert scores.loc[mean, 'average_precision'] == pytest.approx(scores.loc[mean, 'prevalence'])


def test_prevalence_intervals_are_those_of_shares_of_patients():
    table, predictions = made_up(n_patients=200, per_patient=1)
    scores = table_of(score_table, predictions, table)
    from scipy.stats import binomtest
    for finding in FINDINGS[:4]:
        reference = binomtest(int(table[finding].sum()), 200).proportion_ci(method='wilson')
        for prefix in ('prevalence', 'patient_prevalence'):
            assert scores.loc[finding, [f'{prefix}_low', f'{prefix}_high']].tolist() == pytest.approx([reference.low, reference.high], abs=.004)
    by_image = table_of(score_table, predictions, table, unit='image')
    assert by_image['patient_prevalence_low'].isna().all() and by_image['prevalence_low'].notna().all()


def cases(call):
    "The list that an error carries, as rows."
    with pytest.raises(ListedError) as error: call()
    assert isinstance(error.value, UserError)
    return error.value.cases


def test_errors_carry_the_whole_list(data):
    table, predictions = data
    names = predictions[IMAGE]
    bad = predictions.assign(prob_Mass=predictions['prob_Mass'].where(predictions.index >= 30))
    listed = cases(lambda: join(bad, table))
    assert listed['image'].tolist() == names[:30].tolist() and set(listed['column']) == {'prob_Mass'}
    assert len(cases(lambda: join(changed(predictions, prob_Mass=2., prob_Edema=-1.), table))) == 240
    assert cases(lambda: join(predictions[17:], table))['image'].tolist() == names[:17].tolist()
    assert cases(lambda: join(predictions, table[17:]))['image'].tolist() == names[:17].tolist()
    twice = cases(lambda: join(pd.concat([predictions, predictions[:9], predictions[:2]]), table))
    assert twice['image'].tolist() == names[:9].tolist() and twice['rows'].tolist() == [3, 3] + [2]*7
    assert len(cases(lambda: join(predictions, pd.concat([table, table[:5]])))) == 5


# -- thresholds

THRESHOLDS = {finding: .3 + .02*i for i, finding in enumerate(FINDINGS)}


def test_threshold_table_equals_scikit_learn(data, scored):
    from sklearn.metrics import brier_score_loss, f1_score, precision_score, recall_score
    table, predictions = data
    frame = threshold_table(scored, THRESHOLDS)
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
    targets, scores = scored.targets == 1, scored.scores
    t, m = targets.ravel(), (scores >= list(THRESHOLDS.values())).ravel()
    micro = [recall_score(t, m), recall_score(~t, ~m), precision_score(t, m), precision_score(~t, ~m), f1_score(t, m), ((targets - scores)**2).mean()]
    np.testing.assert_allclose(values.loc['micro'], micro, rtol=0, atol=1e-12)
    assert frame['threshold'][:14].tolist() == list(THRESHOLDS.values()) and frame['threshold'][14:].isna().all()


def test_threshold_intervals(scored):
    frame = threshold_table(scored, pd.Series(THRESHOLDS)[::-1])
    for name in ('sensitivity', 'specificity', 'ppv', 'npv', 'f1', 'brier'):
        assert (frame[f'{name}_low'] <= frame[name]).all() and (frame[name] <= frame[f'{name}_high']).all()
    by_image = threshold_table(scored, THRESHOLDS, unit='image')
    assert ((frame['brier_high'] - frame['brier_low']) > (by_image['brier_high'] - by_image['brier_low'])).mean() > .9
    assert '95 % intervals over patients' in score_note(frame) and 'over images' in score_note(by_image)
    assert (threshold_table(scored, .5)['threshold'][:14] == .5).all()


def test_thresholds_where_nothing_can_be_said(sparse):
    frame = threshold_table(sparse, {**THRESHOLDS, 'Nodule': 1.})
    assert frame.loc['Hernia', ['sensitivity', 'ppv', 'f1', 'ppv_low', 'f1_high']].isna().all() and frame.loc['Hernia', ['specificity', 'npv', 'brier']].notna().all()
    assert frame.loc['Edema', ['specificity', 'npv', 'npv_low']].isna().all() and frame.loc['Edema', ['sensitivity', 'ppv']].notna().all()
    assert np.isnan(frame.loc['Nodule', 'ppv']) and frame.loc['Nodule', 'sensitivity'] == 0 == frame.loc['Nodule', 'f1']
    assert np.isnan(frame.loc['macro', 'ppv']) and np.isnan(frame.loc['weighted', 'ppv_low']) and np.isfinite(frame.loc['micro', 'ppv'])
    assert frame.attrs['undefined']['ppv'] == ['Nodule', 'Hernia', 'macro', 'weighted']
    assert np.isfinite(frame.loc['Mass', 'sensitivity']) and np.isnan(frame.loc['Mass', 'sensitivity_low'])
    assert 'Mass' in frame.attrs['no_interval'] and 'Mass' in score_note(frame)


def test_thresholds_of_findings_that_a_set_does_not_have_are_no_mistake(data):
    table, predictions = data
    two = join(predictions[[IMAGE, 'prob_Mass', 'prob_Edema']], table)
    np.testing.assert_array_equal(threshold_table(two, THRESHOLDS)['threshold'][:2], [THRESHOLDS['Mass'], THRESHOLDS['Edema']])


@pytest.mark.parametrize('thresholds, says', [
    ({k: v for k, v in THRESHOLDS.items() if k != 'Edema'}, 'none for Edema'), ({**THRESHOLDS, 'Tumour': .5}, 'unknown finding Tumour'),
    ({**THRESHOLDS, 'Mass': 1.2}, 'Mass not between 0 and 1'), ({**THRESHOLDS, 'Mass': np.nan}, 'Mass not between'),
    ({**THRESHOLDS, 'Mass': 'high'}, 'Mass not between'), (3., 'not between 0 and 1'), (np.nan, 'not between'), ([.5]*14, 'no names')])
def test_bad_thresholds(scored, thresholds, says):
    with pytest.raises(UserError, match=says): threshold_table(scored, thresholds)


# -- finding by finding

def test_per_finding_comparison(data, scored):
    from chestnb.evaluation.resampling import delong, difference_test, holm
    table, predictions = data
    other = join(noisy(predictions), table)
    frame, one, two = compare_per_finding(scored, other), score_table(scored), score_table(other)
    for short, name in (('auroc', 'auroc'), ('ap', 'average_precision')):
        np.testing.assert_allclose(frame[f'{short}_first'], one[name])
        np.testing.assert_allclose(frame[f'{short}_second'], two[name])
        np.testing.assert_allclose(frame[f'{short}_difference'], two[name] - one[name])
        np.testing.assert_allclose(frame[f'{short}_p_holm'][:14], holm(frame[f'{short}_p'][:14]))
        outside = (frame[f'{short}_low'] > 0) | (frame[f'{short}_high'] < 0)
        assert (outside == (frame[f'{short}_p'] < .05)).all() and frame[f'{short}_p_holm'][14:].isna().all()
    at = list(FINDINGS).index('Edema')
    for name, clusters in (('delong', None), ('clustered', scored.patients)):
        expected = difference_test(*delong(scored.targets[:, at], np.c_[scored.scores[:, at], other.scores[:, at]], clusters))
        np.testing.assert_allclose(frame.loc['Edema', [f'{name}_low', f'{name}_high', f'{name}_p']].astype(float), expected[1:])
        assert frame[f'{name}_p'][14:].isna().all() and frame[f'{name}_p'][:14].notna().all()
    wider = (frame['auroc_high'] - frame['auroc_low'])/(frame['clustered_high'] - frame['clustered_low'])
    assert wider[:14].between(1, 1.6).all(), 'the clustered formula, with leverage and degrees of freedom'
    swapped = compare_per_finding(other, scored)
    np.testing.assert_allclose(swapped['auroc_low'], -frame['auroc_high'], atol=1e-12)
    np.testing.assert_allclose(swapped['delong_p'], frame['delong_p'])
    macro = compare_models({'a': scored, 'b': other}).loc['b']
    np.testing.assert_allclose(frame.loc['macro', ['auroc_difference', 'auroc_low', 'auroc_high', 'auroc_p']].astype(float),
                               macro[['difference', 'difference_low', 'difference_high', 'p']].astype(float))


def test_a_model_does_not_differ_from_itself(data, scored):
    table, predictions = data
    frame = compare_per_finding(scored, join(predictions.sample(frac=1, random_state=0), table.sample(frac=1, random_state=1)))
    assert (frame[['auroc_difference', 'auroc_low', 'auroc_high', 'ap_difference']].abs() < 1e-12).all().all()
    for name in ('auroc_p', 'ap_p', 'delong_p', 'clustered_p'): assert (frame[name].dropna() == 1).all()


@pytest.mark.filterwarnings('error')
def test_per_finding_with_absent_and_lonely_findings(sparse):
    frame = compare_per_finding(sparse, sparse.with_scores(noisy(sparse.predictions).iloc[:, 1:]))
    assert frame.loc[['Hernia', 'Edema']].filter(regex='auroc|delong|clustered').isna().all().all()
    assert frame.attrs['absent'] == ['Edema', 'Hernia'] and frame.attrs['no_interval'] == ['Mass']
    assert frame.loc['Mass', ['auroc_low', 'auroc_p', 'clustered_low', 'clustered_p']].isna().all()
    assert np.isfinite(frame.loc['Mass', 'delong_p']), 'DeLong takes the three images of one patient for independent'
    assert np.isfinite(frame.loc['macro', 'auroc_p'])
    tested = frame['clustered_p'][:14].notna()
    assert tested.sum() == 11 and (frame['clustered_p_holm'][:14].notna() == tested).all()


def test_what_cannot_be_compared_is_listed(data):
    table, predictions = data
    names, ours = predictions[IMAGE], join(predictions[:110], table[:110], name='ours')
    listed = cases(lambda: compare_per_finding(ours, join(noisy(predictions)[5:], table[5:], name='theirs')))
    assert listed.set_index('image')['only_in'].to_dict() == {**dict.fromkeys(names[:5], 'ours'), **dict.fromkeys(names[110:], 'theirs')}


def test_other_labels_are_listed(data, scored):
    table, predictions = data
    relabelled = table.sample(frac=1, random_state=1)
    assert list(aligned({'first': scored, 'second': join(predictions, relabelled)})) == ['first', 'second']
    wrong = relabelled['image'].isin(table['image'][:7])
    relabelled['Pneumonia'] = relabelled['Pneumonia'] ^ wrong
    relabelled.loc[relabelled['image'] == table['image'][50], 'patient_id'] = 999
    with pytest.raises(ListedError, match='8 values of 8 images differ.*label releases: subset/unknown and subset/unknown') as error:
        compare_per_finding(scored, join(predictions, relabelled))
    listed = error.value.cases.set_index('image')
    assert (listed.loc[table['image'][:7], 'first'] == table['Pneumonia'][:7].astype(int).to_numpy()).all()
    assert (listed.loc[table['image'][:7], 'second'] == 1 - listed.loc[table['image'][:7], 'first']).all()
    assert listed.loc[table['image'][50], ['column', 'first', 'second']].tolist() == ['patient_id', table['patient_id'][50], 999]


def test_unknown_labels_are_the_same_in_both_or_refused(data):
    table, predictions = data
    partly = table.assign(Mass=table['Mass'].astype(float).mask(table.index < 5))
    one, two = join(predictions, partly), join(noisy(predictions), partly)
    assert compare_models({'one': one, 'two': two})['difference'].notna().all()
    assert len(cases(lambda: compare_models({'one': one, 'two': join(predictions, table)}))) == 5


def test_label_releases_of_real_tables(shared_nih):
    "The two NIH releases differ in Pneumonia and others: a comparison across them is refused and named."
    from chestnb.data.nih import nih_metadata
    table = nih_metadata().head(3000)
    predictions = predictions_frame(table['image'], np.random.default_rng(0).random((3000, 14)))
    older = table.assign(Pneumonia=table['Pneumonia'] & (table['image'] != table.loc[table['Pneumonia'], 'image'].iloc[0]))
    with pytest.raises(ListedError, match='label releases: 2020 and subset/unknown'): compare_models({'a': join(predictions, table), 'b': join(predictions, older)})
