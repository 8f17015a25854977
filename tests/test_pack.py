"""Packs: the same pixels as the files, whole after any interruption, and never an outdated one in silence."""
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from PIL import Image

import chestnb.data.pack as data_pack
from typed import typed
from chestnb.commands.data import chestnb_pack, pack_sizes
from chestnb.data.findings import FINDINGS
from chestnb.data.dataset import ChestDataset
from chestnb.data.images import read_image
from chestnb.data.tables import write_metadata
from chestnb.core.errors import UserError
from chestnb.core.locks import file_lock
from chestnb.data.squares import Crop, cropped_square, grey_square, pad_to_square, scaled_box
from chestnb.data.pack import (PACK_CHUNK, Pack, block_shuffle, find_pack, pack_images, pack_key, pack_recipe, read_record,
    sound_chunks, source_state, verified_pack, verify_pack)

N = 150  # images of the folder below: three chunks, the last one short


def make_folder(path, n=N):
    "Grey, colour and 16-bit PNGs of many shapes, synthetic noise."
    import pandas as pd
    (path/'images').mkdir(parents=True)
    rng, rows = np.random.default_rng(0), []
    for i in range(n):
        name, height, width = f'{90_000_001 + i//3}_{i % 3:03}.png', 20 + i % 40, 60 - i % 25
        pixels = rng.integers(0, 256, (height, width), dtype=np.uint8)
        if i % 10 == 1: image = Image.fromarray(pixels).convert('RGBA')
        elif i % 10 == 2: image = Image.fromarray(pixels.astype(np.uint16)*256)
        else: image = Image.fromarray(pixels)
        image.save(path/'images'/name)
        rows.append({'image': name, 'patient_id': 90_000_001 + i//3, 'follow_up': i % 3, 'age': 50.0, 'sex': 'F', 'view_position': 'PA',
                     'width': width, 'height': height, 'pixel_spacing_x': 0.1, 'pixel_spacing_y': 0.1,
                     **{finding: i % 3 == 0 and finding == 'Mass' for finding in FINDINGS}, 'No Finding': i % 3 != 0})
    write_metadata(pd.DataFrame(rows), path/'data.csv')
    return path


@pytest.fixture(scope='module')
def template(tmp_path_factory):
    return make_folder(tmp_path_factory.mktemp('template')/'set')


@pytest.fixture
def folder(template, tmp_path):
    "A copy with the times of the files kept."
    return Path(shutil.copytree(template, tmp_path/'set'))


@pytest.fixture
def dataset(folder):
    return ChestDataset(folder)


def pack(dataset, size=32, **arguments):
    return pack_images(dataset, size, **{'workers': 1, 'progress': False, **arguments})


def right(made, dataset):
    "Every row against the file, read afresh."
    return all(np.array_equal(made.pixels[made.row[name]], grey_square(read_image(dataset.image_path(name)), made.size))
               for name in dataset.table.image if name not in made.skipped)


def heard(call):
    "What a call returns, and the warnings that it gives."
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        result = call()
    return result, [str(one.message) for one in caught]


def break_file(path):
    content = Path(path).read_bytes()
    Path(path).write_bytes(content[:len(content)//2])
    return content


def decoded(monkeypatch):
    "A list that fills with the names of the files that are decoded."
    names, plain = [], data_pack.read_image
    monkeypatch.setattr(data_pack, 'read_image', lambda path: names.append(Path(path).name) or plain(path))
    return names


# -- the square

@settings(deadline=None, max_examples=60)
@given(st.integers(1, 90), st.integers(1, 90), st.integers(8, 64), st.integers(0, 1000))
def test_square_pads_and_keeps_the_mean(height, width, size, seed):
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width), dtype=np.uint8)
    padded = np.asarray(pad_to_square(Image.fromarray(pixels)))
    side = max(height, width)
    assert padded.shape == (side, side) and padded.sum() == pixels.sum()
    square = grey_square(Image.fromarray(pixels), size)
    assert square.shape == (size, size) and square.dtype == np.uint8 and square.flags['C_CONTIGUOUS']
    if side % size == 0: assert abs(square.mean() - padded.mean()) < 6


def triangle_weights(old, new):
    "Anti-aliased linear interpolation, written down from its definition."
    scale = old/new
    centres, positions = (np.arange(new) + .5)*scale, np.arange(old) + .5
    weights = np.clip(1 - np.abs(positions - centres[:, None])/max(scale, 1), 0, None)
    return weights/weights.sum(1, keepdims=True)


@pytest.mark.parametrize('old, new', [(128, 64), (128, 32), (300, 128), (512, 128), (224, 96)])
def test_shrinking_is_anti_aliased_linear_interpolation(old, new):
    pixels = np.random.default_rng(0).integers(0, 256, (old, old), dtype=np.uint8)
    weights = triangle_weights(old, new)
    expected = weights @ pixels.astype(float) @ weights.T
    assert np.abs(grey_square(Image.fromarray(pixels), new) - expected).max() <= 1


def test_shortcut_for_large_reductions_stays_close():
    "Whole blocks first: noise, the worst case, moves by a few grey levels, a smooth picture by less than one."
    rng = np.random.default_rng(0)
    smooth = Image.fromarray(rng.integers(0, 256, (16, 16), dtype=np.uint8)).resize((1024, 1024), Image.Resampling.BICUBIC)
    weights = triangle_weights(1024, 224)
    assert np.abs(grey_square(smooth, 224) - weights @ np.asarray(smooth, float) @ weights.T).max() <= 1.5


def test_stripes_finer_than_a_pixel_become_grey():
    stripes = np.tile(np.uint8([0, 255]), (1024, 512))
    assert np.abs(grey_square(Image.fromarray(stripes), 224).astype(float) - 127.5).max() < 25
    assert stripes[::4, ::4].std() == 0 and stripes[::4, ::4].mean() in (0, 255) # what skipping would give


# -- packing

@pytest.mark.parametrize('workers', [1, 2])
@pytest.mark.parametrize('size', [16, 48])
def test_every_pixel_is_that_of_the_file(dataset, size, workers):
    made = pack(dataset, size, workers=workers)
    assert made.pixels.shape == (N, size, size) and made.pixels.dtype == np.uint8
    assert made.images == list(dataset.table.image) and right(made, dataset)
    assert sorted(p.name for p in made.path.parent.iterdir()) == [made.data_path.name, f'{size}.json']
    assert verify_pack(made, progress=False) == N
    assert np.array_equal(np.load(made.data_path), made.pixels) # any program can open it


def test_real_originals_within_one_grey_level_of_the_loader(shared_nih, tmp_path):
    import pandas as pd
    from chestnb.data.items import GreyImages
    from chestnb.data.nih import nih_metadata
    (tmp_path/'images').symlink_to(shared_nih/'originals_1024')
    table = nih_metadata()
    table[table.image.isin(os.listdir(shared_nih/'originals_1024'))].pipe(write_metadata, tmp_path/'data.csv')
    dataset = ChestDataset(tmp_path, on_mismatch='drop')
    straight = GreyImages(dataset, 224, cache_bytes=0)
    made = pack(dataset, 224, workers=2)
    for name in dataset.table.image:
        assert np.abs(made.batch([made.row[name]])[0].astype(int) - straight.decode_image(name)[0]).max() <= 1
        exact = read_image(dataset.image_path(name)).resize((224, 224), Image.Resampling.BILINEAR)
        assert np.abs(made.batch([made.row[name]])[0] - np.asarray(exact, float)).mean() < 1


def test_nothing_to_do_does_nothing(dataset, monkeypatch):
    first = pack(dataset)
    names, before = decoded(monkeypatch), first.data_path.stat().st_mtime_ns
    again = pack(dataset)
    assert not names and again.key == first.key and again.data_path.stat().st_mtime_ns == before


def test_the_images_folder_and_the_data_set_are_undisturbed(dataset, folder):
    pack(dataset)
    again = ChestDataset(folder)
    assert list(again.table.image) == list(dataset.table.image)


def test_out_lies_elsewhere_and_is_found_through_the_environment(dataset, tmp_path, monkeypatch):
    made = pack(dataset, out=tmp_path/'fast disk')
    assert not (dataset.path/'packs').exists() and find_pack(dataset, 32) is None
    monkeypatch.setenv('CHESTNB_PACKS', str(tmp_path/'nothing') + os.pathsep + str(tmp_path/'fast disk'))
    assert find_pack(dataset, 32).key == made.key


def test_key_depends_on_everything_that_went_in(dataset):
    images = list(dataset.table.image)
    recipe, state = pack_recipe(32, images), source_state([dataset.image_path(name) for name in images])
    key, one_byte, one_ns = pack_key(recipe, images, state), state.copy(), state.copy()
    one_byte[3, 0] += 1
    one_ns[3, 1] += 1
    others = [pack_key(recipe | {name: 'other'}, images, state) for name in recipe]
    others += [pack_key(recipe, images, one_byte), pack_key(recipe, images, one_ns), pack_key(recipe, images[::-1], state)]
    assert len({key, *others}) == len(others) + 1
    assert {'chestnb', 'pillow', 'size', 'resize', 'format'} <= set(recipe) and 'pydicom' in pack_recipe(32, ['a.dcm'])


def test_refusals(dataset, monkeypatch, tmp_path):
    with pytest.raises(UserError, match='at least 8'): pack(dataset, 4)
    monkeypatch.setattr(data_pack.shutil, 'disk_usage', lambda path: SimpleNamespace(free=1))
    with pytest.raises(UserError, match='GB are free'): pack(dataset)
    (tmp_path/'file').write_text('')
    with pytest.raises(UserError, match='cannot be made'): pack(dataset, out=tmp_path/'file'/'packs')


def test_one_run_at_a_time(dataset):
    (dataset.path/'packs').mkdir()
    with file_lock(dataset.path/'packs'/'.32.lock', 'chestnb_pack'):
        with pytest.raises(UserError, match=rf'packs: chestnb_pack \(process {os.getpid()} on .*is at work here'): pack(dataset)
    assert right(pack(dataset), dataset)


# -- crops

def lungs(margin=.1, left_out=()):
    "A made-up crop: boxes on a picture of 100 pixels that differ from image to image."
    def box(name): return None if name in left_out else (10, 20, 70 + int(name[-5]), 90, 100, 100)
    return Crop('lungs', {'margin': margin}, box)


@pytest.mark.parametrize('workers', [1, 2])
def test_a_crop_has_a_pack_of_its_own_with_the_right_pixels(dataset, workers):
    whole, crop = pack(dataset), lungs(left_out=(dataset.table.image[4],))
    made = pack(dataset, crop=crop, workers=workers)
    assert made.path.name == '32_lungs.json' and whole.data_path.is_file()
    for row, name in enumerate(made.images):
        assert np.array_equal(made.pixels[row], cropped_square(read_image(dataset.image_path(name)), 32, crop.box(name)))
    assert np.array_equal(made.pixels[4], whole.pixels[4]) and not np.array_equal(made.pixels[5], whole.pixels[5])
    assert find_pack(dataset, 32).key == whole.key and find_pack(dataset, 32, crop=crop).key == made.key
    assert pack(dataset).reused and pack(dataset, crop=crop).reused and verified_pack(dataset, 32, progress=False, crop=crop).key == made.key


def test_another_crop_is_not_used(dataset):
    made = pack(dataset, crop=lungs())
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        assert find_pack(dataset, 32, crop=lungs(margin=.2)) is None
    assert 'crop' in str(caught[0].message) and find_pack(dataset, 32) is None
    again = pack(dataset, crop=lungs(margin=.2))
    assert again.key != made.key and not made.data_path.exists()


def test_boxes_are_scaled_to_the_image():
    assert scaled_box((10, 20, 70, 90, 100, 100), (1024, 512)) == (102, 102, 717, 461)


# -- a killed worker

def test_a_killed_worker_is_a_sentence_and_the_rest_is_kept(dataset, monkeypatch):
    monkeypatch.setattr(data_pack, 'grey_square', lambda *given: os._exit(9))
    monkeypatch.setattr('chestnb.data.squares.grey_square', lambda *given: os._exit(9))
    with pytest.raises(UserError, match='worker process was killed.*--workers 1'): pack(dataset, workers=2)
    monkeypatch.undo()
    assert right(pack(dataset), dataset)


def test_no_shared_memory_for_processes_means_one_process(dataset, monkeypatch):
    def none(*args, **kwargs): raise OSError(38, 'Function not implemented')
    monkeypatch.setattr('chestnb.core.processes.ProcessPoolExecutor', none)
    assert right(pack(dataset, workers=4), dataset)


# -- unusable images

@pytest.mark.parametrize('workers', [1, 2])
def test_unusable_images_are_all_named_at_the_end(dataset, workers, monkeypatch):
    names = [dataset.table.image[i] for i in (5, 70, 140)]
    whole = {name: break_file(dataset.image_path(name)) for name in names}
    with pytest.raises(UserError, match='3 of 150') as caught: pack(dataset, workers=workers)
    assert all(name in str(caught.value) for name in names) and 'skip_unusable' in str(caught.value)
    assert not (dataset.path/'packs'/'32.json').exists() and find_pack(dataset, 32) is None
    for name in names: dataset.image_path(name).write_bytes(whole[name])
    done = decoded(monkeypatch)
    assert right(pack(dataset), dataset)


def test_unusable_images_can_be_left_out(dataset):
    name = dataset.table.image[70]
    break_file(dataset.image_path(name))
    made = pack(dataset, skip_unusable=True)
    assert list(made.skipped) == [name] and 'truncated' in made.skipped[name] and name not in made.row
    assert right(made, dataset) and not made.pixels[70].any() and find_pack(dataset, 32).key == made.key


def test_after_a_repair_only_the_rest_is_made(dataset, monkeypatch):
    "Chunks without a broken image are kept although the key is another one."
    name = dataset.table.image[70] # second chunk
    whole = break_file(dataset.image_path(name))
    with pytest.raises(UserError): pack(dataset)
    dataset.image_path(name).write_bytes(whole)
    names = decoded(monkeypatch)
    made = pack(dataset)
    assert right(made, dataset)
    assert sorted(names) == sorted(decoded_in_chunk(dataset, 1))


def decoded_in_chunk(dataset, chunk):
    return list(dataset.table.image[chunk*PACK_CHUNK:(chunk + 1)*PACK_CHUNK])


# -- interruption

SLOW = '''
import sys, time
import chestnb.data.pack as data_pack, chestnb.data.squares as data_squares
from chestnb.data.dataset import ChestDataset
quick = data_squares.grey_square
data_squares.grey_square = lambda *given: time.sleep(.01) or quick(*given)
data_pack.pack_images(ChestDataset(sys.argv[1]), 32, workers=int(sys.argv[2]), progress=False)
'''


def start_slowly(folder, workers):
    return subprocess.Popen([sys.executable, '-c', SLOW, str(folder), str(workers)])


def recorded(folder):
    return sum(p.read_text().count('"sha256"') for p in (folder/'packs').glob('.32-*.record'))


def wait_for(condition, seconds=60):
    started = time.time()
    while not condition():
        assert time.time() - started < seconds, 'waited too long'
        time.sleep(.01)


@pytest.mark.parametrize('workers', [1, 2])
def test_kill_9_and_resume(dataset, folder, workers, monkeypatch):
    victim = start_slowly(folder, workers)
    wait_for(lambda: recorded(folder) >= 1 or victim.poll() is not None)
    victim.send_signal(signal.SIGKILL)
    victim.wait()
    assert victim.returncode == -signal.SIGKILL and find_pack(dataset, 32) is None
    wait_for(lambda: not orphans(folder))
    kept, names = recorded(folder), decoded(monkeypatch)
    made = pack(dataset)
    assert right(made, dataset) and verify_pack(made, progress=False) == N
    assert len(names) <= N - (kept - 1)*PACK_CHUNK - 22 # finished chunks (22 images in the last) were not decoded again
    assert not list((folder/'packs').glob('.32-*'))


def orphans(folder):
    "Processes that still work for a killed parent."
    found = []
    for path in Path('/proc').glob('[0-9]*/cmdline'):
        try: command, parent = path.read_bytes().decode(), (path.parent/'stat').read_text().rsplit(')', 1)[1].split()[1]
        except OSError: continue
        if str(folder) in command and 'pack_images' in command and parent != str(os.getpid()): found.append(path)
    return found


def unfinished(dataset, folder):
    "An unfinished pack with everything done but the end."
    def stop(*given): raise KeyboardInterrupt
    original, data_pack.finish_pack = data_pack.finish_pack, stop
    try:
        with pytest.raises(KeyboardInterrupt): pack(dataset)
    finally: data_pack.finish_pack = original
    record, = (folder/'packs').glob('.32-*.record')
    return record, record.with_suffix('.npy')


def test_a_finished_record_needs_no_decoding(dataset, folder, monkeypatch):
    unfinished(dataset, folder)
    names = decoded(monkeypatch)
    assert right(pack(dataset), dataset) and not names


def test_a_record_that_was_cut_off(dataset, folder, monkeypatch):
    record, _ = unfinished(dataset, folder)
    text = record.read_text()
    for end in (len(text) - 30, text.index('\n') + 5, text.index('\n') - 5, 0):
        record.write_text(text[:end])
        made = pack(dataset)
        assert right(made, dataset) and verify_pack(made, progress=False)
        shutil.rmtree(folder/'packs')
        unfinished(dataset, folder)


def test_bytes_that_never_reached_the_disk_are_made_again(dataset, folder, monkeypatch):
    _, array = unfinished(dataset, folder)
    squares = np.load(array, mmap_mode='r+')
    squares[PACK_CHUNK:PACK_CHUNK + 3] = 0
    squares.flush()
    names = decoded(monkeypatch)
    assert right(pack(dataset), dataset)
    assert sorted(names) == sorted(decoded_in_chunk(dataset, 1))


def test_a_missing_or_short_array_starts_anew(dataset, folder):
    _, array = unfinished(dataset, folder)
    os.truncate(array, 5000)
    assert right(pack(dataset), dataset)
    shutil.rmtree(folder/'packs')
    _, array = unfinished(dataset, folder)
    array.unlink()
    assert right(pack(dataset), dataset)


def test_killed_between_the_two_last_renames(dataset, folder, monkeypatch):
    record, array = unfinished(dataset, folder)
    array.rename(array.with_name(array.name[1:])) # published, but no index names it
    assert find_pack(dataset, 32) is None
    names = decoded(monkeypatch)
    assert right(pack(dataset), dataset) and not names


def test_an_image_that_changes_while_packing(dataset, monkeypatch):
    plain = data_pack.fill_pack
    def meddle(*given):
        result = plain(*given)
        os.utime(dataset.image_path(dataset.table.image[0]), ns=(1, 1))
        return result
    monkeypatch.setattr(data_pack, 'fill_pack', meddle)
    with pytest.raises(UserError, match='changed while'): pack(dataset)
    monkeypatch.setattr(data_pack, 'fill_pack', plain)
    assert right(pack(dataset), dataset)


# -- never an outdated pack

CHANGES = {
    'time': lambda path: os.utime(path, ns=(1, 1)),
    'bytes': lambda path: Image.new('L', (40, 40), 7).save(path),
}


@pytest.mark.parametrize('change', CHANGES)
def test_a_changed_image_is_noticed_and_only_it_is_made_again(dataset, change, monkeypatch):
    old = pack(dataset)
    name = dataset.table.image[100]
    CHANGES[change](dataset.image_path(name))
    found, said = heard(lambda: find_pack(dataset, 32))
    assert found is None and len(said) == 1
    assert '1 of 150 images changed' in said[0] and name in said[0] and 'chestnb_pack' in said[0] and '--size 32' in said[0]
    names = decoded(monkeypatch)
    new = pack(dataset)
    assert names == [name] and right(new, dataset) and new.key != old.key and not old.data_path.exists()
    assert heard(lambda: find_pack(dataset, 32))[1] == []


def test_a_subset_without_the_changed_image_may_use_the_pack(dataset):
    made, images = pack(dataset), list(dataset.table.image)
    os.utime(dataset.image_path(images[0]), ns=(1, 1))
    assert find_pack(dataset.subset(images[50:60]), 32).key == made.key
    assert heard(lambda: find_pack(dataset.subset(images[:10]), 32))[0] is None


def test_a_new_image_is_noticed(dataset, folder):
    made = pack(dataset.subset(dataset.table.image[:100]))
    found, said = heard(lambda: find_pack(dataset, 32))
    assert len(made) == 100 and found is None and '50 of 150 images are not in it' in said[0]


def test_rows_are_found_by_name_in_any_order(dataset):
    made = pack(dataset)
    other = dataset.subset(list(dataset.table.image)[::-3])
    assert find_pack(other, 32).key == made.key
    rows = [made.row[name] for name in other.table.image]
    assert np.array_equal(made.batch(rows), np.stack([grey_square(dataset.open_image(name), 32) for name in other.table.image]))


def change_index(made, **values):
    index = json.loads(made.path.read_text())
    made.path.write_text(json.dumps(index | values))


@pytest.mark.parametrize('what', ['chestnb', 'pillow', 'resize', 'format'])
def test_another_version_or_recipe_is_not_used(dataset, what):
    made = pack(dataset)
    change_index(made, recipe=made.recipe | {what: 'something else'})
    found, said = heard(lambda: find_pack(dataset, 32))
    assert found is None and what in said[0] and 'something else' in said[0]


@pytest.mark.parametrize('damage', ['short', 'missing', 'index', 'empty index'])
def test_a_damaged_pack_is_not_used_and_mended_by_packing(dataset, damage):
    made = pack(dataset)
    if damage == 'short': os.truncate(made.data_path, 10_000)
    if damage == 'missing': made.data_path.unlink()
    if damage == 'index': made.path.write_text(made.path.read_text()[:-20])
    if damage == 'empty index': made.path.write_text('{}')
    found, said = heard(lambda: find_pack(dataset, 32))
    assert found is None and len(said) == 1
    assert right(pack(dataset), dataset) and find_pack(dataset, 32)


def flip_bit(path, place):
    with open(path, 'r+b') as file:
        file.seek(place)
        byte = file.read(1)
        file.seek(place)
        file.write(bytes([byte[0] ^ 4]))


@pytest.mark.parametrize('place', [128, 70_000, 128 + N*32*32 - 1])
def test_verify_finds_one_flipped_bit(dataset, place):
    made = pack(dataset)
    flip_bit(made.data_path, place)
    with pytest.raises(UserError, match='1 of 3 chunks'): verify_pack(made, progress=False)
    with pytest.raises(UserError, match='1 of 3 chunks'): verified_pack(dataset, 32, progress=False)


def test_a_damaged_old_pack_is_not_copied_from(dataset, monkeypatch):
    made = pack(dataset)
    flip_bit(made.data_path, 70_000) # second chunk
    os.utime(dataset.image_path(dataset.table.image[0]), ns=(1, 1))
    names = decoded(monkeypatch)
    new = pack(dataset)
    assert sorted(names) == sorted([dataset.table.image[0], *decoded_in_chunk(dataset, 1)])
    assert right(new, dataset) and verify_pack(new, progress=False)


def test_verified_pack_says_what_is_wrong(dataset):
    with pytest.raises(UserError, match='no pack of this size'): verified_pack(dataset, 32)
    pack(dataset)
    os.utime(dataset.image_path(dataset.table.image[0]), ns=(1, 1))
    with pytest.raises(UserError, match='1 of 150 images changed'): verified_pack(dataset, 32)


# -- reading

@settings(deadline=None, max_examples=30)
@given(rows=st.lists(st.integers(0, 299), max_size=40), read_ahead=st.sampled_from([0, 1, 7, 128]))
def test_batches_are_the_rows_in_the_order_asked_for(tmp_path_factory, rows, read_ahead):
    squares = np.random.default_rng(0).integers(0, 256, (300, 16, 16), dtype=np.uint8)
    folder = tmp_path_factory.mktemp('plain')
    np.save(folder/'a.npy', squares)
    index = dict(recipe={'size': 16}, key='', data='a.npy', images=[str(i) for i in range(300)], bytes=[0]*300, mtimes_ns=[0]*300,
                 skipped={}, sha256=[])
    (folder/'16.json').write_text(json.dumps(index))
    made = Pack(folder/'16.json')
    made.read_ahead = read_ahead
    for _ in range(2):
        batch = made.batch(rows)
        assert np.array_equal(batch, squares[rows]) and batch.flags['WRITEABLE'] and type(batch) is np.ndarray


def test_a_pack_travels_without_its_map(dataset):
    import pickle
    made = pack(dataset)
    made.batch([1, 2])
    text = pickle.dumps(made)
    assert len(text) < 100_000 and np.array_equal(pickle.loads(text).batch([3]), made.batch([3]))


def test_packing_needs_little_memory(tmp_path, template):
    "1,000 images at 512 px are 262 MB: the process and its workers stay far below. (`ru_maxrss` of a started process counts its starter.)"
    import pandas as pd
    first = read_image(next((template/'images').iterdir()))
    names = [f'{90_000_001 + i}_000.png' for i in range(1000)]
    (tmp_path/'images').mkdir()
    first.save(tmp_path/'images'/names[0])
    for name in names[1:]: os.symlink(tmp_path/'images'/names[0], tmp_path/'images'/name)
    row = ChestDataset(template).table.iloc[[0]]
    write_metadata(pd.concat([row.assign(image=name) for name in names], ignore_index=True), tmp_path/'data.csv')
    code = ('import sys, resource; from chestnb.data.pack import pack_images; from chestnb.data.dataset import ChestDataset; '
            'pack_images(ChestDataset(sys.argv[1]), 512, workers=2, progress=False); '
            'print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss, *(l.split()[1] for l in open("/proc/self/status") if "VmHWM" in l))')
    done = subprocess.run([sys.executable, '-c', code, str(tmp_path)], capture_output=True, text=True, check=True)
    assert max(map(int, done.stdout.split()))*1024 < 220e6, done.stdout


# -- block shuffling

@settings(deadline=None)
@given(st.integers(0, 500), st.integers(1, 600), st.integers(0, 99), st.integers(1, 9))
def test_block_shuffle_is_a_permutation_that_stays_local(n, block, seed, n_mixed):
    order = block_shuffle(n, block, random.Random(seed), n_mixed)
    assert sorted(order) == list(range(n)) and order == block_shuffle(n, block, random.Random(seed), n_mixed)
    for first in range(0, max(n - block*n_mixed, 0), max(block*n_mixed, 1)): # few blocks at a time
        assert len({row//block for row in order[first:first + block]}) <= 8*n_mixed


# -- the command

def command(*arguments): return typed('chestnb_pack', *arguments)


def test_command_packs_verifies_and_fails_plainly(dataset, folder):
    done = command(folder, '--size', 32, '--size', 16, '--workers', 1)
    assert done.returncode == 0 and '32 px, whole: 150 images' in done.stdout and '16 px, whole: 150 images' in done.stdout, done.stderr
    assert find_pack(dataset, 32) and find_pack(dataset, 16)
    done = command(folder, '--size', '16,32', '--verify')
    assert done.returncode == 0 and done.stdout.count('(verified)') == 2
    flip_bit(find_pack(dataset, 32).data_path, 5000)
    done = command(folder, '--size', 32, '--verify')
    assert done.returncode == 2 and 'Traceback' not in done.stderr and '1 of 3 chunks' in done.stderr


def test_command_says_that_a_reused_pack_was_not_checked(dataset, folder):
    "Packing again finds the finished pack and reads none of its bytes; only --verify finds damage, and its remedy works"
    words, unchecked = (folder, '--size', 32, '--workers', 1), 'made before; its bytes were not checked now: --verify does so'
    assert unchecked not in command(*words).stdout
    made = find_pack(dataset, 32)
    before = made.data_path.read_bytes()
    for place in (128, 70_000, len(before) - 1): flip_bit(made.data_path, place)
    again = command(*words)
    assert again.returncode == 0 and unchecked in again.stdout and '(verified)' not in again.stdout
    checked = command(*words, '--verify')
    assert checked.returncode == 2 and '3 of 3 chunks are not as they were written' in checked.stderr and '32.json' in checked.stderr
    made.path.unlink()
    assert unchecked not in command(*words).stdout and made.data_path.read_bytes() == before
    checked = command(*words, '--verify')
    assert checked.returncode == 0 and '(verified)' in checked.stdout and unchecked not in checked.stdout


def test_pack_knows_whether_it_was_reused(dataset):
    assert not pack(dataset).reused and pack(dataset).reused
    os.utime(dataset.image_path(dataset.table.image[0]), ns=(1, 1))
    assert not pack(dataset).reused and not find_pack(dataset, 32).reused


def test_command_names_broken_images(dataset, folder):
    name = dataset.table.image[9]
    break_file(dataset.image_path(name))
    done = command(folder, '--size', 32)
    assert done.returncode == 2 and name in done.stderr and 'Traceback' not in done.stderr
    done = command(folder, '--size', 32, '--skip_unusable')
    assert done.returncode == 0 and '1 of them left out' in done.stdout


@pytest.mark.parametrize('given, expected', [(None, [224]), (64, [64]), ('64', [64]), (['64', '32'], [64, 32]), ('64,32,64', [64, 32]), ([64, 32], [64, 32])])
def test_sizes(given, expected):
    assert pack_sizes(given) == expected


@pytest.mark.parametrize('given', ['x', '64;32', '7', '-5', '2.5'])
def test_bad_sizes(given):
    with pytest.raises(UserError, match='--size 224'): pack_sizes(given)


@pytest.mark.parametrize('content', ['null', '{}', '[]', '{"recipe": 3}'])
def test_a_file_that_is_no_index_is_named(tmp_path, content):
    (tmp_path/'32.json').write_text(content)
    with pytest.raises(UserError, match='32.json: .* the index of a pack'): Pack(tmp_path/'32.json')


def test_negative_workers_are_refused(embedded):
    with pytest.raises(UserError, match='workers is -1'): pack_images(ChestDataset(embedded), 32, workers=-1)
