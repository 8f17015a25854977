"The run behind a report: what its folder, its split, its spec and its export say, and what they must not be made to say."
import json
from dataclasses import replace

import pandas as pd
import pytest

import chestnb.evaluation.report.document as evaluation_report_document
from chestnb.commands.evaluate import report_command
from chestnb.core.errors import UserError
from chestnb.core.files import sha256_of, write_json
from chestnb.data.tables import read_metadata
from chestnb.evaluation.predictions import write_predictions
from chestnb.evaluation.report.cards import model_card, TO_BE_FILLED
from chestnb.evaluation.report.page import json_value, make_report, write_report
from chestnb.evaluation.report.run import answer_rows, exported_text, learnt_text, refusal_text, run_behind, run_facts
from chestnb.evaluation.report.study import make_study
from chestnb.evaluation.simulation import simulated_predictions

FINDINGS = ['Effusion', 'Infiltration']
PIXEL = bytes.fromhex('89504e470d0a1a0a0000000d49484452000000010000000108060000001f15c489')


@pytest.fixture(autouse=True)
def figures_not_drawn(monkeypatch):
    "Drawing takes most of the time, and no test here looks at a figure."
    monkeypatch.setattr(evaluation_report_document, 'figure_bytes', lambda figure, ending, dpi=150: PIXEL)


@pytest.fixture(scope='module')
def table(embedded): return read_metadata(embedded/'data.csv')


@pytest.fixture
def run(tmp_path, table):
    "A run folder with predictions of its test part; the weights are a few bytes."
    folder = tmp_path/'run'
    folder.mkdir()
    patients = sorted(table.patient_id.unique())
    part = {p: 'test' if i < 60 else 'valid' if i < 120 else 'train' for i, p in enumerate(patients)}
    table.assign(part=table.patient_id.map(part))[['image', 'patient_id', 'part']].to_csv(folder/'split.csv', index=False)
    (folder/'model.safetensors').write_bytes(b'weights')
    write_json(folder/'model.json', dict(model=dict(branches=['test_resnet']*2, views=['whole', 'lungs'], reduced_channels=16, attention='cbam', branch_heads=True, answer='mean'),
        image_size=64, tta=3, epoch=2, valid_auroc=.7311, weights_used=[dict(branch='test_resnet', weights='none')]*2,
        trained_on=dict(images=len(table), patients=len(patients), kind='synthetic', provenance=dict(stated=True, name='chestnb phantoms', licence='CC0-1.0'))))
    write_json(folder/'config.json', dict(config=dict(epochs=3, batch_size=16, learning_rate=.003, loss='bce', seed=4, mixup=.4, average_weights=0.),
        split=dict(images=dict(train=10, valid=5, test=5)), versions=dict(chestnb='0.2.0', torch='2')))
    write_json(folder/'model_spec.json', dict(format='chestnb-model-1', weights=sha256_of(folder/'model.safetensors'), made='2026-01-02T03:04:05Z', findings=FINDINGS,
        calibration=dict(curves={'Effusion': {}}, fitted_on={}), thresholds=dict(by_finding=dict.fromkeys(FINDINGS, .25), rule='youden', value=None, fitted_on=dict(note='12 images of 7 patients')),
        prevalence={'Effusion': .2, 'Infiltration': .1}, scores=dict(part='test', images=9, patients=5, findings={
            'Effusion': dict(auroc=.8, low=.7, high=.9, positive=4, better_than_chance=True), 'Infiltration': dict(auroc=.6, low=.4, high=.8, positive=3, better_than_chance=False)}),
        refusal=dict(scores=[dict(name='upside_down', limit=1, says='It stands on its head.')], checks={'blank': {}}, figures={})))
    test = table[table.patient_id.map(part) == 'test']
    write_predictions(simulated_predictions(test, seed=0), folder/'test_predictions.csv')
    return folder


def export_beside(run, name='export', weights=None):
    folder = run/name
    folder.mkdir()
    (folder/'model.onnx').write_bytes(b'graph')
    write_json(folder/'model.json', dict(format='chestnb-model-1', weights=weights or sha256_of(run/'model.safetensors'), files={'model.onnx': dict(bytes=5, sha256=sha256_of(folder/'model.onnx'))}))
    return folder


def study_of(run, table, **more): return make_study(run/'test_predictions.csv', table, n_resamples=0, **more)


def test_the_card_is_filled_from_the_run(run, table, tmp_path):
    export = export_beside(run)
    study = study_of(run, table)
    report = write_report(study, tmp_path/'report', disable=True)
    card = dict(report.tables['model_card'].frame[['topic', 'content']].to_numpy())
    for topic, said in {'Architecture and input': 'test_resnet on the whole image and test_resnet on the lungs; 16 channels each, joined by cbam; a head for each branch', 'Training data': 'chestnb phantoms, licence CC0-1.0',
                        'Training procedure and selection': 'mixup 0.4. Weights of epoch 2 of 3, chosen by macro AUROC on validation patients (0.731 there)', 'Version, date': 'Trained with chestnb 0.2.0; made ready to answer 2026-01-02',
                        'Exported file': sha256_of(export/'model.onnx'), 'Refuses': 'upside down', 'Subgroups': 'differs most for'}.items(): assert said in card[topic], topic
    assert 'average_weights' not in card['Training procedure and selection'] # at rest: nothing to say
    assert card['Owner, licence'] == card['Contact'] == card['Ethical considerations'] == TO_BE_FILLED
    page = (tmp_path/'report/report.html').read_text(encoding='utf-8')
    assert 'None of the tested images, and none of their patients' in page and 'Training data unknown' not in page and 'tables/model_answers.csv' in page
    assert sha256_of(export/'model.onnx') in (tmp_path/'report/model_card.md').read_text(encoding='utf-8')
    assert json.loads((tmp_path/'report/numbers.json').read_text())['identity']['run']['exported'].startswith('model.onnx')


def test_predictions_of_nobody_leave_the_card_to_the_authors(run, table, tmp_path):
    alone = tmp_path/'alone.csv'
    alone.write_bytes((run/'test_predictions.csv').read_bytes())
    study = make_study(alone, table, n_resamples=0)
    assert study.run is None and set(run_facts(None, study.scored).values()) == {''}
    report = make_report(study, disable=True)
    card = dict(report.tables['model_card'].frame[['topic', 'content']].to_numpy())
    assert card['Architecture and input'] == card['Training data'] == card['Refuses'] == TO_BE_FILLED and 'Exported file' not in card and 'model_answers' not in report.tables
    assert 'Training data unknown' in report.html() and json_value(report.facts['run']) == report.facts['run']
    assert run_behind(alone, run).folder == run # named


def test_tested_images_that_were_learnt_from_are_said_aloud(run, table):
    split = pd.read_csv(run/'split.csv')
    some = split.index[split.part == 'test'][:3]
    split.loc[some, 'part'] = 'train'
    split.to_csv(run/'split.csv', index=False)
    study = study_of(run, table)
    assert '3 tested images' in learnt_text(study.run, study.scored) and any('TRAINED on' in note for note in study.notes)
    split.drop(columns='part').to_csv(run/'split.csv', index=False)
    assert learnt_text(study.run, study.scored) == '' # says nothing rather than "none"


def test_another_export_is_not_taken_for_this_one(run, table):
    export_beside(run, 'foreign', weights='0'*64)
    assert exported_text(run_behind(run/'test_predictions.csv')) == ''
    with pytest.raises(UserError, match='names other weights'): study_of(run, table, export=run/'foreign')
    own = export_beside(run)
    assert exported_text(study_of(run, table, export=own).run).endswith(sha256_of(own/'model.onnx'))
    (own/'model.onnx').write_bytes(b'grapj')
    with pytest.raises(UserError, match='not as it was exported'): study_of(run, table, export=own)
    assert exported_text(run_behind(run/'test_predictions.csv')) == '' # beside the run, changed: nothing is said of it


@pytest.mark.parametrize('change, message', [(lambda run: (run/'model.safetensors').write_bytes(b'other'), 'belongs to other weights'),
                                             (lambda run: (run/'model_spec.json').write_text('{'), 'model_spec.json')])
def test_a_run_that_contradicts_itself_is_refused(run, change, message):
    change(run)
    with pytest.raises(UserError, match=message): run_behind(run/'test_predictions.csv')


def test_a_run_that_was_never_made_ready_says_less(run, table):
    for name in ('model_spec.json', 'config.json', 'split.csv'): (run/name).unlink()
    said = run_facts(run_behind(run/'test_predictions.csv'), study_of(run, table).scored)
    assert said['refusal'] == said['training'] == said['learnt'] == said['versions'] == '' and said['network'] and said['selection'].startswith('Weights of epoch 2, chosen')


def test_answers_of_the_spec_as_a_table(run):
    rows = answer_rows(run_behind(run/'test_predictions.csv')).set_index('finding')
    assert rows.better.to_dict() == {'Effusion': 'yes', 'Infiltration': 'not shown'} and rows.loc['Infiltration', 'calibrated'].startswith('no') and rows.loc['Effusion', 'threshold'] == .25


def test_refusal_figures_are_those_of_the_spec(run):
    found = run_behind(run/'test_predictions.csv')
    assert refusal_text(found) == 'Images are refused by upside down, blank; how often was not measured in this run'
    assert refusal_text(replace(found, spec=found.spec | dict(refusal=dict(scores=[], checks={})))).startswith('Nothing: it answers for any image')
    found.spec['refusal'] |= dict(figures=dict(train_refused=.01, valid_refused=.0075, accepted={'upside_down': 0., 'mirrored': .025}), fitted_on=dict(valid_images=1200))
    assert refusal_text(found).endswith('; of the 1,200 validation images on which the limits were chosen, 0.8% are refused; of the same, spoilt on purpose, are accepted: upside down 0.0%, mirrored 2.5%')


def test_the_command_on_the_page_names_run_and_export_without_their_folders():
    given = dict.fromkeys(('data', 'valid', 'compare', 'name', 'rule', 'rule_value', 'unknown', 'n_resamples', 'seed', 'test_again'), '')
    assert report_command(given | dict(predictions='/a/b/test.csv', run='/a/run', export='/a/x', out='/a/out')) == "chestnb_report test.csv --run 'run' --export 'x' --out 'out'"


def test_a_folder_without_a_model_is_refused_as_a_run(tmp_path):
    with pytest.raises(UserError, match='holds no trained model'): run_behind('p.csv', run=tmp_path)
    with pytest.raises(UserError, match='Give it with --run'): run_behind(tmp_path/'p.csv', export=tmp_path)
