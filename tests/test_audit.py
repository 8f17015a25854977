"""The audit: finds what is planted, invents nothing, changes nothing; the quarantine comes back to the bit."""
import io
import json
import os
import shutil
import subprocess
import sys
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings, strategies as st
from PIL import Image

import chestnb.data.audit as data_audit
import chestnb.data.quarantine as data_quarantine
from typed import typed
from chestnb.data.audit import (PROBLEM_KINDS, UNUSABLE_KINDS, audit_images, audit_page, chest_likeness, grey_facts, inspect_image, inspect_images, is_blank, is_inverted,
    is_saturated, closest_pairs, near_pairs, write_audit)
from chestnb.data.quarantine import quarantine, restore
from chestnb.data.dataset import ChestDataset
from chestnb.data.provenance import PHANTOM_PROVENANCE, write_provenance
from chestnb.data.tables import read_metadata, write_metadata
from chestnb.core.errors import UserError


def state(folder):
    "Every file of a folder with its bytes."
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in Path(folder).rglob('*') if p.is_file()}


def message(call):
    with pytest.raises(UserError) as caught: call()
    return str(caught.value)


def listed(problems): return sorted(zip(problems.image, problems.kind))


@pytest.fixture
def small(embedded, tmp_path):
    "The embedded images of the first 30 synthetic patients, without masks and boxes."
    table = read_metadata(embedded/'data.csv')
    table = table[table.patient_id < 90_000_031].reset_index(drop=True)
    (tmp_path/'small/images').mkdir(parents=True)
    for name in table.image: shutil.copy(embedded/'images'/name, tmp_path/'small/images'/name)
    write_metadata(table, tmp_path/'small/data.csv')
    write_provenance(tmp_path/'small', PHANTOM_PROVENANCE)
    return tmp_path/'small'


def image_of(folder, number): return folder/'images'/f'{90_000_000 + number}_000.png'


def spoil(folder, number, change):
    path = image_of(folder, number)
    image = change(Image.open(path).convert('L'))
    image.save(path)
    return path.name


def as_jpeg(image, quality=70):
    packed = io.BytesIO()
    image.save(packed, 'JPEG', quality=quality)
    return Image.open(packed).convert('L')


def turn(folder, number, orientation=6):
    "Lay an image on its side, with the note that says so."
    path = image_of(folder, number)
    image = Image.open(path).convert('L').transpose(Image.Transpose.ROTATE_90)
    image.getexif()[0x0112] = orientation
    image.save(path, exif=image.getexif())
    return path.name


def repeat_row(folder, number):
    name, table = image_of(folder, number).name, folder/'data.csv'
    table.write_text(table.read_text() + next(line for line in table.read_text().splitlines(keepends=True) if line.startswith(name)))
    return name


def plant(folder):
    "One or more defects of every kind, each in the first image of a patient; returns what an audit has to say."
    copy = lambda number: Image.open(image_of(folder, number)).convert('L')
    expected = [(spoil(folder, 1, lambda i: i.convert('RGBA')), 'not 8-bit grey'), (spoil(folder, 2, lambda i: i.convert('RGB')), 'not 8-bit grey'),
                (spoil(folder, 12, lambda i: Image.fromarray(np.asarray(i).astype(np.uint16)*257)), 'not 8-bit grey'),
                (spoil(folder, 3, lambda i: i.resize((120, 128))), 'odd size'), (spoil(folder, 4, lambda i: i.resize((256, 256))), 'odd size'),
                (spoil(folder, 6, lambda i: copy(5)), 'duplicate'), (spoil(folder, 8, lambda i: as_jpeg(copy(7))), 'near duplicate'),
                (spoil(folder, 10, lambda i: copy(9).point(lambda v: min(255, v + 9))), 'near duplicate'),
                (spoil(folder, 11, lambda i: Image.new('L', i.size, 0)), 'blank'), (spoil(folder, 13, lambda i: i.point(lambda v: 128 + v//40)), 'blank'),
                (spoil(folder, 14, lambda i: i.point(lambda v: 255*(v > 110))), 'saturated'), (spoil(folder, 15, lambda i: i.point(lambda v: min(255, v*5))), 'saturated'),
                (spoil(folder, 16, lambda i: i.point(lambda v: 255 - v)), 'inverted'), (spoil(folder, 17, lambda i: i.point(lambda v: 200 - v//2)), 'inverted')]
    image_of(folder, 18).unlink()
    image_of(folder, 19).rename(folder/'images/stranger.png')
    for number, content in ((20, b''), (21, b'<html>404</html>'), (22, image_of(folder, 22).read_bytes()[:5000])):
        image_of(folder, number).write_bytes(content)
    expected += [(image_of(folder, n).name, 'missing') for n in (18, 19)] + [('stranger.png', 'extra')]
    expected += [(turn(folder, 23), 'turned by EXIF'), (repeat_row(folder, 24), 'listed twice')]
    return sorted(expected + [(image_of(folder, n).name, 'unreadable') for n in (20, 21, 22)])


# ---- what it finds

def test_a_row_listed_twice_is_reported_with_its_rows(small):
    name = repeat_row(small, 5)
    problems = audit_images(small, workers=1, progress=False)
    assert listed(problems) == [(name, 'listed twice')]
    numbers = [i for i, line in enumerate((small/'data.csv').read_text().splitlines(), start=1) if line.startswith(name)]
    assert problems.detail[0] == f'rows {numbers[0]}, {numbers[1]}, which are equal' and problems.attrs['listed'] == len(os.listdir(small/'images'))


def test_rows_that_differ_need_a_person_and_equal_ones_do_not(small):
    before = state(small)
    for number in (5, 6): repeat_row(small, number)
    repeated = state(small)
    assert quarantine(small, audit_images(small, workers=1, progress=False))['repeats'] == 2
    assert (small/'data.csv').read_bytes() == before['data.csv'] and ChestDataset(small)
    assert restore(small) == 0 and state(small) == repeated
    (small/'data.csv').write_bytes(before['data.csv'] + (small/'data.csv').read_bytes().splitlines()[-1].replace(b'.png,', b'.png,Mass|') + b'\n')
    problems = audit_images(small, workers=1, progress=False)
    assert problems.detail[problems.kind == 'listed twice'].str.endswith('which differ').all() and (problems.kind == 'listed twice').any()
    assert quarantine(small, problems) == {}


@pytest.mark.parametrize('orientation, kinds', [(1, []), (3, ['turned by EXIF']), (6, ['turned by EXIF']), (8, ['turned by EXIF']), (0, []), (9, [])])
def test_exif_orientation_is_a_kind_of_its_own(small, orientation, kinds):
    path = image_of(small, 1)
    image = Image.open(path).convert('L')
    image.getexif()[0x0112] = orientation
    image.save(path, exif=image.getexif())
    assert [kind for name, kind in listed(audit_images(small, workers=1, progress=False)) if name == path.name and kind != 'inverted'] == kinds


def test_decomposed_names_are_on_disk(small):
    "A Mac writes é as two signs; the table has one."
    image_of(small, 1).rename(small/'images/cafe\u0301.png')
    table = (small/'data.csv').read_text()
    for name in ('caf\u00e9.png', 'cafe\u0301.png'):
        (small/'data.csv').write_text(table.replace('90000001_000.png', name), encoding='utf-8')
        assert len(audit_images(small, workers=1, progress=False)) == 0


def test_names_without_ending_are_those_of_the_files(small):
    table = (small/'data.csv').read_text()
    (small/'data.csv').write_text(table.replace('.png', ''))
    assert len(audit_images(small, workers=1, progress=False)) == 0
    image_of(small, 3).write_bytes(b'')
    quarantine(small, audit_images(small, workers=1, progress=False))
    assert '90000003_000,' not in (small/'data.csv').read_text() and ChestDataset(small)
    restore(small)
    assert (small/'data.csv').read_text() == table.replace('.png', '')


def test_a_compressed_table_is_audited_but_no_row_taken_out(small):
    import gzip
    (small/'data.csv.gz').write_bytes(gzip.compress((small/'data.csv').read_bytes()))
    (small/'data.csv').unlink()
    image_of(small, 3).write_bytes(b'')
    problems, before = audit_images(small, workers=1, progress=False), state(small)
    assert listed(problems) == [(image_of(small, 3).name, 'unreadable')]
    assert 'Save it as data.csv' in message(lambda: quarantine(small, problems)) and state(small) == before


def test_a_thousand_copies_are_a_thousand_rows_not_half_a_million():
    hashes = np.repeat(np.random.default_rng(0).integers(0, 2**63, (1, 4), dtype=np.uint64), 1000, axis=0)
    hashes[:, 0] ^= np.arange(1000, dtype=np.uint64)
    pairs = closest_pairs(hashes, np.full(1000, -1))
    assert pairs[:, 1].tolist() == list(range(1, 1000)) and (pairs[:, 0] < pairs[:, 1]).all()
    assert (pairs[:, 2] == [min(bin(a ^ b).count('1') for a in range(b)) for b in range(1, 1000)]).all()
    assert len(closest_pairs(hashes, np.zeros(1000, int))) == 0


def test_a_killed_worker_is_a_sentence(small, monkeypatch):
    monkeypatch.setattr(data_audit, 'read_image', lambda path: os._exit(9))
    assert '--workers 1' in message(lambda: inspect_images([1]*100, workers=2, progress=False))



@pytest.fixture(scope='module')
def whole(tmp_path_factory):
    "A copy of the whole embedded set."
    from conftest import ROOT
    folder = tmp_path_factory.mktemp('whole')/'copy'
    shutil.copytree(ROOT/'dataset', folder)
    return folder


def test_clean_set_has_no_problem_and_is_not_changed(whole):
    before = state(whole)
    problems = audit_images(whole, progress=False)
    assert len(problems) == 0 and problems.attrs['images'] == problems.attrs['listed'] == 1509
    assert state(whole) == before


def test_planted_defects_in_the_whole_embedded_set_all_found_none_invented(whole, tmp_path):
    folder = tmp_path/'spoiled'
    shutil.copytree(whole, folder)
    expected = plant(folder)
    assert {kind for _, kind in expected} == set(PROBLEM_KINDS)
    before = state(folder)
    problems = audit_images(folder, progress=False)
    assert listed(problems) == expected
    assert not problems.detail.str.contains(str(folder)).any()         # the list can be shown without showing where it was made
    pairs = {(r.image, r.other_image) for r in problems.itertuples() if r.other_image}
    assert pairs == {(image_of(folder, a).name, image_of(folder, b).name) for a, b in ((6, 5), (8, 7), (10, 9))}
    assert (problems.patient_id[problems.image != 'stranger.png'].str.len() == 8).all()
    write_audit(problems, tmp_path/'out')
    assert state(folder) == before


def test_one_process_and_several_say_the_same(small):
    plant(small)
    pd.testing.assert_frame_equal(audit_images(small, workers=1, progress=False), audit_images(small, workers=3, progress=False))


def test_table_that_chestdataset_refuses_is_audited(small):
    text = (small/'data.csv').read_text()
    (small/'data.csv').write_text(text.replace('Atelectasis', 'Atelectasys'))
    with pytest.raises(UserError): ChestDataset(small)
    assert len(audit_images(small, workers=1, progress=False)) == 0


def test_table_of_names_alone(small):
    names = sorted(os.listdir(small/'images'))
    shutil.copy(small/'images'/names[0], small/'images'/names[1])
    (small/'data.csv').write_text('Image Index\n' + '\n'.join(names) + '\n')
    problems = audit_images(small, workers=1, progress=False)
    assert listed(problems) == [(names[1], 'duplicate')] and problems.detail[0] == 'patient not known'


def test_near_duplicates_within_a_patient_are_no_problem(small):
    second = small/'images/90000002_001.png'
    as_jpeg(Image.open(image_of(small, 2)).convert('L')).save(second)
    assert len(audit_images(small, workers=1, progress=False)) == 0


def test_sizes_without_a_usual_one(small):
    for i, path in enumerate(sorted((small/'images').iterdir())[::2]): Image.open(path).resize((100 + i % 20, 110)).save(path)
    assert 'odd size' not in set(audit_images(small, workers=1, progress=False).kind)
    spoil(small, 1, lambda i: i.resize((60, 128)))
    spoil(small, 2, lambda i: i.resize((20, 20)))
    assert {n for n, k in listed(audit_images(small, workers=1, progress=False)) if k == 'odd size'} == {image_of(small, 1).name, image_of(small, 2).name}


def test_dicom_images_are_audited(tmp_path, embedded):
    from chestnb.data.dicom import write_dicom
    (tmp_path/'images').mkdir()
    names = [f'{n}.dcm' for n in 'abcdefghijk']
    for i, name in enumerate(names):
        pixels = np.asarray(Image.open(embedded/'images'/f'{90_000_001 + i}_000.png')).astype(np.uint16)*16
        facts = {'PatientID': f'P{i}', 'WindowCenter': 2048, 'WindowWidth': 4096, 'ViewPosition': 'LL' if name == 'c.dcm' else 'PA'}
        write_dicom(pixels if name != 'b.dcm' else 4095 - pixels, tmp_path/'images'/name, facts)          # b: a negative that does not say so
    shutil.copy(tmp_path/'images/d.dcm', tmp_path/'images/e.dcm')
    (tmp_path/'data.csv').write_text('Image Index,Finding Labels\n' + ''.join(f'{n},Mass\n' for n in names))
    problems = audit_images(tmp_path, workers=1, progress=False)
    assert listed(problems) == [('b.dcm', 'inverted'), ('c.dcm', 'unreadable'), ('e.dcm', 'duplicate')]
    assert "view position is 'LL'" in problems.detail[problems.kind == 'unreadable'].iloc[0]
    assert problems.detail[problems.kind == 'duplicate'].tolist() == ['same patient']                     # the copied header says so


def test_refusals(tmp_path, small):
    assert 'images' in message(lambda: audit_images(tmp_path)) or 'data.csv' in message(lambda: audit_images(tmp_path))
    assert 'expected 0' in message(lambda: audit_images(small, workers=-1))


# ---- the criteria

def test_blank_and_saturated_by_hand():
    image = Image.fromarray(np.r_[np.zeros(60), np.full(35, 255), np.full(5, 128)].astype(np.uint8).reshape(10, 10))
    facts = grey_facts(image)
    assert facts == dict(spread=255, commonest=.6, black=.6, white=.35)
    assert is_saturated(facts) and not is_blank(facts)
    assert is_blank(grey_facts(Image.new('L', (5, 5), 9))) and not is_saturated(grey_facts(Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16))))


def test_likeness_turns_its_sign_and_ignores_contrast():
    image = Image.fromarray(np.kron(data_audit.CHEST_SKETCH*28, np.ones((16, 16))).astype(np.uint8))
    assert chest_likeness(image)[0] == pytest.approx(1)
    assert chest_likeness(image.point(lambda v: 255 - v))[0] == pytest.approx(-1)
    assert is_inverted(*chest_likeness(image.point(lambda v: 180 - v//2))) and not is_inverted(*chest_likeness(image.point(lambda v: 20 + v//2)))
    assert chest_likeness(Image.new('L', (64, 64), 8)) == (0, 0)


def test_inversion_on_real_images(shared_nih):
    data = ChestDataset(shared_nih/'dataset')
    values = np.array([chest_likeness(data.open_image(name)) for name in data.table.image])
    assert sum(is_inverted(*v) for v in values) == 0
    assert sum(is_inverted(*-v) for v in values) > .99*len(values)


def test_real_images_have_no_invented_near_duplicates(shared_nih):
    problems = audit_images(shared_nih/'dataset', progress=False)
    assert problems.attrs['images'] == 2050
    assert not len(problems[problems.kind.isin(['missing', 'extra', 'unreadable', 'odd size', 'blank', 'saturated', 'inverted', 'near duplicate'])])


def test_real_originals_of_which_eight_are_rgba(shared_nih):
    records = inspect_images(sorted((shared_nih/'originals_1024').glob('*.png')), workers=1, progress=False)
    assert sum(record['mode'] == 'RGBA' for record in records) == 8 and not any('error' in record for record in records)


# ---- the search

def plain_pairs(hashes, most):
    return [(a, b, d) for a, b in combinations(range(len(hashes)), 2) if (d := sum(bin(int(x) ^ int(y)).count('1') for x, y in zip(hashes[a], hashes[b]))) <= most]


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 2**32 - 1), st.integers(0, 40), st.integers(1, 40), st.integers(1, 5))
def test_near_pairs_equal_the_plain_search(seed, n, most, block):
    random = np.random.default_rng(seed)
    hashes = random.integers(0, 2**63, (max(n//4, 1), 4), dtype=np.uint64)[random.integers(max(n//4, 1), size=n)]
    hashes = hashes ^ (random.integers(0, 2**63, (n, 4), dtype=np.uint64) & random.integers(0, 2**63, (n, 4), dtype=np.uint64) & random.integers(0, 2**63, (n, 4), dtype=np.uint64))
    pairs = np.concatenate([np.zeros((0, 3), int), *near_pairs(hashes, most=most, block=block)])
    assert [tuple(map(int, row)) for row in pairs] == plain_pairs(hashes, most)


def test_near_pairs_use_little_memory():
    import tracemalloc
    hashes = np.random.default_rng(0).integers(0, 2**63, (20_000, 4), dtype=np.uint64)
    tracemalloc.start()
    closest_pairs(hashes, np.full(len(hashes), -1))
    assert tracemalloc.get_traced_memory()[1] < 50e6
    tracemalloc.stop()


def test_a_record_never_raises(tmp_path):
    for content in (b'', b'\x89PNG\r\n\x1a\n', os.urandom(2000)):
        (tmp_path/'x.png').write_bytes(content)
        assert set(inspect_image(tmp_path/'x.png')) == {'error'} and str(tmp_path) not in inspect_image(tmp_path/'x.png')['error']
    assert 'no such image' in inspect_image(tmp_path/'y.png')['error']


# ---- the page

def test_page_is_complete_in_itself(small, tmp_path):
    plant(small)
    problems = audit_images(small, workers=1, progress=False)
    page = audit_page(problems)
    assert 'Synthetic images.' in page and 'must not be used for diagnosis' in page
    assert page.count('<figure') == len(problems) and 'src="http' not in page and 'href="http' not in page
    assert page.count('alt="Thumbnail of ') == page.count('<img') > 10
    again = pd.read_csv(write_audit(problems, tmp_path/'out').parent/'audit.csv', dtype=str, keep_default_na=False)
    assert again.to_dict('list') == problems.to_dict('list')


def test_page_escapes_names_and_shows_at_most_sixty(small):
    names = [f'<b>{i}&.png' for i in range(70)]
    for name in names: (small/'images'/name).write_bytes(b'x')
    page = audit_page(audit_images(small, workers=1, progress=False))
    assert '<b>1&.png' not in page and '&lt;b&gt;1&amp;.png' in page and 'the first 60 shown' in page


# ---- quarantine

def test_quarantine_leaves_a_data_set_and_restore_brings_all_back(small):
    expected = plant(small)
    before = state(small)
    times = {p: p.stat().st_mtime_ns for p in small.rglob('*') if p.is_file()}
    record = quarantine(small, audit_images(small, workers=1, progress=False))
    gone = {name for name, kind in expected if kind in UNUSABLE_KINDS}
    after = ChestDataset(small)
    after.check_images(progress=False)
    assert set(after.table.image) == {Path(n).name for n in before if n.startswith('images/')} - gone
    assert all((small/move['to']).read_bytes() == before[move['from']] for move in record['moves'])
    assert not {k for _, k in listed(audit_images(small, workers=1, progress=False))} & set(UNUSABLE_KINDS)
    assert restore(small) == len(record['moves'])
    assert state(small) == before and not (small/'quarantine').exists()
    assert {p: p.stat().st_mtime_ns for p in small.rglob('*') if p.is_file()} == times


def test_kaggle_folders_and_nihs_own_table(small, embedded):
    (small/'images_001').mkdir()
    (small/'images').rename(small/'images_001/images')
    (small/'data.csv').rename(small/'Data_Entry_2017_v2020.csv')
    bad = small/'images_001/images/90000004_000.png'
    bad.write_bytes(b'')
    before = state(small)
    quarantine(small, audit_images(small, workers=1, progress=False))
    assert (small/'quarantine/images_001/images/90000004_000.png').exists() and ChestDataset(small)
    assert restore(small) == 1 and state(small) == before


def test_nothing_unusable_nothing_done(small):
    before = state(small)
    assert quarantine(small, audit_images(small, workers=1, progress=False)) == {} and state(small) == before
    assert 'nothing to put back' in message(lambda: restore(small))


def test_a_folder_without_any_usable_image_is_left_alone(small):
    for path in (small/'images').iterdir(): path.write_bytes(b'')
    before = state(small)
    assert 'no usable image would be left' in message(lambda: quarantine(small, audit_images(small, workers=1, progress=False)))
    assert state(small) == before


def test_second_quarantine_is_refused(small):
    plant(small)
    problems = audit_images(small, workers=1, progress=False)
    quarantine(small, problems)
    after = state(small)
    assert 'Put them back first' in message(lambda: quarantine(small, problems)) and state(small) == after


STEPS = ['write_atomically', 'write_json', 'rename_within', 'write_text']


@pytest.mark.parametrize('step,call', [(step, call) for step in STEPS for call in ((1, 2, 4) if step == 'rename_within' else (1,))])
def test_crash_at_every_step_of_the_quarantine(small, monkeypatch, step, call):
    plant(small)
    before, problems = state(small), audit_images(small, workers=1, progress=False)
    real, calls = getattr(data_quarantine, step), []
    def crash(*args, **kwargs):
        calls.append(args)
        if len(calls) == call: raise KeyboardInterrupt
        return real(*args, **kwargs)
    monkeypatch.setattr(data_quarantine, step, crash)
    with pytest.raises(KeyboardInterrupt): quarantine(small, problems)
    monkeypatch.undo()
    if (small/'quarantine/record.json').exists(): restore(small)
    assert {n: b for n, b in state(small).items() if not n.startswith('quarantine/')} == before
    quarantine(small, problems)                                        # and it can be done again
    restore(small)
    assert state(small) == before


@pytest.mark.parametrize('call', [1, 2, 3])
def test_crash_while_restoring(small, monkeypatch, call):
    plant(small)
    before = state(small)
    quarantine(small, audit_images(small, workers=1, progress=False))
    real, calls = os.rename, []
    def crash(*args):
        calls.append(args)
        if len(calls) == call: raise KeyboardInterrupt
        return real(*args)
    monkeypatch.setattr(os, 'rename', crash)
    with pytest.raises(KeyboardInterrupt): restore(small)
    monkeypatch.undo()
    restore(small)
    assert state(small) == before


KILL = '''
import os, signal, sys
import chestnb.data.audit as data_audit, chestnb.data.quarantine as data_quarantine
real, calls = data_quarantine.rename_within, []
def rename(*args):
    real(*args)
    calls.append(1)
    if len(calls) == 2: os.kill(os.getpid(), signal.SIGKILL)
data_quarantine.rename_within = rename
data_quarantine.quarantine(sys.argv[1], data_audit.audit_images(sys.argv[1], workers=1, progress=False))
'''


def test_kill_9(small):
    plant(small)
    before = state(small)
    done = subprocess.run([sys.executable, '-c', KILL, str(small)], capture_output=True)
    assert done.returncode == -9 and state(small) != before
    assert restore(small) == 2 and state(small) == before


def test_restore_refuses_to_lose_an_edited_table(small):
    plant(small)
    quarantine(small, audit_images(small, workers=1, progress=False))
    (small/'data.csv').write_text((small/'data.csv').read_text().replace('No Finding', 'Mass', 1))
    after = state(small)
    assert 'was changed after the quarantine' in message(lambda: restore(small)) and state(small) == after


def test_restore_never_replaces_a_new_copy(small):
    good = image_of(small, 22).read_bytes()
    plant(small)
    quarantine(small, audit_images(small, workers=1, progress=False))
    image_of(small, 22).write_bytes(good)
    after = state(small)
    assert 'is there again' in message(lambda: restore(small)) and state(small) == after
    (small/'quarantine/images'/image_of(small, 22).name).unlink()
    restore(small)
    assert image_of(small, 22).read_bytes() == good and not (small/'quarantine').exists()


@pytest.mark.parametrize('source, target', [('../out.png', 'quarantine/../out.png'), ('images/../../out.png', 'quarantine/images/../../out.png'),
    ('images/a.png', '../a.png'), ('/tmp/a.png', 'quarantine//tmp/a.png'), ('images/a.png', 'images/b.png'), ('data.csv', 'quarantine/data.csv'),
    ('images\\a.png', 'quarantine/images\\a.png'), (None, None), ('', 'quarantine/')])
def test_a_record_that_moves_files_elsewhere_is_refused(small, tmp_path, source, target):
    plant(small)
    before = state(small)
    record = quarantine(small, audit_images(small, workers=1, progress=False))
    own = (small/'quarantine/record.json').read_text()
    (tmp_path/'out.png').write_text('outside')
    (small/'quarantine/record.json').write_text(json.dumps(record | {'moves': record['moves'] + [{'from': source, 'to': target}]}))
    after = state(tmp_path)
    assert 'names a move that no quarantine makes' in message(lambda: restore(small)) and state(tmp_path) == after
    (small/'quarantine/record.json').write_text(own)
    restore(small)
    assert state(small) == before


@pytest.mark.parametrize('change', [lambda r: {}, lambda r: r | {'table': '../data.csv'}, lambda r: r | {'moves': 'all'}, lambda r: {k: r[k] for k in r if k != 'sha256_after'}])
def test_a_damaged_record_is_refused(small, change):
    plant(small)
    record = quarantine(small, audit_images(small, workers=1, progress=False))
    (small/'quarantine/record.json').write_text(json.dumps(change(record)))
    after = state(small)
    assert 'is not the record of a quarantine' in message(lambda: restore(small)) and state(small) == after
    (small/'quarantine/record.json').write_text('{')
    assert 'cannot be read' in message(lambda: restore(small))


def test_a_link_inside_the_quarantine_leads_nowhere(small, tmp_path):
    plant(small)
    record = quarantine(small, audit_images(small, workers=1, progress=False))
    (tmp_path/'secret').mkdir()
    (tmp_path/'secret/a.png').write_text('outside')
    (small/'quarantine/images_1').symlink_to(tmp_path/'secret')
    moves = record['moves'] + [{'from': 'images_1/a.png', 'to': 'quarantine/images_1/a.png'}]
    (small/'quarantine/record.json').write_text(json.dumps(record | {'moves': moves}))
    assert 'names a move that no quarantine makes' in message(lambda: restore(small)) and (tmp_path/'secret/a.png').exists()


def test_a_table_that_was_deleted_comes_back(small):
    plant(small)
    before = state(small)
    quarantine(small, audit_images(small, workers=1, progress=False))
    (small/'data.csv').unlink()
    restore(small)
    assert state(small) == before


def test_quarantine_finds_the_column_of_names_by_its_letters(small):
    (small/'data.csv').write_text((small/'data.csv').read_text().replace('Image Index', 'image', 1))
    image_of(small, 3).write_bytes(b'')
    quarantine(small, audit_images(small, workers=1, progress=False))
    assert image_of(small, 3).name not in (small/'data.csv').read_text()


def test_the_page_and_the_list_of_somebody_are_kept(small, tmp_path):
    problems = audit_images(small, workers=1, progress=False)
    write_audit(problems, tmp_path/'out')
    (tmp_path/'out/audit.csv').write_text('my decisions')
    write_audit(problems, tmp_path/'out')
    assert {p.name for p in (tmp_path/'out').iterdir()} == {'.manifest.json', 'audit.csv', 'audit.html', 'audit.kept.csv'}
    assert (tmp_path/'out/audit.kept.csv').read_text() == 'my decisions'
    (tmp_path/'theirs').mkdir()
    (tmp_path/'theirs/audit.csv').write_text('mine')
    assert 'left alone' in message(lambda: write_audit(problems, tmp_path/'theirs'))


def test_a_folder_name_reaches_the_page_escaped(small, tmp_path):
    folder = small.rename(tmp_path/'<img src=x onerror=alert(1)>')
    page = audit_page(audit_images(folder, workers=1, progress=False))
    assert '<img src=x' not in page and '&lt;img src=x onerror=alert(1)&gt;' in page


# ---- the command

def run(*words): return typed('chestnb_audit', *words)


def test_command(small, tmp_path):
    plant(small)
    before = state(small)
    done = run(small, '--out', tmp_path/'out', '--workers', 2)
    assert done.returncode == 0 and 'near duplicate' in done.stdout and 'not a medical device' in done.stdout, done.stderr
    assert (tmp_path/'out/audit.html').exists() and len(pd.read_csv(tmp_path/'out/audit.csv')) >= 20 and state(small) == before
    done = run(small, '--out', tmp_path/'out', '--quarantine', '--workers', 1)
    assert 'The folder is a data set of' in done.stdout and len(ChestDataset(small)), done.stderr
    done = run(small, '--restore')
    assert done.returncode == 0 and 'images are back' in done.stdout and state(small) == before


def test_command_says_plainly_what_is_wrong(tmp_path, small):
    for words, said in (((tmp_path/'nowhere',), 'nowhere'), ((small, '--quarantine', '--restore'), 'give one of them'), ((small, '--restore'), 'nothing to put back')):
        done = run(*words)
        assert done.returncode == 2 and said in done.stderr and 'Traceback' not in done.stderr


def test_import_is_light():
    code = 'import sys, chestnb.data.audit; print([m for m in ("torch", "imagehash", "scipy", "jinja2", "pydicom") if m in sys.modules])'
    assert subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout.strip() == '[]'
