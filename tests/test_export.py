"""A model as one file: the same answers without torch, every byte checked, a folder that is whole or absent."""
import base64
import errno
import json
import shutil
import subprocess
import sys
from configparser import ConfigParser
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch

from chestnb.commands.use import chestnb_export
from chestnb.core.errors import UserError
from chestnb.core.files import read_json, write_json
from chestnb.data.dataset import ChestDataset
from chestnb.data.split import patient_split
from chestnb.model.fusion import FusionModel
from chestnb.model.lungs import LEAST_AREA, LEAST_QUALITY, MOST_AREA, load_segmenter
from chestnb.model.runs import save_model
from chestnb.using import export
from chestnb.using.deployed import Deployed, DeployedLungs
from chestnb.using.export import export_model, export_text
from chestnb.using.exported import SEAL, load_exported
from chestnb.using.precision import PRECISIONS
from chestnb.using.predict import predict_images
from chestnb.using.ready import Ready
from chestnb.using.spec import check_spec, SYNTHETIC_MODEL

onnx = pytest.importorskip('onnx', reason='the package onnx is not installed (extra export)')
pytest.importorskip('onnxscript', reason='the package onnxscript is not installed (extra export)')
pytest.importorskip('onnxruntime', reason='the package onnxruntime is not installed (extra export)')

NAMES = ('.manifest.json', 'CARD.md', 'model.json', 'model.onnx', 'requirements.txt', 'run.py')


class Brightness(torch.nn.Module):
    "A gate for trying out: how strong the joined map is on average."
    def forward(self, joined): return joined.mean((1, 2, 3))[:, None]


def spec_of(dataset, **own):
    "A whole spec, filled with what could be measured."
    findings = list(dataset.findings)
    known = dict(format='chestnb-model-1', name='trial', weights='0'*64, made='2026-01-01T00:00:00Z', chestnb='0', synthetic=True, note='Not for clinical use.', findings=findings,
                 image_size=64, views=['whole'], tta=2, answer='mean', map_share=[1., 1.], lungs=None,
                 calibration={'curves': {findings[0]: dict(intercept=.2, slope=1.1)}}, thresholds={'rule': 'youden', 'value': None, 'by_finding': dict.fromkeys(findings, .5)},
                 prevalence=dict.fromkeys(findings, .1), scores={'part': 'test', 'findings': {findings[0]: dict(auroc=.8, low=.7, high=.9, better_than_chance=True)}},
                 refusal={'scores': [dict(name='bright', limit=1e9, says='Too bright.')], 'checks': {}}, data={'name': 'trial'}, run={})
    return check_spec(known | own)


def make(dataset, folder, views):
    "A small untrained model that is loud enough to show differences."
    torch.manual_seed(0)
    model = FusionModel(('test_resnet',)*len(views), reduced_channels=16, views=views, branch_heads=True, answer='mean', findings=dataset.findings).eval()
    with torch.no_grad():
        for head in (model.head, *model.branch_heads): head.weight.mul_(1000)
    segmenter = load_segmenter() if 'lungs' in views else None
    lungs = segmenter and dict(image_size=segmenter.image_size, margin=.1, least_quality=LEAST_QUALITY, least_area=LEAST_AREA, most_area=MOST_AREA, sha256=segmenter.info['sha256'])
    ready = Ready(spec_of(dataset, views=list(views), lungs=lungs), Deployed(model, Brightness(), 2).eval(), segmenter and DeployedLungs(segmenter).eval(), folder, torch.device('cpu'))
    save_model(model, folder, dict(image_size=64, tta=2, provenance=asdict(dataset.provenance)))
    patient_split(dataset.table, seed=0).to_csv(folder/'split.csv', index=False)
    return ready


@pytest.fixture(scope='module')
def dataset(embedded): return ChestDataset(embedded)


@pytest.fixture(scope='module')
def two_views(dataset, tmp_path_factory): return make(dataset, tmp_path_factory.mktemp('two')/'run', ('whole', 'lungs'))


@pytest.fixture(scope='module')
def one_view(dataset, tmp_path_factory): return make(dataset, tmp_path_factory.mktemp('one')/'run', ('whole',))


@pytest.fixture(scope='module')
def both(two_views, tmp_path_factory): return export_model(two_views, tmp_path_factory.mktemp('exported')/'both')


@pytest.fixture(scope='module')
def made(one_view, tmp_path_factory): return export_model(one_view, tmp_path_factory.mktemp('exported')/'one')


@pytest.fixture
def folder(made, tmp_path):
    "A copy of the exported folder, to be spoilt."
    return Path(shutil.copytree(made, tmp_path/'copy'))


def files_of(dataset, n=6): return [dataset.image_path(name) for name in dataset.table.image[:n]]


def numbers(answers): return np.array([[row['probability'] for row in answer.findings] for answer in answers])


# the same answers

def test_onnxruntime_agrees_with_torch(two_views, both, dataset):
    files = files_of(dataset)
    expected = predict_images(two_views, files, progress=False)
    for batch_size in (1, 4):
        found = predict_images(load_exported(both), files, batch_size=batch_size, progress=False)
        assert abs(numbers(found) - numbers(expected)).max() < 1e-5
        assert [answer.box for answer in found] == [answer.box for answer in expected] and any(answer.box for answer in found)
        for one, other in zip(found, expected):
            assert abs(one.maps - other.maps).max() < 1e-3*abs(other.maps).max()
            assert one.refusal['bright'] == pytest.approx(other.refusal['bright'], abs=1e-4)
    assert np.ptp(numbers(expected), axis=0).max() > .2 # the test would see a difference


def test_one_file_is_enough(both, dataset, tmp_path):
    alone = shutil.copy(both/'model.onnx', tmp_path/'somewhere.onnx')
    files = files_of(dataset, 2)
    assert (numbers(predict_images(load_exported(alone), files, progress=False)) == numbers(predict_images(load_exported(both), files, progress=False))).all()


def test_the_network_says_what_it_is(both):
    model = onnx.load(both/'model.onnx')
    entries = {entry.key: entry.value for entry in model.metadata_props}
    spec, known = json.loads(entries['chestnb']), read_json(both/'model.json', 'a spec')
    assert [(opset.domain, opset.version) for opset in model.opset_import] == [('', 18)] and known['onnx']['opset'] == 18
    assert spec == {name: value for name, value in known.items() if name != 'files'} and check_spec(spec)
    assert not model.graph.input[0].type.tensor_type.shape.dim[0].HasField('dim_value')
    assert base64.b64decode(entries['lungs.onnx']) == (both/'lungs.onnx').read_bytes() and SEAL in entries
    assert sorted(path.name for path in both.iterdir()) == sorted([*NAMES, 'lungs.onnx'])
    onnx.checker.check_model(model)


def test_another_prevalence_moves_the_probability(made, dataset):
    model, finding = load_exported(made), dataset.findings[0]
    rare, usual = (predict_images(model, files_of(dataset, 1), prevalence=share, progress=False)[0].findings[0] for share in ({finding: .01}, None))
    assert rare['probability'] < usual['probability'] and rare['flagged'] == usual['flagged']


# run.py

def bare(folder, *words):
    "run.py where torch, pandas and chestnb cannot be imported."
    code = (f"import runpy, sys; sys.modules.update(dict.fromkeys(('torch', 'pandas', 'chestnb', 'fastcore', 'scipy'))); "
            f"sys.argv[1:] = {list(map(str, words))!r}; runpy.run_path({str(folder/'run.py')!r}, run_name='__main__')")
    return subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, cwd=folder.parent)


def test_the_runner_needs_no_library(both, dataset, tmp_path):
    done = bare(both, *files_of(dataset, 3), '--json', tmp_path/'said.json')
    assert done.returncode == 0, done.stderr
    said = read_json(tmp_path/'said.json', 'answers')
    expected = predict_images(load_exported(both), files_of(dataset, 3), progress=False)
    for image, answer in zip(said['images'], expected):
        of_finding = {row['finding']: row for row in image['findings']}
        assert image['image'] == answer.image and image['status'] == answer.status == 'answered'
        assert all(of_finding[row['finding']]['probability'] == pytest.approx(row['probability'], abs=1e-9) for row in answer.findings)
    assert 'not a medical device' in done.stdout and said['counts']['answered'] == 3
    assert '%' in done.stdout and 'threshold' in done.stdout


def test_an_export_says_synthetic_and_score_wherever_it_answers(made, both, dataset):
    "As `chestnb_predict` does: a model of drawn X-rays says so, and per cent is written only where a finding was calibrated."
    calibrated = dataset.findings[0]
    done, card = bare(made, *files_of(dataset, 1)), (both/'CARD.md').read_text()
    assert all(SYNTHETIC_MODEL in said for said in (done.stdout, card, export_text(both)))
    lines = [line for line in done.stdout.splitlines() if 'threshold' in line]
    assert len(lines) == len(dataset.findings) and [line.split()[0] for line in lines if '%' in line] == [calibrated] and sum('not calibrated' in line for line in lines) == len(lines) - 1
    rows = {line.split(' | ')[0].strip('| '): line for line in card.splitlines() if line.startswith('|')}
    assert '| 50 % |' in rows[calibrated] and all('| score 0.5 |' in rows[finding] for finding in dataset.findings[1:]) and 'is a score too' in card


def test_the_runner_names_a_bad_file_and_goes_on(made, dataset, tmp_path):
    (tmp_path/'no.png').write_text('no picture')
    done = bare(made, tmp_path/'no.png', *files_of(dataset, 1))
    assert done.returncode == 1 and 'no.png: failed' in done.stdout and ': answered' in done.stdout
    done = bare(made, *files_of(dataset, 1), '--prevalence', 'Nonsense=.2')
    assert done.returncode == 2 and done.stderr.startswith('run.py: ') and len(done.stderr.splitlines()) == 1


def test_requirements_are_those_of_the_runner(made):
    lines = (made/'requirements.txt').read_text().split()
    assert [line.split('==')[0] for line in lines] == ['numpy', 'onnxruntime', 'pillow', 'pydicom']


# every byte

@pytest.mark.parametrize('place', [0, 1000, .25, .5, .75, -1])
def test_one_changed_byte_is_noticed(made, tmp_path, place):
    content = bytearray((made/'model.onnx').read_bytes())
    content[int(place*len(content)) if isinstance(place, float) else place] ^= 1
    (tmp_path/'model.onnx').write_bytes(content)
    with pytest.raises(UserError, match='copy|Copy'): load_exported(tmp_path/'model.onnx')


@pytest.mark.parametrize('name', [name for name in NAMES if name not in ('.manifest.json', 'model.json')])
def test_one_changed_file_of_the_folder_is_noticed(folder, name):
    with open(folder/name, 'ab') as file: file.write(b' ')
    with pytest.raises(UserError, match=f'{name} is not as it was written'): load_exported(folder)
    (folder/name).unlink()
    with pytest.raises(UserError, match=f'{name} is missing'): load_exported(folder)


def test_a_moved_threshold_is_noticed(folder, dataset):
    known = read_json(folder/'model.json', 'a spec')
    known['thresholds']['by_finding'][dataset.findings[0]] = .4
    write_json(folder/'model.json', known)
    with pytest.raises(UserError, match='says something else'): load_exported(folder)


def test_other_files_are_refused_in_a_sentence(folder, one_view, tmp_path):
    for content in (b'', b'no model', (folder/'model.onnx').read_bytes()[:5000]):
        (tmp_path/'other.onnx').write_bytes(content)
        with pytest.raises(UserError, match='no model that chestnb_export wrote'): load_exported(tmp_path/'other.onnx')
    known = read_json(folder/'model.json', 'a spec')
    write_json(folder/'model.json', known | {'format': 'chestnb-model-9'})
    with pytest.raises(UserError, match="'chestnb-model-9'; this version reads chestnb-model-1"): load_exported(folder)
    with pytest.raises(UserError, match='run folder of a training'): load_exported(one_view.folder)
    with pytest.raises(UserError, match='no such file'): load_exported(tmp_path/'nowhere.onnx')
    with pytest.raises(UserError, match='no exported model'): load_exported(tmp_path)


def test_a_missing_package_is_named(made, one_view, tmp_path, monkeypatch):
    for name, act in (('onnxruntime', lambda: load_exported(made)), ('onnxscript', lambda: export_model(one_view, tmp_path/'out'))):
        with monkeypatch.context() as patched:
            patched.setitem(sys.modules, name, None)
            with pytest.raises(UserError, match='chestnb\\[export\\]'): act()
    assert not (tmp_path/'out').exists()


# whole or absent

@pytest.fixture
def quick(monkeypatch, made):
    "Export without translating the network again."
    networks = {'model.onnx': (made/'model.onnx').read_bytes()}
    monkeypatch.setattr(export, 'onnx_pair', lambda *args: networks)


def test_exporting_twice_replaces_and_keeps_what_is_not_ours(quick, one_view, tmp_path):
    out = export_model(one_view, tmp_path/'out')
    (out/'thesis.txt').write_text('mine')
    export_model(one_view, out)
    assert (out/'thesis.txt').read_text() == 'mine' and load_exported(out)
    assert str(out) in export_text(out) and 'Not for clinical use' not in export_text(out).split('\n')[0]


def test_a_folder_of_somebody_else_is_left_alone(quick, one_view, tmp_path):
    (tmp_path/'out').mkdir()
    (tmp_path/'out'/'thesis.txt').write_text('mine')
    with pytest.raises(UserError, match='left alone'): export_model(one_view, tmp_path/'out')
    assert [path.name for path in (tmp_path/'out').iterdir()] == ['thesis.txt']


@pytest.mark.parametrize('fault', [OSError(errno.ENOSPC, 'No space left on device'), KeyboardInterrupt()])
def test_nothing_half_written_stays(quick, one_view, tmp_path, monkeypatch, fault):
    def full(*args, **kwargs): raise fault
    with monkeypatch.context() as patched:
        patched.setattr(export, 'card_text', full)
        with pytest.raises(type(fault)): export_model(one_view, tmp_path/'out')
    assert [path.name for path in tmp_path.iterdir() if path.suffix != '.lock'] == []
    export_model(one_view, tmp_path/'out')
    with monkeypatch.context() as patched:
        patched.setattr(export, 'card_text', full)
        with pytest.raises(type(fault)): export_model(one_view, tmp_path/'out')
    assert load_exported(tmp_path/'out') and sorted(path.name for path in (tmp_path/'out').iterdir()) == sorted(NAMES)


def test_the_command_says_that_it_was_stopped(monkeypatch, tmp_path):
    def stopped(*args): raise KeyboardInterrupt
    monkeypatch.setattr(export, 'export_model', stopped)
    with pytest.raises(KeyboardInterrupt, match='Nothing was written'): chestnb_export('runs/demo', str(tmp_path/'out'))


# smaller

@pytest.mark.parametrize('precision', PRECISIONS[1:])
def test_smaller_files_say_what_they_lose(one_view, made, dataset, tmp_path, monkeypatch, precision):
    monkeypatch.setattr(export, 'MOST_SEEN', 16)
    monkeypatch.setattr(export, 'MOST_JUDGED', 40)
    out = export_model(one_view, tmp_path/'out', precision, dataset)
    model, cost = load_exported(out), read_json(out/'model.json', 'a spec')['precision']['cost']
    assert (out/'model.onnx').stat().st_size < {'float16': .62, 'int8': .5}[precision]*(made/'model.onnx').stat().st_size
    assert cost['images'] == 40 and 0 < cost['mean_change'] < {'float16': .01, 'int8': .2}[precision]
    assert precision in (out/'CARD.md').read_text() and f"{cost['auroc']:.4f}" in (out/'CARD.md').read_text()
    assert numbers(predict_images(model, files_of(dataset, 2), progress=False)).shape == (2, len(dataset.findings))


def test_a_smaller_file_needs_the_data(one_view, tmp_path):
    with pytest.raises(UserError, match='--data DIR'): export_model(one_view, tmp_path/'out', 'float16')
    with pytest.raises(UserError, match='expected one of float32, float16, int8'): export_model(one_view, tmp_path/'out', 'int4')
    assert not (tmp_path/'out').exists()


# the extra

def test_the_extra_is_installed_and_pinned(root):
    settings = ConfigParser(delimiters=['='])
    settings.read(root/'settings.ini')
    names = [requirement.split('>')[0] for requirement in settings['DEFAULT']['export_requirements'].split()]
    pinned = (root/'constraints.txt').read_text()
    assert names == ['onnx', 'onnxscript', 'onnxruntime', 'highdicom'] and all(f'\n{name}==' in pinned for name in [*names, 'playwright'])
