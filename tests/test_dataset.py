"""The data set contract: NIH's quirks, masks, boxes, and every bad input with its message."""
import csv
import os
import shutil

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings, strategies as st
from hypothesis.extra.numpy import arrays, array_shapes
from PIL import Image

import chestnb.data.boxes as data_boxes
import chestnb.data.dataset as data_dataset
import chestnb.data.dicom_folder as data_dicom_folder
import chestnb.data.images as data_images
import chestnb.data.mask_index as data_mask_index
import chestnb.data.masks as data_masks
import chestnb.data.nih as data_nih
import chestnb.data.rows as data_rows
import chestnb.data.tables as data_tables
from chestnb.data.findings import CLASSES, FINDINGS, NO_FINDING, STRUCTURES
from chestnb.data.tables import NIH_HEADER
from chestnb.data.dataset import ChestDataset
from chestnb.core.errors import UserError
from chestnb.core.files import write_text
from chestnb.data.provenance import NIH_PROVENANCE, PHANTOM_PROVENANCE, write_provenance

ROWS = ['00000001_000.png,Mass,0,1,50,F,PA,2500,2048,0.168,0.168',
        '00000003_000.png,No Finding,0,3,61,M,AP,2500,2048,0.168,0.168',
        '00000003_001.png,Effusion|Edema,1,3,62,M,PA,2500,2048,0.168,0.168']
NAMES = [row.split(',')[0] for row in ROWS]
PIXELS = np.random.default_rng(0).integers(0, 256, (48, 64), dtype=np.uint8)


def make(folder, rows=ROWS, header=NIH_HEADER, images=NAMES, to='images', ending='\n'):
    "A small valid data set, unless asked for a broken one."
    folder.mkdir(parents=True, exist_ok=True)
    (folder/to).mkdir(parents=True, exist_ok=True)
    for name in images: Image.fromarray(PIXELS).save(folder/to/name)
    (folder/'data.csv').write_text(ending.join([header, *rows]) + ending, encoding='utf-8', newline='')
    return folder


def edited(row, old, new):
    "ROWS with one text replaced in one row (counted from 0)."
    assert old in ROWS[row]
    return [line.replace(old, new, 1) if i == row else line for i, line in enumerate(ROWS)]


def message(call):
    "What a refusal says."
    with pytest.raises(UserError) as caught: call()
    return str(caught.value)


@pytest.fixture
def folder(tmp_path): return tmp_path/'my_xrays'


# ---------------------------------------------------------------- reading and writing the table

def test_a_small_folder_opens(folder):
    data = ChestDataset(make(folder))
    assert len(data) == 3 and list(data.table.image) == NAMES
    assert list(data.table.columns[-15:]) == list(CLASSES)
    assert data.table[list(CLASSES)].dtypes.eq(bool).all()
    assert isinstance(data.table.index, pd.RangeIndex)
    assert data.segmentation is None and data.boxes is None and data.missing == []


def test_targets_have_the_order_of_findings(folder):
    targets = ChestDataset(make(folder)).targets()
    assert targets.shape == (3, 14) and targets.dtype == np.float32
    assert [FINDINGS[i] for i in np.flatnonzero(targets[2])] == ['Effusion', 'Edema']
    assert targets[1].sum() == 0


@pytest.mark.parametrize('change', [
    lambda header, rows: (header + ',', [row + ',' for row in rows]),
    lambda header, rows: (header + ',', rows),
    lambda header, rows: (header, [row + ',' for row in rows]),
    lambda header, rows: (header + ',Unnamed: 11', [row + ',' for row in rows]),
    lambda header, rows: (header.replace('Patient Gender', 'Patient Sex'), rows),
    lambda header, rows: ('\ufeff' + header, rows),
    lambda header, rows: (header, rows + ['', '']),
    lambda header, rows: (header, [row.replace('Effusion|Edema', 'Edema | Effusion') for row in rows]),
    lambda header, rows: (header, [row.replace(',50,', ',050Y,') for row in rows]),
    lambda header, rows: (header, [row.replace(',2500,', ',2500.0,') for row in rows]),
    lambda header, rows: (','.join(reversed(header.split(','))), [','.join(reversed(row.split(','))) for row in rows]),
], ids=['trailing comma', 'trailing comma in the header only', 'trailing comma in the rows only', 'Unnamed: 11', 'Patient Sex',
        'byte order mark', 'blank rows at the end', 'label order', 'age with unit', 'whole numbers with a point', 'column order'])
def test_spellings_of_the_same_table(tmp_path, change):
    header, rows = change(NIH_HEADER, ROWS)
    plain = data_tables.read_metadata(make(tmp_path/'plain')/'data.csv')
    other = data_tables.read_metadata(make(tmp_path/'other', rows, header)/'data.csv')
    pd.testing.assert_frame_equal(plain, other)


def test_windows_line_ends(tmp_path):
    plain = data_tables.read_metadata(make(tmp_path/'plain')/'data.csv')
    windows = data_tables.read_metadata(make(tmp_path/'windows', ending='\r\n')/'data.csv')
    pd.testing.assert_frame_equal(plain, windows)


@pytest.mark.parametrize('text, years', [('57', 57), ('058Y', 58), ('058', 58), ('008M', 8/12), ('012D', 12/365.25), ('002W', 14/365.25),
                                         ('414', np.nan), ('414Y', np.nan), ('', np.nan), ('0', 0), ('120', 120), ('121', np.nan)])
def test_ages(text, years):
    assert data_tables.parse_age(text) == pytest.approx(years, nan_ok=True)


def test_ages_that_are_not_credible_are_counted(folder):
    data = ChestDataset(make(folder, edited(0, ',50,', ',414,')))
    assert np.isnan(data.table.age[0])
    assert data.summary().loc[('age', 'not known'), 'images'] == 1


def test_write_metadata_round_trip(tmp_path):
    table = data_tables.read_metadata(make(tmp_path, edited(0, ',50,', ',008M,'))/'data.csv')
    table.loc[1, 'age'] = np.nan
    again = data_tables.read_metadata(data_tables.write_metadata(table, tmp_path/'again.csv'))
    pd.testing.assert_frame_equal(table, again)
    assert (tmp_path/'again.csv').read_text().splitlines()[0] == NIH_HEADER


def test_write_metadata_refuses_what_cannot_be_read(tmp_path):
    table = data_tables.read_metadata(make(tmp_path)/'data.csv')
    for bad in (table.assign(**{NO_FINDING: True}), table.assign(Mass=False), table.assign(image='a.png'), table.assign(sex='X'),
                table.assign(image=['../a.png', 'b.png', 'c.png'])):
        message(lambda: data_tables.write_metadata(bad, tmp_path/'bad.csv'))
        assert not (tmp_path/'bad.csv').exists()


# ---------------------------------------------------------------- bad tables: file, row and remedy

BAD_TABLES = {
    'unknown finding': (edited(2, 'Edema', 'Oedema'), 4, "unknown finding 'Oedema' (did you mean 'Edema'?)", "Join findings of the data set by '|'"),
    'NIH box spelling': (edited(0, 'Mass', 'Infiltrate'), 2, "did you mean 'Infiltration'", 'dataset.json'),
    'No Finding with a finding': (edited(2, 'Effusion', 'No Finding'), 4, "'No Finding' stands together with Edema", "'No Finding' alone"),
    'duplicated image': (ROWS + [ROWS[0]], 5, "'00000001_000.png' is already in row 2", 'Keep one row'),
    'name that escapes': (edited(0, '00000001_000.png', '../x.png'), 2, "'../x.png' is not a plain file name", 'Write the file name alone'),
    'name with a folder': (edited(0, '00000001_000.png', 'images/x.png'), 2, 'not a plain file name', 'Write the file name alone'),
    'absolute name': (edited(0, '00000001_000.png', '/etc/x.png'), 2, 'not a plain file name', 'Write the file name alone'),
    'Windows path': (edited(0, '00000001_000.png', r'..\x.png'), 2, 'not a plain file name', 'Write the file name alone'),
    'drive': (edited(0, '00000001_000.png', 'C:x.png'), 2, 'not a plain file name', 'Write the file name alone'),
    'dots': (edited(0, '00000001_000.png', '..'), 2, 'not a plain file name', 'Write the file name alone'),
    'no name': (edited(0, '00000001_000.png', ''), 2, 'not a file name', 'Write the file name alone'),
    'not an image': (edited(1, '00000003_000.png', 'x.docx'), 3, 'does not end in', 'Write the file name alone'),
    'age': (edited(1, ',61,', ',old,'), 3, "'old' is not an age", 'Write years'),
    'negative age': (edited(1, ',61,', ',-3,'), 3, "'-3' is not an age", 'Write years'),
    'sex': (edited(1, ',M,', ',boy,'), 3, "'boy' is none of M, F", 'Write M or F'),
    'lateral view': (edited(1, ',AP,', ',LL,'), 3, "'LL' is none of PA, AP", 'leave other rows out'),
    'follow-up': (edited(1, ',0,3,', ',-1,3,'), 3, "'-1' is not a whole number", 'Number the images'),
    'width': (edited(1, ',2500,', ',0,'), 3, "'0' is not a whole number", 'width of the original'),
    'spacing': (edited(1, ',0.168,', ',-1,'), 3, "'-1' is not a pixel spacing", 'millimetres'),
    'comma in a cell': (edited(2, 'Effusion|Edema', 'Effusion,Edema'), 4, 'has 12 cells where the header names 11', 'Put quotes'),
    'row cut off': (ROWS[:2] + [ROWS[2][:30]], 4, 'has 2 cells', 'Copy it again'),
    'blank row': ([ROWS[0], '', *ROWS[1:]], 3, 'is blank', 'Delete the blank row'),
}


@pytest.mark.parametrize('case', BAD_TABLES)
def test_bad_table(folder, case):
    rows, row, reason, remedy = BAD_TABLES[case]
    said = message(lambda: ChestDataset(make(folder, rows)))
    assert said.startswith(f"{folder/'data.csv'}, row {row}: "), said
    assert reason in said and remedy in said, said


def test_many_bad_rows_are_counted(tmp_path):
    rows = [f'a{i}.png,Mess,0,1,50,F,PA,1,1,,' for i in range(10)]
    path = write_text(tmp_path/'data.csv', '\n'.join([NIH_HEADER, *rows]))
    said = message(lambda: data_tables.read_metadata(path))
    assert 'row 2:' in said and '(and 9 more: rows 3, 4, 5, 6, 7 ...)' in said


@pytest.mark.parametrize('column', ['Image Index', 'Finding Labels'])
def test_a_missing_column(folder, column):
    said = message(lambda: ChestDataset(make(folder, header=NIH_HEADER.replace(column, 'something'))))
    assert f"{folder/'data.csv'}, row 1: missing column {column!r}" in said and "'something'" in said and 'rename' in said


@pytest.mark.parametrize('nih, name', [(nih, name) for name, (nih, _, _) in data_tables.METADATA_COLUMNS.items() if name not in ('image', 'labels')])
def test_a_column_that_is_not_there_means_unknown(folder, nih, name):
    table = ChestDataset(make(folder, header=NIH_HEADER.replace(nih, 'something'))).table
    assert table[name].isna().all()
    if not name.startswith(('pixel', 'width', 'height')): assert 'unknown for all images' in table.attrs['notes'][0]


@pytest.mark.parametrize('slip', ['Patinet ID', 'Pateint ID', 'Patient IDs'])
def test_an_almost_right_column_is_refused_not_taken_as_unknown(folder, slip):
    said = message(lambda: ChestDataset(make(folder, header=NIH_HEADER.replace('Patient ID', slip))))
    assert f"{slip!r} is almost 'Patient ID'" in said


def test_other_bad_files(tmp_path):
    def said(content):
        (tmp_path/'data.csv').write_bytes(content)
        return message(lambda: data_tables.read_metadata(tmp_path/'data.csv'))
    assert 'is empty' in said(b'')
    assert 'no row' in said(NIH_HEADER.encode())
    assert 'a header but no row' in said(NIH_HEADER.replace(',', ';').encode())
    assert 'is a Parquet file' in said(b'PAR1' + b'\0'*20) and 'an Excel file' in said(b'PK\x03\x04' + b'\0'*20)
    assert 'UTF-8' in said(NIH_HEADER.encode() + b'\n\xff\xfe\x00')
    assert 'is there twice' in said((NIH_HEADER + ',Patient ID\n' + ROWS[0] + ',1').encode())
    assert 'not a CSV file' in said(NIH_HEADER.encode() + b'\n"never closed')
    assert 'no such file' in message(lambda: data_tables.read_metadata(tmp_path/'nowhere.csv'))


# ---------------------------------------------------------------- the folder

def test_no_folder_no_table_no_images(tmp_path):
    said = message(lambda: ChestDataset(tmp_path/'nowhere'))
    assert str(tmp_path/'nowhere') in said and 'images/ and data.csv' in said
    (tmp_path/'empty').mkdir()
    said = message(lambda: ChestDataset(tmp_path/'empty'))
    assert str(tmp_path/'empty'/'data.csv') in said and 'is missing' in said and NIH_HEADER in said
    shutil.rmtree(make(tmp_path/'bare')/'images')
    said = message(lambda: ChestDataset(tmp_path/'bare'))
    assert str(tmp_path/'bare'/'images') in said and 'Put the X-rays into it' in said
    assert 'no such folder' in message(lambda: ChestDataset(tmp_path/'bare'/'data.csv'))


def test_in_the_table_but_not_on_disk(folder):
    said = message(lambda: ChestDataset(make(folder, images=[NAMES[0], NAMES[2]])))
    assert f"{folder/'data.csv'}, row 3: the image '{NAMES[1]}'" in said and "on_mismatch='drop'" in said


def test_on_disk_but_not_in_the_table(folder):
    said = message(lambda: ChestDataset(make(folder, ROWS[:2])))
    assert str(folder/'images'/NAMES[2]) in said and 'data.csv' in said and "on_mismatch='drop'" in said


def test_drop(folder):
    data = ChestDataset(make(folder, ROWS[:2], images=[NAMES[0], NAMES[2]]), on_mismatch='drop')
    assert (list(data.table.image), data.missing, data.unlisted) == ([NAMES[0]], [NAMES[1]], [NAMES[2]])
    files = data.summary().loc['files']
    assert files.images['in the table, not on disk'] == 1 and files.images['on disk, not in the table'] == 1
    assert 'expected' in message(lambda: ChestDataset(folder, on_mismatch='ignore'))


def test_drop_that_leaves_nothing(folder):
    make(folder, images=['other.png'])
    assert 'none of the images' in message(lambda: ChestDataset(folder, on_mismatch='drop'))


def test_kaggle_layout_and_nih_name(folder):
    make(folder, images=NAMES[:2], to='images_001/images')
    make(folder, images=NAMES[2:], to='images_012/images')
    (folder/'data.csv').rename(folder/'Data_Entry_2017_v2020.csv')
    data = ChestDataset(folder)
    assert data.open_image(NAMES[2]).size == (64, 48)
    assert data.image_path(NAMES[2]).parent.parent.name == 'images_012'
    shutil.copy(folder/'images_001/images'/NAMES[0], folder/'images_012/images'/NAMES[0])
    said = message(lambda: ChestDataset(folder))
    assert 'Keep one of them' in said and 'images_001' in said and 'images_012' in said


def test_other_files_in_images_are_ignored(folder):
    make(folder)
    for name in ('.DS_Store', '._00000001_000.png', 'Thumbs.db', 'README.txt'): (folder/'images'/name).write_text('x')
    assert len(ChestDataset(folder)) == 3


def test_indexing_is_quick(folder):
    "Files are listed, never asked for one by one."
    (folder/'images').mkdir(parents=True)
    for i in range(3000): os.close(os.open(folder/'images'/f'{i:08d}_000.png', os.O_CREAT | os.O_WRONLY))
    found = data_images.find_images(folder)
    assert len(found) == 3000 and found['00000017_000.png'].endswith('00000017_000.png')


# ---------------------------------------------------------------- images

@pytest.mark.parametrize('mode', ['L', 'RGB', 'RGBA', 'LA', 'P', 'I;16'])
def test_every_mode_becomes_grey(tmp_path, mode):
    image = Image.fromarray(PIXELS.astype(np.uint16)*257) if mode == 'I;16' else Image.fromarray(PIXELS).convert(mode)
    image.save(tmp_path/'x.png')
    grey = data_images.read_image(tmp_path/'x.png')
    assert grey.mode == 'L' and grey.size == (64, 48)
    np.testing.assert_array_equal(np.asarray(grey), PIXELS)


@pytest.mark.parametrize('bits', [8, 10, 12, 14, 16])
def test_bit_depths_use_the_whole_range(tmp_path, bits):
    values = np.linspace(0, 2**bits - 1, 64*48).round().astype(np.uint16).reshape(48, 64)
    Image.fromarray(values).save(tmp_path/'x.png')
    grey = np.asarray(data_images.read_image(tmp_path/'x.png'))
    assert grey.min() == 0 and grey.max() == 255 and (np.diff(grey.ravel().astype(int)) >= 0).all()


@pytest.mark.parametrize('content', [b'', b'not an image', 'half', 'most'], ids=['empty', 'text', 'half of it', 'most of it'])
def test_truncated_images_name_the_file(folder, content):
    path = make(folder)/'images'/NAMES[1]
    whole = path.read_bytes()
    path.write_bytes({'half': whole[:len(whole)//2], 'most': whole[:-60]}.get(content, content))
    data = ChestDataset(folder)   # opening does not read pixels
    for call in (lambda: data.open_image(NAMES[1]), lambda: data.check_images(progress=False)):
        said = message(call)
        assert str(path) in said and 'cannot be read as an image' in said and 'Copy or download' in said
    data.open_image(NAMES[0])


def test_check_images_counts(folder):
    data = ChestDataset(make(folder))
    assert data.check_images(progress=False) == 3
    for name in NAMES[:2]: (folder/'images'/name).write_bytes(b'')
    assert '(1 more images cannot be read)' in message(lambda: data.check_images(progress=False))
    assert 'no such image' in message(lambda: data_images.read_image(folder/'images'/'nowhere.png'))


# ---------------------------------------------------------------- masks

masks = arrays(bool, array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=12))
orders = st.sampled_from(['row', 'column'])


@given(masks, orders)
def test_run_lengths_round_trip(mask, order):
    runs = data_masks.encode_mask(mask, order)
    np.testing.assert_array_equal(data_masks.decode_mask(runs, *mask.shape, order), mask)
    numbers = [int(n) for n in runs.split()]
    assert sum(numbers[1::2]) == mask.sum()


@given(masks)
def test_column_order_is_row_order_of_the_transposed(mask):
    assert data_masks.encode_mask(mask, 'column') == data_masks.encode_mask(mask.T, 'row')


@given(masks, orders)
def test_run_lengths_against_a_plain_loop(mask, order):
    runs, previous = [], False
    for place, inside in enumerate(mask.ravel(order='C' if order == 'row' else 'F'), start=1):
        if inside and previous: runs[-1][1] += 1
        elif inside: runs.append([place, 1])
        previous = inside
    assert data_masks.encode_mask(mask, order) == ' '.join(f'{start} {length}' for start, length in runs)


@pytest.mark.parametrize('order', ['row', 'column'])
@pytest.mark.parametrize('shape', [(1, 1), (3, 4), (1, 7), (7, 1), (1024, 1024)])
def test_empty_full_and_last_pixel(shape, order):
    empty, full, last = np.zeros(shape, bool), np.ones(shape, bool), np.zeros(shape, bool)
    last[-1, -1] = True
    n = shape[0]*shape[1]
    assert [data_masks.encode_mask(m, order) for m in (empty, full, last)] == ['', f'1 {n}', f'{n} 1']
    for mask in (empty, full, last): np.testing.assert_array_equal(data_masks.decode_mask(data_masks.encode_mask(mask, order), *shape, order), mask)


@pytest.mark.parametrize('runs, reason', [
    ('12 2', 'past the last pixel'), ('13 1', 'past the last pixel'), ('1 13', 'past the last pixel'), ('2 2 8', 'pairs'),
    ('0 2', 'count from 1'), ('2 0', 'count from 1'), ('-1 2', 'count from 1'), ('2 x', 'whole numbers'), ('2 1.5', 'whole numbers'),
    ('2 4 3 1', 'overlap'), ('8 1 2 1', 'out of order'), ('1 99999999999999999999', 'whole numbers'),
    ('9223372036854775807 9223372036854775807', 'past the last pixel')])
def test_bad_runs(runs, reason):
    assert reason in message(lambda: data_masks.decode_mask(runs, 3, 4))


def test_bad_masks():
    assert 'two dimensions' in message(lambda: data_masks.encode_mask(np.zeros((2, 2, 2))))
    for call in (lambda: data_masks.encode_mask(np.zeros((2, 2)), 'F'), lambda: data_masks.decode_mask('', 2, 2, 'F')): assert "expected 'row'" in message(call)


def mask_frame(height=48, width=64, names=NAMES):
    left, right = np.zeros((height, width), bool), np.zeros((height, width), bool)
    left[10:30, 40:60], right[10:30, 5:25] = True, True
    return pd.DataFrame([{'Image Index': name, 'Dice RCA (Mean)': .9, 'Dice RCA (Max)': .95, 'Landmarks': '1,2,3,4', 'Left Lung': data_masks.encode_mask(left),
                          'Right Lung': data_masks.encode_mask(right), 'Heart': '', 'Height': height, 'Width': width} for name in names])


def test_segmentation_round_trip(folder):
    make(folder)
    path = data_masks.write_segmentation(mask_frame(), folder/'segmentation.csv')
    first = path.read_bytes()
    assert next(csv.reader([first.decode().splitlines()[0]])) == [
        'Image Index', 'Dice RCA (Mean)', 'Dice RCA (Max)', 'Landmarks', 'Left Lung', 'Right Lung', 'Heart', 'Height', 'Width']
    assert data_masks.write_segmentation(data_masks.read_segmentation(path), path).read_bytes() == first
    data = ChestDataset(folder)
    assert data.mask(NAMES[1], 'Left Lung').sum() == 400 and not data.mask(NAMES[1], 'Heart').any()
    assert data.mask(NAMES[1], 'Left Lung')[10:30, 40:60].all()
    assert 'structure' in message(lambda: data.mask(NAMES[0], 'Liver'))


def test_segmentation_needs_neither_scores_nor_landmarks(tmp_path):
    frame = mask_frame().drop(columns=['Dice RCA (Mean)', 'Dice RCA (Max)', 'Landmarks']).rename(columns={'Image Index': 'Image ID'})
    frame.to_csv(tmp_path/'segmentation.csv', index=False)
    read = data_masks.read_segmentation(tmp_path/'segmentation.csv')
    assert list(read.image) == NAMES and read.dice_mean.isna().all() and (read.landmarks == '').all()


def test_bad_segmentation(folder):
    path = make(folder)/'segmentation.csv'
    frame = mask_frame()
    def said(bad):
        bad.to_csv(path, index=False)
        text = message(lambda: ChestDataset(folder))
        assert text.startswith(str(path)), text
        return text
    past = frame.copy()
    past.loc[1, 'Heart'] = f'{48*64} 2'
    assert "row 3: column 'Heart'" in said(past) and 'past the last pixel' in said(past) and 'Encode the mask again' in said(past)
    inside = frame.copy()
    inside.loc[2, 'Heart'] = '5 9 3 1 100 1'
    assert "row 4: column 'Heart'" in said(inside) and 'overlap' in said(inside)
    assert 'row 2' in said(frame.assign(Height=24, Width=128)) and 'the image has 48×64' in said(frame.assign(Height=24, Width=128))
    other = mask_frame(96, 128)
    assert "row 2: the masks of '00000001_000.png' have 96×128 pixels" in said(other) and 'resize_segmentation' in said(other)
    assert "missing column 'Heart'" in said(frame.drop(columns='Heart'))
    assert 'row 5' in said(pd.concat([frame, frame[:1]])) and 'already in row 2' in said(pd.concat([frame, frame[:1]]))
    assert "row 2: column 'Height'" in said(frame.assign(Height='tall'))
    assert 'plain file name' in said(frame.assign(**{'Image Index': ['../x.png', *NAMES[1:]]}))
    for bad in (past, frame.drop(columns='Heart'), pd.concat([frame, frame[:1]])):
        message(lambda: data_masks.write_segmentation(bad, folder/'never.csv'))
    assert not (folder/'never.csv').exists()


def test_resize_segmentation_makes_masks_fit(folder):
    path = data_masks.write_segmentation(mask_frame(96, 128), make(folder)/'segmentation.csv')
    data_masks.write_segmentation(data_masks.resize_segmentation(data_masks.read_segmentation(path), 48, 64), path)
    data = ChestDataset(folder)
    assert data.mask(NAMES[0], 'Left Lung').shape == (48, 64) and data.mask(NAMES[0], 'Left Lung').sum() == 10*10


def test_masks_may_be_absent(folder):
    data = ChestDataset(make(folder))
    assert 'segmentation.csv' in message(lambda: data.mask(NAMES[0], 'Heart'))
    data_masks.write_segmentation(mask_frame(names=NAMES[:1] + ['99999999_000.png']), folder/'segmentation.csv')
    data = ChestDataset(folder)   # the row about another image is left out
    assert list(data.segmentation.image) == NAMES[:1] and 'has no row' in message(lambda: data.mask(NAMES[1], 'Heart'))


def test_draw_masks_has_a_legend():
    from matplotlib.figure import Figure
    ax = data_masks.draw_masks(Image.fromarray(PIXELS), {s: np.eye(48, 64, dtype=bool) for s in STRUCTURES}, Figure().subplots())
    assert [text.get_text() for text in ax.get_legend().get_texts()] == list(STRUCTURES)
    assert 'Resize' in message(lambda: data_masks.draw_masks(PIXELS, {'Heart': np.eye(3, dtype=bool)}, Figure().subplots()))


# ---------------------------------------------------------------- boxes

BOXES = pd.DataFrame({'image': NAMES[:2], 'finding': ['Mass', 'Infiltration'], 'x': [1.5, 0.], 'y': [2., 0.], 'width': [10., 64.], 'height': [10.25, 48.]})


def test_boxes_round_trip(folder):
    path = data_boxes.write_boxes(BOXES, make(folder)/'boxes.csv')
    assert path.read_text().splitlines()[0] == 'Image Index,Finding Label,Bbox [x,y,w,h],,,' and 'Infiltrate,' in path.read_text()
    pd.testing.assert_frame_equal(data_boxes.read_boxes(path), BOXES)
    assert list(ChestDataset(folder).boxes.finding) == ['Mass', 'Infiltration']
    assert len(data_boxes.read_boxes(data_boxes.write_boxes(BOXES[:0], folder/'none.csv'))) == 0


@pytest.mark.parametrize('header', ['Image Index,Finding Label,Bbox [x,y,w,h],,,', 'Image Index,Finding Label,Bbox [x,y,w,h]',
                                    'Image Index,Finding Label,x,y,w,h'])
def test_box_headers(tmp_path, header):
    path = write_text(tmp_path/'boxes.csv', f'{header}\na.png,Infiltrate,1,2,3,4\n')
    assert data_boxes.read_boxes(path).to_dict('records') == [dict(image='a.png', finding='Infiltration', x=1, y=2, width=3, height=4)]


def test_quoted_box_cells(tmp_path):
    path = write_text(tmp_path/'boxes.csv', 'Image Index,Finding Label,"Bbox [x,y,w,h]"\na.png,Mass,"[1,2,3,4]"\n')
    assert data_boxes.read_boxes(path).iloc[0].tolist() == ['a.png', 'Mass', 1, 2, 3, 4]


@pytest.mark.parametrize('row, reason', [('a.png,Tumour,1,2,3,4', "unknown finding 'Tumour'"), ('a.png,Mass,1,2,0,4', "'0' is not a size"),
                                         ('a.png,Mass,-1,2,3,4', "'-1' is not a coordinate"), ('a.png,Mass,one,2,3,4', "'one' is not a coordinate"),
                                         ('../a.png,Mass,1,2,3,4', 'not a plain file name'), ('a.png,Mass,1,2,3', 'has 5 cells')])
def test_bad_boxes(tmp_path, row, reason):
    path = write_text(tmp_path/'boxes.csv', f'{data_boxes.BOX_HEADER}\nb.png,Mass,1,2,3,4\n{row}\n')
    said = message(lambda: data_boxes.read_boxes(path))
    assert said.startswith(f'{path}, row 3') and reason in said
    write_text(path, 'a,b,c\n1,2,3\n')
    assert 'row 1' in message(lambda: data_boxes.read_boxes(path)) and data_boxes.BOX_HEADER in message(lambda: data_boxes.read_boxes(path))


def test_boxes_lie_inside_and_nih_boxes_are_scaled(folder):
    data_boxes.write_boxes(BOXES.assign(width=[100, 64]), make(folder)/'boxes.csv')
    said = message(lambda: ChestDataset(folder))
    assert f"{folder/'boxes.csv'}, row 2: the box reaches past the image" in said and 'BBox_List_2017.csv' in said
    (folder/'boxes.csv').unlink()
    data_boxes.write_boxes(BOXES.assign(x=512., y=512., width=512., height=512.), folder/'BBox_List_2017.csv')
    assert ChestDataset(folder).boxes[['x', 'y', 'width', 'height']].values.tolist() == [[32, 24, 32, 24]]*2


# ---------------------------------------------------------------- the object

def test_unknown_names(folder):
    data = ChestDataset(make(folder))
    for call in (lambda: data.open_image('nobody.png'), lambda: data.targets(['nobody.png', NAMES[0]]), lambda: data.subset(['nobody.png'])):
        said = message(call)
        assert "'nobody.png' is not an image of" in said and str(folder) in said and '`.table`' in said
    assert 'Give every name once' in message(lambda: data.subset(NAMES + NAMES))


def test_subset_keeps_order_and_follows_through(folder):
    data_masks.write_segmentation(mask_frame(), make(folder)/'segmentation.csv')
    data_boxes.write_boxes(BOXES, folder/'boxes.csv')
    data = ChestDataset(folder)
    part = data.subset([NAMES[2], NAMES[0]])
    assert list(part.table.image) == [NAMES[2], NAMES[0]] and len(part.boxes) == 1 and len(part.segmentation) == 2
    np.testing.assert_array_equal(part.targets(), data.targets([NAMES[2], NAMES[0]]))
    np.testing.assert_array_equal(part.mask(NAMES[0], 'Left Lung'), data.mask(NAMES[0], 'Left Lung'))
    assert 'is not an image' in message(lambda: part.open_image(NAMES[1]))
    assert len(data) == 3 and len(data.boxes) == 2


def test_summary_and_repr(folder):
    data = ChestDataset(make(folder))
    summary = data.summary()
    assert summary.loc[('all', 'images'), ['images', 'patients']].tolist() == [3, 2]
    assert summary.loc[('class', 'Edema'), ['images', 'percent', 'patients']].tolist() == [1, 33.33, 1]
    assert list(summary.loc['class'].index) == list(CLASSES)
    assert summary.loc['view'].images.to_dict() == {'PA': 2, 'AP': 1} and summary.loc['sex'].images.to_dict() == {'F': 1, 'M': 2}
    assert 'minimum 50, median 61, maximum 62' in summary.loc[('age', 'known'), 'note']
    assert '3 real images of 2 patients' in repr(data)
    write_provenance(folder, NIH_PROVENANCE)
    assert '3 NIH ChestX-ray14 images of 2 patients' in repr(ChestDataset(folder))
    assert 'Hernia' in data._repr_html_() and '&lt;NA&gt;' not in data._repr_html_() and 'nan' not in data._repr_html_()


def test_synthetic_is_stated_and_never_inferred_from_patient_numbers(tmp_path):
    rows = [row.replace('0,1,5', '0,90000001,5').replace(',3,6', ',90000002,6') for row in ROWS]
    hospital, ours = ChestDataset(make(tmp_path/'hospital', rows)), make(tmp_path/'ours')
    assert (hospital.is_synthetic, hospital.title_note, hospital.provenance.stated) == (False, 'real', False)
    write_provenance(ours, PHANTOM_PROVENANCE)
    ours = ChestDataset(ours)
    assert (ours.is_synthetic, ours.title_note) == (True, 'synthetic') and '3 synthetic images' in repr(ours)
    assert ours.release == 'subset/unknown' and ours.subset(NAMES[:1]).is_synthetic


def test_embedded_dataset_is_found(folder, monkeypatch, tmp_path, embedded):
    monkeypatch.setenv('CHESTNB_DATA', str(make(folder)))
    assert data_dataset.default_dataset() == folder and data_dataset.embedded_dataset() != folder   # a real one is no synthetic set of the course
    write_provenance(folder, PHANTOM_PROVENANCE)
    assert data_dataset.embedded_dataset() == folder
    monkeypatch.setenv('CHESTNB_DATA', str(tmp_path))
    assert 'CHESTNB_DATA' in message(data_dataset.embedded_dataset)
    monkeypatch.delenv('CHESTNB_DATA')
    make(tmp_path/'project'/'dataset')
    (tmp_path/'project'/'deep'/'er').mkdir(parents=True)
    monkeypatch.chdir(tmp_path/'project'/'deep'/'er')
    assert data_dataset.embedded_dataset().resolve() == (tmp_path/'project'/'dataset').resolve()
    if (embedded/'data.csv').exists():
        monkeypatch.chdir(embedded.parent/'nbs')
        assert data_dataset.embedded_dataset().resolve() == embedded.resolve()


def test_no_embedded_dataset(monkeypatch, tmp_path):
    monkeypatch.delenv('CHESTNB_DATA', raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(data_dataset.importlib.util, 'find_spec', lambda name: type('Spec', (), {'origin': str(tmp_path/'site'/'chestnb'/'__init__.py')}))
    assert 'chestnb_phantom --to dataset' in message(data_dataset.embedded_dataset)


def test_the_embedded_dataset(embedded):
    if not (embedded/'data.csv').exists(): pytest.skip('the embedded data set has not been made yet: chestnb_phantom --to dataset')
    data = ChestDataset(embedded)
    assert data.is_synthetic and data.title_note == 'synthetic' and len(data.masked_images) == len(data)
    for name in data.table.image[::100]:
        assert np.nonzero(data.mask(name, 'Left Lung'))[1].mean() > np.nonzero(data.mask(name, 'Right Lung'))[1].mean()
        assert data.open_image(name).size[::-1] == data.mask(name, 'Heart').shape


# ---------------------------------------------------------------- the real metadata (inside torchxrayvision)

def test_nih_metadata():
    nih = data_nih.nih_metadata()
    assert len(nih) == 112_120 and nih.patient_id.nunique() == 30_805 and nih.image.is_unique
    assert {name: int(nih[name].sum()) for name in ('Hernia', 'Pneumonia', 'Infiltration', NO_FINDING)} == {
        'Hernia': 227, 'Pneumonia': 1_431, 'Infiltration': 19_894, NO_FINDING: 60_361}
    assert not nih.isna().any().any() and nih.view_position.value_counts().to_dict() == {'PA': 67_310, 'AP': 44_810}
    nih.loc[0, 'age'] = -1
    assert data_nih.nih_metadata().age[0] == 57   # a copy is handed out


def test_nih_metadata_round_trip(tmp_path):
    nih = data_nih.nih_metadata()
    pd.testing.assert_frame_equal(data_tables.read_metadata(data_tables.write_metadata(nih, tmp_path/'nih.csv')), nih)


def test_label_release():
    nih = data_nih.nih_metadata()
    assert data_nih.label_release(nih) == '2020' and data_nih.label_release(nih[:1000].reset_index(drop=True)) == '2020'
    changed = nih.copy()
    for name, count in data_nih.COUNTS_2017.items():   # a table with the counts of 2017
        off = changed.index[changed[name]] if changed[name].sum() > count else changed.index[~changed[name]]
        changed.loc[off[:abs(changed[name].sum() - count)], name] ^= True
    assert data_nih.label_release(changed) == '2017' and data_nih.label_release(changed[:60000]) == 'subset/unknown'
    shared, same = data_nih.compare_labels(changed)
    assert shared == 112_120 and same < shared


def test_nih_boxes():
    boxes, nih = data_boxes.nih_boxes(), data_nih.nih_metadata()
    assert boxes.shape == (984, 6) and boxes.image.nunique() == 880 and (boxes.finding == 'Infiltration').sum() == 123
    labels = nih.set_index('image')
    assert all(labels.at[name, finding] for name, finding in zip(boxes.image, boxes.finding))
    assert data_nih.is_official_test(nih[nih.image.isin(boxes.image)]).all()


def test_missing_package(monkeypatch):
    monkeypatch.setattr(data_tables.importlib.util, 'find_spec', lambda name: None)
    assert 'pip install torchxrayvision' in message(lambda: data_tables.torchxrayvision_file('BBox_List_2017.csv.gz'))


def test_official_split_counts():
    nih = data_nih.nih_metadata()
    test = data_nih.is_official_test(nih)
    assert len(data_nih.official_test_patients()) == 2_797 and test.dtype == bool
    assert (test.sum(), (~test).sum(), nih.patient_id[~test].nunique()) == (25_596, 86_524, 28_008)


# ---------------------------------------------------------------- real material beside the repository

def test_official_split_against_both_lists(shared_nih):
    nih = data_nih.nih_metadata()
    test = data_nih.is_official_test(nih)
    assert set(nih.image[test]) == set((shared_nih/'test_list.txt').read_text().split())
    assert set(nih.image[~test]) == set((shared_nih/'train_val_list.txt').read_text().split())


def test_fifty_real_masks(shared_nih):
    path = shared_nih/'chexmask_50.csv'
    frame = data_masks.read_segmentation(path)
    assert len(frame) == 50
    for _, row in frame.iterrows():
        masks = {s: data_masks.decode_mask(row[s], row.height, row.width) for s in STRUCTURES}
        for structure, mask in masks.items():
            assert mask.shape == (1024, 1024) and data_masks.encode_mask(mask) == row[structure]
        centres = {s: np.nonzero(mask)[1].mean() for s, mask in masks.items()}
        assert centres['Left Lung'] > centres['Heart'] > centres['Right Lung']   # the patient's left is on the image's right


def test_fifty_real_masks_are_written_back(shared_nih, tmp_path):
    path = shared_nih/'chexmask_50.csv'
    written = data_masks.write_segmentation(data_masks.read_segmentation(path), tmp_path/'segmentation.csv')
    pd.testing.assert_frame_equal(pd.read_csv(path), pd.read_csv(written))


def test_real_dataset(shared_nih):
    data = ChestDataset(shared_nih/'dataset')
    assert (len(data), data.table.patient_id.nunique(), data.release, data.title_note) == (2_050, 1_682, '2020', 'real')
    assert not data.is_synthetic and data.open_image(data.table.image[0]).size == (224, 224)


def test_real_originals(shared_nih):
    modes = set()
    for path in sorted((shared_nih/'originals_1024').iterdir()):
        with Image.open(path) as image: modes.add(image.mode)
        grey = data_images.read_image(path)
        assert grey.mode == 'L' and grey.size == (1024, 1024)
    assert modes == {'L', 'RGBA'}


def test_real_boxes_beside_small_images(shared_nih, tmp_path):
    "NIH's own box file, unchanged, beside images of 224 pixels."
    boxes = data_boxes.nih_boxes()
    names = [path.name for path in (shared_nih/'dataset'/'images').iterdir() if path.name in set(boxes.image)][:5]
    if not names: pytest.skip('none of the shared images has a box')
    (tmp_path/'images').mkdir()
    for name in names: shutil.copy(shared_nih/'dataset'/'images'/name, tmp_path/'images'/name)
    nih = data_nih.nih_metadata()
    data_tables.write_metadata(nih[nih.image.isin(names)], tmp_path/'data.csv')
    data_boxes.write_boxes(boxes, tmp_path/'BBox_List_2017.csv')
    data = ChestDataset(tmp_path)
    expected = boxes[boxes.image.isin(names)][['x', 'y', 'width', 'height']]*224/1024
    np.testing.assert_allclose(data.boxes[['x', 'y', 'width', 'height']], expected)


def test_floating_point_images_are_refused(tmp_path):
    "Grey values without a known range would turn black without a word."
    from PIL import Image
    import numpy as np
    from chestnb.data.images import read_image
    Image.fromarray(np.linspace(0, 1, 64, dtype='float32').reshape(8, 8)).save(tmp_path/'grey.tif')
    with pytest.raises(UserError, match='floating-point'): read_image(tmp_path/'grey.tif')


# ---- DICOM beside PNG

def dicom_folder(path, rows=('a.dcm,Mass', 'b.dcm,Edema|Mass', 'c.dcm,No Finding'), header='Image Index,Finding Labels', **changed):
    "Three synthetic DICOM images of two patients, and a data.csv of the given rows."
    from chestnb.data.dicom import write_dicom
    (path/'images').mkdir(parents=True)
    for i, name in enumerate(('a.dcm', 'b.dcm', 'c.dcm')):
        pixels = np.arange(64, dtype=np.uint16).reshape(8, 8)*16 + i
        facts = {'PatientID': 'A17' if name == 'c.dcm' else 'B17', 'PatientAge': '058Y', 'PatientSex': 'F', 'ViewPosition': 'AP',
                 'PixelSpacing': [.3, .2], 'StudyDate': f'2026010{3 - i}', 'WindowCenter': 512, 'WindowWidth': 1024}
        write_dicom(pixels, path/'images'/name, facts | changed)
    write_text(path/'data.csv', '\n'.join([header, *rows]) + '\n')
    return path


def test_a_table_of_two_columns_is_enough_beside_dicom(tmp_path):
    data = ChestDataset(dicom_folder(tmp_path/'x'))
    assert data.table.patient_id.tolist() == [2, 2, 1] and data.dicom_patients == {1: 'A17', 2: 'B17'}
    assert data.table.follow_up.tolist() == [1, 0, 0]
    assert data.table.age.tolist() == [58]*3 and set(data.table.sex) == {'F'} and set(data.table.view_position) == {'AP'}
    assert data.table[['width', 'height', 'pixel_spacing_x', 'pixel_spacing_y']].to_numpy().tolist() == [[8, 8, .2, .3]]*3
    assert data.targets().sum() == 3 and data.title_note == 'real'
    # linear window 512/1024: ((x - 511.5)/1023 + .5)*255
    assert np.asarray(data.open_image('a.dcm')).ravel()[[0, 1, 32, 63]].tolist() == [0, 4, 128, 251]
    assert data.check_images(progress=False) == 3 and data_dataset.image_size(tmp_path/'x/images/a.dcm') == (8, 8)
    assert ChestDataset(dicom_folder(tmp_path/'again')).table.equals(data.table)


def test_columns_that_are_there_are_believed(tmp_path):
    header = 'Image Index,Finding Labels,Patient ID,View Position'
    data = ChestDataset(dicom_folder(tmp_path/'x', ['a.dcm,Mass,7,PA', 'b.dcm,Mass,8,PA', 'c.dcm,Mass,7,PA'], header, PatientID='ANONYMOUS'))
    assert data.table.patient_id.tolist() == [7, 8, 7] and set(data.table.view_position) == {'PA'} and data.dicom_patients == {}
    assert data.table.follow_up.tolist() == [1, 0, 0]


def test_a_complete_table_never_opens_a_header(tmp_path, monkeypatch):
    folder = dicom_folder(tmp_path/'x', [f'{n}.dcm,Mass,0,{i},50,F,PA,8,8,1,1' for i, n in enumerate('abc', 1)], NIH_HEADER)
    monkeypatch.setattr(data_dicom_folder, 'dicom_columns', lambda *a, **k: pytest.fail('a header was read'))
    assert len(ChestDataset(folder)) == 3


def test_what_headers_cannot_fill_is_refused(tmp_path):
    assert 'does not tell patients apart' in message(lambda: ChestDataset(dicom_folder(tmp_path/'a', PatientID='ANONYMOUS')))
    said = message(lambda: ChestDataset(dicom_folder(tmp_path/'c', ViewPosition='LL')))
    assert 'a.dcm' in said and "view position is 'LL'" in said


def test_a_png_beside_dicom_has_unknown_columns(tmp_path):
    folder = dicom_folder(tmp_path/'d', ['a.dcm,Mass', 'b.dcm,Mass', 'c.dcm,Mass', 'd.png,Mass'])
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(folder/'images/d.png')
    table = ChestDataset(folder).table
    assert table.patient_id.isna().tolist() == [False]*3 + [True] and table.sex.isna().tolist() == [False]*3 + [True]
    assert 'patient of 1 image' in table.attrs['notes'][0]


def test_two_columns_are_enough(tmp_path):
    (tmp_path/'images').mkdir()
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path/'images/a.png')
    write_text(tmp_path/'data.csv', 'Image Index,Finding Labels\na.png,Mass\n')
    data = ChestDataset(tmp_path)
    assert data.targets().sum() == 1 and data.table.patient_id.isna().all() and 'unknown patients' in repr(data)


def test_rows_without_an_image_beside_dicom(tmp_path):
    folder = dicom_folder(tmp_path/'x', ['a.dcm,Mass', 'b.dcm,Mass', 'c.dcm,Mass', 'd.dcm,Mass'])
    assert "row 5: the image 'd.dcm' is not in" in message(lambda: ChestDataset(folder))
    part = ChestDataset(folder, on_mismatch='drop')
    assert part.missing == ['d.dcm'] and part.table.patient_id.tolist() == [2, 2, 1]


def test_mixed_png_and_dicom_with_a_full_table(tmp_path):
    folder = dicom_folder(tmp_path/'x', [f'{n},Mass,0,{i},50,F,PA,8,8,1,1' for i, n in enumerate(('a.dcm', 'b.dcm', 'c.dcm', 'd.png'), 1)], NIH_HEADER)
    Image.fromarray(np.full((8, 8), 9, np.uint8)).save(folder/'images/d.png')
    data = ChestDataset(folder)
    assert data.check_images(progress=False) == 4 and data.open_image('d.png').getextrema() == (9, 9)


def test_duplicates_and_digest_see_dicom_pixels(tmp_path):
    from chestnb.data.dicom import write_dicom
    from chestnb.data.leakage import duplicate_images
    folder = dicom_folder(tmp_path/'x')
    write_dicom(np.arange(64, dtype=np.uint16).reshape(8, 8)*16, folder/'images/b.dcm', {'PatientID': 'C', 'PatientSex': 'M', 'WindowCenter': 512, 'WindowWidth': 1024})
    assert duplicate_images(ChestDataset(folder)).image.tolist() == ['a.dcm', 'b.dcm']


def test_write_dicom_metadata(tmp_path):
    folder = dicom_folder(tmp_path/'x')
    expected = ChestDataset(folder).table
    (folder/'data.csv').unlink()
    labels = {'a.dcm': 'Mass', 'b.dcm': ['Mass', 'Edema'], 'c.dcm': []}
    assert 'has no label (1 such image)' in message(lambda: data_dicom_folder.write_dicom_metadata(folder, {n: labels[n] for n in ('a.dcm', 'b.dcm')}))
    assert "'z.dcm' has a label but is not on disk" in message(lambda: data_dicom_folder.write_dicom_metadata(folder, labels | {'z.dcm': 'Mass'}))
    written = data_dicom_folder.write_dicom_metadata(folder, labels)
    text = written.read_text()
    assert text.startswith(NIH_HEADER) and 'A17' not in text and 'B17' not in text
    pd.testing.assert_frame_equal(ChestDataset(folder).table, expected)
    assert 'not overwritten' in message(lambda: data_dicom_folder.write_dicom_metadata(folder, labels))
    assert "unknown finding 'Oedema'" in message(lambda: data_dicom_folder.write_dicom_metadata(folder, labels | {'a.dcm': 'Oedema'}, tmp_path/'other.csv'))
    assert not (tmp_path/'other.csv').exists()


# ---- labels: one-hot, unknown, own findings

def label_folder(path, header, rows, name='data.csv', images=('a.png', 'b.png', 'c.png')):
    "A folder with a table of the given lines."
    (path/'images').mkdir(parents=True)
    for image in images: Image.fromarray(PIXELS).save(path/'images'/image)
    write_text(path/name, '\n'.join([header, *rows]) + '\n')
    return path


def test_one_finding_is_a_data_set(folder):
    data = ChestDataset(label_folder(folder, 'image,Pneumonia', ['a.png,1', 'b.png,0', 'c.png,0']))
    assert data.findings == ('Pneumonia',) and data.targets().tolist() == [[1], [0], [0]]
    assert data.table['No Finding'].tolist() == [False, True, True] and data.table.Pneumonia.dtype == bool


def test_minus_one_and_blank_stay_unknown_unless_a_policy_is_named(folder):
    label_folder(folder, 'image,Fracture,Mass', ['a.png,1,0', 'b.png,-1,', 'c.png,0,0'])
    data = ChestDataset(folder)
    assert data.findings == ('Mass', 'Fracture')
    np.testing.assert_array_equal(data.targets(), [[0, 1], [np.nan, np.nan], [0, 0]])
    np.testing.assert_array_equal(data.table['No Finding'], [0, np.nan, 1])
    assert any('label' in note for note in data.table.attrs['notes'])
    for policy, value in (('negative', 0), ('positive', 1)):
        decided = ChestDataset(folder, unknown=policy)
        assert decided.targets()[1].tolist() == [value]*2 and decided.table['No Finding'].tolist()[1] == (value == 0)
        assert decided.table.Mass.dtype == bool and f'2 unknown labels taken as {policy}' in decided.table.attrs['notes']
    assert 'expected one of' in message(lambda: ChestDataset(folder, unknown='guess'))


def test_an_empty_label_cell_is_unknown_not_no_finding(folder):
    data = ChestDataset(label_folder(folder, 'Image Index,Finding Labels', ['a.png,Mass', 'b.png,', 'c.png,No Finding']))
    assert np.isnan(data.targets()[1]).all() and np.isnan(data.table['No Finding'][1]) and data.table['No Finding'][2] == 1
    assert data.table.attrs['notes'][-1] == "no label at all: 1 image; unknown, not 'No Finding'"
    assert data.summary().loc[('class', 'Mass'), ['images', 'percent', 'note']].tolist() == [1, 50, 'unknown in 1 image']


def test_own_findings_in_label_texts_are_listed_in_dataset_json(folder):
    label_folder(folder, 'Image Index,Finding Labels', ['a.png,Fracture', 'b.png,No Finding', 'c.png,Tube|Fracture'])
    assert "unknown finding 'Fracture'" in message(lambda: ChestDataset(folder)) and 'dataset.json' in message(lambda: ChestDataset(folder))
    write_provenance(folder, PHANTOM_PROVENANCE, ('Fracture', 'Tube'))
    assert ChestDataset(folder).findings == ('Fracture', 'Tube') and ChestDataset(folder).targets().tolist() == [[1, 0], [0, 0], [1, 1]]


@pytest.mark.parametrize('header, rows, reason', [
    ('image,Mass,mass', ['a.png,1,0'], "are both the finding 'Mass'"),
    ('image,image id,Mass', ['a.png,b.png,1'], 'a.png'),
    ('file name,image id,Mass', ['a.png,b.png,1'], "'file name' and 'image id' could each be the column 'Image Index'"),
    ('image,label', ['a.png,1'], 'does not say of what'),
    ('image,Mass', ['a.png,2'], "'2' is none of 1, 0, -1"),
    ('image,Finding Labels,Mass', ['a.png,Mass,0'], "the labels and the column 'Mass' contradict each other"),
    ('image,Mass,No Finding', ['a.png,1,1'], "'No Finding' is 1 beside a finding"),
    ('image,Mass,Patient ID', ['a.png,1,p1', 'b.png,1,P1'], "'p1' and 'P1' differ only by capital letters")])
def test_ambiguous_tables_are_refused(folder, header, rows, reason):
    images = [row.split(',')[0] for row in rows]
    label_folder(folder, header, rows, images=images)
    if reason == 'a.png': assert 'could each be' in message(lambda: ChestDataset(folder))
    else: assert reason in message(lambda: ChestDataset(folder))


def test_the_same_patient_as_text_and_number_is_one(folder):
    data = ChestDataset(label_folder(folder, 'image,Mass,Patient ID', ['a.png,1,5', 'b.png,0,5.0', 'c.png,0,00005']))
    assert data.table.patient_id.tolist() == [5, 5, 5] and data.table.patient_id.dtype.kind == 'i'
    assert data_tables.patient_ids(['A7', '5.0', '05']).tolist() == ['A7', '5', '5']


@pytest.mark.parametrize('name, pack', [('data.tsv', None), ('DATA.CSV', None), ('data.csv.gz', 'gzip'), ('labels.csv', None)])
def test_a_table_by_another_name_or_compressed_is_found(folder, name, pack):
    import gzip
    label_folder(folder, 'image\tMass', ['a.png\t1', 'b.png\t0', 'c.png\t0'], name)
    if pack: (folder/name).write_bytes(gzip.compress((folder/name).read_bytes()))
    assert ChestDataset(folder).metadata_path.name == name and ChestDataset(folder).targets().sum() == 1


def test_a_parquet_table_is_read_or_named(folder, monkeypatch):
    label_folder(folder, 'x', [], 'notes.txt')
    (folder/'data.parquet').write_bytes(b'PAR1' + b'\0'*20)
    monkeypatch.setattr(data_rows.pd, 'read_parquet', lambda path: (_ for _ in ()).throw(ImportError('no pyarrow')))
    assert 'is a Parquet file' in message(lambda: ChestDataset(folder)) and 'pip install pyarrow' in message(lambda: ChestDataset(folder))
    monkeypatch.setattr(data_rows.pd, 'read_parquet', lambda path: pd.DataFrame({'image': ['a.png', 'b.png', 'c.png'], 'Mass': [1., np.nan, 0.], 'patient': [3, 3, 4]}))
    data = ChestDataset(folder)
    assert data.table.patient_id.tolist() == [3, 3, 4] and np.isnan(data.targets()[1, 0])


def test_two_tables_that_could_be_the_one_are_refused(folder):
    label_folder(folder, 'image,Mass', ['a.png,1'], 'first.csv')
    write_text(folder/'second.csv', 'image,Mass\na.png,0\n')
    assert 'first.csv, second.csv could each be the table' in message(lambda: ChestDataset(folder))


def test_european_decimal_commas(folder):
    header = NIH_HEADER.replace(',', ';')
    make(folder, [row.replace(',', ';').replace('0.168', '0,168') for row in ROWS], header)
    assert ChestDataset(folder).table.pixel_spacing_x.tolist() == [.168]*3


def test_excel_utf16_text(folder):
    make(folder)
    (folder/'data.csv').write_bytes('\n'.join([NIH_HEADER, *ROWS]).replace(',', '\t').encode('utf-16'))
    assert len(ChestDataset(folder)) == 3


def test_a_table_pasted_twice_is_refused_in_no_time(tmp_path):
    import time
    nih = data_nih.nih_metadata()
    path = data_tables.write_metadata(nih, tmp_path/'data.csv')
    write_text(path, path.read_text() + path.read_text().split('\n', 1)[1])
    started = time.perf_counter()
    said = message(lambda: data_tables.read_metadata(path))
    assert 'row 112122' in said and 'is already in row 2 (and 112119 more' in said and time.perf_counter() - started < 60


def test_names_with_commas_quotes_and_formulas_are_written_and_read_back(folder):
    names = ['a, b.png', '"q".png', '=1+1.png']
    label_folder(folder, 'image,Mass', [f'"{name.replace(chr(34), chr(34)*2)}",1' for name in names], images=names)
    data = ChestDataset(folder)
    assert list(data.table.image) == names
    again = data_tables.read_metadata(data_tables.write_metadata(data.table, folder/'again.csv'))
    pd.testing.assert_frame_equal(again, data.table)
    assert '\n=1' not in (folder/'again.csv').read_text()
    boxes = pd.DataFrame({'image': names, 'finding': 'Mass', 'x': 1., 'y': 1., 'width': 2., 'height': 2.})
    pd.testing.assert_frame_equal(data_boxes.read_boxes(data_boxes.write_boxes(boxes, folder/'boxes.csv')), boxes)


# ---- files

def test_decomposed_names_are_found_on_disk(folder):
    label_folder(folder, 'image,Mass', ['Br\u00fcste.png,1'], images=['Bru\u0308ste.png'])
    data = ChestDataset(folder)
    assert list(data.table.image) == ['Br\u00fcste.png'] and data.check_images(progress=False) == 1


def test_names_without_or_with_another_ending_are_matched_and_noted(folder):
    label_folder(folder, 'image_id,Mass', ['a,1', 'b.jpg,0', 'c.png,0'])
    data = ChestDataset(folder)
    assert list(data.table.image) == ['a.png', 'b.png', 'c.png']
    assert '2 images named otherwise on disk: a is a.png, b.jpg is b.png' in data.table.attrs['notes']
    write_text(folder/'data.csv', 'image,Mass\na.jpg,1\na.tif,0\nb.png,0\nc.png,0\n')      # two rows cannot be one file
    assert "the image 'a.jpg' is not in" in message(lambda: ChestDataset(folder))


def test_exif_orientation_is_applied(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(PIXELS).rotate(90, expand=True).save(tmp_path/'x.png', exif=exif)
    np.testing.assert_array_equal(np.asarray(data_images.read_image(tmp_path/'x.png')), PIXELS)
    assert data_images.image_size(tmp_path/'x.png') == PIXELS.shape
    Image.fromarray(PIXELS).rotate(90, expand=True).save(tmp_path/'x.jpg', exif=exif, quality=95)
    assert data_images.read_image(tmp_path/'x.jpg').size == (64, 48) and data_images.image_size(tmp_path/'x.jpg') == (48, 64)


def test_one_burnt_in_pixel_does_not_set_the_depth(tmp_path):
    values = np.linspace(0, 4095, 64*48).round().astype(np.uint16).reshape(48, 64)
    plain = np.asarray(data_images.grey_from_16_bit(Image.fromarray(values)))
    values[0, 0] = 65535
    marked = np.asarray(data_images.grey_from_16_bit(Image.fromarray(values)))
    assert marked[0, 0] == 255 and (marked.ravel()[1:] == plain.ravel()[1:]).all()


# ---- masks, lazily

@pytest.mark.parametrize('key, value', [('Path', 'x/{}'), ('dicom_id', '{stem}'), ('image_id', '{stem}'), ('ImageID', '{}')])
def test_other_key_columns_of_chexmask(folder, key, value):
    frame = mask_frame().rename(columns={'Image Index': key})
    frame[key] = [value.format(name, stem=name.removesuffix('.png')) for name in NAMES]
    frame.to_csv(make(folder)/'segmentation.csv', index=False)
    data = ChestDataset(folder)
    assert data.masked_images == set(NAMES) and data.mask(NAMES[1], 'Left Lung').sum() == 400


def test_masks_of_a_large_file_are_read_when_asked_for(folder, monkeypatch, tmp_path):
    import chestnb.data.mask_index as index
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path/'cache'))
    monkeypatch.setattr(index, 'LARGE', 10)
    monkeypatch.setattr(data_dataset, 'LARGE', 10)
    frame = mask_frame()
    frame.loc[2, 'Heart'] = f'{48*64} 2'
    path = data_masks.write_csv(make(folder)/'segmentation.csv', frame)
    data = ChestDataset(folder)                                     # opening reads no mask
    assert data.mask(NAMES[0], 'Left Lung').sum() == 400 and data.has_mask(NAMES[0]) and len(data.masked_images) == 3
    assert "row 4: column 'Heart'" in message(lambda: data.mask(NAMES[2], 'Left Lung'))
    assert "row 4: column 'Heart'" in message(lambda: data.check_images(progress=False))
    monkeypatch.setattr(index, 'scan_masks', lambda path: pytest.fail('the notes were kept'))
    assert ChestDataset(folder).mask(NAMES[1], 'Right Lung').sum() == 400
    monkeypatch.undo()
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path/'cache'))
    data_masks.write_segmentation(mask_frame()[::-1], path)         # a changed file is read anew; the open one notices
    assert 'has changed since it was opened' in message(lambda: data.mask(NAMES[0], 'Left Lung'))
    assert ChestDataset(folder).mask(NAMES[2], 'Left Lung').sum() == 400


def test_masks_of_a_large_file_cost_little_memory(tmp_path):
    "40 MB of masks, opened: well below the size of the file."
    import subprocess, sys
    row = ',1,1,"' + '1,2,'*100 + '1",' + '1 1 ' * 3000 + ',' + '2 1 '*3000 + ',,64,64\n'
    with open(tmp_path/'segmentation.csv', 'w') as file:
        file.write('Image Index,Dice RCA (Mean),Dice RCA (Max),Landmarks,Left Lung,Right Lung,Heart,Height,Width\n')
        for i in range(1700): file.write(f'{i}.png{row}')
    code = (f"import tracemalloc; from chestnb.data.mask_index import MaskFile; tracemalloc.start(); f = MaskFile({str(tmp_path/'segmentation.csv')!r}); "
            "print(len(f), tracemalloc.get_traced_memory()[1])")
    n, peak = map(int, subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout.split())
    assert n == 1700 and peak < (tmp_path/'segmentation.csv').stat().st_size/10


# ---- boxes of others

def test_boxes_saved_by_pandas_and_of_rsna(folder):
    make(folder)
    write_text(folder/'boxes.csv', 'Unnamed: 0,Image Index,Finding Label,Bbox [x,y,w,h],Unnamed: 6\n0,' + NAMES[0] + ',Infiltrate,1,2,3,4,\n')
    assert ChestDataset(folder).boxes.iloc[0].tolist() == [NAMES[0], 'Infiltration', 1, 2, 3, 4]
    write_text(folder/'boxes.csv', f'patientId,x,y,width,height,Target\n{NAMES[1][:-4]},,,,,0\n{NAMES[0][:-4]},1,2,3,4,1\n')
    with pytest.raises(UserError, match='unknown finding'): data_boxes.read_boxes(write_text(folder/'bad.csv', 'image,finding,x,y,w,h\na.png,Tumour,1,1,1,1\n'))
    label_folder(folder/'one', 'image,Pneumonia', ['a.png,1', 'b.png,0', 'c.png,0'])
    write_text(folder/'one'/'boxes.csv', 'patientId,x,y,width,height,Target\nb,,,,,0\na,1,2,3,4,1\n')
    assert ChestDataset(folder/'one').boxes.values.tolist() == [['a.png', 'Pneumonia', 1, 2, 3, 4]]


def test_a_set_with_one_finding_has_a_summary_and_no_nih_release(folder):
    data = ChestDataset(label_folder(folder, 'image,Pneumonia', ['a.png,1', 'b.png,', 'c.png,0']))
    summary = data.summary()
    assert list(summary.loc['class'].index) == ['Pneumonia', NO_FINDING] and data.release == 'subset/unknown'
    assert summary.loc[('class', 'Pneumonia'), ['images', 'percent', 'note']].tolist() == [1, 50, 'unknown in 1 image'] and 'Pneumonia' in data._repr_html_()


def test_chestnb_data_may_be_any_data_set(folder, monkeypatch, tmp_path):
    label_folder(folder, 'image,Mass', ['a.png,1', 'b.png,0', 'c.png,0'], 'labels.csv')
    monkeypatch.setenv('CHESTNB_DATA', str(folder))
    assert data_dataset.default_dataset() == folder
    monkeypatch.setenv('CHESTNB_DATA', str(tmp_path/'nowhere'))
    assert 'CHESTNB_DATA' in message(data_dataset.embedded_dataset) and 'unset the variable' in message(data_dataset.embedded_dataset)


@pytest.mark.parametrize('compression', ['raw', 'tiff_lzw'])
@pytest.mark.parametrize('orientation, upright', [(5, lambda a: a.T), (6, lambda a: np.rot90(a, -1)), (7, lambda a: np.rot90(a, 2).T), (8, np.rot90)])
def test_a_lying_tiff_is_stood_up_and_its_size_is_that_of_its_pixels(tmp_path, orientation, upright, compression):
    pixels = np.arange(40*64).reshape(40, 64).astype(np.uint8)         # Pillow 13 garbles a plain TIFF that it opens by name
    Image.fromarray(pixels).save(tmp_path/'x.tif', tiffinfo={0x0112: orientation}, compression=compression)
    assert np.array_equal(np.asarray(data_images.read_image(tmp_path/'x.tif')), upright(pixels))
    assert data_images.image_size(tmp_path/'x.tif') == (64, 40)


def test_a_patient_spelt_with_a_composed_and_a_decomposed_letter_is_one_patient():
    assert data_tables.patient_ids(['Mu\u0308ller', 'M\u00fcller', 'Mu\u0308ller']).nunique() == 1


@pytest.mark.parametrize('cell, expected', [('Effusion,Mass', {'Effusion', 'Mass'}), ('Edema; mass', {'Edema', 'Mass'}), ("['Edema', 'Mass']", {'Edema', 'Mass'}), ('Mass|', {'Mass'}),
                                            ('Normal', {NO_FINDING}), ('No findings', {NO_FINDING})])
def test_labels_with_other_separators(tmp_path, cell, expected):
    (tmp_path/'data.csv').write_text(f'Image Index,Finding Labels,Patient ID\na.png,"{cell}",1\n')
    table = data_tables.read_metadata(tmp_path/'data.csv')
    assert {name for name in CLASSES if table[name].iloc[0] == 1} == expected


@pytest.mark.parametrize('cell', ['Effusion/Mass', 'Effusion,Fracture', 'Pleural Effusion', 'No Finding,Mass', 'None', 'Pneumothora'])
def test_labels_that_leave_a_choice_are_refused(tmp_path, cell):
    (tmp_path/'data.csv').write_text(f'Image Index,Finding Labels,Patient ID\na.png,"{cell}",1\n')
    assert "column 'Finding Labels'" in message(lambda: data_tables.read_metadata(tmp_path/'data.csv'))


@pytest.mark.parametrize('yes, no, unsure', [('Y', 'N', 'U'), ('1.00', '0.00', '-1.00'), ('positive', 'negative', 'uncertain'), ('TRUE', 'False', ''), ('present', 'absent', 'nan')])
def test_marks_of_a_finding_in_other_words(tmp_path, yes, no, unsure):
    (tmp_path/'data.csv').write_text(f'Image,Mass,PatientId\na.png,{yes},1\nb.png,{no},2\nc.png,{unsure},3\n')
    np.testing.assert_array_equal(data_tables.read_metadata(tmp_path/'data.csv').Mass, [1, 0, np.nan])


@pytest.mark.parametrize('said, age', [('58 years', 58), ('58yo', 58), ('18 months', 1.5), ('58 Y', 58)])
def test_ages_with_their_unit_in_words(said, age): assert data_tables.parse_age(said) == age


@pytest.mark.parametrize('said, age', [('58y', 58), ('58 ans', 58), ('58 Jahre', 58), ('58 años', 58), ('58 anni', 58), ('58-year-old', 58), ('58 years old', 58), ('58 y.o.', 58), ('58 y/o', 58), ('58,5', 58.5),
                                       ('6 mois', .5), ('6 Monate', .5), ('6 mês', .5), ('1 year 6 months', 1.5), ('2y6m', 2.5), ('58Y ', 58)])
def test_ages_as_people_type_them(said, age): assert data_tables.parse_age(said) == pytest.approx(age)


@pytest.mark.parametrize('said, age', [('90+', 90), ('90 +', 90), ('90+ years', 90), ('90Y+', 90), ('>89', 90), ('> 89 y', 90), ('≥90', 90), ('>=90', 90), ('90 or older', 90), ('90 and over', 90), ('89+', 89)])
def test_open_ended_ages_are_the_youngest_that_they_allow(said, age): assert data_tables.parse_age(said) == age


@pytest.mark.parametrize('said', ['40-49', '~58', '<1', '58 J', '58F', '1966-11-24', '11/24/1966', '>89+', '>89.5', '+90', '-5', 'adult', '58 years 2 years', '1,234', '58 %'])
def test_ages_that_leave_a_choice_are_refused_with_row_and_remedy(tmp_path, said):
    (tmp_path/'data.csv').write_text(f'Image Index,Finding Labels,Patient ID,Patient Age\na.png,Mass,1,58\nb.png,Mass,1,"{said}"\n')
    told = message(lambda: data_tables.read_metadata(tmp_path/'data.csv'))
    assert f"row 3: column 'Patient Age': {said!r} is not an age" in told and 'Write years (58, 90+)' in told


@pytest.mark.parametrize('header, row, name', [
    ('ImageID,ImageDir,StudyDate_DICOM,PatientID,Projection,Labels', "1_2.png,0,20140915,4,PA,['normal']", 'PadChest'), ('image_id,rad_ID,Aortic enlargement,No finding', 'abc,R1,0,1', 'VinDr-CXR'),
    ('subject_id,study_id,Enlarged Cardiomediastinum,Edema', '1,2,1.0,', 'MIMIC-CXR-JPG'), ('patientId,x,y,width,height,Target', 'a,1,2,3,4,1', 'RSNA')])
def test_tables_of_public_sets_point_to_the_importer(tmp_path, header, row, name):
    (tmp_path/'data.csv').write_text(f'{header}\n{row}\n')
    said = message(lambda: data_tables.read_metadata(tmp_path/'data.csv'))
    assert name in said and f'chestnb_import {tmp_path} --to' in said


def test_names_that_differ_from_the_file_by_capitals_are_found_unless_two_files_fit(tmp_path):
    folder = make(tmp_path/'set', images=[name.upper() for name in NAMES])
    data = ChestDataset(folder)
    assert list(data.table.image) == [name.upper() for name in NAMES]
    label_folder(tmp_path/'two', 'image,Mass', ['A,1', 'b.png,0', 'c.png,0'])
    assert list(ChestDataset(tmp_path/'two').table.image) == ['a.png', 'b.png', 'c.png']
    assert data_mask_index.rows_of_images(['Ab.png', 'aB.png', 'c.png'], ['ab.png', 'C.png']) == {'C.png': 2}


def test_images_of_the_sample_of_kaggle_one_folder_down(tmp_path):
    assert len(ChestDataset(make(tmp_path/'one', to='sample/images'))) == 3
    folder = make(tmp_path/'two', to='sample/images')
    (folder/'other'/'images').mkdir(parents=True)
    assert 'could each hold the X-rays' in message(lambda: ChestDataset(folder))


def test_the_table_may_be_text_and_a_spreadsheet_is_named(tmp_path):
    folder = make(tmp_path/'set')
    (folder/'data.csv').rename(folder/'data.txt')
    assert len(ChestDataset(folder)) == 3
    (folder/'data.txt').rename(folder/'data.xlsx')
    assert message(lambda: ChestDataset(folder)).startswith(f"{folder/'data.xlsx'}: is a spreadsheet, which is not read. Save its table as data.csv")


def test_boxes_by_path_and_boxes_that_contradict_their_target(tmp_path):
    path = write_text(tmp_path/'boxes.csv', 'path,label,x,y,w,h\nimg/a.png,Mass,1,2,3,4\nimg/a.png,Edema,1,2,3,4\n')
    assert data_boxes.read_boxes(path).image.tolist() == ['a.png', 'a.png']
    same = write_text(tmp_path/'same.csv', 'path,label,x,y,w,h\np1/a.png,Mass,1,2,3,4\np2/a.png,Edema,1,2,3,4\n')
    assert 'in different folders have the same name' in message(lambda: data_boxes.read_boxes(same))
    rsna = write_text(tmp_path/'rsna.csv', 'patientId,x,y,width,height,Target\na,1,2,3,4,1\nb,,,,,0\nc,1,2,3,4,0\n')
    assert 'row 4: Target is 0, and yet there is a box' in message(lambda: data_boxes.read_boxes(rsna))


@pytest.mark.parametrize('change, says', [(lambda text: text.encode('utf-16'), 'UTF-16, and not a table'), (lambda text: b'PK\x03\x04' + text.encode(), 'an Excel file or another zip archive'),
                                          (lambda text: b'\x89PNG\r\n' + text.encode(), 'a PNG image')])
def test_masks_in_a_file_that_is_no_text_say_what_it_is(tmp_path, change, says):
    "UTF-16 was told that row 52 has 1 cell: was the file cut off?"
    path = data_masks.write_segmentation(mask_frame(), tmp_path/'segmentation.csv')
    path.write_bytes(change(path.read_text()))
    assert says in message(lambda: data_masks.read_segmentation(path))

def test_masks_with_folders_of_windows(folder):
    "they were told that the file has changed since it was opened"
    path = data_masks.write_segmentation(mask_frame(), make(folder)/'segmentation.csv')
    before = ChestDataset(folder).mask(NAMES[0], 'Left Lung')
    path.write_text(path.read_text().replace(NAMES[0], f'images\\{NAMES[0]}'))
    assert (ChestDataset(folder).mask(NAMES[0], 'Left Lung') == before).all()
    path.write_text(path.read_text().replace('images\\', '..\\'))
    assert 'could lead out' in message(lambda: ChestDataset(folder))
