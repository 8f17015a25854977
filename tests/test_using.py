"""From a run folder to an answer: what files are shown to a model is what it was shown in training, and its words are those of evaluation."""
import json
import shutil
from dataclasses import asdict

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from scipy.special import logit

from chestnb.commands import use
from chestnb.commands.use import open_model
from chestnb.core.errors import UserError
from chestnb.data.dataset import ChestDataset
from chestnb.data.findings import FINDINGS, NO_FINDING
from chestnb.data.items import GreyImages
from chestnb.evaluation.calibration import Calibration
from chestnb.evaluation.prevalence_shift import shift_prevalence
from chestnb.evaluation.thresholds import Thresholds
from chestnb.model.fusion import FusionModel
from chestnb.model.lungs import found_masks
from chestnb.model.maps import pair_maps
from chestnb.model.predict import predict
from chestnb.model.runs import load_model, save_model
from chestnb.using import ready as ready_module
from chestnb.using.predict import predict_images
from chestnb.using.ready import is_ready, load_ready, make_ready
from chestnb.using.runner import check_prevalence, NO_MASK
from chestnb.using.spec import CALIBRATION_FILE, SPEC_FILE, THRESHOLDS_FILE

SIDE = 64


@pytest.fixture(scope='module')
def few(embedded, tmp_path_factory):
    "Fifty synthetic images without masks of their own, one of them lying, one standing; labels by lot, so that some findings can be calibrated."
    whole, folder = ChestDataset(embedded), tmp_path_factory.mktemp('few')
    table = pd.read_csv(whole.metadata_path, dtype=str).groupby('Patient ID').head(1).iloc[:50]
    lots = np.random.default_rng(0).random((len(table), len(FINDINGS))) < .4
    table['Finding Labels'] = ['|'.join(f for f, drawn in zip(FINDINGS, lot) if drawn) or NO_FINDING for lot in lots]
    (folder/'images').mkdir()
    for name in table['Image Index']: shutil.copy(whole.image_path(name), folder/'images')
    for name, box in zip(table['Image Index'].iloc[-2:], ((0, 10, 128, 118), (5, 0, 123, 128))):
        Image.open(folder/'images'/name).crop(box).save(folder/'images'/name)
    table.to_csv(folder/'data.csv', index=False)
    shutil.copy(whole.path/'dataset.json', folder)
    return ChestDataset(folder)


def untrained(few, folder, views, tta, **config):
    "A run folder as training leaves it, of a network that answers at random, and not timidly."
    torch.manual_seed(1)
    model = FusionModel(('test_resnet',)*2, reduced_channels=16, findings=tuple(few.findings), views=views, **config).eval()
    with torch.no_grad(): model.head.weight *= 30
    save_model(model, folder, dict(image_size=SIDE, tta=tta, provenance=asdict(few.provenance), trained_on={'name': 'few'}))
    names = few.table.image
    pd.DataFrame(dict(image=names, patient_id=few.table.patient_id, part=np.where(np.arange(len(names)) < 20, 'train', 'valid'))).to_csv(folder/'split.csv', index=False)
    return folder


CASES = {'one view': dict(views=('whole',), tta=1), 'two views': dict(views=('whole', 'lungs'), tta=3, branch_heads=True, answer='mean'),
         'finding query': dict(views=('whole', 'lungs'), tta=1, attention='finding_query')}


@pytest.fixture(scope='module', params=CASES)
def run(request, few, tmp_path_factory):
    "A run folder that was made ready, and what it was made from."
    folder = untrained(few, tmp_path_factory.mktemp('run')/'trial', **CASES[request.param])
    make_ready(folder, few, progress=False)
    return folder


@pytest.fixture(scope='module')
def answers(run, few):
    "Answers for the validation images, refused or not."
    names = list(few.table.image[20:])
    return predict_images(run, [few.image_path(name) for name in names], answer_refused=True, batch_size=7, progress=False)


def raw(run, few, names):
    "What `predict` says about images of the data set."
    return predict(load_model(run), few, names, progress=False)


def probabilities(answers): return np.array([[row['probability'] for row in answer.findings] for answer in answers])


def test_a_file_is_shown_as_training_showed_it(run, few, answers):
    names, spec = list(few.table.image[20:]), load_ready(run).spec
    masked = few.with_masks(found_masks(few, progress=False)) if spec['lungs'] else few
    reader = GreyImages(masked, SIDE, views=spec['views'])
    assert (np.stack([a.views for a in answers]) == reader.squares(names)).all()
    for answer, name in zip(answers, names):
        if spec['lungs'] and masked.has_mask(name): assert answer.box == tuple(reader.box(name, answer.size, 1))


def test_an_answer_is_the_prediction_calibrated(run, few, answers):
    names = list(few.table.image[20:])
    frame, spec = raw(run, few, names), load_ready(run).spec
    unchanged = load_ready(run)
    unchanged.spec = spec | {'calibration': spec['calibration'] | {'curves': {}}}
    own = predict_images(unchanged, [few.image_path(name) for name in names], answer_refused=True, progress=False)
    np.testing.assert_allclose(logit(probabilities(own)), logit(frame.iloc[:, 1:].to_numpy()), atol=1e-4, rtol=0)
    assert len(spec['calibration']['curves']) > 2
    calibrated = Calibration.load(run/CALIBRATION_FILE).apply(frame, allow_fitted=True)
    np.testing.assert_allclose(probabilities(answers), calibrated.iloc[:, 1:].to_numpy(), atol=1e-4, rtol=0)
    flags = Thresholds.load(run/THRESHOLDS_FILE).apply(calibrated, allow_fitted=True)
    cuts = [row['threshold'] for row in answers[0].findings]
    for i, finding in enumerate(spec['findings']):
        clear = np.abs(calibrated[f'prob_{finding}'].to_numpy() - (cuts[i] or 0)) > 1e-6 # at the threshold itself the last digit decides
        assert [a.findings[i]['flagged'] for a, c in zip(answers, clear) if c] == [None if pd.isna(f) else bool(f) for f in flags[finding][clear]]


def test_another_prevalence_is_the_one_of_evaluation(run, few, answers):
    names, engine = list(few.table.image[20:]), load_ready(run)
    known = {f: share for f, share in engine.spec['prevalence'].items() if share}
    here = {f: .3 for f in known}
    shifted = predict_images(engine, [few.image_path(name) for name in names], here, answer_refused=True, progress=False)
    frame = pd.DataFrame(probabilities(answers), columns=[f'prob_{f}' for f in engine.spec['findings']])
    frame.insert(0, 'Image Index', names)
    np.testing.assert_allclose(probabilities(shifted), shift_prevalence(frame, known, here).iloc[:, 1:].to_numpy(), atol=1e-5) # batches of 7 and of 8 differ in the last digits
    assert [[row['flagged'] for row in a.findings] for a in shifted] == [[row['flagged'] for row in a.findings] for a in answers]
    assert {row['prevalence'] for row in shifted[0].findings if row['finding'] in here} == {.3}


def test_maps_are_those_of_the_course(run, few, answers):
    names, model = list(few.table.image[20:26]), load_model(run)
    pairs = pd.DataFrame([(name, finding) for name in names for finding in model.findings], columns=['image', 'finding'])
    maps = pair_maps(model, few, pairs, 'evidence', image_size=SIDE, progress=False).reshape(len(names), len(model.findings), SIDE, SIDE)
    np.testing.assert_allclose(np.stack([a.maps for a in answers[:6]]), maps, atol=1e-4*maps.max())


def test_batches_and_pixels_change_nothing(run, few, answers):
    sources = [np.asarray(few.open_image(name)) for name in few.table.image[20:30]]
    own = predict_images(run, sources, answer_refused=True, batch_size=3, progress=False, pixels=False)
    np.testing.assert_allclose(probabilities(own), probabilities(answers[:10]), atol=1e-5)
    assert own[0].image == 'image 1' and own[0].views is None and own[0].maps is None
    assert json.loads(json.dumps(own[0].to_dict()))['size'] == list(few.open_image(few.table.image[20]).size)


def test_no_name_of_a_patient_or_an_image_travels(run, few):
    text = (run/SPEC_FILE).read_text()
    assert not any(name in text for name in few.table.image)
    assert len(Calibration.load(run/CALIBRATION_FILE).fitted_on.images) == len(few.table) - 20
    assert 'patients' in json.loads(text)['calibration']['fitted_on']['note']


def test_an_image_without_lungs_is_shown_whole_and_says_so(few, tmp_path):
    engine = make_ready(untrained(few, tmp_path/'run', views=('whole', 'lungs'), tta=1), few, progress=False)
    blank, = predict_images(engine, [np.full((80, 90), 90, np.uint8)], answer_refused=True, progress=False)
    assert blank.box is None and blank.notes == [NO_MASK] and (blank.views[0] == blank.views[1]).all()


def test_scores_of_a_demo_are_those_of_its_test(few, tmp_path):
    "And a run without a test shows its validation; `better_than_chance` needs the whole interval."
    folder = untrained(few, tmp_path/'demo'/'fusion', views=('whole',), tta=1)
    assert make_ready(tmp_path/'demo', few, progress=False).spec['scores']['part'] == 'valid'
    rows = {f: dict(auroc=.8, auroc_low=.4 + .2*(i == 0), auroc_high=.9, positives=5, images=30, patients=9) for i, f in enumerate(few.findings)}
    (tmp_path/'demo'/'metrics.json').write_text(json.dumps({'scores': rows | {'macro': {}}}))
    (folder/'test_predictions.csv').touch()
    spec = make_ready(tmp_path/'demo', few, progress=False).spec
    assert load_ready(tmp_path/'demo').folder == load_ready(folder).folder == folder and spec['name'] == 'demo'
    assert (spec['scores']['part'], spec['scores']['images'], spec['scores']['patients']) == ('test', 30, 9)
    answer, = predict_images(folder, [few.image_path(few.table.image[0])], answer_refused=True, progress=False)
    assert [row['better_than_chance'] for row in answer.findings] == [i == 0 for i in range(len(few.findings))] and answer.findings[0]['part'] == 'test'


def test_a_refused_image_has_reasons_and_no_probability(run, few):
    noise = np.random.default_rng(0).integers(0, 256, (90, 70, 3), dtype=np.uint8)
    refused, = predict_images(run, [noise], progress=False)
    assert refused.status == 'refused' and refused.reasons and not refused.findings and refused.maps is None
    asked, = predict_images(run, [noise], answer_refused=True, progress=False)
    assert asked.status == 'refused' and asked.reasons == refused.reasons and len(asked.findings) == len(few.findings)
    assert set(refused.refusal) == {number['name'] for number in load_ready(run).spec['refusal']['scores']}


def test_a_folder_that_was_not_made_ready_says_what_to_do(few, tmp_path):
    folder = untrained(few, tmp_path/'run', views=('whole',), tta=1)
    with pytest.raises(UserError, match='chestnb_predict FILES --model .* --data DIR'): load_ready(folder)
    with pytest.raises(UserError, match='no trained model'): load_ready(tmp_path)
    make_ready(folder, few, progress=False)
    (folder/SPEC_FILE).write_text('{"format": "chestnb-model-2"}')
    with pytest.raises(UserError, match='reads chestnb-model-1'): load_ready(folder)
    (folder/'split.csv').unlink()
    with pytest.raises(UserError, match='split.csv'): make_ready(folder, few, progress=False)


def test_other_weights_are_not_taken_for_these(few, tmp_path):
    folder = untrained(few, tmp_path/'run', views=('whole',), tta=1)
    make_ready(folder, few, progress=False)
    save_model(FusionModel(('test_resnet',)*2, reduced_channels=16, findings=tuple(few.findings)).eval(), folder, dict(image_size=SIDE))
    with pytest.raises(UserError, match='other weights'): load_ready(folder)


@pytest.mark.parametrize('spoil', [lambda folder: (folder/SPEC_FILE).unlink(), lambda folder: (folder/SPEC_FILE).write_text('{"format": "chestnb-model-0"}'),
                                   lambda folder: (folder/SPEC_FILE).write_text((folder/SPEC_FILE).read_text().replace('"weights": "', '"weights": "0'))], ids=['never', 'older', 'trained on'])
def test_data_makes_a_run_ready_whatever_is_wrong_with_its_spec(few, tmp_path, monkeypatch, spoil):
    "What the message advises: chestnb_predict FILES --model DIR --data DIR."
    folder, made = untrained(few, tmp_path/'run', views=('whole',), tta=1), []
    make_ready(folder, few, progress=False)
    monkeypatch.setattr(use, 'open_dataset', lambda data: few)
    monkeypatch.setattr(ready_module, 'make_ready', lambda run, dataset: made.append(run))
    assert open_model(str(folder), 'DIR') is not None and not made
    spoil(folder)
    with pytest.raises(UserError): open_model(str(folder))
    open_model(str(folder), 'DIR')
    assert made == [str(folder)]
    with pytest.raises(UserError): open_model(str(folder)) # nothing made it ready here


def test_an_interruption_leaves_nothing_that_looks_ready(few, tmp_path, monkeypatch):
    folder = untrained(few, tmp_path/'run', views=('whole',), tta=1)
    def interrupted(*_): raise KeyboardInterrupt
    monkeypatch.setattr(ready_module, 'write_spec', interrupted)
    with pytest.raises(KeyboardInterrupt): make_ready(folder, few, progress=False)
    with pytest.raises(UserError, match=SPEC_FILE): load_ready(folder)


def test_masks_of_the_data_set_do_not_calibrate_files(few, tmp_path, monkeypatch):
    "A stranger's file has its lungs found by the segmenter, so validation images have, too."
    frame = pd.read_csv(found_masks(few, progress=False), dtype=str, keep_default_na=False)
    frame.to_csv(tmp_path/'masks.csv', index=False)
    own, folder, asked = few.with_masks(tmp_path/'masks.csv'), untrained(few, tmp_path/'run', views=('whole', 'lungs'), tta=1), []
    monkeypatch.setattr(ready_module, 'predict', lambda model, dataset, *args, **more: asked.append(dataset.masks_path) or predict(model, dataset, *args, **more))
    make_ready(folder, own, progress=False)
    assert asked and asked[0] != own.masks_path


@pytest.mark.parametrize('prevalence, says', [(.3, 'Say whose'), ({'Cat': .1}, 'answers for'), ({'Effusion': 0}, 'above 0'), ({'Effusion': True}, 'above 0'), ({'Effusion': '1%'}, 'above 0')])
def test_a_prevalence_that_cannot_be_is_refused(prevalence, says):
    with pytest.raises(UserError, match=says): check_prevalence(dict(findings=['Effusion', 'Mass'], prevalence={'Effusion': .1, 'Mass': .1}), prevalence)


@pytest.fixture(scope='module')
def pair(few, tmp_path_factory):
    "Two runs of one kind that were made ready, with different weights."
    folders = [untrained(few, tmp_path_factory.mktemp('pair')/name, views=('whole',), tta=1) for name in 'ab']
    model = load_model(folders[1])
    with torch.no_grad():
        for p in model.parameters(): p *= 1.1
    save_model(model, folders[1], {key: value for key, value in model.info.items() if key not in ('format', 'model', 'findings', 'note')})
    for folder in folders: make_ready(folder, few, progress=False)
    return folders


@pytest.mark.parametrize('name, says', [('refusal.safetensors', 'is not the gate'), (CALIBRATION_FILE, 'whose calibration the model answers with'), (THRESHOLDS_FILE, 'whose thresholds')])
def test_a_part_of_another_run_is_not_taken_for_its_own(pair, few, tmp_path, name, says):
    "the gate of another run of the same kind answered without a word"
    folder = shutil.copytree(pair[0], tmp_path/'run')
    load_ready(folder)
    shutil.copy(pair[1]/name, folder)
    with pytest.raises(UserError, match=f'{name}: .*{says}.*chestnb_predict FILES --model RUN --data DIR'): load_ready(folder)
    assert not is_ready(folder) and open_model(str(folder), str(few.path)) # and that remedy works
    assert load_ready(folder).spec['weights'] == load_ready(pair[0]).spec['weights']


@pytest.mark.parametrize('damage', [lambda folder: (folder/SPEC_FILE).write_text('{"for'), lambda folder: (folder/SPEC_FILE).unlink(), lambda folder: (folder/'refusal.safetensors').unlink(),
                                    lambda folder: (folder/'refusal.safetensors').write_bytes(b'short'), lambda folder: (folder/CALIBRATION_FILE).write_text('[]')])
def test_what_the_message_says_mends_a_damaged_run(pair, few, tmp_path, damage):
    "--data was not looked at where a model_spec.json was there, damaged or not"
    folder = shutil.copytree(pair[0], tmp_path/'run')
    damage(folder)
    with pytest.raises(UserError, match='chestnb_predict FILES --model'): load_ready(folder)
    assert open_model(str(folder), str(few.path)).spec['calibration'] == load_ready(pair[0]).spec['calibration']


def test_a_ready_model_needs_no_data(pair):
    assert is_ready(pair[0]) and open_model(str(pair[0]), 'nowhere').spec == load_ready(pair[0]).spec


def test_a_missing_copy_of_the_calibration_is_no_harm(pair, tmp_path):
    folder = shutil.copytree(pair[0], tmp_path/'run')
    (folder/CALIBRATION_FILE).unlink()
    assert load_ready(folder).spec == load_ready(pair[0]).spec


def test_making_ready_again_and_stopping_leaves_what_was_there(pair, few, tmp_path, monkeypatch):
    folder = shutil.copytree(pair[0], tmp_path/'run')
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    def interrupted(*_): raise KeyboardInterrupt
    monkeypatch.setattr(ready_module, 'write_spec', interrupted)
    with pytest.raises(KeyboardInterrupt): make_ready(folder, few, progress=False)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_another_lung_segmenter_is_noticed(few, tmp_path):
    folder = untrained(few, tmp_path/'run', views=('whole', 'lungs'), tta=1)
    make_ready(folder, few, progress=False)
    spec = json.loads((folder/SPEC_FILE).read_text())
    spec['lungs']['sha256'] = '0'*64
    (folder/SPEC_FILE).write_text(json.dumps(spec))
    with pytest.raises(UserError, match='another lung segmenter'): load_ready(folder)
