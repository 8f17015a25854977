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
from chestnb.data.dicom import bulk_range, describe_dicom, read_dicom, voi_windows, write_dicom
from chestnb.data.dicom_folder import columns_from_headers
from chestnb.data.dicom_header import (age_text, body_part, dicom_columns, dicom_row, dicom_size, follow_ups, is_dicom, patient_numbers, patients_of_headers,
    view_position, why_refused)
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
    share = data_dicom.window_share(pixels, centre, width, shape)
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


# ---- oddities are shown, and said

def raw(path, keyword, text, vr='DS'):
    "Write a value into a header that pydicom would not: as bytes, whatever its kind."
    dicom = pydicom.dcmread(path)
    tag = pydicom.datadict.tag_for_keyword(keyword)
    dicom[tag] = pydicom.dataelem.RawDataElement(pydicom.tag.Tag(tag), vr, len(text), text, 0, False, True)
    dicom.save_as(path)
    return path


BULK = 'darkest to brightest of the bulk of the pixels'

@pytest.mark.parametrize('width', ['0', '-5', '0.5'])
def test_a_window_without_width_is_no_window(tmp_path, width):
    pixels = np.array([[100, 200, 300]], np.uint16)
    assert grey(tmp_path, pixels, {'WindowCenter': '10', 'WindowWidth': width}).tolist() == [[0, 128, 255]]
    said = describe_dicom(tmp_path/'x.dcm')
    assert said['values of interest'] == said['notes'] == f'{BULK}; the window 10/{width} cannot be used' and said['refused'] == 'no'


def test_half_a_width_is_a_window_where_the_standard_allows_it(tmp_path):
    facts = {'RescaleSlope': '0.001', 'RescaleIntercept': '0', 'WindowCenter': '0.2', 'WindowWidth': '0.4', 'VOILUTFunction': 'LINEAR_EXACT'}
    assert grey(tmp_path, np.array([[0, 100, 200, 300, 500]], np.uint16), facts).tolist() == [[0, 64, 128, 191, 255]]


def test_a_width_of_one_is_a_threshold(tmp_path):
    assert grey(tmp_path, np.array([[99, 100, 101]], np.uint16), {'WindowCenter': 101, 'WindowWidth': 1}).tolist() == [[0, 0, 255]]


@pytest.mark.parametrize('centre,width', [(b'wide', b'1000'), (b'1536', b'wide'), (b'', b'1000'), (b'1536', b''), (b'NaN', b'1000'), (b'1536', b'inf ')])
def test_windows_that_are_text_empty_or_endless_are_no_windows(tmp_path, centre, width):
    path = write_dicom(np.array([[100, 200, 300]], np.uint16), tmp_path/'x.dcm')
    raw(path, 'WindowCenter', centre), raw(path, 'WindowWidth', width)
    assert np.asarray(read_dicom(path)).tolist() == [[0, 128, 255]]
    assert describe_dicom(path)['values of interest'].startswith(BULK)


def test_a_decimal_comma_is_a_number(tmp_path):
    path = write_dicom(np.array([[0, 1024, 1280, 1536, 4095]], np.uint16), tmp_path/'x.dcm', {'VOILUTFunction': 'LINEAR_EXACT'})
    raw(path, 'WindowCenter', b'1536,0'), raw(path, 'WindowWidth', b'1024,0')
    assert np.asarray(read_dicom(path)).tolist() == [[0, 0, 64, 128, 255]]


@pytest.mark.parametrize('photometric,expected', [('MONOCHROME2', [0, 0, 128, 255, 255]), ('MONOCHROME1', [255, 255, 127, 0, 0])])
@pytest.mark.parametrize('said', ['', 'LINEAR_', 'linear', 'CURLY', None])
def test_an_empty_or_unknown_voi_function_is_linear(tmp_path, said, photometric, expected):
    pixels = np.array([[0, 1023, 1536, 2048, 4095]], np.uint16)
    facts = {'WindowCenter': 1536, 'WindowWidth': 1025, 'VOILUTFunction': said}
    assert grey(tmp_path, pixels, facts, photometric=photometric).tolist() == [expected]
    assert (f'{said!r} is not in the standard' in describe_dicom(tmp_path/'x.dcm')['notes']) == (said in ('LINEAR_', 'CURLY'))


def test_the_first_pair_that_makes_a_window_is_taken(tmp_path):
    exact = {'VOILUTFunction': 'LINEAR_EXACT'}
    pixels = np.array([[0, 50, 100, 4095]], np.uint16)
    for centre, width in (([2000, 50], [0, 100]), ([50, 2000], [100]), ([50], [100, 4096]), ('50\\\\7', '100\\\\5')):
        assert grey(tmp_path, pixels, {'WindowCenter': centre, 'WindowWidth': width, **exact}).tolist() == [[0, 128, 255, 255]], (centre, width)
    assert voi_windows(pydicom.dcmread(tmp_path/'x.dcm'))[0] == (50, 100)


@pytest.mark.parametrize('descriptor,data', [([4, 0, 12], None), (None, [0, 1, 2, 3]), ([4, 0], [0, 1, 2, 3]), (None, None), ([4, 0, 12], [])])
@pytest.mark.parametrize('kind', ['VOILUTSequence', 'ModalityLUTSequence'])
def test_a_table_without_content_falls_back_to_window_and_slope(tmp_path, descriptor, data, kind):
    item = Dataset()
    if descriptor is not None: item.add_new('LUTDescriptor', 'US', descriptor)
    if data is not None: item.add_new('LUTData', 'US', data)
    facts = {kind: [item], 'RescaleSlope': 2, 'RescaleIntercept': 0, 'WindowCenter': 200, 'WindowWidth': 400, 'VOILUTFunction': 'LINEAR_EXACT'}
    path = write_dicom(np.array([[0, 50, 100, 200]], np.uint16), tmp_path/'x.dcm')
    dicom = pydicom.dcmread(path)
    for keyword, value in facts.items(): setattr(dicom, keyword, value)
    assert data_dicom.dicom_grey(dicom).tolist() == [[0, 64, 128, 255]]


def test_an_empty_sequence_is_no_table(tmp_path):
    facts = {'VOILUTSequence': [], 'ModalityLUTSequence': [], 'WindowCenter': 100, 'WindowWidth': 200, 'VOILUTFunction': 'LINEAR_EXACT'}
    assert grey(tmp_path, np.array([[0, 100, 200]], np.uint16), facts).tolist() == [[0, 128, 255]]


def test_a_table_that_says_8_bits_and_holds_16_is_not_all_white(tmp_path):
    facts = {'VOILUTSequence': [lut(3, 0, 8, [0, 2000, 4000])]}
    assert grey(tmp_path, np.array([[0, 1, 2]], np.uint16), facts).tolist() == [[0, 128, 255]]


def test_a_table_that_begins_below_zero_is_read_with_its_sign(tmp_path):
    facts = {'VOILUTSequence': [lut(5, 65534, 8, [0, 64, 128, 191, 255])]}           # 65534 is -2 in 16 bits
    assert grey(tmp_path, np.array([[-5, -2, -1, 0, 1, 2]], np.int16), facts, bits=16).tolist() == [[0, 0, 64, 128, 191, 255]]


@pytest.mark.parametrize('slope', [b'0', b'', b'one ', b'NaN ', None])
def test_a_slope_that_is_no_slope_is_left_out(tmp_path, slope):
    facts = {'WindowCenter': 200, 'WindowWidth': 200, 'VOILUTFunction': 'LINEAR_EXACT'}
    path = write_dicom(np.array([[0, 50, 100, 150, 200]], np.uint16), tmp_path/'x.dcm', facts | {'RescaleIntercept': 100})
    if slope is not None: raw(path, 'RescaleSlope', slope)
    assert np.asarray(read_dicom(path)).tolist() == [[0, 64, 128, 191, 255]]         # the intercept of 100 still counts
    assert ('rescale slope' in describe_dicom(path)['notes']) == (slope not in (b'', None))


@pytest.mark.parametrize('dtype,number,vr', [(np.uint16, 65535, 'US'), (np.uint16, -1, 'SS'), (np.int16, -2000, 'SS'), (np.int16, 63536, 'US')])
@pytest.mark.parametrize('photometric,expected', [('MONOCHROME2', [0, 0, 128, 255]), ('MONOCHROME1', [0, 255, 127, 0])])
def test_padding_has_the_sign_of_the_pixels(tmp_path, dtype, number, vr, photometric, expected):
    value = 65535 if dtype is np.uint16 else -2000
    pixels = np.array([[value, 100, 200, 300]], dtype)
    path = write_dicom(pixels, tmp_path/'x.dcm', bits=16, photometric=photometric)
    dicom = pydicom.dcmread(path)
    dicom.add_new('PixelPaddingValue', vr, number)
    dicom.save_as(path)
    assert np.asarray(read_dicom(path)).tolist() == [expected]


@pytest.mark.parametrize('padding', [b'', b'\xff\xff\xff\x7f'])
def test_padding_that_no_pixel_can_have_pads_nothing(tmp_path, padding):
    path = write_dicom(np.array([[100, 200, 300]], np.uint16), tmp_path/'x.dcm', bits=16)
    raw(path, 'PixelPaddingValue', padding, 'UL' if padding else 'US')
    assert np.asarray(read_dicom(path)).tolist() == [[0, 128, 255]]


def test_burnt_in_and_dead_pixels_do_not_set_the_range(tmp_path):
    clean = np.arange(1000, 2000, dtype=np.uint16).reshape(25, 40)
    expected = np.rint((clean - 1000.)/999*255)
    assert np.array_equal(grey(tmp_path, clean, bits=16), expected)                   # an ordinary picture keeps all of its range
    spoiled = clean.copy()
    spoiled[0, 0], spoiled[24, 39], spoiled[10, 10:15] = 65535, 0, 60000
    got = grey(tmp_path, spoiled, bits=16)
    untouched = spoiled == clean
    assert np.abs(got - expected)[untouched].max() <= 1 and got[0, 0] == got[10, 12] == 255 and got[24, 39] == 0
    assert np.array_equal(grey(tmp_path, spoiled, bits=16, photometric='MONOCHROME1'), 255 - got)


def test_what_is_not_finite_sets_no_range():
    assert bulk_range(np.array([1., 2, 3, np.inf, -np.inf, np.nan])) == (1, 3) and bulk_range(np.array([np.nan])) == (0, 0)
    assert bulk_range(np.full(10, 7.)) == (7, 7)


@pytest.mark.parametrize('stored,high', [(16, 11), (12, 15), (12, 3)])
def test_high_bit_that_contradicts_bits_stored_changes_no_pixel(tmp_path, stored, high):
    path = write_dicom(RAMP, tmp_path/'x.dcm', {'WindowCenter': 2048, 'WindowWidth': 4096}, bits=stored)
    clean, dicom = np.asarray(read_dicom(path)), pydicom.dcmread(path)
    dicom.HighBit = high
    dicom.save_as(path)
    assert np.array_equal(np.asarray(read_dicom(path)), clean)


@pytest.mark.parametrize('changes', [{'BitsStored': 32}, {'BitsStored': 0}, {'BitsStored': None}, {'HighBit': None}, {'SamplesPerPixel': None}, {'PixelRepresentation': None},
                                     {'PhotometricInterpretation': 'monochrome2'}, {'NumberOfFrames': ''}, {'NumberOfFrames': 0}, {'NumberOfFrames': 1}, {'PixelAspectRatio': ''}])
def test_entries_of_the_pixel_module_that_are_missing_or_impossible(tmp_path, changes):
    path = write_dicom(RAMP, tmp_path/'x.dcm', {'WindowCenter': 2048, 'WindowWidth': 4096}, bits=16)
    clean, dicom = np.asarray(read_dicom(path)), pydicom.dcmread(path)
    for keyword, value in changes.items():
        if value is None: del dicom[keyword]
        else: setattr(dicom, keyword, value)
    dicom.save_as(path)
    assert np.array_equal(np.asarray(read_dicom(path)), clean)


# ---- which files, and how they begin

@pytest.mark.parametrize('name', ['IM0001', '1.2.840.113619.2.55', 'image.ima'])
def test_a_file_without_ending_is_asked(tmp_path, name):
    path = write_dicom(RAMP, tmp_path/name)
    assert is_dicom(path) and read_dicom(path).size == (64, 64)
    (tmp_path/'README').write_text('nothing')
    assert not is_dicom(tmp_path/'README') and not is_dicom(tmp_path/'x.png')


@pytest.mark.parametrize('implicit', [True, False])
@pytest.mark.parametrize('preamble', [True, False])
@pytest.mark.parametrize('syntax', [True, False])
def test_files_without_preamble_or_transfer_syntax_have_the_same_pixels(tmp_path, implicit, preamble, syntax):
    window = {'WindowCenter': 2000, 'WindowWidth': 3000}
    clean = grey(tmp_path, RAMP, window)
    dicom = pydicom.dcmread(tmp_path/'x.dcm')
    del dicom.file_meta.TransferSyntaxUID
    if syntax: dicom.file_meta.TransferSyntaxUID = pydicom.uid.ImplicitVRLittleEndian if implicit else pydicom.uid.ExplicitVRLittleEndian
    dicom.preamble = b'\0'*128 if preamble else None
    with open(tmp_path/'odd.dcm', 'wb') as file: pydicom.dcmwrite(file, dicom, implicit_vr=implicit, little_endian=True, enforce_file_format=False)
    if not preamble: assert (tmp_path/'odd.dcm').read_bytes()[128:132] != b'DICM'
    assert np.array_equal(np.asarray(read_dicom(tmp_path/'odd.dcm')), clean) and dicom_size(tmp_path/'odd.dcm') == (64, 64)
    assert ('transfer syntax is missing' in describe_dicom(tmp_path/'odd.dcm')['notes']) != syntax


def test_compressed_pixels_without_a_transfer_syntax_are_refused_by_that_reason(tmp_path):
    path = write_dicom(RAMP, tmp_path/'x.dcm')
    dicom = pydicom.dcmread(path)
    dicom.compress(RLELossless)
    del dicom.file_meta.TransferSyntaxUID
    with open(path, 'wb') as file: pydicom.dcmwrite(file, dicom, implicit_vr=False, little_endian=True, enforce_file_format=False)
    assert 'its transfer syntax, which says how, is missing' in message(lambda: read_dicom(path))


@pytest.mark.parametrize('content', [b'', b'x', b'\0'*500, b'a text that is no image at all. '*40, bytes(range(256))*8, b'GIF89a' + b'\1'*400])
def test_what_is_not_dicom_does_not_become_it_without_its_mark(tmp_path, content):
    (tmp_path/'x.dcm').write_bytes(content)
    assert "x.dcm: cannot be read as DICOM: the mark 'DICM'" in message(lambda: read_dicom(tmp_path/'x.dcm'))


# ---- words of headers

@pytest.mark.parametrize('said,part', [(word, 'chest') for word in ('CHEST', 'chest', 'TORAX', 'THORAX', 'TÓRAX', 'Tórax', 'BRUSTKORB', 'POITRINE', 'PETTO', 'TORACE', 'KLATKA PIERSIOWA',
    'Грудная клетка', '胸部', 'CHEST_ABDOMEN', 'CXR', 'PULMÃO')] + [(word, 'unknown') for word in ('UNKNOWN', '', 'ROOM 3', 'DEFAULT', 'XYZ')]
    + [(word, 'other') for word in ('HAND', 'TSPINE', 'THORACIC SPINE', 'ABDOMEN', 'MÃO', 'Rodilla', 'SCHÄDEL', 'LEG', 'RIBS', 'PHANTOM')])
def test_body_part_in_other_languages(tmp_path, said, part):
    dicom = header(BodyPartExamined=said, Rows=4, Columns=4, PhotometricInterpretation='MONOCHROME2')
    assert body_part(dicom) == part and bool(why_refused(dicom)) == (part == 'other')


def test_an_unknown_body_part_is_shown_and_noted(tmp_path):
    pixels = np.array([[100, 200, 300]], np.uint16)
    assert grey(tmp_path, pixels, {'BodyPartExamined': 'ROOM 3'}).tolist() == [[0, 128, 255]]
    assert "its body part 'ROOM 3' is not known here" in describe_dicom(tmp_path/'x.dcm')['notes']


@pytest.mark.parametrize('said,sex', [('F', 'F'), ('m', 'M'), ('Male', 'M'), ('FEMALE', 'F'), ('O', ''), ('', ''), ('U', ''), ('weiblich', 'F'), ('DOG', '')])
def test_sex_of_a_header_is_read_with_the_words_of_tables(tmp_path, said, sex):
    path = write_dicom(RAMP, tmp_path/'x.dcm', {'PatientSex': said, 'PatientID': 'A17'})
    columns, _ = columns_from_headers({'Image Index': ['x.dcm']}, ['Patient Gender'], {'x.dcm': path})
    assert columns == {'Patient Gender': [sex]}


@pytest.mark.parametrize('modality', ['XR', 'xr', '', None])
@pytest.mark.parametrize('kind,shown', [('1.2.840.10008.5.1.4.1.1.1', True), ('1.2.840.10008.5.1.4.1.1.1.1', True), ('1.2.840.10008.5.1.4.1.1.7', True), ('', True),
                                        ('1.2.840.10008.5.1.4.1.1.2', False), ('1.2.840.10008.5.1.4.1.1.4', False), ('1.2.840.10008.5.1.4.1.1.1.2', False), ('1.2.840.10008.5.1.4.1.1.12.1', False)])
def test_a_vague_or_missing_modality_is_a_radiograph_unless_the_object_is_another(tmp_path, modality, kind, shown):
    said = dict(Rows=4, Columns=4, PhotometricInterpretation='MONOCHROME2') | ({} if modality is None else {'Modality': modality})
    assert bool(why_refused(header(SOPClassUID=kind, **said))) != shown


def test_other_as_modality_needs_an_object_that_is_a_radiograph():
    film = dict(Rows=4, Columns=4, PhotometricInterpretation='MONOCHROME2', Modality='OT')
    assert not why_refused(header(SOPClassUID='1.2.840.10008.5.1.4.1.1.1.1', **film))
    assert "modality is 'OT' (Secondary Capture Image Storage)" in why_refused(header(SOPClassUID='1.2.840.10008.5.1.4.1.1.7', **film))


@pytest.mark.parametrize('photometric', ['MONOCHROME1', 'MONOCHROME2'])
@pytest.mark.parametrize('window', [{'WindowCenter': 60000, 'WindowWidth': 100}, {'WindowCenter': -9000, 'WindowWidth': 100}, {'WindowCenter': 60000, 'WindowWidth': 100, 'VOILUTFunction': 'SIGMOID'}])
def test_a_window_outside_of_all_pixels_shows_their_range_and_is_noted(tmp_path, window, photometric):
    pixels = np.arange(90, 4090, dtype=np.uint16).reshape(40, 100)
    plain = np.asarray(read_dicom(write_dicom(pixels, tmp_path/'plain.dcm', photometric=photometric)))
    shown = np.asarray(read_dicom(write_dicom(pixels, tmp_path/'x.dcm', window, photometric=photometric)))
    assert (shown == plain).all() and (shown.min(), shown.max()) == (0, 255)
    assert 'leaves the picture all black or all white' in describe_dicom(tmp_path/'x.dcm')['notes'] and describe_dicom(tmp_path/'plain.dcm')['notes'] == 'none'


def test_a_window_that_shows_anything_at_all_is_kept(tmp_path):
    pixels = np.arange(90, 4090, dtype=np.uint16).reshape(40, 100)
    shown = np.asarray(read_dicom(write_dicom(pixels, tmp_path/'x.dcm', {'WindowCenter': 4050, 'WindowWidth': 20})))
    assert (shown == 0).mean() > .9 and (shown == 255).any() and describe_dicom(tmp_path/'x.dcm')['notes'] == 'none'
    constant = np.full((4, 4), 7, np.uint16)                                        # nothing to stretch
    assert np.asarray(read_dicom(write_dicom(constant, tmp_path/'c.dcm', {'WindowCenter': 2, 'WindowWidth': 2}))).min() == 255


def test_a_window_that_shows_only_a_burnt_in_text_is_outside_of_the_picture(tmp_path):
    pixels = np.arange(90, 4090, dtype=np.uint16).reshape(40, 100)
    pixels[0, :5] = 65535
    shown = np.asarray(read_dicom(write_dicom(pixels, tmp_path/'x.dcm', {'WindowCenter': 60000, 'WindowWidth': 100}, bits=16)))
    assert 100 < np.median(shown) < 155


@pytest.mark.parametrize('said,age', [('050Y', '050Y'), ('050y', '050Y'), ('50', '50'), ('Y', ''), ('', ''), ('ABC', ''), ('008M', '008M'), ('90+', '90+'), ('>89Y', '>89Y'), ('58 y', '58 Y')])
def test_age_as_it_stands(said, age): assert age_text(header(PatientAge=said)) == age


def test_an_age_that_says_nothing_is_worked_out_from_the_dates():
    assert age_text(header(PatientAge='Y', PatientBirthDate='1966.11.24', StudyDate='20261124')) == '060Y'


def test_unknown_cells_are_empty_and_refuse_nothing(tmp_path):
    path = write_dicom(RAMP, tmp_path/'x.dcm', {'PatientSex': 'O', 'ViewPosition': '', 'PatientAge': 'Y', 'PatientID': 'A17', 'PixelSpacing': [0, 0]})
    columns, _ = dicom_columns(['x.dcm'], {'x.dcm': path}, progress=False)
    assert {name: columns[name] for name in ('sex', 'view_position', 'age', 'pixel_spacing_x', 'patient_id', 'width')} == \
        {'sex': ['O'], 'view_position': [''], 'age': [''], 'pixel_spacing_x': [''], 'patient_id': ['1'], 'width': ['64']}


def test_one_patient_with_and_without_issuer_is_one_patient(tmp_path):
    paths = {f'{i}.dcm': write_dicom(RAMP, tmp_path/f'{i}.dcm', {'PatientID': patient, 'IssuerOfPatientID': issuer})
             for i, (patient, issuer) in enumerate([('A17', None), ('A17', 'Ward 3'), ('A17', 'WARD 3'), ('B17', 'Ward 3')])}
    columns, numbers = dicom_columns(list(paths), paths, progress=False)
    assert columns['patient_id'] == ['1', '1', '1', '2'] and set(numbers) == {'A17', 'B17'}


def test_one_id_from_two_issuers_is_two_patients_and_without_issuer_ambiguous(tmp_path):
    assert len(set(patients_of_headers([('17', 'North'), ('17', 'South'), ('17', 'north')], ['a', 'b', 'c']))) == 2
    said = message(lambda: patients_of_headers([('17', 'North'), ('17', 'South'), ('17', '')], ['a', 'b', 'c.dcm']))
    assert said.startswith("c.dcm: the Patient ID '17' was issued by 'North' and by 'South'")


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

@pytest.mark.parametrize('said,view', [('PA', 'PA'), ('AP PORTABLE', 'AP'), ('PA ERECT', 'PA'), ('LL', 'LL'), ('', ''), ('PALMAR', 'PALMAR'),
                                       ('P.A.', 'PA'), ('AP Supine', 'AP'), ('AP_SUPINE', 'AP'), ('CHEST PA', 'PA'), ('POSTEROANTERIOR', 'PA'), ('ERECT', ''), ('UNKNOWN', ''),
                                       ('AP/PA', ''), ('PA AND LATERAL', 'PA AND LATERAL'), ('RPO', 'RPO'), ('L', 'L')])
def test_view_position(said, view): assert view_position(header(ViewPosition=said)) == view


@pytest.mark.parametrize('said,view', [('Chest PA', 'PA'), ('CHEST AP PORTABLE', 'AP'), ('THORAX LAT', 'THORAX LAT'), ('Chest lateral', 'Chest lateral'), ('CHEST PA AND LATERAL', ''),
                                       ('flat panel', ''), ('PA or AP', ''), ('', '')])
def test_a_lateral_that_only_the_series_names_is_no_frontal_view(said, view):
    dicom = header(SeriesDescription=said, Rows=4, Columns=4, PhotometricInterpretation='MONOCHROME2')
    assert view_position(dicom) == view and bool(why_refused(dicom)) == (view not in ('', 'PA', 'AP'))
    assert view_position(header(SeriesDescription=said, ViewPosition='AP')) == 'AP'                  # the entry made for it goes first


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
def test_age_from_two_dates(born, seen, age): assert age_text(header(PatientBirthDate=born, StudyDate=seen)) == age


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
    assert said.startswith(f"{folder}: ") and 'c.png' in said and 'no DICOM file' in said and 'row 1' not in said and 'Move such images out' in said
    (folder/'images/c.png').unlink()
    write_dicom_metadata(folder, {'a.dcm': 'Mass', 'b.dcm': 'Mass'}, folder/table)       # the advice works


def test_a_label_that_a_table_cannot_hold_names_the_dicom_file(tmp_path):
    from chestnb.data.dicom_folder import write_dicom_metadata
    folder = labelled_folder(tmp_path/'x')
    said = message(lambda: write_dicom_metadata(folder, {'a.dcm': 'Mass', 'b.dcm': 'Oedema'}))
    assert said.startswith(f"{folder/'images/b.dcm'}: its label: unknown finding 'Oedema'") and not (folder/'data.csv').exists()


@pytest.mark.parametrize('header,column', [({'PatientSex': 'O'}, 'sex'), ({'PatientSex': ''}, 'sex'), ({'ViewPosition': ''}, 'view_position'), ({'PatientAge': 'Y'}, 'age')])
def test_what_one_header_does_not_say_is_unknown_in_that_cell_alone(tmp_path, header, column):
    from chestnb.data.dataset import ChestDataset
    from chestnb.data.dicom_folder import write_dicom_metadata
    folder = labelled_folder(tmp_path/'x', **header)
    write_dicom_metadata(folder, {'a.dcm': 'Mass', 'b.dcm': 'Edema'})
    table = ChestDataset(folder).table.set_index('image')
    known = {'sex': 'F', 'view_position': 'PA', 'age': 50}[column]
    assert table.loc['a.dcm', column] == known and table[column].isna().tolist() == [False, True]


@pytest.mark.parametrize('said, view', [('POSTERO_ANTERIOR', 'PA'), ('antero_posterior', 'AP'), ('POSTEROANTERIOR', 'PA'), ('Antero-Posterior', 'AP')])
def test_views_written_out_are_read_with_any_joint(said, view):
    assert view_position(header(ViewPosition=said)) == view
