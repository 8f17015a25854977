"""Lungs: the shipped segmenter, masks for data sets without any, and what goes wrong with either."""
import hashlib
import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

import chestnb
from chestnb.core.errors import UserError
from chestnb.data.dataset import ChestDataset
from chestnb.data.lung_shapes import clean_mask, dice, split_lungs
from chestnb.data.mask_pairs import chosen_pairs, held_back_rows, open_pairs
from chestnb.data.masks import read_segmentation
from chestnb.evaluation.dice_scores import dice_summary
from chestnb.model import lung_training, lungs
from chestnb.model.lung_training import dice_table, LungConfig, train_lungs
from chestnb.model.segmenter import LungSegmenter, read_segmenter, save_segmenter, shipped_segmenter
from typed import typed

SOURCES = ('Montgomery', 'Shenzhen')


@pytest.fixture
def bare(tmp_path, embedded):
    "Twelve synthetic images without masks."
    whole, folder = ChestDataset(embedded), tmp_path/'bare'
    names = sorted(whole.masked_images)[:12]
    (folder/'images').mkdir(parents=True)
    for name in names: shutil.copy(whole.image_path(name), folder/'images')
    table = pd.read_csv(whole.metadata_path, dtype=str)
    table[table['Image Index'].isin(names)].to_csv(folder/'data.csv', index=False)
    return folder


@pytest.fixture(scope='session')
def shared_lungs(root):
    "Real X-rays with lung masks that lie beside the repository on some machines and are never part of it."
    folder = root.parent/'shared'/'lungs'
    if not (folder/'README.md').exists(): pytest.skip('real lung masks are not here (looked in ../shared/lungs beside the repository)')
    return folder


# The shipped segmenter

def test_the_shipped_segmenter_is_small_and_tells_where_it_comes_from():
    path = shipped_segmenter()
    assert path.is_relative_to(Path(chestnb.__file__).parent) and path.stat().st_size <= 2_000_000
    card = json.loads(path.with_suffix('.json').read_text(encoding='utf-8'))
    assert card['sha256'] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert set(card['trained_on']) == set(SOURCES) and len(card['held_back']) == 100
    assert 'Jaeger' in card['citation'] and card['command'].startswith('chestnb_lungs train') and card['measured']['dice_mean'] > .95
    assert 'not a medical device' in card['note']


def test_nothing_of_the_shared_material_is_in_the_package():
    assert not [path for path in Path(chestnb.__file__).parent.rglob('*') if path.suffix in ('.png', '.npy', '.npz')]


def test_the_shipped_segmenter_on_real_pairs_kept_apart(shared_lungs):
    segmenter = lungs.load_segmenter()
    pairs, apart = open_pairs(shared_lungs), set(segmenter.info['held_back'])
    rows = [i for i, (source, image) in enumerate(zip(pairs.table.source, pairs.table.image)) if f'{source}/{image}' in apart]
    assert len(rows) == 100
    table = dice_table(segmenter, chosen_pairs(pairs, rows[::5]), progress=False)
    assert table.dice_lungs.mean() > .955 and table.dice_lungs.min() > .85
    assert abs(dice_summary(table).loc['all', 'mean'] - table.dice_lungs.mean()) < 1e-9


@pytest.mark.parametrize('harm, says', [
    (lambda path: path.write_bytes(path.read_bytes()[:-5000]), 'cut off, changed or exchanged'),
    (lambda path: path.write_bytes(path.read_bytes()[:-1] + b'\0'), 'cut off, changed or exchanged'),
    (lambda path: path.with_suffix('.json').unlink(), 'there is no such file'),
    (lambda path: path.with_suffix('.json').write_text('{"format": "chestnb-2"}'), "the format 'chestnb-2'"),
    (lambda path: path.unlink(), 'there is no such file')])
def test_a_damaged_segmenter_is_one_sentence(tmp_path, bare, cache, harm, says):
    for ending in ('.safetensors', '.json'): shutil.copy(shipped_segmenter().with_suffix(ending), tmp_path)
    harm(tmp_path/'lungs.safetensors')
    with pytest.raises(UserError, match=says): read_segmenter(tmp_path/'lungs.safetensors')
    done = typed('chestnb_lungs', 'segment', bare, '--segmenter', tmp_path/'lungs.safetensors')
    assert done.returncode == 2 and 'Traceback' not in done.stderr and not (bare/'segmentation.csv').exists()


def test_weights_of_another_network_with_a_right_checksum(tmp_path):
    save_segmenter(LungSegmenter(decoder=(16, 16, 16, 16)), tmp_path/'lungs.safetensors')
    card = json.loads((tmp_path/'lungs.json').read_text())
    card['model']['decoder'] = [64, 48, 32, 16]
    (tmp_path/'lungs.json').write_text(json.dumps(card))
    with pytest.raises(UserError, match='another network'): read_segmenter(tmp_path/'lungs.safetensors')


# Masks of a data set

def test_masks_are_found_once_and_nothing_is_written_beside_the_images(bare, cache, capsys, monkeypatch):
    dataset = ChestDataset(bare)
    assert lungs.with_lungs(dataset, ('whole',)) is dataset
    found = lungs.with_lungs(dataset, ('whole', 'lungs'), progress=True)
    assert len(found.masked_images) == 12 and dataset.masks_path is None and capsys.readouterr().out.count('\n') == 1
    assert sorted(path.name for path in bare.iterdir()) == ['data.csv', 'images']
    monkeypatch.setattr(lungs, 'segment_images', lambda *_, **__: pytest.fail('segmented again'))
    again = lungs.with_lungs(ChestDataset(bare), ['lungs'])
    assert again.masks_path == found.masks_path and capsys.readouterr().out == ''
    assert found.masks_path.is_relative_to(cache)


def test_a_data_set_without_masks_is_packed_with_found_lungs(bare, cache):
    done = typed('chestnb_pack', bare, '--views', 'whole,lungs', '--size', 64, '--workers', 1)
    assert done.returncode == 0 and 'Lungs found in 12 images of 12' in done.stdout and '64 px, lungs: 12 images' in done.stdout, done.stderr
    from chestnb.data.items import GreyImages
    assert None not in GreyImages(lungs.with_lungs(ChestDataset(bare), ['lungs']), 64, views=['whole', 'lungs']).packs


def test_a_single_image_without_lungs_is_shown_whole(bare, cache):
    class Blind(LungSegmenter):
        def forward(self, x): return torch.full_like(x, -9.)
    dataset = ChestDataset(bare)
    alone = lungs.with_lungs(dataset.subset(dataset.table.image[:1]), ['lungs'], Blind().eval(), progress=False)
    assert alone.masks_path is not None and not alone.masked_images


def test_own_masks_are_not_replaced(embedded):
    dataset = ChestDataset(embedded)
    assert lungs.with_lungs(dataset, ('whole', 'lungs')) is dataset


def test_another_image_gets_another_mask(bare, cache):
    segmenter, before = lungs.load_segmenter(), ChestDataset(bare)
    first = lungs.cached_masks_path(before, segmenter)
    image = before.image_path(before.table.image[0])
    image.write_bytes(before.image_path(before.table.image[1]).read_bytes())
    assert lungs.cached_masks_path(ChestDataset(bare), segmenter) != first


def test_an_interrupted_segmentation_goes_on_and_ends_in_the_same_masks(bare, cache, monkeypatch, tmp_path):
    monkeypatch.setattr(lungs, 'IMAGES_A_PART', 4)
    whole, calls, real = lungs.segment_dataset(ChestDataset(bare), progress=False), [], lungs.segment_images
    shutil.rmtree(cache)
    def stops(*args, **kwargs):
        calls.append(1)
        if len(calls) == 2: raise KeyboardInterrupt
        return real(*args, **kwargs)
    monkeypatch.setattr(lungs, 'segment_images', stops)
    with pytest.raises(KeyboardInterrupt): lungs.segment_dataset(ChestDataset(bare), progress=False)
    assert not list((cache/'lungs').glob('*.csv'))
    again = lungs.segment_dataset(ChestDataset(bare), progress=False)
    assert len(calls) == 4     # one part was kept, one stopped, two were left
    pd.testing.assert_frame_equal(again, whole)
    assert [path.suffix for path in (cache/'lungs').iterdir()] == ['.csv']


def test_a_segmenter_that_finds_nothing(bare, cache):
    class Blind(LungSegmenter):
        def forward(self, x): return torch.full_like(x, -9.)
    with pytest.raises(UserError, match='found lungs in none of the 12 images'): lungs.with_lungs(ChestDataset(bare), ['lungs'], Blind().eval(), progress=False)
    assert not list((cache/'lungs').glob('*.csv'))


def test_an_image_without_lungs_keeps_its_row_and_its_quality(bare, cache):
    dataset = ChestDataset(bare)
    name = dataset.table.image[3]
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (128, 128)).astype(np.uint8)).save(dataset.image_path(name))
    frame = lungs.segment_dataset(ChestDataset(bare), progress=False)
    assert lungs.unusable_images(frame) == [name] and frame.set_index('image').dice_mean[name] < 1
    assert len(lungs.with_lungs(ChestDataset(bare), ['lungs']).masked_images) == 11


def test_a_cache_that_cannot_be_made(bare, tmp_path, monkeypatch):
    (tmp_path/'file').write_text('')
    monkeypatch.setenv('CHESTNB_CACHE', str(tmp_path/'file'))
    with pytest.raises(UserError, match='CHESTNB_CACHE'): lungs.with_lungs(ChestDataset(bare), ['lungs'], progress=False)


@pytest.mark.parametrize('shape', [(128, 128), (96, 160), (200, 64)])
def test_masks_lie_on_the_image_whatever_its_shape(shape):
    probabilities = np.zeros((1, 192, 192), np.float32)
    side, (height, width) = max(shape), shape
    upper, left = ((side - n)//2*192//side for n in shape)
    probabilities[0, upper:upper + height*192//side, left:left + width*96//side] = 1      # the left half of the picture
    row = lungs.row_of_mask('a.png', probabilities, .95, shape)
    from chestnb.data.masks import decode_mask
    found = decode_mask(row['Right Lung'], *shape) | decode_mask(row['Left Lung'], *shape)
    true = np.zeros(shape, bool)
    true[:, :width//2] = True
    assert dice(found, true) > .95


# The commands

def test_segment_writes_once_lists_what_it_could_not_use_and_overwrites_only_when_told(bare, cache):
    done = typed('chestnb_lungs', 'segment', bare, '--unusable', bare.parent/'unusable.txt')
    assert done.returncode == 0 and '12 images: 12 masks' in done.stdout, done.stderr
    frame, first = read_segmentation(bare/'segmentation.csv'), (bare/'segmentation.csv').read_bytes()
    assert frame.dice_mean.between(.5, 1).all() and (bare.parent/'unusable.txt').read_text() == ''
    dataset = ChestDataset(bare)
    for name in dataset.table.image[:3]:
        left, right = (np.flatnonzero(dataset.mask(name, side).any(axis=0)).mean() for side in ('Left Lung', 'Right Lung'))
        assert left > right     # the patient's left is on the right of the picture
    again = typed('chestnb_lungs', 'segment', bare)
    assert again.returncode == 2 and '--overwrite' in again.stderr and 'Traceback' not in again.stderr
    assert typed('chestnb_lungs', 'segment', bare, '--overwrite').returncode == 0 and (bare/'segmentation.csv').read_bytes() == first
    assert typed('chestnb_lungs', 'segment', bare, '--out', bare.parent/'elsewhere.csv').returncode == 0
    assert (bare.parent/'elsewhere.csv').read_bytes() == first


def test_train_resumes_and_its_segmenter_segments(bare, cache, embedded, tmp_path):
    pairs = tmp_path/'pairs'
    for name in ('images', 'masks'): (pairs/name).mkdir(parents=True)
    whole = ChestDataset(embedded)
    for name in sorted(whole.masked_images)[:24]:
        shutil.copy(whole.image_path(name), pairs/'images')
        Image.fromarray((whole.mask(name, 'Left Lung') | whole.mask(name, 'Right Lung')).astype(np.uint8)*255).save(pairs/'masks'/f'{Path(name).stem}_mask.png')
    words = ['chestnb_lungs', 'train', '--data', pairs, '--out', tmp_path/'run', '--held-back', 4, '--epochs', 1, '--image-size', 64, '--batch-size', 4, '--weights', 'none']
    done = typed(*words)
    assert done.returncode == 0 and 'Dice of the lungs on 4 images of 4 patients kept apart' in done.stdout, done.stderr
    assert typed(*words).returncode == 2
    first = (tmp_path/'run'/'lungs.safetensors').read_bytes()
    assert typed(*words, '--resume').returncode == 0 and (tmp_path/'run'/'lungs.safetensors').read_bytes() == first
    other = typed(*[*words[:-1], 'none', '--seed', 5, '--resume'])
    assert other.returncode == 2 and 'seed: was 0, now 5' in other.stderr
    assert set(pd.read_csv(tmp_path/'run'/'dice.csv')) == {'image', 'patient_id', 'source', 'quality', 'dice_lungs'}


def test_hearts_are_learned_where_all_masks_have_them(embedded, tmp_path):
    pairs = chosen_pairs(open_pairs(embedded), range(16))
    table = train_lungs(pairs, tmp_path/'run', LungConfig(epochs=1, image_size=64, batch_size=4, weights='none', held_back=2), progress=False)
    assert read_segmenter(tmp_path/'run'/'lungs.safetensors').structures == ('lungs', 'heart') and 'dice_heart' in table


@pytest.mark.parametrize('words, says', [
    (['segment', 'nowhere'], 'nowhere'), (['train', '--data', 'nowhere'], 'no such folder'), (['train'], 'chestnb_lungs train --data DIR'),
    (['trian'], 'expected one of train, segment')])
def test_mistakes_are_one_sentence(tmp_path, words, says):
    done = typed('chestnb_lungs', *words, cwd=tmp_path)
    assert done.returncode == 2 and says in done.stderr and 'Traceback' not in done.stderr


def test_help_names_both_commands_and_all_their_options():
    text = typed('chestnb_lungs', '--help').stdout
    assert 'usage: chestnb_lungs {train,segment}' in text and 'usage: chestnb_lungs segment' in text and '--held_back' in text and '--overwrite' in text
    assert typed('chestnb_lungs', 'segment', '--help').stdout.startswith('usage: chestnb_lungs segment')


# Shapes

def test_specks_holes_and_sides():
    mask = np.zeros((40, 60), bool)
    mask[5:35, 5:25] = mask[5:35, 35:55] = True
    ragged = mask.copy()
    ragged[10:14, 10:14], ragged[0, :2] = False, True
    assert (clean_mask(ragged) == mask).all()
    left, right = split_lungs(mask)
    assert left[:, 30:].sum() == left.sum() and right[:, :30].sum() == right.sum()
    bridge = mask.copy()
    bridge[20, 25:35] = True
    assert all(part.any() for part in split_lungs(bridge)) and not (split_lungs(bridge)[0] & split_lungs(bridge)[1]).any()


def test_pairs_leave_out_images_without_a_mask(tmp_path):
    for name in ('images', 'labels'): (tmp_path/'set'/name).mkdir(parents=True)
    for i in range(3): Image.new('L', (16, 16), 90).save(tmp_path/'set'/'images'/f'{i}.png')
    Image.new('L', (16, 16), 255).save(tmp_path/'set'/'labels'/'1.png')
    assert open_pairs(tmp_path).table.image.tolist() == ['1.png']


# Bad input

SHORT = LungConfig(epochs=1, image_size=64, batch_size=2, encoder='test_resnet', weights='none')

def small_pairs(folder, masks):
    "Images with a mask each; `masks` gives one for a number, or None."
    for name in ('images', 'masks'): (folder/name).mkdir(parents=True)
    good = np.zeros((48, 48), np.uint8)
    good[10:40, 5:20] = good[10:40, 28:43] = 255
    for i in range(8):
        Image.new('L', (48, 48), 90 + i).save(folder/'images'/f'{i}.png')
        if (mask := masks(i, good)) is not None: Image.fromarray(mask).save(folder/'masks'/f'{i}.png')
    return folder


@pytest.mark.parametrize('masks, says', [(lambda i, good: good*0, 'is black all over, so it marks no lungs'), (lambda i, good: good*0 + 255, 'is bright all over'),
                                         (lambda i, good: good[:24] if i == 3 else good, 'masks/3.png: has 24×48 pixels, its image 48×48')])
def test_masks_that_mark_nothing_or_do_not_fit_are_heard_of_before_the_training(tmp_path, masks, says, monkeypatch):
    pairs = open_pairs(small_pairs(tmp_path/'set', masks))
    monkeypatch.setattr(lung_training, 'lung_epochs', lambda *_: pytest.fail('trained'))
    with pytest.raises(UserError, match=says): train_lungs(pairs, tmp_path/'run', SHORT, progress=False)
    assert not (tmp_path/'run').exists()


def test_a_broken_pair_among_those_kept_apart_too(tmp_path, monkeypatch):
    "it was found when the training was over"
    _, apart = held_back_rows(open_pairs(small_pairs(tmp_path/'sound', lambda i, good: good)))
    pairs = open_pairs(small_pairs(tmp_path/'set', lambda i, good: good*0 if i in apart else good))
    monkeypatch.setattr(lung_training, 'lung_epochs', lambda *_: pytest.fail('trained'))
    with pytest.raises(UserError, match='is black all over'): train_lungs(pairs, tmp_path/'run', SHORT, progress=False)


def test_images_without_a_mask_are_counted(tmp_path):
    assert '2 pairs of 2 patients' in (text := repr(open_pairs(small_pairs(tmp_path/'set', lambda i, good: good if i < 2 else None)))) and '6 images without a mask left out' in text


@pytest.mark.parametrize('change, says', [(dict(held_back=-1), 'held_back is -1'), (dict(seed=-1), 'seed -1'), (dict(image_size=100_000), 'from 64 to 1024'), (dict(encoder='nosuch'), "'nosuch' is not a timm model"),
                                          (dict(weight_decay=math.nan), 'weight_decay is nan')])
def test_impossible_decisions_about_a_segmenter(change, says):
    "held_back -1 kept all patients but one apart"
    with pytest.raises(UserError, match=says): replace(SHORT, **change).check()


def test_a_network_that_cannot_be_the_encoder_of_a_u_net():
    with pytest.raises(UserError, match="encoder 'test_vit' with depth 4 cannot be built into a U-Net"): LungSegmenter('test_vit')


def test_a_folder_that_is_neither_pairs_nor_a_data_set(tmp_path):
    with pytest.raises(UserError, match='holds no folder images .* and is no data set .*data.csv: is missing'): open_pairs(tmp_path)


@pytest.mark.parametrize('words, says', [(['--out', 'data.csv', '--overwrite'], 'replaces only what this command wrote'), (['--overwrite', '--unusable', 'data.csv'], 'replaces only what this command wrote'),
                                         (['--out', 'new.csv', '--unusable', 'names.txt'], '--unusable FILE'), (['--out', 'new.csv', '--unusable', 'new.csv'], 'cannot be in one file'), (['--out', 'images'], 'is a folder')])
def test_segment_destroys_no_other_file(bare, words, says, monkeypatch):
    "--unusable replaced whatever was there, and --overwrite --out data.csv the labels"
    monkeypatch.chdir(bare)
    Path('names.txt').write_text('mine')
    before = {path.name: path.read_bytes() for path in bare.iterdir() if path.is_file()}
    done = typed('chestnb_lungs', 'segment', '.', *words, cwd=bare)
    Path('names.txt').unlink()
    assert done.returncode == 2 and says in done.stderr and 'Traceback' not in done.stderr, done.stderr
    assert before == {path.name: path.read_bytes() for path in bare.iterdir() if path.is_file()} | {'names.txt': b'mine'}
