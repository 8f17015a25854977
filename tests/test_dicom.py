"""DICOM: pixels against numbers worked out by hand, headers, refusals, compression."""
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pydicom
import pytest
from hypothesis import given, settings, strategies as st
from hypothesis.extra.numpy import arrays
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset
from pydicom.pixels import apply_windowing
from pydicom.uid import RLELossless

import chestnb.data.dicom as data_dicom
from chestnb.data.dicom import (describe_dicom, dicom_columns, dicom_row, dicom_size, follow_ups, patient_numbers, read_dicom, view_position, why_refused,
    write_dicom)
from chestnb.core.errors import UserError

RAMP = np.arange(4096, dtype=np.uint16).reshape(64, 64)


def header(**values):
    dicom = Dataset()
    for keyword, value in values.items(): setattr(dicom, keyword, value)
    return dicom


def lut(n, first, bits, data, vr='US'):
    item = Dataset()
    item.add_new('LUTDescriptor', 'US', [n, first, bits])
    item.add_new('LUTData', vr, data)
    return item


def grey(tmp_path, pixels, attributes=None, **arguments):
    "Write, read, as a list of ints."
    path = write_dicom(np.atleast_2d(pixels), tmp_path/'x.dcm', attributes, **arguments)
    return np.asarray(read_dicom(path)).astype(int)


def message(call):
    with pytest.raises(UserError) as caught: call()
    return str(caught.value)


# ---- pixels by hand

def test_window_linear_by_hand(tmp_path):
    # PS3.3 C.11.2.1.2: y = ((x - (c - 0.5))/(w - 1) + 0.5)*255 between c - 0.5 - (w-1)/2 and c - 0.5 + (w-1)/2
    pixels = np.array([[0, 1000, 1023, 1024, 1536, 2047, 2048, 4095]], np.uint16)
    got = grey(tmp_path, pixels, {'WindowCenter': 1536, 'WindowWidth': 1025})      # from 1023.5 to 2047.5
    by_hand = [0, 0, 0, round(.5/1024*255), round(512.5/1024*255), round(1023.5/1024*255), 255, 255]
    assert got.tolist() == [by_hand] == [[0, 0, 0, 0, 128, 255, 255, 255]]


def test_window_linear_exact_by_hand(tmp_path):
    pixels = np.array([[0, 1024, 1280, 1536, 1792, 2048, 4095]], np.uint16)
    got = grey(tmp_path, pixels, {'WindowCenter': 1536, 'WindowWidth': 1024, 'VOILUTFunction': 'LINEAR_EXACT'})
    assert got.tolist() == [[0, 0, 64, 128, 191, 255, 255]]                        # 63.75, 127.5 (to even), 191.25


def test_window_sigmoid_by_hand(tmp_path):
    pixels = np.array([[1024, 1536, 2048]], np.uint16)
    got = grey(tmp_path, pixels, {'WindowCenter': 1536, 'WindowWidth': 1024, 'VOILUTFunction': 'SIGMOID'})
    assert got.tolist() == [[round(255/(1 + np.e**2)), 128, round(255/(1 + np.e**-2))]] == [[30, 128, 225]]


@pytest.mark.parametrize('attributes', [{'WindowCenter': 1536, 'WindowWidth': 1025}, {'RescaleSlope': 2, 'RescaleIntercept': -5, 'WindowCenter': 100, 'WindowWidth': 300},
                                        {'WindowCenter': 900, 'WindowWidth': 700, 'VOILUTFunction': 'SIGMOID'}, {}])
def test_monochrome1_is_the_inverse_of_monochrome2(tmp_path, attributes):
    assert np.array_equal(grey(tmp_path, RAMP, attributes, photometric='MONOCHROME1'), 255 - grey(tmp_path, RAMP, attributes))


def test_slope_and_intercept_come_before_the_window(tmp_path):
    pixels = np.array([[0, 100, 200, 300, 400]], np.uint16)                        # -1000, 0, 1000, 2000, 3000
    facts = {'RescaleSlope': 10, 'RescaleIntercept': -1000, 'WindowCenter': 1000, 'WindowWidth': 2000, 'VOILUTFunction': 'LINEAR_EXACT'}
    assert grey(tmp_path, pixels, facts).tolist() == [[0, 0, 128, 255, 255]]


def test_negative_slope_turns_the_picture(tmp_path):
    pixels = np.array([[0, 1024, 2048, 3072, 4096 - 1]], np.uint16)                # 4095 ... 0
    facts = {'RescaleSlope': -1, 'RescaleIntercept': 4095, 'WindowCenter': 2047.5, 'WindowWidth': 4095, 'VOILUTFunction': 'LINEAR_EXACT'}
    assert grey(tmp_path, pixels, facts).tolist() == [[255, 191, 127, 64, 0]]      # 191.2, 127.47, 63.7


@pytest.mark.parametrize('bits', range(10, 17))
def test_every_bit_depth_spans_black_to_white(tmp_path, bits):
    pixels = np.array([[0, 2**(bits - 1), 2**bits - 1]], np.uint16)
    window = {'WindowCenter': 2**(bits - 1), 'WindowWidth': 2**bits}
    assert grey(tmp_path, pixels, window, bits=bits).tolist() == [[0, 128, 255]]


def test_signed_pixels(tmp_path):
    pixels = np.array([[-1000, -500, 0, 500, 1000]], np.int16)
    assert grey(tmp_path, pixels, {'WindowCenter': 0, 'WindowWidth': 2000, 'VOILUTFunction': 'LINEAR_EXACT'}).tolist() == [[0, 64, 128, 191, 255]]
    narrow = {'WindowCenter': 0, 'WindowWidth': 1000, 'VOILUTFunction': 'LINEAR_EXACT'}   # a centre of 0 is a window, not none
    assert grey(tmp_path, pixels, narrow).tolist() == [[0, 0, 128, 255, 255]]
    assert grey(tmp_path, pixels).tolist() == [[0, 64, 128, 191, 255]]             # no window: darkest to brightest


def test_no_window_takes_the_pixels_range_not_the_files(tmp_path):
    pixels = np.array([[100, 200, 300]], np.uint16)                                # of 65,536 possible
    assert grey(tmp_path, pixels, bits=16).tolist() == [[0, 128, 255]]             # 127.5 goes to the even neighbour
    assert grey(tmp_path, np.full((2, 2), 7, np.uint16)).tolist() == [[0, 0], [0, 0]]


def test_padding_is_black_and_does_not_stretch_the_range(tmp_path):
    pixels = np.array([[-32768, -100, 0, 100]], np.int16)
    facts = {'PixelPaddingValue': -32768}
    assert grey(tmp_path, pixels, facts, bits=16).tolist() == [[0, 0, 128, 255]]
    assert grey(tmp_path, pixels, facts, bits=16, photometric='MONOCHROME1').tolist() == [[0, 255, 127, 0]]
    ranged = {'PixelPaddingValue': -32768, 'PixelPaddingRangeLimit': -100}
    assert grey(tmp_path, pixels, ranged, bits=16).tolist() == [[0, 0, 0, 255]]


def test_first_of_several_windows(tmp_path):
    pixels = np.array([[0, 50, 100, 4095]], np.uint16)
    facts = {'WindowCenter': [50, 2048], 'WindowWidth': [100, 4096], 'VOILUTFunction': 'LINEAR_EXACT'}
    assert grey(tmp_path, pixels, facts).tolist() == [[0, 128, 255, 255]]
    assert describe_dicom(tmp_path/'x.dcm')['values of interest'] == 'window 50/100 (LINEAR_EXACT), the first of 2'


@pytest.mark.parametrize('first,expected', [(0, [0, 18, 255, 255]), (300, [0, 0, 237, 255])])
def test_voi_lut_of_8_bit_entries_is_not_read_modulo_256(tmp_path, first, expected):
    pixels = np.array([[0, 300, 4095, 5000]], np.uint16)
    facts = {'VOILUTSequence': [lut(4096, first, 8, [i >> 4 for i in range(4096)])], 'WindowCenter': 1, 'WindowWidth': 2}
    assert grey(tmp_path, pixels, facts, bits=13).tolist() == [expected]           # and the table goes before the window


def test_luts_of_other_depths_and_representations(tmp_path):
    pixels = np.array([[0, 2, 3, 200]], np.uint16)
    assert grey(tmp_path, pixels, {'VOILUTSequence': [lut(4, 0, 12, [0, 100, 2048, 4095])]}).tolist() == [[0, 128, 255, 255]]
    words = np.array([0, 100, 2048, 4095], '<u2').tobytes()
    assert grey(tmp_path, pixels, {'VOILUTSequence': [lut(4, 0, 12, words, 'OW')]}).tolist() == [[0, 128, 255, 255]]
    assert grey(tmp_path, pixels, {'ModalityLUTSequence': [lut(4, 0, 12, [0, 100, 300, 400])]}).tolist() == [[0, 191, 255, 255]]


@settings(deadline=None, max_examples=50)
@given(arrays(np.uint16, (3, 5), elements=st.integers(0, 4095)), st.integers(0, 4095), st.integers(2, 5000), st.sampled_from(['LINEAR', 'LINEAR_EXACT', 'SIGMOID']))
def test_window_share_is_pydicoms_over_its_stated_range(pixels, centre, width, shape):
    dicom = header(WindowCenter=centre, WindowWidth=width, VOILUTFunction=shape, PhotometricInterpretation='MONOCHROME2', BitsStored=12, PixelRepresentation=0)
    share = data_dicom.window_share(dicom, pixels)
    assert np.allclose(share, apply_windowing(pixels, dicom)/4095, atol=1e-9)
    assert share.min() >= 0 and share.max() <= 1


@settings(deadline=None, max_examples=30)
@given(arrays(np.uint8, (4, 4)))
def test_eight_bits_without_loss(pixels):
    with tempfile.TemporaryDirectory() as folder:
        path = write_dicom(pixels, Path(folder)/'x.dcm', {'WindowCenter': 128, 'WindowWidth': 256}, bits=8)
        assert np.array_equal(np.asarray(read_dicom(path)), pixels)


def test_overlay_bits_above_the_stored_ones_are_no_pixels(tmp_path):
    path = write_dicom(RAMP, tmp_path/'x.dcm', {'WindowCenter': 2048, 'WindowWidth': 4096})
    dicom, clean = pydicom.dcmread(path), np.asarray(read_dicom(path))
    dicom.PixelData = (RAMP | 0xF000).tobytes()
    dicom.save_as(path)
    assert np.array_equal(np.asarray(read_dicom(path)), clean)


def test_mode_and_size(tmp_path):
    path = write_dicom(RAMP[:16], tmp_path/'X.DCM')
    assert read_dicom(path).mode == 'L' and read_dicom(path).size == (64, 16) and dicom_size(path) == (16, 64)


def test_bad_windows_are_refused_by_name(tmp_path):
    for facts in ({'WindowCenter': 10, 'WindowWidth': 0}, {'WindowCenter': 10, 'WindowWidth': 5, 'VOILUTFunction': 'CURLY'}):
        path = write_dicom(RAMP, tmp_path/'x.dcm', facts)
        assert 'x.dcm: cannot be read as DICOM' in message(lambda: read_dicom(path))
    path = write_dicom(RAMP, tmp_path/'x.dcm', {'WindowCenter': '', 'WindowWidth': ''})
    assert describe_dicom(path)['values of interest'] == 'darkest to brightest pixel'
    assert read_dicom(path).getextrema() == (0, 255)


# ---- compression

def transcoded(path, syntax_name, tmp_path):
    "The same file, compressed losslessly by GDCM."
    import gdcm
    reader = gdcm.ImageReader()
    reader.SetFileName(str(path))
    assert reader.Read()
    change = gdcm.ImageChangeTransferSyntax()
    change.SetTransferSyntax(gdcm.TransferSyntax(getattr(gdcm.TransferSyntax, syntax_name)))
    change.SetInput(reader.GetImage())
    assert change.Change()
    writer, target = gdcm.ImageWriter(), tmp_path/f'{syntax_name}.dcm'
    writer.SetFileName(str(target))
    writer.SetFile(reader.GetFile())
    writer.SetImage(change.GetOutput())
    assert writer.Write()
    return target


@pytest.mark.parametrize('photometric', ['MONOCHROME1', 'MONOCHROME2'])
@pytest.mark.parametrize('name', ['JPEGLosslessProcess14', 'JPEGLosslessProcess14_1', 'JPEGLSLossless', 'JPEG2000Lossless', 'RLELossless'])
def test_lossless_round_trips(tmp_path, name, photometric):
    pixels = np.random.default_rng(0).integers(0, 4096, (64, 48)).astype(np.uint16)
    path = write_dicom(pixels, tmp_path/'plain.dcm', {'WindowCenter': 2000, 'WindowWidth': 3000}, photometric=photometric)
    small = transcoded(path, name, tmp_path)
    assert pydicom.dcmread(small).file_meta.TransferSyntaxUID.is_compressed
    assert np.array_equal(np.asarray(read_dicom(small)), np.asarray(read_dicom(path)))


def test_pydicoms_own_rle(tmp_path):
    path = write_dicom(RAMP, tmp_path/'x.dcm', {'WindowCenter': 2000, 'WindowWidth': 3000})
    expected, dicom = np.asarray(read_dicom(path)), pydicom.dcmread(path)
    dicom.compress(RLELossless)
    dicom.save_as(path)
    assert np.array_equal(np.asarray(read_dicom(path)), expected)


@pytest.mark.parametrize('name', ['MR_small_RLE.dcm', 'MR_small_jp2klossless.dcm', 'MR_small_jpeg_ls_lossless.dcm', 'MR_small_bigendian.dcm', 'MR_small_implicit.dcm'])
def test_shipped_files_in_other_syntaxes_have_the_pixels_of_the_plain_one(tmp_path, name):
    "Files of pydicom's wheel: not chest X-rays, so their header is made to say so first."
    def read(name):
        dicom = pydicom.dcmread(get_testdata_file(name, download=False))
        dicom.Modality, dicom.BodyPartExamined = 'CR', 'CHEST'
        dicom.save_as(tmp_path/name)
        return np.asarray(read_dicom(tmp_path/name))
    plain = read('MR_small.dcm')
    stored = pydicom.dcmread(get_testdata_file('MR_small.dcm', download=False)).pixel_array.astype(float)
    by_hand = np.clip((stored - 599.5)/1599*255 + 127.5, 0, 255)                   # its window: 600/1600
    assert np.abs(plain - by_hand).max() <= .5 + 1e-9
    assert np.array_equal(read(name), plain)


def test_missing_plugin_names_the_syntax_and_the_package(tmp_path, monkeypatch):
    path = transcoded(write_dicom(RAMP, tmp_path/'x.dcm'), 'JPEGLSLossless', tmp_path)
    decoder = pydicom.pixels.get_decoder(pydicom.uid.JPEGLSLossless)
    monkeypatch.setattr(decoder, '_available', {})
    said = message(lambda: read_dicom(path))
    assert "'JPEG-LS Lossless Image Compression'" in said and 'pip install python-gdcm' in said and path.name in said


def test_video_is_refused(tmp_path):
    path = write_dicom(RAMP, tmp_path/'x.dcm')
    dicom = pydicom.dcmread(path)
    dicom.PixelData = pydicom.encaps.encapsulate([b'\0'*10])
    dicom['PixelData'].VR, dicom.file_meta.TransferSyntaxUID = 'OB', pydicom.uid.MPEG2MPML
    dicom['PixelData'].is_undefined_length = True
    dicom.save_as(path)
    assert 'MPEG2' in message(lambda: read_dicom(path)) and 'does not read' in message(lambda: read_dicom(path))


# ---- refusals

REFUSED = {'lateral': ({'ViewPosition': 'LL'}, "view position is 'LL'"), 'right lateral': ({'ViewPosition': 'RL'}, "view position is 'RL'"),
           'word': ({'ViewPosition': 'LATERAL'}, "'LATERAL'"), 'decubitus': ({'ViewPosition': 'LLD'}, "'LLD'"), 'lordotic': ({'ViewPosition': 'AP AXIAL'}, "'AP AXIAL'"),
           'hand': ({'BodyPartExamined': 'HAND'}, "shows 'HAND', expected CHEST"), 'CT': ({'Modality': 'CT'}, "modality is 'CT'"),
           'raw': ({'PresentationIntentType': 'FOR PROCESSING'}, 'raw detector data')}


@pytest.mark.parametrize('name', REFUSED)
def test_refused_with_its_reason(tmp_path, name):
    facts, reason = REFUSED[name]
    path = write_dicom(RAMP, tmp_path/'x.dcm', facts)
    for call in (read_dicom, dicom_row):
        said = message(lambda: call(path))
        assert reason in said and 'x.dcm: cannot be used' in said
    assert why_refused(pydicom.dcmread(path)) and describe_dicom(path)['refused'] == why_refused(pydicom.dcmread(path))


def test_multi_frame(tmp_path):
    path = write_dicom(np.stack([RAMP, RAMP]), tmp_path/'x.dcm')
    assert 'it has 2 frames' in message(lambda: read_dicom(path))


def test_colour(tmp_path):
    path = write_dicom(np.zeros((4, 4, 3), np.uint8), tmp_path/'x.dcm', photometric='RGB', bits=8)
    assert "colours are 'RGB'" in message(lambda: read_dicom(path))


def test_no_pixels_and_a_pdf(tmp_path):
    path = write_dicom(RAMP, tmp_path/'x.dcm')
    dicom = pydicom.dcmread(path)
    del dicom.PixelData
    dicom.save_as(path)
    assert 'holds no pixels' in message(lambda: read_dicom(path))
    for keyword in ('Rows', 'Columns', 'PhotometricInterpretation'): del dicom[keyword]
    dicom.SOPClassUID = dicom.file_meta.MediaStorageSOPClassUID = pydicom.uid.EncapsulatedPDFStorage
    dicom.Modality = 'DOC'
    dicom.save_as(path)
    assert 'it holds no image (Encapsulated PDF Storage)' in message(lambda: read_dicom(path))
    assert 'it holds no image' in message(lambda: dicom_row(path)) and 'holds no image' in message(lambda: dicom_size(path))


@pytest.mark.parametrize('syntax', [None, 'JPEGLosslessProcess14_1', 'JPEGLSLossless', 'JPEG2000Lossless', 'RLELossless'])
@pytest.mark.parametrize('share', [.3, .6, .95])
def test_truncated(tmp_path, syntax, share):
    pixels = np.random.default_rng(1).integers(0, 4096, (64, 64)).astype(np.uint16)
    path = write_dicom(pixels, tmp_path/'x.dcm', {'WindowCenter': 2048, 'WindowWidth': 4096})
    if syntax: path = transcoded(path, syntax, tmp_path)
    whole = path.read_bytes()
    path.write_bytes(whole[:int(len(whole)*share)])
    assert f'{path.name}: cannot be read as DICOM' in message(lambda: read_dicom(path))


def test_not_dicom_and_not_there(tmp_path):
    (tmp_path/'x.dcm').write_bytes(b'\x89PNG\r\n\x1a\n'*40)
    assert "the mark 'DICM'" in message(lambda: read_dicom(tmp_path/'x.dcm'))
    (tmp_path/'empty.dcm').write_bytes(b'')
    assert 'empty.dcm' in message(lambda: read_dicom(tmp_path/'empty.dcm'))
    for call in (read_dicom, dicom_size, dicom_row): assert 'there is no such image' in message(lambda: call(tmp_path/'nowhere.dcm'))


def test_every_file_that_pydicom_ships_is_read_or_refused_in_a_sentence():
    "None of them is a chest X-ray; whatever they are, nothing but a UserError may come out."
    files = sorted(Path(get_testdata_file('CT_small.dcm', download=False)).parent.glob('*.dcm'))
    assert len(files) > 50
    for path in files:
        try: read_dicom(path)
        except UserError as error: assert path.name in str(error)


def test_absent_facts_are_not_held_against_a_file(tmp_path):
    path = write_dicom(RAMP, tmp_path/'x.dcm', {'Modality': None, 'BodyPartExamined': None, 'ViewPosition': None})
    assert read_dicom(path).size == (64, 64) and dicom_row(path)['view_position'] == ''


def test_writer_refuses_unknown_keywords(tmp_path):
    with pytest.raises(UserError, match='WindowCentre'): write_dicom(RAMP, tmp_path/'x.dcm', {'WindowCentre': 5})
    assert not (tmp_path/'x.dcm').exists()


# ---- headers

@pytest.mark.parametrize('said,view', [('PA', 'PA'), ('AP PORTABLE', 'AP'), ('PA ERECT', 'PA'), ('LL', 'LL'), ('', ''), ('PALMAR', 'PALMAR')])
def test_view_position(said, view): assert view_position(header(ViewPosition=said)) == view


@pytest.mark.parametrize('meaning,view', [('postero-anterior', 'PA'), ('Antero-posterior projection', 'AP'), ('left lateral', 'left lateral')])
def test_view_position_from_its_code(meaning, view):
    assert view_position(header(ViewCodeSequence=[header(CodeValue='1', CodingSchemeDesignator='SCT', CodeMeaning=meaning)])) == view


def test_row_of_a_full_header(tmp_path):
    facts = {'PatientAge': '058Y', 'PatientSex': 'F', 'ViewPosition': 'AP', 'PixelSpacing': [.2, .1], 'ImagerPixelSpacing': [.9, .9],
             'AcquisitionDate': '20260102', 'AcquisitionTime': '101112'}
    row = dicom_row(write_dicom(RAMP[:32], tmp_path/'x.dcm', facts))
    assert {k: v for k, v in row.items() if k != 'patient'} == dict(taken='20260102 101112', age='058Y', sex='F', view_position='AP', width='64', height='32',
                                                                   pixel_spacing_x='0.1', pixel_spacing_y='0.2')


@pytest.mark.parametrize('born,seen,age', [('19661124', '20261124', '060Y'), ('19661125', '20261124', '059Y'), ('20260825', '20261124', '002M'),
                                           ('20241124', '20261124', '002Y'), ('20270101', '20261124', ''), ('', '20261124', ''), ('19661124', '', '')])
def test_age_from_two_dates(born, seen, age): assert data_dicom.age_text(header(PatientBirthDate=born, StudyDate=seen)) == age


@given(st.lists(st.text(min_size=1), min_size=1))
def test_no_two_patients_share_a_number(texts):
    numbers = patient_numbers(texts)
    assert set(numbers) == set(texts) and len(set(numbers.values())) == len(set(texts)) and min(numbers.values()) >= 1
    assert numbers == patient_numbers(reversed(texts))


def test_only_synthetic_patients_keep_their_number():
    assert patient_numbers(['90000005', 'CHESTNB-SYNTHETIC-90000007']) == {'90000005': 1, 'CHESTNB-SYNTHETIC-90000007': 90000007}


@pytest.mark.parametrize('text', ['', 'ANONYMOUS', 'anonymized', 'Unknown', '0000', 'REMOVED', 'N/A', 'XXXX', 'De-identified', ' '])
def test_placeholder_patients_are_refused(tmp_path, text):
    path = write_dicom(RAMP, tmp_path/'x.dcm', {'PatientID': text})
    assert 'does not tell patients apart' in message(lambda: dicom_columns(['x.dcm'], {'x.dcm': path}, progress=False))
    columns, numbers = dicom_columns(['x.dcm'], {'x.dcm': path}, patients=['12'], progress=False)   # data.csv knows better
    assert columns['patient_id'] == ['12'] and numbers == {}


def test_follow_ups_count_within_patients_by_time():
    assert follow_ups(list('ABAA'), ['3', '1', '1', '3'], list('wxyz')) == [1, 0, 0, 2]


def test_import_is_light():
    code = 'import sys, chestnb.data.dicom; print([m for m in ("pydicom", "torch", "pandas", "gdcm") if m in sys.modules])'
    assert subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout.strip() == '[]'


# ---- a table from headers

def labelled_folder(folder, **header):
    "Two DICOM files: the first is in order, the second has the header values given."
    ordinary = {'PatientID': 'A17', 'PatientSex': 'F', 'PatientAge': '050Y'}
    write_dicom(np.zeros((8, 8), np.uint16), folder/'images/a.dcm', ordinary)
    write_dicom(np.zeros((8, 8), np.uint16), folder/'images/b.dcm', ordinary | {'PatientID': 'B17'} | header)
    return folder


@pytest.mark.parametrize('labels', [{'a.dcm': 'Mass', 'b.dcm': 'Mass', 'c.png': 'Mass'}, {'a.dcm': 'Mass', 'b.dcm': 'Mass'}])
@pytest.mark.parametrize('table', ['data.csv', 'other.csv'])
def test_a_folder_that_mixes_png_and_dicom_is_named_and_no_table_is_blamed(tmp_path, labels, table):
    from chestnb.data.dicom_folder import write_dicom_metadata
    folder = labelled_folder(tmp_path/'x')
    (folder/'images/c.png').write_bytes(b'png')
    if table == 'other.csv': (folder/'data.csv').write_text('mine')
    said = message(lambda: write_dicom_metadata(folder, labels, folder/table))
    assert said.startswith(f"{folder}: 'c.png' is no DICOM file (1 of 3 images)") and 'row 1' not in said and 'Move such images out' in said
    (folder/'images/c.png').unlink()
    write_dicom_metadata(folder, {'a.dcm': 'Mass', 'b.dcm': 'Mass'}, folder/table)       # the advice works


@pytest.mark.parametrize('header, label, text', [
    ({}, 'Oedema', "its label: unknown finding 'Oedema'"), ({'PatientSex': 'O'}, 'Mass', "its header, for the column 'Patient Gender': 'O' is none of M, F"),
    ({'ViewPosition': ''}, 'Mass', "its header, for the column 'View Position': '' is none of PA, AP")])
def test_what_a_table_cannot_hold_names_the_dicom_file(tmp_path, header, label, text):
    from chestnb.data.dicom_folder import write_dicom_metadata
    folder = labelled_folder(tmp_path/'x', **header)
    said = message(lambda: write_dicom_metadata(folder, {'a.dcm': 'Mass', 'b.dcm': label}))
    assert said.startswith(f"{folder/'images/b.dcm'}: {text}") and not (folder/'data.csv').exists()
