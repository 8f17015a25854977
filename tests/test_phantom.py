"The synthetic cohort: the committed images can be drawn again, and what is said about them is true."
import csv, hashlib, os, subprocess, sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from chestnb.data.findings import FINDINGS, FIRST_SYNTHETIC_PATIENT, STRUCTURES
from chestnb.data.dataset import ChestDataset, embedded_dataset
from chestnb.data.masks import decode_mask, read_segmentation
from chestnb.data.tables import read_metadata
from chestnb.core.errors import UserError
from chestnb.data.phantom.findings import LARGEST_NODULE
from chestnb.data.phantom.anatomy import Anatomy
from chestnb.data.phantom.cohort import cohort_table, make_cohort, make_patient, patient_anatomy, patient_visits, render


@pytest.fixture(scope='module')
def folder():
    "The data set that is committed with the project, whatever CHESTNB_DATA says."
    here = Path(__file__).resolve().parents[1]/'dataset'
    return here if (here/'data.csv').exists() else embedded_dataset()


@pytest.fixture(scope='module')
def table(folder): return read_metadata(folder/'data.csv')


@pytest.mark.parametrize('patient_id', [90000001, 90000028, 90000123, 90000200, 90000400])
def test_committed_pixels_can_be_drawn_again(folder, patient_id):
    for visit, phantom in make_patient(patient_id):
        with Image.open(folder/'images'/visit.image) as image: assert np.array_equal(np.asarray(image), phantom.image), visit.image


def test_committed_masks_are_exact(folder):
    rows = read_segmentation(folder/'segmentation.csv').set_index('image')
    for visit, phantom in make_patient(90000042):
        row = rows.loc[visit.image]
        for structure in STRUCTURES:
            assert np.array_equal(decode_mask(row[structure], row.height, row.width), phantom.masks[structure])


def test_committed_boxes_are_exact(folder):
    rows = list(csv.reader((folder/'boxes.csv').read_text(encoding='utf-8').splitlines()))[1:]
    for visit, phantom in make_patient(90000010):
        ours = sorted((name.replace('Infiltration', 'Infiltrate'), *map(float, box)) for name, *box in phantom.boxes)
        theirs = sorted((row[1], *map(float, row[2:6])) for row in rows if row[0]==visit.image)
        assert ours==theirs, visit.image


def test_committed_table_is_the_cohort_table(table):
    expected = cohort_table()
    assert list(expected.image)==list(table.image)
    assert (expected[list(FINDINGS)].to_numpy()==table[list(FINDINGS)].to_numpy()).all()
    assert (expected[['age', 'sex', 'view_position', 'follow_up']]==table[['age', 'sex', 'view_position', 'follow_up']]).all().all()


def test_size_and_floor(folder, table):
    assert len(table)>=1200 and table.patient_id.nunique()>=400
    assert table.patient_id.min()>=FIRST_SYNTHETIC_PATIENT
    for finding in FINDINGS:
        positive = table[table[finding]]
        assert len(positive)>=30 and positive.patient_id.nunique()>=12, finding
    assert sum(f.stat().st_size for f in folder.rglob('*') if f.is_file())<=20_000_000
    with Image.open(folder/'images'/table.image[0]) as image: assert image.mode=='L' and image.size==(128, 128)


def test_card_names_the_checksum(folder):
    card = (folder/'README.md').read_text(encoding='utf-8')
    assert 'synthetic' in card.lower() and hashlib.sha256((folder/'data.csv').read_bytes()).hexdigest() in card


def test_data_set_class_reads_it(folder):
    dataset = ChestDataset(folder)
    assert dataset.is_synthetic and len(dataset)>=1200 and not dataset.missing


def test_order_does_not_matter():
    alone = make_patient(90000007)[0][1].image
    for patient_id in (90000006, 90000031): make_patient(patient_id)
    np.random.seed(0)
    assert np.array_equal(make_patient(90000007)[0][1].image, alone)


def test_hash_seed_does_not_matter():
    code = ("import hashlib; from chestnb.data.phantom.cohort import render; from chestnb.data.phantom.anatomy import Anatomy; from chestnb.data.findings import FINDINGS;"
            "print(hashlib.sha256(render(Anatomy(3), {f: .5 for f in FINDINGS}).image.tobytes()).hexdigest())")
    digests = {subprocess.run([sys.executable, '-c', code], env={**os.environ, 'PYTHONHASHSEED': seed}, capture_output=True, text=True, check=True).stdout
               for seed in ('1', '2')}
    assert len(digests)==1


def test_findings_may_be_given_in_any_order():
    severities = {'Edema': .6, 'Cardiomegaly': .8, 'Effusion': .4}
    backwards = dict(reversed(severities.items()))
    assert np.array_equal(render(Anatomy(3), severities).image, render(Anatomy(3), backwards).image)


@pytest.mark.parametrize('finding', FINDINGS)
def test_every_finding_changes_the_image(finding):
    healthy, changed = render(Anatomy(5), {}, seed=1).image.astype(int), render(Anatomy(5), {finding: .8}, seed=1).image.astype(int)
    assert (np.abs(healthy-changed)>10).sum()>=15


@pytest.mark.parametrize('size', [64, 128, 200, 256])
def test_any_size(size):
    phantom = render(Anatomy(2, 'F'), {'Mass': .5}, 'AP', size)
    assert phantom.image.shape==(size, size) and phantom.image.dtype==np.uint8
    left, right, heart = (phantom.masks[structure] for structure in STRUCTURES)
    assert not (left&right).any() and not (heart&(left|right)).any()
    columns = np.arange(size)
    assert (left.sum(0)*columns).sum()/left.sum()>(right.sum(0)*columns).sum()/right.sum(), "patient's left is the image's right"


def test_nodules_are_smaller_than_three_centimetres_and_masses_larger():
    limit = LARGEST_NODULE*256 # diameter in pixels at 256, before magnification
    for seed in range(8):
        for severity in (.1, 1.):
            for finding, fits in (('Nodule', lambda d: d<limit*1.1), ('Mass', lambda d: d>limit*.9)):
                for _, _, _, width, height in render(Anatomy(seed), {finding: severity}, size=256, seed=seed).boxes:
                    assert fits(max(width, height)), (finding, seed, severity, width, height, limit)


def test_anatomy_belongs_to_the_patient():
    visits = patient_visits(90000028)
    assert len({patient_anatomy(visit).dome for visit in visits})==1
    assert len({visit.sex for visit in visits})==1
    assert all(a.age<=b.age for a, b in zip(visits, visits[1:]))


def test_another_seed_is_another_cohort():
    assert not np.array_equal(make_patient(90000001, seed=0)[0][1].image, make_patient(90000001, seed=1)[0][1].image)


def test_make_cohort_writes_what_can_be_read(tmp_path):
    made = make_cohort(tmp_path/'new'/'cohort', n_patients=4, size=64, progress=False)
    dataset = ChestDataset(made)
    assert dataset.table.patient_id.nunique()==4 and dataset.is_synthetic
    assert not [p for p in made.parent.iterdir() if p!=made], 'temporary files are left over'


def test_make_cohort_refuses_an_existing_folder(tmp_path):
    (tmp_path/'mine.txt').write_text('precious')
    with pytest.raises(UserError, match='not empty'): make_cohort(tmp_path, n_patients=1, progress=False)
    assert (tmp_path/'mine.txt').read_text()=='precious'


def test_interrupted_cohort_leaves_nothing(tmp_path, monkeypatch):
    def interrupt(*args, **kwargs): raise KeyboardInterrupt
    monkeypatch.setattr('chestnb.data.phantom.cohort.write_boxes', interrupt)
    with pytest.raises(KeyboardInterrupt): make_cohort(tmp_path/'cohort', n_patients=1, progress=False)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('call, words', [
    (lambda: render(Anatomy(1), {'Cold': .5}), 'Unknown finding'),
    (lambda: render(Anatomy(1), {'Mass': 0}), 'severity'),
    (lambda: render(Anatomy(1), view_position='LL'), 'expected'),
    (lambda: render(Anatomy(1), size=8), 'too small'),
    (lambda: patient_visits(12), 'could be real'),
    (lambda: cohort_table(0), '1 or more'),
])
def test_bad_input_is_named(call, words):
    with pytest.raises(UserError, match=words): call()
