"""The data a model is fed: shapes, ranges, order, seeds, and what must never happen (a flip, a leak, a silent crop)."""
import os
import pickle
import threading
import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from chestnb.data.findings import FINDINGS
from chestnb.data.dataset import ChestDataset
from chestnb.data.masks import encode_mask, write_segmentation
from chestnb.data.tables import write_metadata
from chestnb.core.errors import UserError
from chestnb.data.pack import pack_images
from chestnb.data.leakage import LeakageError
from chestnb.data.split import image_split, patient_split
from chestnb.data.parts import images_in
import chestnb.data.items as data_items
from chestnb.data.augment import XrayAugment, affine_maps, change_exposure
from chestnb.data.loaders import (ChestDL, findings_without_positives, image_dataloader, image_reader, part_dataloader, read_ahead, reading_threads,
                                  seed_dataloaders)
from chestnb.data.items import Findings, FindingNames, GreyImages, TensorFindings, TensorXray, side_by_side
from chestnb.data.datablock import PartSplitter, balanced_sampler_weights, chest_datablock, chest_dataloaders, positive_weights
from chestnb.data.squares import Crop, pad_to_square
from chestnb.data.views import VIEWS, define_view, lung_box, lungs_crop


@pytest.fixture(scope='module')
def dataset(embedded):
    return ChestDataset(embedded)


@pytest.fixture(scope='module')
def split(dataset):
    return patient_split(dataset.table, seed=0)


def loaders(dataset, split, **arguments):
    return chest_dataloaders(dataset, split, **{'image_size': 32, 'device': 'cpu', **arguments})


def all_batches(loader):
    "Images and findings of one pass, as two plain tensors."
    return [torch.cat([part.as_subclass(torch.Tensor) for part in parts]) for parts in zip(*loader)]


@pytest.fixture
def small(tmp_path):
    "A folder of twelve images of twelve patients, 60×50 pixels; the last two have no lungs: one no row, one an empty mask."
    (tmp_path/'images').mkdir()
    rng, rows, masks = np.random.default_rng(0), [], []
    for i in range(12):
        name = f'{90_000_001 + i}_000.png'
        Image.fromarray(rng.integers(0, 256, (50, 60), dtype=np.uint8)).save(tmp_path/'images'/name)
        rows.append({'image': name, 'patient_id': 90_000_001 + i, 'follow_up': 0, 'age': 50.0, 'sex': 'F', 'view_position': 'PA',
                     'width': 60, 'height': 50, 'pixel_spacing_x': 0.1, 'pixel_spacing_y': 0.1,
                     **{finding: i % 3 == 0 and finding == 'Mass' for finding in FINDINGS}, 'No Finding': i % 3 != 0})
        left, right = np.zeros((50, 60), bool), np.zeros((50, 60), bool)
        left[10:30, 35:45], right[12:28, 15:25] = i < 11, i < 11
        if i != 10: masks.append({'image': name, 'dice_mean': 0.9, 'dice_max': 0.9, 'landmarks': '', 'Left Lung': encode_mask(left),
                                  'Right Lung': encode_mask(right), 'Heart': encode_mask(left), 'height': 50, 'width': 60})
    write_metadata(pd.DataFrame(rows), tmp_path/'data.csv')
    write_segmentation(pd.DataFrame(masks), tmp_path/'segmentation.csv')
    return tmp_path


@pytest.fixture
def unsure(small):
    "The twelve images with two findings of a hospital's own: Mass is unknown in images 8 and 9, Fracture is seen only in image 11."
    dataset = ChestDataset(small)
    table = dataset.table.drop(columns=list(FINDINGS))
    table['Mass'] = [1.0, 0.0]*4 + [np.nan, np.nan, 1.0, 0.0]
    table['Fracture'] = [0.0]*11 + [1.0]
    table.attrs['findings'] = ('Mass', 'Fracture')
    dataset.table = table
    return dataset


# -- batches

@pytest.mark.parametrize('size', [32, 48])
def test_shapes_types_and_ranges(dataset, split, size):
    dls = loaders(dataset, split, image_size=size, batch_size=16)
    for loader in dls:
        xb, yb = next(iter(loader))
        assert xb.shape == (16, 1, size, size) and yb.shape == (16, 14)
        assert xb.dtype == yb.dtype == torch.float32
        assert 0 <= xb.min() and xb.max() <= 1 and xb.std() > 0.05 and xb.mean() > 0.1 # each branch of a model has its own scale
        assert set(yb.unique().tolist()) <= {0.0, 1.0}


def test_validation_is_in_order_unchanged_and_labelled_as_the_table(dataset, split):
    dls, names = loaders(dataset, split), images_in(split, 'valid')
    assert list(dls.valid_ds.items) == names
    x, y = all_batches(dls.valid)
    table = dataset.table.set_index('image')
    assert np.array_equal(y.numpy(), table.loc[names, list(FINDINGS)].to_numpy('float32'))
    again, _ = all_batches(dls.valid)
    assert torch.equal(x, again)
    pixels = np.asarray(dataset.open_image(names[3]).resize((32, 32), Image.BILINEAR), dtype=np.float32)
    assert np.allclose(x[3, 0].numpy(), pixels/255, atol=1e-5)


def test_training_images_keep_their_labels(dataset, split):
    dls = loaders(dataset, split, augment=False)
    x, y = all_batches(image_dataloader(dataset, images_in(split, 'train'), image_size=32, device='cpu'))
    targets = {image.numpy().tobytes(): target for image, target in zip(x, y)}
    for xb, yb in dls.train:
        for image, target in zip(xb, yb): assert torch.equal(targets[image.as_subclass(torch.Tensor).numpy().tobytes()], target)


def test_every_training_image_at_most_once_an_epoch_and_no_test_image(dataset, split):
    dls = loaders(dataset, split, batch_size=64)
    assert set(dls.train_ds.items) == set(images_in(split, 'train'))
    assert not set(images_in(split, 'test')) & (set(dls.train_ds.items) | set(dls.valid_ds.items))
    rows = dls.train.get_idxs()
    assert sorted(rows) == list(range(len(dls.train_ds)))


def test_reading_by_the_batch_equals_reading_item_by_item(dataset, split, monkeypatch):
    fast = all_batches(loaders(dataset, split, augment=False).valid)
    monkeypatch.setattr(ChestDL, 'batch_readers', lambda self: [])
    slow = all_batches(loaders(dataset, split, augment=False).valid)
    assert all(torch.equal(a, b) for a, b in zip(fast, slow))


def test_an_item_transform_is_not_ignored(dataset, split):
    from fastai.data.transforms import Transform
    def darker(x:data_items.TensorXray): return x//2
    block = chest_datablock(dataset, split, image_size=32, augment=False)
    block.new(item_tfms=Transform(darker), batch_tfms=block.batch_tfms)
    names = images_in(split, 'train') + images_in(split, 'valid')
    dark = block.dataloaders(names, bs=8, num_workers=0, device='cpu')
    assert dark.valid.batch_readers() == []
    assert dark.valid.one_batch()[0].mean() < 0.6*loaders(dataset, split).valid.one_batch()[0].mean()


def test_memory_and_disk_give_the_same_pixels(dataset):
    names = list(dataset.table['image'][:5])
    kept, read = GreyImages(dataset, 32), GreyImages(dataset, 32, cache_bytes=0)
    first = kept.batch(names)
    assert torch.equal(first, kept.batch(names)) and torch.equal(first, read.batch(names))
    assert kept.seen.sum() == 5 and not read.is_cached and read.pixels.size == 0


def test_a_pickled_reader_takes_no_patients_along_and_reads_files(dataset):
    reader = GreyImages(dataset, 32)
    name = dataset.table['image'][0]
    before, text = reader(name), pickle.dumps((reader, Findings(dataset)))
    assert name.encode() not in text and str(dataset.path).encode() not in text and len(text) < 5000
    again, findings = pickle.loads(text)
    assert again.seen.sum() == 0 and torch.equal(again(str(dataset.image_path(name))), before)
    assert findings.decode(TensorFindings(torch.eye(14)[1])).title() == 'Cardiomegaly'
    with pytest.raises(UserError, match='without its data set'): again(name)
    for thing in (XrayAugment(), PartSplitter(pd.DataFrame({'image': ['a'], 'part': ['train']}))): pickle.loads(pickle.dumps(thing))


# -- augmentation

def draws(*shape): return torch.rand(*shape, generator=torch.Generator().manual_seed(1))*2 - 1


def test_no_flip_ever():
    maps = affine_maps(draws(4, 20_000))
    assert torch.linalg.det(maps[:, :, :2]).min() > 0.8
    assert (maps[:, 0, 0] > 0.9).all() and (maps[:, 1, 1] > 0.9).all() # neither left-right nor up-down
    degrees = torch.rad2deg(torch.atan2(maps[:, 1, 0], maps[:, 0, 0])).abs().max()
    assert 6 < degrees <= 7.0001


def test_affine_maps_by_hand():
    quarter = affine_maps(torch.tensor([[1.], [0], [0], [0]]), max_rotate=90) # a quarter turn looks where x becomes -y
    assert torch.allclose(quarter, torch.tensor([[[0., -1, 0], [1, 0, 0]]]), atol=1e-6)
    right = affine_maps(torch.tensor([[0.], [0], [1], [0]]), max_shift=0.25) # a quarter of the side: half of -1..1
    assert torch.allclose(right, torch.tensor([[[1., 0, 0.5], [0, 1, 0]]]))


def test_exposure_stays_in_range_and_changes_each_image_its_own_way():
    x = torch.rand(300, 1, 8, 8, generator=torch.Generator().manual_seed(2))
    changed = change_exposure(x, draws(3, 300))
    assert 0 <= changed.min() and changed.max() <= 1 and (changed - x).abs().mean((1, 2, 3)).std() > 0.01


def test_an_asymmetric_image_stays_the_right_way_round():
    image = torch.zeros(300, 1, 32, 32)
    image[:, :, 3:11, 21:29] = 1 # a bright square, top right
    changed = XrayAugment(seed=3)(data_items.TensorXray(image), split_idx=0)
    corners = torch.stack([changed[:, 0, :16, 16:].mean((1, 2)), changed[:, 0, :16, :16].mean((1, 2)),
                           changed[:, 0, 16:, 16:].mean((1, 2)), changed[:, 0, 16:, :16].mean((1, 2))])
    assert (corners.argmax(0) == 0).all()
    assert not torch.equal(changed[0], changed[1])
    assert 0 <= changed.min() and changed.max() <= 1


def test_only_training_is_augmented(dataset, split):
    names = images_in(split, 'train')[:8]
    plain, changed = loaders(dataset, split, augment=False), loaders(dataset, split)
    assert not any(isinstance(step, XrayAugment) for step in plain.train.after_batch.fs)
    x = all_batches(part_dataloader(plain, dataset, names))[0]
    assert torch.equal(x, all_batches(part_dataloader(changed, dataset, names))[0])
    assert torch.equal(all_batches(plain.valid)[0], all_batches(changed.valid)[0])


# -- seeds

@pytest.mark.parametrize('sampler', [None, 'balanced'])
def test_same_seed_same_batches(dataset, split, sampler):
    first = all_batches(loaders(dataset, split, seed=5, sampler=sampler).train)
    torch.manual_seed(99), np.random.seed(99) # nobody else's random numbers matter
    again = all_batches(loaders(dataset, split, seed=5, sampler=sampler).train)
    other = all_batches(loaders(dataset, split, seed=6, sampler=sampler).train)
    assert all(torch.equal(a, b) for a, b in zip(first, again))
    assert not torch.equal(first[0], other[0])


def test_an_epoch_can_be_repeated_and_epochs_differ(dataset, split):
    dls = loaders(dataset, split)
    def epoch(number):
        seed_dataloaders(dls, 0, number)
        return all_batches(dls.train)[0]
    third, fourth = epoch(3), epoch(4)
    assert torch.equal(third, epoch(3)) and not torch.equal(third, fourth)


def test_reading_ahead_changes_nothing_and_starts_no_process(dataset, split, monkeypatch):
    import multiprocessing.process
    monkeypatch.setattr(multiprocessing.process.BaseProcess, 'start', lambda self: pytest.fail('a process was started'))
    here, ahead = loaders(dataset, split, seed=2, num_workers=0), loaders(dataset, split, seed=2, num_workers=2)
    assert (here.train.threads, ahead.train.threads, ahead.valid.threads) == (0, 2, 2)
    for one, other in zip(here, ahead): assert all(torch.equal(a, b) for a, b in zip(all_batches(one), all_batches(other)))
    assert image_reader(ahead).seen.sum() == len(images_in(split, 'train'))//32*32 + len(images_in(split, 'valid'))
    assert not [thread for thread in threading.enumerate() if thread.name.startswith('reading')]


def test_an_error_while_reading_ahead_reaches_the_caller_and_leaves_no_thread(small):
    dataset = ChestDataset(small)
    dataset.image_path(dataset.table['image'][9]).write_bytes(b'no image')
    loader = image_dataloader(dataset, list(dataset.table['image']), image_size=32, batch_size=2, num_workers=2, device='cpu')
    with pytest.raises(UserError, match=dataset.table['image'][9]): list(loader)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith('reading')]


def test_reading_ahead_stays_a_few_batches_ahead():
    taken = []
    def batches():
        for i in range(50): taken.append(i); yield i
    first = next(iter(read_ahead(batches(), ahead=3)))
    assert first == 0 and len(taken) <= 5
    assert list(read_ahead(batches())) == list(range(50))


def test_threads_by_cores(monkeypatch):
    monkeypatch.setattr('os.sched_getaffinity', lambda pid: set(range(16)), raising=False)
    assert (reading_threads('cpu'), reading_threads('cuda')) == (0, 8)
    monkeypatch.setenv('LOCAL_WORLD_SIZE', '4')
    assert reading_threads('cuda') == 3


def test_new_keeps_chances_blocks_and_threads(dataset, split):
    "fastai makes loaders out of loaders; 0.1 lost the weights on the way"
    weighted, blocks = loaders(dataset, split, sampler='balanced', num_workers=2), loaders(dataset, split, shuffle_block=16)
    again = weighted.train.new()
    assert np.array_equal(again.weights, weighted.train.weights) and again.threads == 2 and again.shuffle
    drawn = [row for _ in range(5) for row in (again.randomize(), again.get_idxs())[1]]
    assert np.isclose(np.mean(weighted.train.weights[drawn]), (weighted.train.weights**2).mean(), rtol=0.1) # drawn by weight
    assert blocks.train.new().shuffle_block == 16 and weighted.valid.weights is None
    assert weighted.train.new(weighted.valid_ds).weights is None # other images have other chances


# -- refusals

def test_a_leaky_split_is_refused(dataset):
    with pytest.raises(LeakageError) as error: loaders(dataset, image_split(dataset.table, seed=0))
    assert len(error.value.shared) > 0


def test_one_leaking_patient_is_enough(dataset, split):
    counts = split.groupby('patient_id')['image'].count()
    patient = counts[counts > 1].index[0]
    leaky = split.copy()
    rows = leaky.index[leaky['patient_id'] == patient]
    leaky.loc[rows, 'part'] = ['train'] + ['valid']*(len(rows) - 1)
    with pytest.raises(LeakageError, match=str(patient)): loaders(dataset, leaky)


def test_a_leak_between_valid_and_test_is_refused_too(dataset, split):
    leaky = split.copy()
    counts = leaky.groupby('patient_id')['image'].count()
    rows = leaky.index[leaky['patient_id'] == counts[counts > 1].index[0]]
    leaky.loc[rows, 'part'] = ['test'] + ['valid']*(len(rows) - 1)
    with pytest.raises(LeakageError): loaders(dataset, leaky)


@pytest.mark.parametrize('change, message', [
    (lambda split: split.assign(part=split['part'].replace('valid', 'test')), "no 'valid'"),
    (lambda split: split.assign(part=split['part'].replace('train', 'test')), "no 'train'"),
    (lambda split: split.assign(patient_id=split['patient_id'] + 1), 'another patient_id'),
    (lambda split: split.assign(image='x' + split['image']), 'are not in'),
])
def test_a_split_of_other_data_is_refused(dataset, split, change, message):
    with pytest.raises(UserError, match=message): loaders(dataset, change(split))


def test_wrong_arguments_are_refused(dataset, split):
    with pytest.raises(UserError, match='balanced'): loaders(dataset, split, sampler='weighted')
    with pytest.raises(UserError, match='smaller batch_size'): loaders(dataset, split, batch_size=100_000)
    with pytest.raises(UserError, match='image_size'): loaders(dataset, split, image_size=0)
    with pytest.raises(UserError, match='nobody.png'): image_dataloader(dataset, ['nobody.png'])
    with pytest.raises(UserError, match='empty'): image_dataloader(dataset, [])


# -- any images, in order

def test_part_dataloader_keeps_order_and_drops_nothing(dataset, split):
    dls, names = loaders(dataset, split, batch_size=32), images_in(split, 'test')[::-1][:45]
    loader = part_dataloader(dls, dataset, names)
    x, y = all_batches(loader)
    assert len(x) == 45 and len(loader) == 2
    assert np.array_equal(y.numpy(), dataset.targets(names))
    assert torch.equal(x[:1], all_batches(part_dataloader(dls, dataset, names[:1]))[0])


# -- images and crops

def test_padding_loses_nothing():
    for shape in ((30, 70), (71, 30), (40, 40)):
        pixels = np.random.default_rng(0).integers(1, 256, shape, dtype=np.uint8)
        square = np.asarray(pad_to_square(Image.fromarray(pixels)))
        assert square.shape == (max(shape),)*2
        assert np.array_equal(square[square > 0], pixels.ravel())


def test_lung_box_by_hand():
    mask = np.zeros((100, 200), bool)
    mask[40:60, 90:130] = True # 40 wide, 20 high; margin 4: side 48, centre column 110, row 50
    assert lung_box(mask) == (86, 26, 134, 74)
    assert lung_box(mask, margin=0) == (90, 30, 130, 70)
    assert lung_box(np.zeros((5, 5), bool)) is None
    assert lung_box(np.ones((50, 80), bool)) == (0, 0, 80, 50) # never outside the picture


def test_lung_box_contains_the_lungs(dataset):
    reader = GreyImages(dataset, 32, views=['lungs'])
    for name in dataset.table['image'][:30]:
        mask = dataset.mask(name, 'Left Lung') | dataset.mask(name, 'Right Lung')
        left, upper, right, lower = reader.box(name, mask.shape[::-1])
        assert mask[upper:lower, left:right].sum() == mask.sum()
        assert 0 <= left < right <= mask.shape[1] and 0 <= upper < lower <= mask.shape[0]


def test_crop_and_images_without_lungs(small):
    dataset = ChestDataset(small)
    names = list(dataset.table['image'])
    reader, whole = GreyImages(dataset, 40, views=['lungs']), GreyImages(dataset, 40)
    assert reader.shown_whole(names) == {'lungs': names[10:]} and whole.shown_whole(names) == {}
    # lungs: columns 15..44, rows 10..29; 30 wide, margin 3: side 36, centre (30, 20)
    assert reader.box(names[0], (60, 50)) == (12, 2, 48, 38)
    assert reader.box(names[0], (120, 100)) == (24, 4, 96, 76)
    expected = dataset.open_image(names[0]).crop((12, 2, 48, 38)).resize((40, 40), Image.BILINEAR)
    assert np.array_equal(reader(names[0])[0].numpy(), np.asarray(expected))
    for name in names[10:]: assert reader.box(name, (60, 50)) is None and torch.equal(reader(name), whole(name))


def test_images_without_lungs_are_reported(small):
    dataset = ChestDataset(small)
    split = pd.DataFrame({'image': dataset.table['image'], 'patient_id': dataset.table['patient_id'],
                          'part': ['train']*4 + ['valid']*2 + ['test']*2 + ['train']*4})
    with pytest.warns(UserWarning, match='2 of 10 images have no lung mask'):
        loaders(dataset, split, batch_size=4, views=['lungs'])
    with warnings.catch_warnings():
        warnings.filterwarnings('error', '.*lung')
        loaders(dataset, split, batch_size=4)


def test_crop_without_masks_is_refused(small):
    (small/'segmentation.csv').unlink()
    dataset = ChestDataset(small)
    split = pd.DataFrame({'image': dataset.table['image'], 'patient_id': dataset.table['patient_id'], 'part': ['train']*8 + ['valid']*4})
    with pytest.raises(UserError, match='segmentation.csv'): loaders(dataset, split, batch_size=4, views=['lungs'])
    with pytest.raises(UserError, match='segmentation.csv'): image_dataloader(dataset, list(dataset.table['image']), views=['lungs'])


# -- imbalance

def test_positive_weights_by_hand():
    targets = np.zeros((100, 4))
    targets[:50, 0] = targets[:20, 1] = targets[:1, 2] = 1
    weights = positive_weights(targets, maximum=30)
    assert weights.dtype == torch.float32
    assert weights.tolist() == [1.0, 4.0, 30.0, 1.0] # 50/50, 80/20, 99/1 but at most 30, none at all
    assert positive_weights(np.ones((3, 1))).tolist() == [0.0]
    with pytest.raises(UserError): positive_weights(np.zeros((0, 14)))


def test_unknown_labels_count_on_neither_side():
    targets = np.array([[1, np.nan], [0, 1], [0, np.nan], [np.nan, 0]])
    assert positive_weights(targets).tolist() == [2.0, 1.0]
    known = np.nan_to_num(targets)
    assert np.array_equal(balanced_sampler_weights(targets), balanced_sampler_weights(known))
    assert np.isfinite(balanced_sampler_weights(np.full((3, 2), np.nan))).all()


@pytest.mark.parametrize('policy, expected', [('mask', float('nan')), ('negative', 0.0), ('positive', 1.0)])
def test_unknown_labels_follow_the_policy(unsure, policy, expected):
    names = unsure.table['image'].tolist()
    split = pd.DataFrame({'image': names, 'patient_id': unsure.table['patient_id'], 'part': ['train']*8 + ['valid']*4})
    dls = loaders(unsure, split, batch_size=4, unknown=policy)
    targets = all_batches(dls.valid)[1].numpy()
    assert np.array_equal(targets[0], np.array([expected, 0.0], np.float32), equal_nan=True)
    assert np.array_equal(all_batches(part_dataloader(dls, unsure, names[8:]))[1].numpy(), targets, equal_nan=True)
    with pytest.raises(UserError, match='unknown'): loaders(unsure, split, batch_size=4, unknown='maybe')


def test_one_finding_loads(unsure):
    table = unsure.table.drop(columns='Fracture')
    table.attrs['findings'] = ('Mass',)
    unsure.table = table
    split = pd.DataFrame({'image': table['image'], 'patient_id': table['patient_id'], 'part': ['train']*8 + ['valid']*4})
    xb, yb = loaders(unsure, split, batch_size=4, sampler='balanced').one_batch()
    assert yb.shape == (4, 1) and xb.shape == (4, 1, 32, 32)


def test_a_finding_without_positives_in_training_is_named(unsure):
    split = pd.DataFrame({'image': unsure.table['image'], 'patient_id': unsure.table['patient_id'], 'part': ['train']*8 + ['valid']*4})
    with pytest.warns(UserWarning, match='no training image has Fracture'): loaders(unsure, split, batch_size=4)
    assert findings_without_positives(unsure, unsure.table['image'].tolist()[:8]) == ['Fracture']
    assert findings_without_positives(unsure, unsure.table['image'].tolist()) == []


def test_positive_weights_of_the_training_part(dataset, split):
    targets = dataset.targets(images_in(split, 'train'))
    expected = np.minimum((1 - targets.mean(0))/targets.mean(0), 20)
    assert np.allclose(positive_weights(targets).numpy(), expected, rtol=1e-4)


def test_sampler_raises_the_share_of_the_rare(dataset, split):
    targets = dataset.targets(images_in(split, 'train'))
    weights = balanced_sampler_weights(targets)
    assert len(weights) == len(targets) and weights.min() > 0 and weights.mean() == pytest.approx(1)
    dls = loaders(dataset, split, sampler='balanced')
    drawn = []
    for _ in range(10):
        dls.train.randomize()
        drawn += dls.train.get_idxs()
    share, rare = targets[drawn].mean(0), np.argsort(targets.mean(0))[:5]
    assert (share[rare] > 1.2*targets.mean(0)[rare]).all()
    assert np.allclose(share, (targets*weights[:, None]).mean(0), atol=0.02)
    _, y = all_batches(dls.valid)
    assert np.array_equal(y.numpy(), dataset.targets(images_in(split, 'valid'))) # validation is never resampled


# -- showing

def test_names_are_readable():
    assert FindingNames([]).title() == 'No Finding'
    title = FindingNames(FINDINGS).title(20)
    assert max(map(len, title.splitlines())) <= 20 and '_' not in title


def test_show_batch(dataset, split):
    import matplotlib.pyplot as plt
    loaders(dataset, split).show_batch(max_n=6)
    titles = [ax.get_title() for ax in plt.gcf().axes if ax.get_title()]
    plt.close('all')
    assert len(titles) == 6


# -- packs and block shuffling

@pytest.fixture
def packed(dataset, tmp_path, monkeypatch):
    "The embedded synthetic set with a pack at 32 pixels."
    pack_images(dataset, 32, out=tmp_path, workers=1, progress=False)
    monkeypatch.setenv('CHESTNB_PACKS', str(tmp_path))
    return tmp_path


@pytest.mark.parametrize('num_workers', [0, 2])
def test_a_pack_changes_nothing_but_the_speed(dataset, split, packed, monkeypatch, num_workers):
    with_pack = loaders(dataset, split, num_workers=num_workers)
    assert image_reader(with_pack).packs[0] and not image_reader(with_pack).is_cached
    monkeypatch.delenv('CHESTNB_PACKS')
    without = loaders(dataset, split, num_workers=num_workers)
    assert image_reader(without).packs == [None]
    for one, other in zip(with_pack, without):
        assert all(torch.equal(a, b) for a, b in zip(all_batches(one), all_batches(other)))


def test_a_pack_serves_items_subsets_and_prediction(dataset, split, packed, monkeypatch):
    names = list(dataset.table['image'])[100:140][::-1]
    part = dataset.subset(names)
    reader = GreyImages(part, 32)
    item, batch = reader(names[3]), reader.batch(names)
    predicted = all_batches(image_dataloader(part, names, image_size=32, device='cpu'))[0]
    monkeypatch.setattr(GreyImages, 'decode_image', lambda self, name, places=None: pytest.fail('a file was decoded'))
    assert torch.equal(GreyImages(part, 32).batch(names), batch)
    monkeypatch.undo()
    plain = GreyImages(part, 32)
    assert plain.packs == [None] and torch.equal(plain(names[3]), item) and torch.equal(plain.batch(names), batch)
    assert torch.equal(all_batches(image_dataloader(part, names, image_size=32, device='cpu'))[0], predicted)


def test_batches_from_a_pack_are_bytes_until_the_device(dataset, split, packed):
    dls = loaders(dataset, split)
    sent = next(iter(dls.train.create_batches([0, 1, 2, 3]*16)))[0]
    assert sent.dtype == torch.uint8 and dls.one_batch()[0].dtype == torch.float32


def test_a_stale_pack_is_announced_and_not_used(small, monkeypatch):
    dataset = ChestDataset(small)
    pack_images(dataset, 32, workers=1, progress=False)
    assert GreyImages(dataset, 32).packs[0] and GreyImages(dataset, 32, views=['lungs']).packs == [None]
    name = dataset.table['image'][2]
    Image.new('L', (60, 50), 200).save(dataset.image_path(name))
    with pytest.warns(UserWarning, match='1 of 12 images changed'): reader = GreyImages(dataset, 32)
    assert reader.packs == [None] and reader.batch([name]).max() == 200


def test_a_pack_of_lung_crops_is_read_and_gives_the_same_squares(small, monkeypatch):
    "0.1 decoded every image anew in every epoch when lung_crop was asked for"
    dataset = ChestDataset(small)
    names = list(dataset.table['image'])
    expected = GreyImages(dataset, 40, views=['lungs']).batch(names)
    pack_images(dataset, 40, workers=1, crop=lungs_crop(dataset), progress=False)
    split = pd.DataFrame({'image': names, 'patient_id': dataset.table['patient_id'], 'part': ['train']*8 + ['valid']*4})
    monkeypatch.setattr(GreyImages, 'decode_image', lambda self, name, places=None: pytest.fail('a file was decoded'))
    dls = loaders(dataset, split, image_size=40, batch_size=4, views=['lungs'])
    assert torch.equal(image_reader(dls).batch(names), expected)
    assert torch.equal(all_batches(image_dataloader(dataset, names, image_size=40, views=['lungs'], device='cpu'))[0], expected.float()/255)
    assert GreyImages(dataset, 40).packs == [None] # whole images are another pack
    monkeypatch.undo()
    os.utime(small/'segmentation.csv', (1, 1)) # other masks, other boxes
    with pytest.warns(UserWarning, match='not used'): assert GreyImages(ChestDataset(small), 40, views=['lungs']).packs == [None]


def test_an_image_that_the_pack_left_out_is_not_black(small):
    dataset = ChestDataset(small)
    name = dataset.table['image'][2]
    path = dataset.image_path(name)
    path.write_bytes(path.read_bytes()[:200])
    pack_images(dataset, 32, workers=1, skip_unusable=True, progress=False)
    reader = GreyImages(dataset, 32)
    assert reader.packs[0]
    with pytest.raises(UserError, match=name): reader.batch([dataset.table['image'][0], name])
    with pytest.raises(UserError, match=name): reader(name)


def test_block_shuffle_in_the_loader(dataset, split, packed):
    dls, full = loaders(dataset, split, shuffle_block=16), loaders(dataset, split)
    orders = []
    for epoch in (0, 0, 1):
        seed_dataloaders(dls, 3, epoch)
        orders.append(dls.train.get_idxs())
        assert sorted(orders[-1]) == list(range(len(dls.train_ds)))
    assert orders[0] == orders[1] != orders[2]
    assert dls.valid.get_idxs() == list(range(len(dls.valid_ds))) and image_reader(dls).packs[0].read_ahead == 16
    assert full.train.get_idxs() != orders[0] and image_reader(full).packs[0].read_ahead == 0
    assert len({row//16 for row in orders[0][:64]}) <= 18 < len({row//16 for row in full.train.get_idxs()[:64]})


@pytest.mark.parametrize('arguments', [{'shuffle_block': -1}, {'shuffle_block': 8, 'sampler': 'balanced'}])
def test_block_shuffle_refusals(dataset, split, arguments):
    with pytest.raises(UserError, match='shuffle_block'): loaders(dataset, split, **arguments)
