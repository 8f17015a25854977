"""Properties of the patient splitter and its audit: no leak passes, no image is lost, same seed same split."""
import itertools
from pathlib import Path
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings, strategies as st
from PIL import Image
from chestnb.data.findings import CLASSES
from chestnb.data.nih import nih_metadata
from chestnb.core.errors import UserError
from chestnb.data.parts import DEFAULT_FRACTIONS, check_fractions, images_in, load_split, match_split, save_split, shared_patients
from chestnb.data.leakage import LeakageError, audit_split, duplicate_images, refuse_trained_patients
from chestnb.data.folds import patient_kfold, rotate_folds
from chestnb.data.split import assign_parts, deviation, image_split, patient_counts, patient_split, split_report
from chestnb.data.official import lists_split, official_split, read_split

NIH_LISTS = Path(__file__).resolve().parents[1]/'..'/'shared'/'nih'
FRACTIONS = st.sampled_from([None, {'train': 0.8, 'test': 0.2}, {'train': 0.5, 'valid': 0.5}, {'train': 0.98, 'valid': 0.01, 'test': 0.01},
                             {f'fold{k}': 1/7 for k in range(7)}, {'test': 1.0}])


def make_table(images_each, seed=0):
    "A table of patients with so many images each and random labels"
    rng = np.random.default_rng(seed)
    ids = np.repeat(np.arange(len(images_each))*3+5, images_each)
    labels = rng.random((len(ids), len(CLASSES))) < rng.random(len(CLASSES))*0.4
    labels[:, -1] = ~labels[:, :-1].any(1)
    table = pd.DataFrame({'image': [f'{i:06d}.png' for i in range(len(ids))], 'patient_id': ids})
    return pd.concat([table, pd.DataFrame(labels, columns=list(CLASSES))], axis=1)


tables = st.builds(make_table, st.lists(st.integers(1, 12), min_size=7, max_size=60), st.integers(0, 10**6))


# ---------- properties of the splitter

@settings(max_examples=120, deadline=None)
@given(tables, FRACTIONS, st.integers(0, 2**32-1))
def test_disjoint_patients_every_image_once_no_empty_part(table, fractions, seed):
    split = patient_split(table, fractions, seed)
    assert split['image'].tolist() == table['image'].tolist()
    assert split['patient_id'].tolist() == table['patient_id'].tolist()
    assert split.groupby('patient_id')['part'].nunique().max() == 1
    assert set(split['part']) == set(fractions or DEFAULT_FRACTIONS)
    assert len(shared_patients(split)) == 0
    audit_split(split)


@settings(max_examples=60, deadline=None)
@given(tables, FRACTIONS, st.integers(0, 1000), st.integers(0, 1000))
def test_same_seed_same_split_whatever_the_row_order(table, fractions, seed, order):
    shuffled = table.sample(frac=1, random_state=order)
    for splitter in (patient_split, image_split):
        split = splitter(table, fractions, seed)
        pd.testing.assert_frame_equal(split, splitter(table, fractions, seed))
        again = splitter(shuffled, fractions, seed)
        assert again['image'].tolist() == shuffled['image'].tolist()
        assert again.set_index('image')['part'].to_dict() == split.set_index('image')['part'].to_dict()


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 6), min_size=60, max_size=200), st.integers(0, 10**6), st.sampled_from([2, 3, 5]))
def test_folds_are_better_than_shuffled_patients(images_each, seed, n_folds):
    table = make_table(images_each, seed)
    patients, owner, counts = patient_counts(table)
    counts, shares = counts[:, counts.sum(0) > 0], np.full(n_folds, 1/n_folds)
    part = patient_kfold(table, n_folds, seed).groupby('patient_id')['part'].first().str.removeprefix('fold').astype(int).to_numpy()
    by_chance = np.random.default_rng(seed).permutation(np.arange(len(patients)) % n_folds)
    assert (deviation(counts, part, shares)**2).sum() <= (deviation(counts, by_chance, shares)**2).sum() + 1e-9


@settings(max_examples=40, deadline=None)
@given(tables, st.integers(0, 1000))
def test_no_single_move_improves_the_result(table, seed):
    patients, owner, counts = patient_counts(table)
    counts, shares = counts[:, counts.sum(0) > 0], np.array([0.7, 0.1, 0.2])
    part = assign_parts(counts, shares, seed)
    reached = (deviation(counts, part, shares)**2).sum()
    for patient, new in itertools.product(range(len(patients)), range(3)):
        moved = part.copy()
        moved[patient] = new
        if len(set(moved)) == 3: assert (deviation(counts, moved, shares)**2).sum() > reached - 1e-6


def test_another_seed_gives_another_split():
    table = make_table([3]*100)
    assert (patient_split(table, seed=0)['part'] != patient_split(table, seed=1)['part']).any()


def test_as_many_patients_as_parts():
    table = make_table([4, 1, 9])
    assert sorted(patient_split(table)['part'].unique()) == ['test', 'train', 'valid']
    with pytest.raises(UserError, match='3 patients cannot fill 4 parts'): patient_kfold(table, 4)


def test_absent_class_and_text_patient_ids():
    table = make_table([2]*40).assign(Hernia=False)
    table['patient_id'] = 'p' + table['patient_id'].astype(str)
    split = patient_split(table)
    audit_split(split)
    report = split_report(split, table)
    assert report.loc['Hernia', 'all'] == 0 and np.isnan(report.loc['Hernia', 'largest deviation %'])


# ---------- the real metadata

@pytest.fixture(scope='module')
def nih(): return nih_metadata()


@pytest.mark.parametrize('seed', [0, 1, 2])
def test_real_metadata_within_one_percent(nih, seed):
    split = patient_split(nih, {'train': 0.8, 'test': 0.2}, seed)
    report = split_report(split, nih, {'train': 0.8, 'test': 0.2})
    assert len(report) == 17 and report['largest deviation %'].max() < 1
    assert len(audit_split(split)) == 1


def test_real_metadata_three_parts_and_folds_within_one_image_or_one_percent(nih):
    for fractions in (DEFAULT_FRACTIONS, {f'fold{k}': 0.2 for k in range(5)}):
        report = split_report(patient_split(nih, fractions), nih, fractions)
        for part, share in fractions.items():
            off = (report[part]-share*report['all']).abs()
            assert (off <= np.maximum(1, 0.01*share*report['all'])).all(), part


def test_official_split_is_nihs(nih):
    split = official_split(nih)
    assert len(images_in(split, 'test')) == 25_596 and split['patient_id'][split['part'] == 'test'].nunique() == 2_797
    audit_split(split)
    other = official_split(nih, valid_fraction=0.2, seed=5)
    assert images_in(other, 'test') == images_in(split, 'test')
    assert abs(len(images_in(other, 'valid'))/86_524 - 0.2) < 0.002


@pytest.mark.skipif(not (NIH_LISTS/'test_list.txt').is_file(), reason="NIH's official lists are not in ../shared/nih")
def test_official_split_equals_the_published_lists(nih):
    split = official_split(nih)
    test, rest = [set((NIH_LISTS/name).read_text().split()) for name in ('test_list.txt', 'train_val_list.txt')]
    assert set(images_in(split, 'test')) == test
    assert set(images_in(split, 'train')) | set(images_in(split, 'valid')) == rest


def test_official_split_needs_both_kinds_of_patients(nih):
    with pytest.raises(UserError, match='none of the'): official_split(nih[nih['image'].isin(images_in(official_split(nih), 'train')[:50])])
    test = nih[nih['image'].isin(images_in(official_split(nih), 'test')[:50])]
    with pytest.raises(UserError, match='all of the 50 images'): official_split(test)
    for wrong in (0, 1, 1.5):
        with pytest.raises(UserError, match='between 0 and 1'): official_split(nih, valid_fraction=wrong)


# ---------- the audit

@pytest.mark.parametrize('source,target', [pair for pair in itertools.permutations(['train', 'valid', 'test'], 2)])
def test_a_leak_between_any_two_parts_is_found(source, target):
    split = patient_split(make_table([3]*60))
    row = split.index[split['part'] == source][4]
    patient = split.loc[row, 'patient_id']
    split.loc[row, 'part'] = target
    by_part = [set(split['patient_id'][split['part'] == part]) for part in ('train', 'valid', 'test')]
    assert not set.intersection(*by_part)        # a three-way intersection sees nothing
    with pytest.raises(LeakageError, match=f'1 patient is in more than one part: {patient} ') as caught: audit_split(split)
    assert caught.value.shared['patient_id'].tolist() == [patient]
    assert set(caught.value.shared.loc[0, ['part', 'other_part']]) == {source, target}
    assert (caught.value.shared['images'] + caught.value.shared['other_images']).tolist() == [3]


@settings(max_examples=60, deadline=None)
@given(tables, st.integers(2, 6), st.integers(0, 1000))
def test_audit_lists_exactly_the_shared_patients(table, n_parts, seed):
    part = np.random.default_rng(seed).integers(0, n_parts, len(table))
    split = table[['image', 'patient_id']].assign(part=[f'fold{k}' for k in part])
    expected = {(patient, *pair) for patient, parts in split.groupby('patient_id')['part'].unique().items()
                for pair in itertools.combinations(sorted(parts), 2)}
    found = shared_patients(split)
    assert set(found[['patient_id', 'part', 'other_part']].itertuples(index=False, name=None)) == expected and len(found) == len(expected)
    if expected:
        with pytest.raises(LeakageError) as caught: audit_split(split)
        assert len(caught.value.shared) == len(expected)
    else: audit_split(split)


def test_one_image_in_two_parts_is_a_leak_and_listed_twice_is_an_error():
    split = patient_split(make_table([2]*30))
    row = split[split['part'] == 'train'][:1]
    with pytest.raises(LeakageError): audit_split(pd.concat([split, row.assign(part='test')]))
    with pytest.raises(UserError, match='more than once'): audit_split(pd.concat([split, row]))


class Folder:
    "Just enough of a data set: a table and images on disk"
    def __init__(self, path, table): self.path, self.table = path, table
    def open_image(self, name): return Image.open(self.path/name).convert('L')


@pytest.fixture
def folder(tmp_path):
    table = make_table([1]*12)
    rng = np.random.default_rng(0)
    for name in table['image']: Image.fromarray(rng.integers(0, 255, (16, 16), dtype=np.uint8)).save(tmp_path/name)
    return Folder(tmp_path, table)


def test_identical_images_in_two_parts_are_found(folder):
    split = patient_split(folder.table)
    assert (audit_split(split, folder)['duplicate images'] == 0).all()
    first, second = images_in(split, 'train')[0], images_in(split, 'test')[0]
    Image.open(folder.path/first).save(folder.path/second, compress_level=0)     # other bytes, same pixels
    assert (folder.path/first).read_bytes() != (folder.path/second).read_bytes()
    with pytest.raises(LeakageError, match='identical images') as caught: audit_split(split, folder)
    assert set(caught.value.duplicates['image']) == {first, second} and set(caught.value.duplicates['part']) == {'train', 'test'}
    assert set(duplicate_images(folder)['image']) == {first, second}


def test_same_pixels_in_another_shape_are_not_identical(folder):
    first, second = folder.table['image'][:2]
    Image.fromarray(np.zeros((4, 16), np.uint8)).save(folder.path/first)
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(folder.path/second)
    assert len(duplicate_images(folder)) == 0


def test_audit_compares_the_patients_with_the_data_set(folder):
    split = patient_split(folder.table)
    with pytest.raises(UserError, match='different patients'): audit_split(split.assign(patient_id=range(12)), folder)
    with pytest.raises(UserError, match='lacks images of the split'):
        audit_split(pd.concat([split, pd.DataFrame({'image': ['x.png'], 'patient_id': [1], 'part': ['test']})]), folder)


# ---------- files, folds and wrong input

@settings(max_examples=20, deadline=None)
@given(tables, st.integers(0, 1000))
def test_saved_and_loaded(tmp_path_factory, table, seed):
    path = tmp_path_factory.mktemp('split')/'split.csv'
    split = patient_split(table, seed=seed)
    save_split(split, path)
    pd.testing.assert_frame_equal(load_split(path, table), split)
    shuffled = table.sample(frac=1, random_state=seed)
    assert load_split(path, shuffled)['image'].tolist() == shuffled['image'].tolist()


def test_a_split_of_another_table_is_refused(tmp_path):
    table = make_table([3]*30)
    split, path = patient_split(table), tmp_path/'split.csv'
    save_split(split, path)
    with pytest.raises(UserError, match=r'split.csv has images that the table lacks: 000000.png, .* and 4 more'): load_split(path, table[9:])
    save_split(split[9:], path)
    with pytest.raises(UserError, match=r'lacks images of the table: 000000.png, .* and 4 more'): load_split(path, table)
    save_split(split.assign(patient_id=split['patient_id'].where(split.index != 7, 1)), path)
    with pytest.raises(UserError, match='another patient than the table for 000007.png'): load_split(path, table)


def test_broken_split_files_are_refused(tmp_path):
    table, path = make_table([3]*30), tmp_path/'split.csv'
    with pytest.raises(UserError, match='no split file'): load_split(path, table)
    path.write_text('')
    with pytest.raises(UserError, match='is empty'): load_split(path, table)
    path.write_text('image,part\na,train\n')
    with pytest.raises(UserError, match='no patient_id'): load_split(path, table)
    path.write_text('name;subset\n000000.png;train\n')
    with pytest.raises(UserError, match="missing column 'image'"): load_split(path, table)
    path.write_text('image,patient_id,part\n000000.png,5,holdout\n')
    with pytest.raises(UserError, match='part other than'): load_split(path, table)
    with pytest.raises(UserError): save_split(pd.DataFrame({'image': ['a', 'a'], 'patient_id': [1, 1], 'part': ['train', 'test']}), path)


@pytest.mark.parametrize('fractions', [0.8, [0.8, 0.2], {}, {'train': 0.8, 'val': 0.2}, {'train': 0.8}, {'train': 1.2, 'test': -0.2},
                                       {'train': 1.0, 'test': 0.0}, {'train': float('nan'), 'test': 0.2}, {'train': '0.8', 'test': 0.2}, {3: 1.0}])
def test_wrong_fractions_are_refused(fractions):
    with pytest.raises(UserError): check_fractions(fractions)
    with pytest.raises(UserError): patient_split(make_table([2]*20), fractions)


def test_wrong_tables_are_refused():
    table = make_table([2]*20)
    with pytest.raises(UserError, match='no column Hernia'): patient_split(table.drop(columns='Hernia'))
    with pytest.raises(UserError, match='no rows'): patient_split(table[:0])
    with pytest.raises(UserError, match='more than once: 000003.png'): patient_split(pd.concat([table, table[3:4]]))
    with pytest.raises(UserError, match='no patient_id for 000002.png'): patient_split(table.assign(patient_id=table['patient_id'].where(table.index != 2)))
    with pytest.raises(UserError, match='values other than true and false'): patient_split(table.assign(Mass=.5))
    for wrong in (0, 1, 2.5, True, '5'):
        with pytest.raises(UserError, match='whole number of 2 or more'): patient_kfold(table, wrong)


def test_rotated_folds_test_every_image_once():
    table = make_table([2]*50)
    folds = patient_kfold(table, 4)
    tested = [name for k in range(4) for name in images_in(rotate_folds(folds, k), 'test')]
    assert sorted(tested) == sorted(table['image'])
    for k in range(4): audit_split(rotate_folds(folds, k))
    with pytest.raises(UserError, match='expected 0 to 3'): rotate_folds(folds, 4)
    with pytest.raises(UserError, match='n_folds=3 or more'): rotate_folds(patient_kfold(table, 2), 0)
    with pytest.raises(UserError, match='n_folds=3 or more'): rotate_folds(patient_split(table), 0)


def test_report_counts_add_up():
    table = make_table([3]*70)
    split = patient_split(table)
    report = split_report(split, table)
    assert (report[['train', 'valid', 'test']].sum(axis=1) == report['all']).all()
    assert report.loc[list(CLASSES), 'all'].tolist() == table[list(CLASSES)].sum().tolist()
    assert report.loc['patients', 'all'] == 70
    pd.testing.assert_frame_equal(match_split(split.sample(frac=1, random_state=0), table), split)
    with pytest.raises(UserError, match='fractions name'): split_report(split, table, {'train': 0.8, 'test': 0.2})


def test_official_split_is_for_nih_images_only():
    "Patient numbers alone do not make an image one of NIH's."
    table = nih_metadata().head(400).copy()
    table['image'] = [f'hospital_{i}.png' for i in range(len(table))]
    with pytest.raises(UserError, match='not in NIH ChestX-ray14'): official_split(table)


# ---- splits of others

def test_patient_5_and_5_point_0_are_one_patient():
    split = pd.DataFrame({'image': [f'{i}.png' for i in range(274)], 'patient_id': [str(i) if i < 137 else f'{i - 137}.0' for i in range(274)],
                          'part': ['train']*137 + ['test']*137})
    assert shared_patients(split)['patient_id'].nunique() == 137
    with pytest.raises(LeakageError, match='137 patients are in more than one part'): audit_split(split)


def test_a_split_saved_by_a_spreadsheet_is_the_same_split(tmp_path):
    table = make_table([3]*30)
    split = patient_split(table)
    split.assign(patient_id=split['patient_id'].astype(float)).to_csv(tmp_path/'split.csv', index=False)
    pd.testing.assert_frame_equal(load_split(tmp_path/'split.csv', table), split)


def test_a_colleagues_split_without_patients(tmp_path):
    table = make_table([3]*30)
    split = patient_split(table)
    theirs = pd.DataFrame({'Filename': split['image'], 'Split': split['part'].map({'train': 'Training', 'valid': 'val', 'test': 'TEST'})})
    theirs.to_csv(tmp_path/'split.csv', index=False, sep=';')
    pd.testing.assert_frame_equal(load_split(tmp_path/'split.csv', table), split)


def test_text_patients_are_split_and_saved(tmp_path):
    table = make_table([3]*30)
    table['patient_id'] = 'P-' + table['patient_id'].astype(str)
    split = patient_split(table)
    audit_split(split)
    save_split(split, tmp_path/'split.csv')
    assert load_split(tmp_path/'split.csv', table).equals(split)


def test_unknown_labels_and_one_finding_are_split():
    table = make_table([3]*60)[['image', 'patient_id', 'Mass']].assign(Mass=1.)
    table.loc[::2, 'Mass'], table.loc[::5, 'Mass'] = 0., np.nan
    table['No Finding'] = 1 - table['Mass']
    table.attrs['findings'] = ('Mass',)
    split = patient_split(table)
    report = split_report(split, table)
    assert report['all'].tolist() == [(table['Mass'] == 1).sum(), (table['Mass'] == 0).sum(), 180, 60]
    assert report.loc['Mass', ['train', 'valid', 'test']].sum() == report.loc['Mass', 'all'] and not shared_patients(split).size


def lists(folder, **names):
    for name, images in names.items(): (folder/f'{name}.txt').write_text('\n'.join(images))
    return folder


def test_lists_of_names_are_a_split(tmp_path):
    table = make_table([3]*60)
    test = set(table['image'][table['patient_id'] % 5 == 0])
    others = [name for name in table['image'] if name not in test]
    lists(tmp_path, train_val_list_NIH=others, test_list_NIH=[*sorted(test), 'of_another_copy.png'])
    split = lists_split(tmp_path, table)
    assert set(images_in(split, 'test')) == test and not shared_patients(split).size and len(images_in(split, 'valid')) > 0
    pd.testing.assert_frame_equal(split, read_split(tmp_path/'test_list_NIH.txt', table))
    (tmp_path/'train_val_list_NIH.txt').unlink()                              # the test list alone says as much
    pd.testing.assert_frame_equal(split, lists_split(tmp_path, table))


def test_three_lists_and_bad_lists(tmp_path):
    table = make_table([3]*60)
    parts = patient_split(table)
    full = {name: images_in(parts, part) for name, part in (('train', 'train'), ('val', 'valid'), ('test', 'test'))}
    pd.testing.assert_frame_equal(lists_split(lists(tmp_path, **full), table), parts)
    with pytest.raises(UserError, match='on two lists'): lists_split(lists(tmp_path, val=full['val'] + full['test'][:1]), table)
    with pytest.raises(UserError, match='no list names'): lists_split(lists(tmp_path, val=full['val'][1:]), table)
    moved = {**full, 'val': full['val'] + full['test'][:1], 'test': full['test'][1:]}
    with pytest.raises(UserError, match='patients on more than one list'): lists_split(lists(tmp_path, **moved), table)
    with pytest.raises(UserError, match='holds no list of the test images'): lists_split(lists(tmp_path/'..', x=[]), table)


def test_a_boxed_image_of_a_trained_patient_outside_the_split_is_refused():
    table = make_table([3]*60)
    split = patient_split(table)
    patient = split['patient_id'][split['part'] == 'train'].iloc[0]
    outside = split['image'][split['patient_id'] == patient].iloc[0]
    kept = split[split['image'] != outside]                                   # the split does not name this image
    with pytest.raises(LeakageError, match='1 image among these boxed images show patients'):
        refuse_trained_patients([outside], table, kept, what='boxed images')
    with pytest.raises(LeakageError): refuse_trained_patients([outside], table, kept.assign(patient_id=kept['patient_id'].astype(float).astype(str)))
    refuse_trained_patients(images_in(split, 'test'), table, split)
    assert refuse_trained_patients([outside], table, kept[kept['part'] == 'test']).images.to_dict() == {'not in the split': 1}
    assert refuse_trained_patients([outside], table, kept, allow_seen=True).images.to_dict() == {'not in the split': 1}
