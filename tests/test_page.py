"""The page of a model: its arithmetic against Pillow and pydicom (in Node), its answers against Python's (in a headless Chromium), its faults."""
import http.server
import json
import shutil
import subprocess
import threading
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import chestnb
from chestnb.core.errors import NOT_FOR_CLINICAL_USE, UserError
from chestnb.data.dicom import read_dicom, write_dicom
from chestnb.data.images import read_image
from chestnb.data.phantom.anatomy import Anatomy
from chestnb.data.phantom.cohort import render
from chestnb.data.squares import grey_square
from chestnb.using import browser

PAGE = Path(chestnb.__file__).parent/'resources'/'page'
CHROMIUM = next(filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome', 'google-chrome-stable'))), None)
ARGS = '--no-sandbox --headless --disable-gpu --disable-quic --no-first-run --disable-background-networking --disable-component-update --disable-sync'.split()
needs_node = pytest.mark.skipif(not shutil.which('node'), reason='Node.js is not installed')
WAIT = 120_000  # ms; a machine may be busy


# ---- the arithmetic, in Node ----

def node(script, *arguments):
    "What a script prints, read as JSON; `PAGE` is the folder of the scripts."
    done = subprocess.run(['node', '-e', f'const PAGE = {json.dumps(str(PAGE))}, fs = require("fs");\n{script}', *map(str, arguments)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def waves(height, width, top=255, seed=0):
    "A picture with something everywhere: (height, width), 0..top."
    y, x = np.mgrid[:height, :width]
    return ((np.sin(x/17) + np.cos(y/11) + 2)/4*.8*top + np.random.default_rng(seed).uniform(0, .2*top, (height, width))).astype(np.uint16)


def pictures(folder):
    "Files of every kind of PNG that a radiograph comes in."
    grey, kinds = waves(301, 257).astype(np.uint8), {}
    colour = np.stack([grey, np.roll(grey, 5, 0), np.roll(grey, 9, 1)], -1)
    kinds |= {'grey': Image.fromarray(grey), 'wide': Image.fromarray(waves(90, 700).astype(np.uint8)), 'large': Image.fromarray(waves(1501, 1207).astype(np.uint8)),
              'colour': Image.fromarray(colour), 'transparent': Image.fromarray(np.dstack([colour, 255 - grey])), 'palette': Image.fromarray(colour).quantize(77),
              'black and white': Image.fromarray(grey).convert('1'), 'grey and alpha': Image.fromarray(np.dstack([grey, 255 - grey]), 'LA')}
    kinds |= {f'{bits} bits': Image.fromarray(waves(200, 190, 2**bits - 1)) for bits in (10, 12, 14, 16)}
    for name, image in kinds.items(): image.save(folder/f'{name}.png')
    for turn in range(2, 9):
        exif = Image.Exif()
        exif[0x0112] = turn
        Image.fromarray(grey).save(folder/f'turned {turn}.png', exif=exif)


@needs_node
@pytest.mark.filterwarnings('ignore::DeprecationWarning')
def test_png_and_squares_are_pillows_to_the_last_bit(tmp_path):
    pictures(tmp_path)
    script = '''const P = require(PAGE + '/pixels.js'), folder = process.argv[1]
    ;(async () => { for (const name of fs.readdirSync(folder).filter(name => name.endsWith('.png'))) {
      const image = await P.decodePng(new Uint8Array(fs.readFileSync(`${folder}/${name}`)), 1e8)
      fs.writeFileSync(`${folder}/${name}.grey`, image.data)
      for (const side of [64, 112, 192, 224]) fs.writeFileSync(`${folder}/${name}.${side}`, P.greySquare(image, side).data) }
    console.log('{}') })()'''
    node(script, tmp_path)
    for path in sorted(tmp_path.glob('*.png')):
        image = read_image(path)
        assert (np.fromfile(f'{path}.grey', np.uint8) == np.asarray(image).ravel()).all(), path.name
        for side in (64, 112, 192, 224): assert (np.fromfile(f'{path}.{side}', np.uint8) == grey_square(image, side).ravel()).all(), (path.name, side)


@needs_node
def test_interlaced_cut_off_and_huge_png(tmp_path):
    import zlib
    grey, chunks = waves(13, 11).astype(np.uint8), []
    for x, y, dx, dy in ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)):
        chunks += [b'\0' + row.tobytes() for row in grey[y::dy, x::dx] if row.size]

    def png(width, height, interlaced, pixels):
        def chunk(kind, body): return len(body).to_bytes(4, 'big') + kind + body + zlib.crc32(kind + body).to_bytes(4, 'big')
        header = width.to_bytes(4, 'big') + height.to_bytes(4, 'big') + bytes([8, 0, 0, 0, interlaced])
        return b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', header) + chunk(b'IDAT', pixels) + chunk(b'IEND', b'')

    packed = zlib.compress(b''.join(chunks))
    files = dict(whole=png(11, 13, 1, packed), cut=png(11, 13, 1, packed[:-30]), huge=png(20_000, 10_000, 0, packed), none=b'\x89PNG\r\n\x1a\n')
    for name, content in files.items(): (tmp_path/name).write_bytes(content)
    script = '''const P = require(PAGE + '/pixels.js'), found = {}
    ;(async () => { for (const name of ['whole', 'cut', 'huge', 'none']) try { found[name] = Array.from((await P.decodePng(new Uint8Array(fs.readFileSync(`${process.argv[1]}/${name}`)), 6e7)).data) }
      catch (error) { found[name] = error.message }
    console.log(JSON.stringify(found)) })()'''
    found = node(script, tmp_path)
    assert found['whole'] == grey.ravel().tolist() == np.asarray(read_image(shutil.copy(tmp_path/'whole', tmp_path/'whole.png'))).ravel().tolist()
    assert 'cut off' in found['cut'] and '200 megapixels' in found['huge'] and 'no complete PNG' in found['none']


def table(data, bits=8, first=0):
    "A lookup table of DICOM."
    from pydicom.dataset import Dataset
    item = Dataset()
    item.add_new('LUTDescriptor', 'US', [len(data) % 65536, first, bits])
    item.add_new('LUTData', 'OW', np.asarray(data, '<u2').tobytes())
    return [item]


def dicoms(folder):
    "DICOM files whose pixels are shown in every way."
    pixels, curve = waves(211, 187, 4000), (255*(np.arange(4096)/4095)**.5).astype(int)
    signed = (pixels.astype(np.int32) - 2000).astype(np.int16)
    write_dicom(pixels, folder/'inverted.dcm', photometric='MONOCHROME1')
    write_dicom(signed, folder/'signed.dcm', dict(PixelPaddingValue=-1900))
    write_dicom((pixels >> 4).astype(np.uint8), folder/'eight.dcm', bits=8)
    outside = pixels.copy()
    outside[:3] = 65535
    write_dicom(outside, folder/'outlier.dcm', bits=16)
    attributes = dict(plain={}, window=dict(WindowCenter=2000, WindowWidth=1500), two=dict(WindowCenter=[1800, 200], WindowWidth=[1025, 2]), nothing=dict(WindowCenter=60000, WindowWidth=10),
                      sigmoid=dict(WindowCenter=2000, WindowWidth=1500, VOILUTFunction='SIGMOID'), exact=dict(WindowCenter=2000, WindowWidth=1500, VOILUTFunction='LINEAR_EXACT'),
                      rescaled=dict(RescaleSlope=.25, RescaleIntercept=-100, WindowCenter=400, WindowWidth=300), padded=dict(PixelPaddingValue=0, PixelPaddingRangeLimit=900),
                      voi=dict(VOILUTSequence=table(curve[:3000], first=500)), modality=dict(ModalityLUTSequence=table(4095 - np.arange(4096), 16)), torax=dict(BodyPartExamined='TÓRAX'.encode('latin-1').decode('latin-1').replace('Ó', 'O')))
    for name, given in attributes.items(): write_dicom(pixels, folder/f'{name}.dcm', given)
    refused = dict(mr=dict(Modality='MR'), lateral=dict(ViewPosition='LL'), foot=dict(BodyPartExamined='FOOT'), raw=dict(PresentationIntentType='FOR PROCESSING'), series=dict(ViewPosition=None, SeriesDescription='CHEST LAT'))
    for name, given in refused.items(): write_dicom(pixels, folder/f'{name}.dcm', given)
    whole = (folder/'plain.dcm').read_bytes()
    (folder/'cut.dcm').write_bytes(whole[:len(whole)//2])
    (folder/'unmarked.dcm').write_bytes(whole[132:])


@pytest.fixture(scope='module')
def runtime():
    "The runtime of the page: name -> bytes."
    if not all((browser.cache_folder('page')/f'{f.package}-{f.version}-{Path(f.path).name}').is_file() for f in browser.RUNTIME) and not shutil.which('npm'): pytest.skip('npm is not installed, and fetches the runtime of the page')
    return browser.runtime_files()


@needs_node
@pytest.mark.filterwarnings('ignore')
def test_dicom_is_shown_as_the_library_shows_it(tmp_path, runtime):
    dicoms(tmp_path)
    (tmp_path/'parser.js').write_bytes(runtime['dicom-parser.js'])
    (tmp_path/'words.json').write_text(json.dumps(browser.shared_words(dict(thresholds={}, scores={}))['dicom']))
    script = '''const folder = process.argv[1], words = JSON.parse(fs.readFileSync(folder + '/words.json')), found = {}
    globalThis.dicomParser = require(folder + '/parser.js')
    const D = require(PAGE + '/dicom.js')
    for (const name of fs.readdirSync(folder).filter(name => name.endsWith('.dcm'))) try {
      const {picture, refused} = D.readDicom(new Uint8Array(fs.readFileSync(`${folder}/${name}`)), words, 1e8)
      if (picture) fs.writeFileSync(`${folder}/${name}.grey`, picture.data)
      found[name] = refused ?? '' } catch (error) { found[name] = error.message }
    console.log(JSON.stringify(found))'''
    found = node(script, tmp_path)
    for path in sorted(tmp_path.glob('*.dcm')):
        try: expected = np.asarray(read_dicom(path))
        except UserError as error:
            assert found[path.name] and (found[path.name] in str(error) or 'truncated' in str(error) and 'truncated' in found[path.name]), (path.name, found[path.name], str(error))
            continue
        assert found[path.name] == '' and (np.fromfile(f'{path}.grey', np.uint8) == expected.ravel()).all(), (path.name, found[path.name])


def test_a_changed_runtime_is_refused():
    with pytest.raises(UserError, match='SHA-256'): browser.checked(browser.RUNTIME[0], b'')
    with pytest.raises(UserError, match='npm or cdn'): browser.chosen_runtime('yarn')


# ---- the page, in Chromium ----

FINDINGS = ['Effusion', 'Mass', 'Hernia']


class DarkMiddle(torch.nn.Module):
    "Stands for a lung segmenter, which takes long to export: what is dark in the middle of the picture is lung."
    def __init__(self):
        super().__init__()
        y, x = np.mgrid[:192, :192]/191 - .5
        self.register_buffer('middle', torch.tensor(np.hypot(x/.36, y/.4) < 1, dtype=torch.float32))

    def forward(self, image):
        mask = ((.55 - image[:, 0])*12).sigmoid()*self.middle
        return mask, 1 - 1.5*(mask.mean((1, 2)) - .2).abs()


class Mean(torch.nn.Module):
    "Stands for a gate: two numbers of the map that it hears."
    def forward(self, heard):
        mean = heard.float().mean((1, 2, 3))
        return torch.stack([mean, -mean], 1)


def small_ready():
    "A small untrained model of two views, whose logits differ from image to image."
    from chestnb.model.fusion import FusionModel
    from chestnb.model.runs import save_model
    from chestnb.using.cheap_checks import checks_of
    from chestnb.using.deployed import Deployed
    from chestnb.using.predict import predict_images
    from chestnb.using.ready import Ready
    from chestnb.using.spec import SPEC_FORMAT
    torch.manual_seed(0)
    model = FusionModel(('test_resnet',)*2, reduced_channels=16, findings=FINDINGS, views=('whole', 'lungs'), branch_heads=True, answer='mean').eval()
    with torch.no_grad():
        for head in (model.head, *model.branch_heads): head.weight *= 40
    known = dict(auroc=.8, low=.7, high=.9, positive=30, better_than_chance=True)
    spec = dict(format=SPEC_FORMAT, weights='', name='a trial', made='2026-11-27T05:00:00Z', chestnb='0.2.0', synthetic=True, note=NOT_FOR_CLINICAL_USE, findings=FINDINGS, image_size=64, views=['whole', 'lungs'], tta=2,
                answer='mean', map_share=[1., 1.], lungs=dict(image_size=192, margin=.1, least_quality=.75, least_area=.05, most_area=.7, sha256=''),
                calibration=dict(method='platt', curves={'Effusion': dict(intercept=-.5, slope=.8)}), thresholds=dict(rule='youden', value=None, by_finding={'Effusion': .3, 'Mass': .5}), prevalence={'Effusion': .1, 'Mass': .05, 'Hernia': 0.},
                scores=dict(part='test', images=100, patients=40, findings={'Effusion': known, 'Mass': known | dict(low=.4, better_than_chance=False)}), refusal=dict(scores=[dict(name='distance', limit=1e9, says='Far away.', far=1e9), dict(name='mirrored', limit=1e9, says='Mirrored.')], checks=checks_of([]), fitted_on={}, figures={}),
                data=dict(name='embedded', images=10, patients=5, provenance={}), run={})
    ready = Ready(spec, Deployed(model, Mean(), 2).eval(), DarkMiddle(), Path('nowhere'), torch.device('cpu'))
    two = predict_images(ready, [render(Anatomy(3, 'F'), {'Effusion': .8}, 'PA', 320, 1).image, render(Anatomy(8, 'M'), {'Cardiomegaly': .7}, 'AP', 500, 2).image], progress=False)
    usual = sum(answer.refusal['distance'] for answer in two)/2
    for score, limit in zip(spec['refusal']['scores'], (1.2*usual, -.6*usual)): score['limit'] = limit
    return ready


@pytest.fixture(scope='module')
def ready(runtime):
    pytest.importorskip('onnxscript', reason='onnxscript is not installed: pip install "chestnb[export]"')
    return small_ready()


@pytest.fixture(scope='module')
def page(ready, tmp_path_factory):
    "A page of the small model, in a folder."
    return browser.build_page(ready, tmp_path_factory.mktemp('site')/'page', 'npm' if shutil.which('npm') else '').folder


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args): pass


@contextmanager
def served(folder):
    "Address of a folder, as `python -m http.server` gives it."
    with http.server.ThreadingHTTPServer(('127.0.0.1', 0), partial(Quiet, directory=str(folder))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try: yield f'http://localhost:{server.server_port}/'
        finally: server.shutdown()


@pytest.fixture(scope='module')
def address(page):
    with served(page) as address: yield address


@pytest.fixture(scope='module')
def chromium():
    if not CHROMIUM: pytest.skip('Chromium is not installed')
    playwright = pytest.importorskip('playwright.sync_api', reason='playwright is not installed: pip install playwright')
    with playwright.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=CHROMIUM, args=ARGS)
        yield opened
        opened.close()


@contextmanager
def visit(chromium, address, ready=True, before=None, **settings):
    "A fresh browser on the page; without `ready`, what its status line says in the end is a fault."
    context = chromium.new_context(**{'viewport': dict(width=1280, height=900)} | settings)
    tab = context.new_page()
    tab.wrong = []
    tab.on('pageerror', lambda error: tab.wrong.append(str(error)))
    if before: before(tab)
    tab.goto(address)
    tab.wait_for_selector('html[data-ready]' if ready else '#status.fault', state='attached', timeout=WAIT)
    try: yield tab
    finally: context.close()
    assert tab.wrong == []


def done(tab, count): tab.wait_for_selector(f'html[data-done="{count}"]', state='attached', timeout=WAIT)


ANSWERS = '''items.map(({name, status, answer}) => ({name, status, reasons: answer.reasons, notes: answer.notes, box: answer.box ?? null, size: answer.size ?? null,
    findings: status === 'answered' ? rowsOf({answer}).map(({index, above, ...row}) => row) : [], maps: answer.maps ? answer.maps.map(map => Array.from(map)) : null}))'''


def radiographs(folder):
    "Drawn X-rays as files of many kinds, and some that are none."
    drawn = render(Anatomy(3, 'F'), {'Effusion': .8}, 'PA', 320, 1).image
    other = render(Anatomy(8, 'M'), {'Cardiomegaly': .7}, 'AP', 500, 2).image
    Image.fromarray(drawn).save(folder/'a.png')
    Image.fromarray(other[:, 60:430]).save(folder/'b tall.png')
    Image.fromarray(other).convert('RGB').save(folder/'c colour.png')
    Image.fromarray(drawn.astype(np.uint16) << 5).save(folder/'d deep.png')
    Image.fromarray(drawn).save(folder/'e.jpg', quality=90)
    Image.fromarray(other).save(folder/'f.bmp')
    write_dicom((drawn.astype(np.uint16) << 4), folder/'g.dcm', dict(WindowCenter=2000, WindowWidth=3000))
    write_dicom((other.astype(np.uint16) << 4), folder/'h inverted.dcm', photometric='MONOCHROME1')
    Image.fromarray(np.full((100, 100), 90, np.uint8)).save(folder/'i blank.png')
    Image.fromarray(np.stack([drawn, 255 - drawn, drawn], -1)).save(folder/'j painted.png')
    Image.fromarray(np.stack([drawn, 255 - drawn, drawn], -1)).quantize(60).save(folder/'k palette.png')
    Image.fromarray(np.stack([other, 255 - other, other], -1)).save(folder/'l painted.jpg', quality=95)
    Image.fromarray(np.hstack([other, other, other])).save(folder/'m strip.png')
    write_dicom((drawn.astype(np.uint16) << 4), folder/'n odd.dcm', dict(BodyPartExamined='SOMETHING', WindowCenter=100, WindowWidth=.5))
    write_dicom((drawn.astype(np.uint16) << 4), folder/'o side.dcm', dict(ViewPosition='LL'))
    return sorted(folder.glob('?*.*'))


def test_the_page_says_what_python_says(chromium, address, ready, tmp_path):
    from chestnb.using.predict import predict_images
    paths = radiographs(tmp_path)
    expected = predict_images(ready, paths, progress=False)
    said = sorted({reason for answer in expected for reason in answer.reasons})
    assert len(said) >= 5, said
    asked = []
    with visit(chromium, address, before=lambda tab: tab.on('request', lambda request: asked.append((request.method, request.url)))) as tab:
        tab.set_input_files('#files', paths)
        done(tab, len(paths))
        found = {answer['name']: answer for answer in tab.evaluate(ANSWERS)}
        shift = tab.evaluate(f"findingRow(spec, 'Effusion', items[0].answer.logits[0], {{Effusion: .4}}).probability")
    assert [answer.status for answer in expected] == [found[answer.image]['status'] for answer in expected]
    assert sum(answer.box is not None for answer in expected) >= 8 and sum(answer.status == 'answered' for answer in expected) >= 6 and {answer.status for answer in expected} == {'answered', 'refused'}
    for answer in expected:
        own = found[answer.image]
        assert (own['size'], own['notes'], own['reasons']) == (answer.size and list(answer.size), answer.notes, answer.reasons), answer.image
        assert own['box'] == (answer.box and list(answer.box)), answer.image
        for ours, theirs in zip(answer.findings, own['findings'], strict=True):
            assert abs(ours.pop('probability') - theirs.pop('probability')) < 1e-3, answer.image
            assert ours == theirs
        if answer.maps is not None: assert np.abs(np.array(own['maps']).reshape(answer.maps.shape) - answer.maps).max() < 1e-3*max(1, answer.maps.max()), answer.image
    assert abs(predict_images(ready, paths[:1], prevalence={'Effusion': .4}, progress=False)[0].findings[0]['probability'] - shift) < 1e-3
    assert {method for method, _ in asked} == {'GET'} and all(url.startswith((address, 'blob:', 'data:')) for _, url in asked)


def test_files_that_are_no_radiograph_are_said_in_words(chromium, address, tmp_path):
    import pydicom
    kinds = {'text.png': b'hello, this is no image' * 10, 'zip.png': b'PK\x03\x04' + bytes(200), 'empty.png': b'', 'scan.tif': b'II*\0' + bytes(200), 'broken.dcm': bytes(128) + b'DICM' + bytes(99)}
    for name, content in kinds.items(): (tmp_path/name).write_bytes(content)
    whole = write_dicom(waves(64, 64, 4000), tmp_path/'mr.dcm', dict(Modality='MR'))
    packed = pydicom.dcmread(write_dicom(waves(64, 64, 4000), tmp_path/'rle.dcm'))
    packed.compress(pydicom.uid.RLELossless)
    packed.save_as(tmp_path/'rle.dcm')
    says = {'text.png': 'Is no picture', 'zip.png': 'Is a zip archive', 'empty.png': 'Is empty', 'scan.tif': 'TIFF', 'broken.dcm': 'malformed', 'mr.dcm': "Its modality is 'MR'", 'rle.dcm': 'RLE Lossless'}
    with visit(chromium, address) as tab:
        tab.set_input_files('#files', [tmp_path/name for name in says])
        done(tab, len(says))
        found = {answer['name']: answer for answer in tab.evaluate(ANSWERS)}
        assert whole.name in tab.inner_text('#images')
    for name, words in says.items():
        assert found[name]['status'] == ('refused' if name == 'mr.dcm' else 'failed') and words in found[name]['reasons'][0] and found[name]['findings'] == [], (name, found[name])


def copied(page, folder, change):
    "A copy of the page with something wrong."
    there = Path(shutil.copytree(page, folder/'page'))
    change(there)
    return there


@pytest.mark.parametrize('change, words', [
    (lambda there: (there/'model.onnx').unlink(), 'model.onnx is missing on the server'),
    (lambda there: (there/'model.onnx').write_bytes(b'x' + (there/'model.onnx').read_bytes()[1:]), 'model.onnx is not the file that this page was built with'),
    (lambda there: (there/'model.json').write_bytes((there/'model.json').read_bytes().replace(b'Mass', b'Moss', 1)), 'model.json is not the file'),
    (lambda there: (there/'dicom.js').unlink(), 'could not be loaded')], ids=['missing', 'changed', 'spec changed', 'script missing'])
def test_a_page_with_a_wrong_file_says_so(chromium, page, tmp_path, change, words):
    with served(copied(page, tmp_path, change)) as address, visit(chromium, address, ready=False) as tab: assert words in tab.inner_text('#status')


def test_a_browser_that_cannot_is_told(chromium, address):
    with visit(chromium, address, ready=False, before=lambda tab: tab.add_init_script('delete window.WebAssembly')) as tab: assert 'no WebAssembly' in tab.inner_text('#status')


def test_without_a_connection_the_page_works_once_it_was_loaded(chromium, page):
    with served(page) as address:
        with visit(chromium, address) as tab:
            tab.evaluate('navigator.serviceWorker.ready.then(() => 1)')
            context = tab.context
            context.set_offline(True)
            tab.goto(address)
            tab.wait_for_selector('html[data-ready]', state='attached', timeout=WAIT)
            tab.click('#samples button')
            done(tab, 1)
            assert tab.query_selector('#findings') or tab.query_selector('.reasons')


def test_fifty_files_are_queued_and_the_page_fits_a_phone(chromium, address, tmp_path):
    picture = Image.fromarray(render(Anatomy(5, 'M'), {}, 'PA', 128, 0).image)
    for i in range(50): picture.save(tmp_path/f'{i:02}.png')
    with visit(chromium, address, viewport=dict(width=390, height=844)) as tab:
        tab.set_input_files('#files', sorted(tmp_path.glob('*.png')))
        done(tab, 50)
        assert len(tab.query_selector_all('#images li')) == 50 and 'All 50 images are done' in tab.inner_text('#status')
        assert tab.evaluate('document.documentElement.scrollWidth') <= 390
        tab.click('#clear')
        assert tab.query_selector_all('#images li') == []


def test_the_keyboard_is_enough(chromium, address):
    with visit(chromium, address) as tab:
        tab.focus('#samples button')
        tab.keyboard.press('Enter')
        done(tab, 1)
        tab.focus('#findings button')
        assert 'Orange' in tab.inner_text('#caption') or 'Nothing in this image' in tab.inner_text('#caption')
        tab.focus('#findings button[data-finding=Effusion]')
        before = tab.inner_text('#findings button[data-finding=Effusion] .number')
        tab.keyboard.press('Enter')
        assert 'threshold is 30 %' in tab.inner_text('#more') and 'assumes 10' in tab.inner_text('#more')
        tab.fill('#prevalence', '60')
        tab.keyboard.press('Tab')
        assert tab.inner_text('#findings button[data-finding=Effusion] .number') != before
        assert 'never shown to be better than chance' in tab.inner_text('#findings button[data-finding=Mass]')
        calibrated, score = (tab.inner_text(f'#findings button[data-finding={name}] .number') for name in ('Effusion', 'Mass'))
        assert '%' in calibrated and score.startswith('score ') and '%' not in score   # as in chestnb_predict: no per cent where nothing was calibrated
        tab.click('#findings button[data-finding=Mass]')
        assert 'threshold is 0.5,' in tab.inner_text('#more') and 'a score and no probability' in tab.inner_text('#more')
        assert 'Not for clinical use' in tab.inner_text('#words') and 'synthetic' in tab.inner_text('header')
