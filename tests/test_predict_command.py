"""chestnb_predict: files in, a folder of results out, whatever people bring."""
import json
import os
import shutil
import struct
import sys
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from chestnb.commands import use
from chestnb.commands.use import chestnb_predict
from chestnb.core.errors import NOT_FOR_CLINICAL_USE, UserError
from chestnb.data.dicom import write_dicom
from chestnb.evaluation.prevalence_shift import shift_prevalence
from chestnb.using import answering, results
from chestnb.using.answer_page import write_pages
from chestnb.using.inputs import MOST_PIXELS, OtherImage, find_radiographs, open_radiograph
from chestnb.using.runner import Answer, finding_row, log_odds
from chestnb.using.spec import check_spec
from chestnb.using.tables import predictions_table, prevalence_given
from typed import typed

FINDINGS = ['Effusion', 'Mass', 'Hernia']


class Toy:
    "An engine that is no network: logits from the mean grey; what is very bright is refused."
    spec = dict(format='chestnb-model-1', name='toy', made='2026-11-27T05:00:00Z', chestnb='0.2.0', synthetic=True, note=NOT_FOR_CLINICAL_USE, findings=FINDINGS, image_size=64, views=['whole'], tta=1,
                answer='mean', lungs=None, map_share=[1., 1.], prevalence=dict(Effusion=.2, Mass=.1, Hernia=0.),
                calibration={'curves': {f: dict(intercept=0., slope=1.) for f in FINDINGS[:2]}}, thresholds={'rule': 'sensitivity', 'value': .9, 'by_finding': {'Effusion': .6, 'Mass': .3}},
                scores={'part': 'test', 'findings': {'Effusion': dict(auroc=.84, low=.8, high=.88, better_than_chance=True), 'Mass': dict(auroc=.55, low=.4, high=.7, better_than_chance=False)}},
                refusal={'scores': [dict(name='bright', limit=.95, says='It is brighter than any X-ray.')], 'checks': {}}, data={}, run={}, weights='0'*64)

    def __init__(self, stop_after=10**9): self.asked, self.stop_after = 0, stop_after

    def forward(self, views):
        if self.asked >= self.stop_after: raise KeyboardInterrupt
        self.asked += len(views)
        grey = views.mean((1, 2, 3))
        maps = np.zeros((len(views), 1, 3, 4, 4), np.float32)
        maps[:, 0, :2, 2, 1] = 1
        return dict(logits=np.stack([4*grey - 2, grey - 2, grey - 5], 1), maps=maps, refusal=grey[:, None])


@pytest.fixture
def xrays(tmp_path, embedded):
    "A folder with three synthetic X-rays."
    folder = tmp_path/'xrays'
    folder.mkdir()
    for path in sorted((embedded/'images').glob('*.png'))[:3]: shutil.copy(path, folder)
    return folder


@pytest.fixture
def say(monkeypatch, capsys, tmp_path):
    "Type `chestnb_predict WORDS`, answered by a toy; returns exit code, stdout and stderr."
    monkeypatch.setattr(use, 'open_model', lambda model, data='': say.toy)
    monkeypatch.chdir(tmp_path)
    def say(*words, toy=None):
        say.toy = toy or Toy()
        monkeypatch.setattr(sys, 'argv', ['chestnb_predict', *map(str, words), '--model', 'toy'])
        with pytest.raises(SystemExit) as ended: chestnb_predict()
        said = capsys.readouterr()
        return ended.value.code, said.out, said.err
    return say


def png_header(width, height):
    "A PNG of any size without pixels."
    def chunk(name, data): return struct.pack('>I', len(data)) + name + data + struct.pack('>I', zlib.crc32(name + data))
    return b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', struct.pack('>IIBBBBB', width, height, 8, 0, 0, 0, 0)) + chunk(b'IDAT', b'') + chunk(b'IEND', b'')


def test_answers_for_files_and_folders(say, xrays, tmp_path):
    code, out, err = say(xrays, '--out', 'results')
    assert code == 0 and '3 answered' in out and 'not a medical device' in out and 'SYNTHETIC' in out, err
    table = pd.read_csv(tmp_path/'results'/'predictions.csv')
    assert table.status.tolist() == ['answered']*3 and table['Image Index'].is_unique
    assert (table.flagged_Effusion == (table.prob_Effusion >= table.threshold_Effusion)).all() and table.threshold_Hernia.isna().all()
    assert set(table.use) == {'not for clinical use'}
    known = pd.read_csv(tmp_path/'results'/'findings.csv').set_index('finding')
    assert known.rule.eq('sensitivity 0.9').all() and known.prevalence['Effusion'] == .2 and known.auroc['Mass'] == .55
    assert known.word['Mass'] == 'never shown to be better than chance' and 'never tested' in known.word['Hernia']
    said = json.loads((tmp_path/'results'/'predictions.json').read_text())
    assert said['note'] == NOT_FOR_CLINICAL_USE and said['complete'] and said['counts'] == dict(answered=3, refused=0, failed=0)
    assert {p.name for p in (tmp_path/'results').iterdir()} == {'answers', 'predictions.csv', 'findings.csv', 'predictions.json', 'predictions.html'}


def test_files_may_be_named_between_options_and_twice(say, xrays, tmp_path):
    first, second, _ = sorted(xrays.iterdir())
    code, out, _ = say(first, '--out', 'results', second, first, '--files', second)
    assert code == 0 and '2 files' in out


def bad_files(folder, good):
    "Everything that can be wrong with a file: name -> (what is said, exit status of the answer)."
    (folder/'bomb.png').write_bytes(png_header(20_000, 10_000))
    with zipfile.ZipFile(folder/'archive.png', 'w') as archive: archive.write(good, 'chest.png')
    (folder/'half.png').write_bytes(good.read_bytes()[:3000])
    (folder/'nothing.jpg').write_bytes(b'')
    (folder/'letters.tif').write_text('Dear colleague')
    (folder/'dir.png').mkdir()
    grey = (np.arange(64*64, dtype=np.uint16)*997 % 4096).reshape(64, 64)
    write_dicom(grey, folder/'whole.dcm')
    whole = (folder/'whole.dcm').read_bytes()
    (folder/'short.dcm').write_bytes(whole[:-1000])
    place = whole.rindex(struct.pack('<HH', 0x7fe0, 0x0010)) + 8
    for name, length in (('length', 1000), ('beyond', 2**31)): (folder/f'{name}.dcm').write_bytes(whole[:place] + struct.pack('<I', length) + whole[place + 4:])
    (folder/'header.dcm').write_bytes(whole[:200])
    write_dicom(grey, folder/'hand.dcm', {'BodyPartExamined': 'HAND'})
    write_dicom(grey, folder/'ct.dcm', {'Modality': 'CT'})
    write_dicom(grey, folder/'lateral.dcm', {'ViewPosition': 'LL'})
    return {'bomb.png': ('megapixels', 'failed'), 'archive.png': ('zip archive', 'failed'), 'half.png': ('truncated', 'failed'), 'nothing.jpg': ('empty', 'failed'), 'letters.tif': ('PNG, JPEG, TIFF or DICOM', 'failed'),
            'short.dcm': ('truncated', 'failed'), 'length.dcm': ('DICOM', 'failed'), 'header.dcm': ('DICOM', 'failed'), 'hand.dcm': ('HAND', 'refused'), 'ct.dcm': ('CT', 'refused'), 'lateral.dcm': ('LL', 'refused')}


def test_one_bad_file_stops_nobody_else(say, xrays, tmp_path):
    expected = bad_files(xrays, sorted(xrays.glob('*.png'))[0])
    code, out, err = say(xrays, '--out', 'results')
    assert code == 1 and not err.strip() and '5 answered, 3 refused, 8 could not be read' in out # beyond.dcm claims too much, and has all its pixels
    table = pd.read_csv(tmp_path/'results'/'predictions.csv').set_index('Image Index')
    for name, (words, status) in expected.items():
        assert table.status[name] == status and words in table.reasons[name], (name, table.reasons[name])
        assert str(tmp_path) not in table.reasons[name] and pd.isna(table.prob_Effusion[name])
    assert table.status['whole.dcm'] == table.status['beyond.dcm'] == 'answered'


def test_a_bomb_is_not_decoded(tmp_path, monkeypatch):
    "By its header alone: neither Pillow nor pydicom is asked for pixels."
    import pydicom
    monkeypatch.setattr(Image.Image, 'load', lambda *a: pytest.fail('decoded'))
    monkeypatch.setattr(pydicom.Dataset, 'pixel_array', property(lambda self: pytest.fail('decoded')))
    for width, height in ((20_000, 10_000), (60_000, 60_000), (MOST_PIXELS//6000 + 1, 6000)):
        (tmp_path/'bomb.png').write_bytes(png_header(width, height))
        with pytest.raises(UserError, match='megapixels'): open_radiograph(tmp_path/'bomb.png')
    write_dicom(np.zeros((4, 4), np.uint16), tmp_path/'bomb.dcm')
    dicom = pydicom.dcmread(tmp_path/'bomb.dcm')
    dicom.Rows, dicom.Columns = 60_000, 60_000
    dicom.save_as(tmp_path/'bomb.dcm')
    with pytest.raises(UserError, match='3,600 megapixels'): open_radiograph(tmp_path/'bomb.dcm')


def test_large_but_honest_images_are_read(tmp_path):
    Image.new('L', (6000, 5000), 90).save(tmp_path/'film.png')
    assert open_radiograph(tmp_path/'film.png').size == (6000, 5000)
    write_dicom(np.full((3000, 3000), 1000, np.uint16), tmp_path/'detector.dcm')
    assert open_radiograph(tmp_path/'detector.dcm').size == (3000, 3000)


@pytest.mark.parametrize('mode, ending', [('L', 'png'), ('RGB', 'jpg'), ('RGBA', 'png'), ('L', 'tif'), ('I;16', 'png'), ('I;16', 'tif'), ('L', 'bmp'), ('1', 'png')])
def test_kinds_of_pictures(tmp_path, mode, ending):
    grey = Image.fromarray((np.add.outer(np.arange(40), np.arange(30))*3).astype(np.uint8))
    image = Image.fromarray(np.asarray(grey).astype(np.uint16)*256) if mode == 'I;16' else grey.convert(mode)
    image.save(tmp_path/f'chest.{ending}')
    read = open_radiograph(tmp_path/f'chest.{ending}')
    assert read.mode == 'L' and read.size == (30, 40)


def test_dicom_with_the_head_of_a_tiff_is_dicom(tmp_path):
    "The 128 bytes before DICOM's mark may be anything; pydicom's CT_small.dcm begins as a TIFF does."
    whole = write_dicom(np.arange(4096, dtype=np.uint16).reshape(64, 64), tmp_path/'x.dcm').read_bytes()
    for name in ('y.dcm', 'no_ending'):
        (tmp_path/name).write_bytes(b'II*\0' + whole[4:])
        assert open_radiograph(tmp_path/name).size == (64, 64)


def test_files_that_may_not_be_opened(say, xrays, tmp_path, monkeypatch):
    first, closed = sorted(xrays.iterdir())[:2]
    (xrays/'ward').mkdir()
    import builtins
    real_open, real_scan = builtins.open, os.scandir
    def no_open(path, *a, **k):
        if str(path) == str(closed): raise PermissionError(13, 'Permission denied', str(path))
        return real_open(path, *a, **k)
    def no_list(path='.'):
        if str(path).endswith('ward'): raise PermissionError(13, 'Permission denied', str(path))
        return real_scan(path)
    monkeypatch.setattr(builtins, 'open', no_open)
    monkeypatch.setattr(os, 'scandir', no_list)
    code, out, _ = say(xrays, '--out', 'results')
    assert code == 1 and '2 answered' in out and '2 could not be read' in out and out.count('Permission denied') == 2


def test_nothing_to_read_writes_nothing(say, tmp_path):
    (tmp_path/'empty').mkdir()
    (tmp_path/'empty'/'notes.txt').write_text('none')
    for words, expected in ((['empty'], 'holds no X-ray'), (['absent.png'], 'there is no such file'), (['empty', 'absent.png'], 'there is no such file'), ([], 'which X-rays?')):
        code, out, err = say(*words, '--out', 'results')
        assert code == 2 and expected in err and 'Traceback' not in err and not out
    assert not (tmp_path/'results').exists()


def test_results_are_not_taken_for_xrays(say, xrays):
    "The folder of results may lie in the folder of images."
    for n in range(2):
        code, out, _ = say(xrays, '--out', xrays/'results')
        Image.new('L', (32, 32)).save(xrays/'results'/'drawn.png')
        assert code == 0 and '3 files' in out


def test_finished_images_are_not_done_again(say, xrays, tmp_path):
    toys = [Toy() for _ in range(5)]
    assert say(xrays, '--out', 'results', toy=toys[0])[0] == 0
    first = (tmp_path/'results'/'predictions.csv').read_bytes()
    code, out, _ = say(xrays, '--out', 'results', toy=toys[1])
    assert (toys[0].asked, toys[1].asked) == (3, 0) and '3 of them were done before' in out and (tmp_path/'results'/'predictions.csv').read_bytes() == first
    paths = sorted(xrays.iterdir())
    shutil.copy(paths[1], paths[0])                                  # another image under the same name
    say(xrays, '--out', 'results', toy=toys[2])
    assert toys[2].asked == 1
    toys[3].spec = Toy.spec | dict(weights='1'*64)                   # another model
    say(xrays, '--out', 'results', toy=toys[3])
    assert toys[3].asked == 3
    toys[4].spec = toys[3].spec
    say(paths[0], '--out', 'results', '--overwrite', toy=toys[4])    # fewer images: what is kept of the others goes
    assert toys[4].asked == 0 and len(list((tmp_path/'results'/'answers').iterdir())) == 2 and len(pd.read_csv(tmp_path/'results'/'predictions.csv')) == 1


def test_answers_for_other_files_are_not_lost_unasked(say, xrays, tmp_path):
    first, second, third = sorted(xrays.iterdir())
    assert say(first, second, '--out', 'results')[0] == 0
    def kept(): return {path.name: path.read_bytes() for path in (tmp_path/'results').rglob('*') if path.is_file()}
    before, toy = kept(), Toy()
    code, out, err = say(third, '--out', 'results', toy=toy)
    assert code == 2 and toy.asked == 0 and kept() == before and f'2 other files ({first.name}, {second.name})' in err and '--out DIR' in err and '--overwrite' in err
    assert say(second, '--out', 'results')[0] == 2 and kept() == before      # fewer files lose answers, too
    code, out, _ = say(xrays, '--out', 'results')                            # more files lose none
    assert code == 0 and '2 of them were done before' in out and len(pd.read_csv(tmp_path/'results'/'predictions.csv')) == 3
    code, out, _ = say(third, '--out', 'results', '--overwrite')
    assert code == 0 and pd.read_csv(tmp_path/'results'/'predictions.csv')['Image Index'].tolist() == [third.name] and len(list((tmp_path/'results'/'answers').iterdir())) == 2


def test_a_file_that_failed_is_no_answer_to_lose(say, xrays, tmp_path):
    broken, first = xrays/'broken.png', sorted(xrays.iterdir())[0]
    broken.write_text('no picture')
    assert say(broken, '--out', 'results')[0] == 1 and say(first, '--out', 'results')[0] == 0
    assert pd.read_csv(tmp_path/'results'/'predictions.csv')['Image Index'].tolist() == [first.name]


def test_without_numbers_nothing_explains_numbers(say, xrays, tmp_path):
    broken, first = xrays/'broken.png', sorted(xrays.iterdir())[0]
    broken.write_text('no picture')
    for names, explained in ([broken], False), ([broken, first], True):
        _, out, _ = say(*names, '--out', 'results')
        page = (tmp_path/'results'/'predictions.html').read_text()
        assert ('Probabilities assume' in out) == ('How to read these numbers' in page) == explained and 'SYNTHETIC' in out and 'ot for clinical use' in page


def test_ctrl_c_leaves_what_is_done(say, xrays, tmp_path):
    code, out, err = say(xrays, '--out', 'results', '--batch_size', 1, toy=Toy(stop_after=2))
    assert code == 130 and '2 of 3 files are done' in err and 'Traceback' not in err
    said = json.loads((tmp_path/'results'/'predictions.json').read_text())
    assert not said['complete'] and len(said['images']) == 2 and 'stopped before its end' in (tmp_path/'results'/'predictions.html').read_text()
    toy = Toy()
    assert say(xrays, '--out', 'results', toy=toy)[0] == 0 and toy.asked == 1


def test_a_full_disk_is_a_sentence(say, xrays, tmp_path, monkeypatch):
    real, written = results.write_text, []
    def full(path, text):
        written.append(path)
        if len(written) > 3: raise OSError(28, 'No space left on device', str(path))
        return real(path, text)
    monkeypatch.setattr(results, 'write_text', full)
    code, out, err = say(xrays, '--out', 'results')
    assert code == 2 and 'No space left on device' in err and 'free space' in err and 'Traceback' not in err
    assert not (tmp_path/'results'/'predictions.csv').exists() and not list((tmp_path/'results').rglob('*.tmp'))
    monkeypatch.setattr(results, 'write_text', real)
    toy = Toy()
    assert say(xrays, '--out', 'results', toy=toy)[0] == 0 and toy.asked == 2


def test_files_of_somebody_else_stay(say, xrays, tmp_path):
    (tmp_path/'results').mkdir()
    (tmp_path/'results'/'predictions.csv').write_text('mine')
    code, _, err = say(xrays, '--out', 'results')
    assert code == 2 and 'left alone' in err and (tmp_path/'results'/'predictions.csv').read_text() == 'mine'
    assert say(xrays, '--out', sorted(xrays.iterdir())[0])[0] == 2


def test_names_that_differ_by_a_blank_or_a_folder(say, xrays, tmp_path):
    first = sorted(xrays.iterdir())[0]
    (xrays/'ward').mkdir()
    for name in ('a b.png', 'a_b.png', 'ward/a_b.png'): shutil.copy(first, xrays/name)
    code, out, err = say(xrays, '--out', 'results')
    table = pd.read_csv(tmp_path/'results'/'predictions.csv')
    assert code == 0 and len(table) == 6 and table['Image Index'].is_unique, err


def test_two_at_once(say, xrays, tmp_path):
    from chestnb.core.locks import folder_lock
    (tmp_path/'results').mkdir()
    with folder_lock(tmp_path/'results', 'another'): code, _, err = say(xrays, '--out', 'results')
    assert code == 2 and 'is at work here' in err


def test_another_prevalence_moves_probabilities_and_no_flag(say, xrays, tmp_path):
    say(xrays, '--out', 'usual')
    code, out, _ = say(xrays, '--out', 'rare', '--prevalence', 'effusion=0.01', '--prevalence', 'Mass=.3,Effusion=0.01')
    usual, rare = (pd.read_csv(tmp_path/name/'predictions.csv') for name in ('usual', 'rare'))
    assert code == 0 and 'the prevalence that was given' in out
    names = ['Image Index', 'prob_Effusion', 'prob_Mass']
    expected = shift_prevalence(usual[names], dict(Effusion=.2, Mass=.1), dict(Effusion=.01, Mass=.3))
    assert np.allclose(rare[names[1:]], expected[names[1:]], atol=1e-9)
    for finding in ('Effusion', 'Mass'):
        assert (rare[f'flagged_{finding}'] == usual[f'flagged_{finding}']).all() and ((rare[f'prob_{finding}'] >= rare[f'threshold_{finding}']) == rare[f'flagged_{finding}']).all()
    page = (tmp_path/'rare'/'predictions.html').read_text()
    assert 'Assumes that 1.0\xa0% of such X-rays have it' in page
    for wrong, words in (('Edema=.1', 'names no finding'), ('Effusion=2', 'above 0 and below 1'), ('Effusion', 'no number'), ('Hernia=.1', 'cannot be changed')):
        code, _, err = say(xrays, '--out', 'wrong', '--prevalence', wrong)
        assert code == 2 and words in err


def test_refused_images_have_reasons_and_no_numbers_unless_asked(say, xrays, tmp_path):
    Image.new('L', (80, 80), 255).save(xrays/'white.png')
    code, out, _ = say(xrays, '--out', 'results')
    row = pd.read_csv(tmp_path/'results'/'predictions.csv').set_index('Image Index').loc['white.png']
    assert code == 0 and '1 refused' in out and row.status == 'refused' and 'brighter' in row.reasons and pd.isna(row.prob_Effusion)
    code, out, _ = say(xrays, '--out', 'results', '--answer_refused')
    row = pd.read_csv(tmp_path/'results'/'predictions.csv').set_index('Image Index').loc['white.png']
    assert row.status == 'refused' and row.prob_Effusion > .8 and 'do not rely on it' in (tmp_path/'results'/'predictions.html').read_text()


def test_dicom_results(say, xrays, tmp_path):
    pytest.importorskip('highdicom', reason='highdicom is not installed: pip install "chestnb[export]"')
    (xrays/'b').mkdir()
    for path in (xrays/'chest.dcm', xrays/'b'/'chest.dcm'): write_dicom((np.arange(64*64, dtype=np.uint16) % 4096).reshape(64, 64), path)
    code, out, err = say(xrays, '--out', 'results', '--dicom')
    made = sorted(path.name for path in (tmp_path/'results'/'dicom').iterdir())
    assert code == 0 and len(made) == 4 and sum('report' in name for name in made) == 2, err
    assert f"{Path('results')/'dicom'} holds reports and pictures" in out
    toy = Toy()
    assert say(xrays, '--out', 'results', '--dicom', toy=toy)[0] == 0 and toy.asked == 0
    code, out, _ = say(xrays, '--out', 'results')
    assert code == 0 and not list((tmp_path/'results'/'dicom').iterdir()) and 'DICOM viewers' not in out   # nothing stale stays


def test_without_highdicom_nothing_is_begun(say, xrays, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'highdicom', None)
    code, _, err = say(xrays, '--out', 'results', '--dicom')
    assert code == 2 and 'chestnb[export]' in err and not (tmp_path/'results').exists()


def test_dicomdir(tmp_path):
    from pydicom.data import get_testdata_file
    tree = Path(get_testdata_file('DICOMDIR')).parent
    named, listed = find_radiographs(tree/'DICOMDIR'), find_radiographs(tree)
    assert len(named) == 31 and {file.path for file in named} <= {file.path for file in listed} and not any(file.path.endswith('DICOMDIR') for file in listed)
    with pytest.raises(OtherImage, match='CT'): open_radiograph(next(file.path for file in named if '/CT' in file.path))
    shutil.copy(tree/'DICOMDIR', tmp_path/'DICOMDIR')
    assert all('no such file' in file.problem for file in find_radiographs(tmp_path)) # a table of contents without its files
    (tmp_path/'DICOMDIR').write_bytes((tree/'DICOMDIR').read_bytes()[:500])
    assert 'holds no X-ray' in find_radiographs(tmp_path)[0].problem
    (tmp_path/'DICOMDIR').write_text('none')
    assert 'annot be read as DICOM' in find_radiographs(tmp_path/'DICOMDIR')[0].problem


def test_a_real_run_on_the_command_line(tmp_path, embedded):
    "A small network that was never trained, as a run folder; typed as people type it."
    import torch
    from chestnb.core.files import sha256_of
    from chestnb.model.fusion import FusionModel
    from chestnb.model.runs import save_model
    from chestnb.using.spec import SPEC_FILE, write_spec
    torch.manual_seed(0)
    save_model(FusionModel(('test_resnet',), reduced_channels=16, findings=tuple(FINDINGS)).eval(), tmp_path/'run', dict(image_size=64, tta=1))
    image = sorted((embedded/'images').glob('*.png'))[0]
    before = typed('chestnb_predict', image, '--model', 'run', cwd=tmp_path)
    assert before.returncode == 2 and '--data DIR' in before.stderr and not (tmp_path/'runs').exists()       # not ready: says how to make it so
    write_spec(tmp_path/'run'/SPEC_FILE, Toy.spec | dict(weights=sha256_of(tmp_path/'run'/'model.safetensors'), refusal={'scores': [], 'checks': {}}))
    done = typed('chestnb_predict', image, '--model', 'run', '--batch-size', 2, cwd=tmp_path)
    assert done.returncode == 0 and '1 answered' in done.stdout and 'predictions.html' in done.stdout, done.stderr
    assert (tmp_path/'runs'/'predictions'/'predictions.csv').is_file()
    missing = typed('chestnb_predict', image, '--model', 'nowhere', cwd=tmp_path)
    assert missing.returncode == 2 and 'there is no such folder' in missing.stderr
    said = ' '.join(typed('chestnb_predict', '--help', cwd=tmp_path).stdout.split())
    assert all(words in said for words in ('exit codes: 0 every file was read', '1 some files could not be read', '130 stopped with Ctrl-C', 'Not for clinical use'))


def test_a_table_for_a_spreadsheet_starts_no_formula(tmp_path):
    answer = Answer('=HYPERLINK("x")', '/x', 'failed', ['Is empty.']).to_dict()
    assert predictions_table([answer], Toy.spec)['Image Index'][0].startswith('=')
    answering.write_tables(tmp_path, [answer], Toy.spec)
    assert '\'=HYPERLINK' in (tmp_path/'predictions.csv').read_text()


# The page

def page_with(tmp_path, names=('chest.png',)):
    "A page of answers, one for each name; the first X-ray is taller than wide, and its lungs were found."
    spec, image = Toy.spec | dict(views=['whole', 'lungs']), Image.fromarray((np.add.outer(np.arange(300), np.arange(200))//2).astype(np.uint8))
    rows = [finding_row(spec, finding, log_odds(p)) for finding, p in zip(FINDINGS, (.9, .05, .02))]
    maps = np.zeros((3, 64, 64), np.float32)
    maps[:2, 40:50, 30:40] = 1
    answers = [Answer(name, name, findings=rows, maps=maps, views=np.full((2, 64, 64), 90, np.uint8), size=image.size, box=(20, 30, 180, 190)) for name in names]
    refused = Answer('cat.jpg', 'cat.jpg', 'refused', ['This does not look like an X-ray.'], views=np.zeros((2, 64, 64), np.uint8), size=image.size)
    shown = answering.shown_parts(answers[0], image, spec)
    broken = Answer('broken.png', 'broken.png', 'failed', ['Is empty (0 bytes).'])
    said = [answer.to_dict() for answer in (*answers, refused, broken)]
    return write_pages(tmp_path, said, lambda answer: {} if answer['status'] == 'failed' else shown | ({} if answer['findings'] else dict(maps={})), spec)[0]


def test_pages_of_a_longer_list_are_removed(tmp_path):
    page_with(tmp_path, [f'{i}.png' for i in range(150)])
    assert (tmp_path/'predictions_2.html').exists()
    page_with(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ['predictions.html']


def test_page_is_complete_in_itself_and_escapes_names(tmp_path):
    text = page_with(tmp_path, ['<img src=x onerror=alert(1)>.png']).read_text()
    assert '<img src=x' not in text and '&lt;img src=x' in text and "default-src 'none'" in text
    assert 'http://' not in text and 'https://' not in text and text.count('<script>') == 1
    assert all(words in text for words in ('Not for clinical use', 'synthetic', 'Never shown to be better than chance', 'Assumes that 20\xa0% of such X-rays have it', 'AUROC 0.84 [0.80, 0.88] on test patients',
                                           'for a sensitivity of at least 0.9', 'This does not look like an X-ray', 'Is empty (0 bytes)'))


CONTRAST = '''() => {
  const rgb = text => { const n = text.match(/[\\d.]+/g).map(Number); return n.length < 4 || n[3] > 0 ? n : null };
  const light = c => c.slice(0, 3).map(v => (v /= 255) <= .03928 ? v/12.92 : ((v + .055)/1.055)**2.4).reduce((sum, v, i) => sum + v*[.2126, .7152, .0722][i], 0);
  const ground = e => { for (; e; e = e.parentElement) { const c = rgb(getComputedStyle(e).backgroundColor); if (c) return c } return [255, 255, 255] };
  const bad = [];
  for (const e of document.querySelectorAll('body *')) {
    if (![...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim()) || !e.offsetParent) continue;
    const a = light(rgb(getComputedStyle(e).color)), b = light(ground(e)), ratio = (Math.max(a, b) + .05)/(Math.min(a, b) + .05);
    if (ratio < 4.5) bad.push(`${e.tagName} ${e.className} ${ratio.toFixed(2)}`);
  }
  return bad }'''


@pytest.fixture(scope='module')
def browser():
    "Headless Chromium, where there is one."
    playwright = pytest.importorskip('playwright.sync_api', reason='playwright is not installed')
    path = next((p for p in map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome')) if p), None)
    if path is None: pytest.skip('Chromium is not installed')
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=path, args=['--no-sandbox'])
        yield browser
        browser.close()


@pytest.mark.parametrize('width, height', [(1280, 900), (390, 844)])
def test_page_in_a_browser(browser, tmp_path, width, height):
    path = page_with(tmp_path)
    page, said, asked = browser.new_page(viewport=dict(width=width, height=height)), [], []
    page.on('console', lambda message: said.append(message.text))
    page.on('pageerror', lambda error: said.append(str(error)))
    page.on('request', lambda request: asked.append(request.url[:5]))
    page.goto(path.as_uri())
    assert page.evaluate('document.documentElement.scrollWidth') <= width and page.evaluate(CONTRAST) == []
    image, map_ = page.locator('article img.xray').first, page.locator('article .map').first
    assert not map_.is_visible()
    page.locator('article button').first.focus()                       # by keyboard
    assert map_.is_visible() and 'what speaks for Effusion' in page.locator('.said').first.inner_text()
    page.keyboard.press('Enter')
    assert page.locator('article button').first.get_attribute('aria-pressed') == 'true'
    page.keyboard.press('Tab')
    assert 'what speaks for Mass' in page.locator('.said').first.inner_text()
    page.keyboard.press('Escape')
    assert not map_.is_visible()
    page.locator('article li').nth(1).hover()                          # by pointer
    assert map_.is_visible() and 'Mass' in page.locator('.said').first.inner_text()
    picture, over = image.bounding_box(), map_.bounding_box()          # the padded square is as high as the picture, and in its middle
    assert abs(over['width'] - over['height']) < 2 and abs(over['height'] - picture['height']) < 2
    assert abs(over['x'] + over['width']/2 - picture['x'] - picture['width']/2) < 2
    page.emulate_media(media='print')
    assert page.locator('article h2').count() == 3 and page.locator('.warning').is_visible()
    assert said == [] and set(asked) <= {'file:', 'data:'}
    page.close()


def test_a_name_of_bytes_that_are_no_text(say, xrays, tmp_path):
    "after the last image the tables could not be written: surrogates not allowed"
    shutil.copy(next(xrays.glob('*.png')), os.fsencode(str(xrays)) + b'/l\xe4t.png')
    code, out, err = say(xrays, '--out', tmp_path/'out')
    assert code == 0 and 'l\\udce4t.png' in out
    assert 'l\\udce4t.png' in (tmp_path/'out'/'predictions.csv').read_text() and 'l\\udce4t.png' in (tmp_path/'out'/'predictions.html').read_text()
    assert len(json.loads((tmp_path/'out'/'predictions.json').read_text())['images']) == 4


@pytest.mark.parametrize('ending, form', [('.webp', 'WEBP'), ('.gif', 'GIF'), ('.jp2', 'JPEG2000'), ('.jfif', 'JPEG')])
def test_every_kind_of_picture_that_is_read_is_looked_for(tmp_path, ending, form):
    "a folder was answered for without its WebP files, and nobody heard of it"
    Image.new('L', (40, 40), 90).save(tmp_path/f'mine{ending}', form)
    assert [Path(file.path).name for file in find_radiographs(tmp_path)] == [f'mine{ending}'] and open_radiograph(tmp_path/f'mine{ending}').size == (40, 40)


def test_whole_numbers_of_32_bits_are_told_what_they_are(tmp_path):
    Image.fromarray(np.full((9, 9), 70_000, np.int32)).save(tmp_path/'deep.tif')
    with pytest.raises(UserError, match=r'deep.tif: holds grey values below 0 or above 65535, .* 8- or 16-bit'): open_radiograph(tmp_path/'deep.tif')


def test_a_dicomdir_that_lists_nothing(tmp_path):
    write_dicom(np.zeros((9, 9), np.uint16), tmp_path/'DICOMDIR')
    found, = find_radiographs(tmp_path)
    assert 'lists no files' in found.problem and 'DirectoryRecordSequence' not in found.problem


@pytest.mark.parametrize('texts', [['Effusion=.1', 'Effusion=.2'], ['Effusion=.1,effusion=.3'], ['.1', '.2']])
def test_two_shares_for_one_finding_are_refused(texts):
    with pytest.raises(UserError, match='another share was given for the same'): prevalence_given(texts, Toy.spec)


@pytest.mark.parametrize('texts', [['.1', 'Effusion=.3'], ['Effusion=.3', '.1'], ['Effusion=.3', 'Effusion=0.3', '.1']])
def test_a_findings_own_share_counts_more_than_the_one_for_all(texts):
    assert prevalence_given(texts, Toy.spec) == dict(Effusion=.3, Mass=.1)


@pytest.mark.parametrize('part, value', [('calibration', {'curves': {'Effusion': {'slope': 1.}}}), ('calibration', {'curves': []}), ('thresholds', {'by_finding': {'Effusion': 'high'}}), ('thresholds', {'by_finding': {}, 'value': 'x'}),
                                         ('scores', {'findings': {'Effusion': .8}}), ('refusal', {'scores': [{'name': 'distance'}]}), ('refusal', {'checks': []}), ('prevalence', {'Effusion': '10 %'}), ('map_share', [1.]),
                                         ('tta', 0), ('image_size', -1), ('findings', [1]), ('views', []), ('views', 3)])
def test_a_damaged_part_of_a_spec_is_named(part, value):
    "each was a traceback in the middle of an answer"
    assert check_spec(Toy.spec) == Toy.spec
    with pytest.raises(UserError, match=f'lacks {part}'): check_spec(Toy.spec | {part: value})


def test_a_lungs_view_needs_its_numbers():
    lungs = dict(image_size=192, margin=.1, least_quality=.75, least_area=.05, most_area=.7)
    assert check_spec(Toy.spec | dict(views=['whole', 'lungs'], lungs=lungs))
    for name in lungs:
        with pytest.raises(UserError, match='lacks lungs'): check_spec(Toy.spec | dict(views=['whole', 'lungs'], lungs=lungs | {name: None}))
