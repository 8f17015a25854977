"""What of an X-ray a model looks at: views by name, of one's own, from files, memory and packs; masks that are missing or lie elsewhere."""
import os
import shutil
import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from chestnb.core.errors import UserError
from chestnb.data.augment import XrayAugment
from chestnb.data.datablock import chest_dataloaders
from chestnb.data.dataset import ChestDataset
from chestnb.data.findings import FINDINGS
from chestnb.data.items import GreyImages, TensorXray, side_by_side
from chestnb.data.loaders import image_dataloader, image_reader, part_dataloader
from chestnb.data.masks import encode_mask, resize_segmentation, write_segmentation
from chestnb.data.pack import pack_images
from chestnb.data.squares import Crop
from chestnb.data.tables import write_metadata
from chestnb.data.views import LUNG_MARGIN, VIEWS, check_views, define_view, lung_box, lungs_crop, view_crops
from typed import typed

BOTH = ['whole', 'lungs']


def masks_of(names, empty=()):
    "Rows of masks for pictures of 60×50 pixels; those of the images in `empty` hold no lung."
    rows = []
    for name in names:
        left, right = np.zeros((50, 60), bool), np.zeros((50, 60), bool)
        if name not in empty: left[10:30, 35:45], right[12:28, 15:25] = True, True
        rows.append({'image': name, 'dice_mean': .9, 'dice_max': .9, 'landmarks': '', 'Left Lung': encode_mask(left), 'Right Lung': encode_mask(right), 'Heart': '',
                     'height': 50, 'width': 60})
    return pd.DataFrame(rows)


NAMES = [f'{90_000_001 + i}_000.png' for i in range(12)]


@pytest.fixture
def bare(tmp_path):
    "A folder of twelve images of twelve patients, 60×50 pixels, without masks."
    (tmp_path/'set'/'images').mkdir(parents=True)
    rng, rows = np.random.default_rng(0), []
    for i, name in enumerate(NAMES):
        Image.fromarray(rng.integers(0, 256, (50, 60), dtype=np.uint8)).save(tmp_path/'set'/'images'/name)
        rows.append({'image': name, 'patient_id': 90_000_001 + i, 'follow_up': 0, 'age': 50.0, 'sex': 'F', 'view_position': 'PA', 'width': 60, 'height': 50,
                     'pixel_spacing_x': .1, 'pixel_spacing_y': .1, **{finding: True for finding in FINDINGS}, 'No Finding': False})
    write_metadata(pd.DataFrame(rows), tmp_path/'set'/'data.csv')
    return tmp_path/'set'


@pytest.fixture
def small(bare):
    "The same with masks of all but the last two images: one has no row, one an empty mask."
    write_segmentation(masks_of(NAMES[:10] + NAMES[11:], empty=NAMES[11:]), bare/'segmentation.csv')
    return bare


@pytest.fixture
def own():
    "Views that a test defines are gone afterwards."
    before = dict(VIEWS)
    yield
    VIEWS.clear(); VIEWS.update(before)


def split_of(dataset, parts=('train',)*8 + ('valid',)*4):
    return pd.DataFrame({'image': dataset.table['image'], 'patient_id': dataset.table['patient_id'], 'part': list(parts)})


def loaders(dataset, **arguments):
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        return chest_dataloaders(dataset, split_of(dataset), **{'image_size': 32, 'batch_size': 4, 'device': 'cpu', **arguments})


def images_of(loader): return torch.cat([x.as_subclass(torch.Tensor) for x, _ in loader])


# -- names

def test_a_view_that_does_not_exist_is_one_sentence(small):
    dataset = ChestDataset(small)
    for ask in (lambda: GreyImages(dataset, 32, views=['heart']), lambda: loaders(dataset, views=['whole', 'heart']),
                lambda: image_dataloader(dataset, NAMES, views=['heart']), lambda: view_crops(dataset, ['heart'])):
        with pytest.raises(UserError, match="no view 'heart'; there are whole, lungs.*define_view"): ask()
    done = typed('chestnb_pack', small, '--size', 32, '--views', 'whole,heart', cwd=small)
    assert done.returncode == 2 and "no view 'heart'" in done.stderr and 'Traceback' not in done.stderr and not (small/'packs').exists()


def test_views_are_given_as_a_list_or_as_a_text():
    assert check_views('whole, lungs') == check_views(('whole', 'lungs')) == BOTH
    assert check_views('lungs') == ['lungs'] and check_views(['whole', 'whole']) == ['whole', 'whole']
    with pytest.raises(UserError, match='at least one'): check_views(())
    with pytest.raises(UserError, match="no view ''"): check_views('')


@pytest.mark.parametrize('name', ['Upper', '1st', '../lungs', 'a b', '', 'whole', 'lungs'])
def test_names_of_views_are_fit_for_files_and_the_built_in_ones_stay(name):
    with pytest.raises(UserError): define_view(name, lungs_crop)
    assert set(VIEWS) == {'whole', 'lungs'} and VIEWS['lungs'] is lungs_crop


# -- pixels

def test_two_views_are_the_two_single_views(small):
    dataset = ChestDataset(small)
    both, whole, lungs = (GreyImages(dataset, 40, views) for views in (BOTH, ['whole'], ['lungs']))
    batch = both.batch(NAMES)
    assert batch.shape == (12, 2, 40, 40) and batch.dtype == torch.uint8
    assert torch.equal(batch[:, :1], whole.batch(NAMES)) and torch.equal(batch[:, 1:], lungs.batch(NAMES))
    assert torch.equal(both.batch(NAMES[::-1]), batch.flip(0)) and torch.equal(both(NAMES[3]), batch[3])
    assert np.array_equal(both.read(NAMES[3]), batch[3, 0]) and np.array_equal(both.read(NAMES[3], 1), batch[3, 1])
    assert torch.equal(GreyImages(dataset, 40, BOTH[::-1]).batch(NAMES), batch.flip(1))
    assert both.shown_whole(NAMES) == {'lungs': NAMES[10:]} and torch.equal(batch[10:, 0], batch[10:, 1]) and not torch.equal(batch[:10, 0], batch[:10, 1])
    assert both.box(NAMES[0], (60, 50)) is None and both.box(NAMES[0], (60, 50), 1) == (12, 2, 48, 38)


def test_an_image_is_decoded_once_for_all_views(small, monkeypatch):
    opened = []
    monkeypatch.setattr(GreyImages, 'open_image', lambda self, name: opened.append(name) or self.dataset.open_image(name))
    reader = GreyImages(ChestDataset(small), 32, BOTH)
    for _ in range(2): reader.batch(NAMES)
    assert sorted(opened) == NAMES


@pytest.mark.parametrize('packed', [['whole'], ['lungs'], BOTH])
@pytest.mark.parametrize('cache_bytes', [0, 10**9])
def test_packs_memory_and_files_give_the_same_views(small, packed, cache_bytes):
    dataset = ChestDataset(small)
    expected = GreyImages(dataset, 40, BOTH).batch(NAMES)
    for view, crop in zip(packed, view_crops(dataset, packed)): pack_images(dataset, 40, workers=1, crop=crop, progress=False)
    reader = GreyImages(dataset, 40, BOTH, cache_bytes=cache_bytes)
    assert [view for view, pack in zip(BOTH, reader.packs) if pack] == packed
    for _ in range(2):
        assert torch.equal(reader.batch(NAMES[::-1]), expected.flip(0))
    assert reader.seen.any() == (cache_bytes > 0 and len(packed) == 1)


def test_a_crop_of_a_view_and_the_crop_itself_share_one_pack(small):
    dataset = ChestDataset(small)
    made = pack_images(dataset, 32, workers=1, crop=lungs_crop(dataset), progress=False)
    assert made.path.name == '32_lungs.json' and GreyImages(dataset, 32, ['lungs']).packs[0].key == made.key


def test_one_packed_view_beside_an_unpacked_one_is_said_where_memory_does_not_help(small, monkeypatch):
    dataset = ChestDataset(small)
    pack_images(dataset, 32, workers=1, progress=False)
    def said(**arguments):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter('always')
            chest_dataloaders(dataset, split_of(dataset), image_size=32, batch_size=4, device='cpu', **arguments)
        return [str(one.message) for one in caught if 'in every epoch' in str(one.message)]
    assert said(views=BOTH) == []
    monkeypatch.setattr(GreyImages.__init__, '__defaults__', (128, ('whole',), 0, 1))
    note, = said(views=BOTH)
    assert f'the view lungs has no pack of 32 px' in note and note.endswith(f'Run: chestnb_pack {small} --size 32 --views lungs')
    assert said(views=['whole']) == said(views=['lungs']) == []


def test_loaders_of_two_views(small):
    dataset = ChestDataset(small)
    dls = loaders(dataset, views=BOTH)
    assert image_reader(dls).views == BOTH and dls.settings['views'] == BOTH
    x, y = dls.one_batch()
    assert x.shape == (4, 2, 32, 32) and y.shape == (4, 14) and 0 <= x.min() and x.max() <= 1
    plain = images_of(image_dataloader(dataset, NAMES, image_size=32, views='whole,lungs', device='cpu'))
    assert torch.equal(images_of(dls.valid), plain[8:]) and torch.equal(images_of(part_dataloader(dls, dataset, NAMES)), plain)
    single = loaders(dataset, views=['lungs'])
    assert torch.equal(images_of(single.valid), plain[8:, 1:])


def test_an_image_from_elsewhere_is_shown_whole_in_every_view(small, tmp_path):
    shutil.copy(small/'images'/NAMES[0], tmp_path/'elsewhere.png')
    reader = GreyImages(ChestDataset(small), 32, BOTH)
    with pytest.warns(UserWarning, match='elsewhere.png is no image of the data set.*whole in lungs'): squares = reader(str(tmp_path/'elsewhere.png'))
    assert torch.equal(squares[0], squares[1]) and squares.shape == (2, 32, 32)


# -- augmentation

def test_one_view_is_augmented_as_ever():
    "Committed results depend on the pixels of every seed: these digits were written down before views existed"
    x = XrayAugment(seed=3)(TensorXray(torch.linspace(0, 1, 2*16*16).reshape(2, 1, 16, 16)), split_idx=0)
    assert torch.allclose(x.flatten()[[0, 100, 255, 256, 400, 511]].as_subclass(torch.Tensor), torch.tensor([0.062308, 0.185069, 0.47898, 0.605687, 0.874446, 1.0]), atol=1e-5)


def test_each_view_moves_by_itself_under_one_exposure():
    picture = torch.zeros(200, 1, 32, 32)
    picture[:, :, 3:11, 21:29] = 1
    moved = XrayAugment(seed=1)(TensorXray(picture.repeat(1, 3, 1, 1)), split_idx=0).as_subclass(torch.Tensor)
    assert moved.shape == (200, 3, 32, 32)
    shifts = [(moved[:, i] - moved[:, j]).abs().mean((1, 2)) for i, j in ((0, 1), (0, 2), (1, 2))]
    assert all((shift > 0).float().mean() > .99 for shift in shifts)
    flat = XrayAugment(seed=1)(TensorXray(torch.full((200, 3, 8, 8), .5)), split_idx=0).as_subclass(torch.Tensor)
    assert torch.allclose(flat, flat[:, :1, :1, :1].expand_as(flat), atol=1e-5) and flat[:, 0, 0, 0].std() > .01
    corners = torch.stack([moved[:, :, :16, 16:].mean((2, 3)), moved[:, :, :16, :16].mean((2, 3)), moved[:, :, 16:, 16:].mean((2, 3)), moved[:, :, 16:, :16].mean((2, 3))])
    assert (corners.argmax(0) == 0).all() # no view is ever mirrored


def test_the_geometry_of_a_view_belongs_to_its_own_image():
    "Each image has the four draws of its first view first; an order by views would mix images"
    augment, n = XrayAugment(seed=5), 6
    draws = augment.draws(n, 2, torch.device('cpu'))
    assert draws.shape == (11, n)
    augment.seed(5)
    x = torch.rand(n, 2, 24, 24, generator=torch.Generator().manual_seed(0))
    both = augment(TensorXray(x), split_idx=0).as_subclass(torch.Tensor)
    for view in (0, 1):
        one = XrayAugment(seed=5)
        one.draws = lambda n, views, device: torch.cat([draws[4*view:4*view + 4], draws[-3:]])
        assert torch.allclose(one(TensorXray(x[:, view:view + 1]), split_idx=0).as_subclass(torch.Tensor), both[:, view:view + 1], atol=1e-6)


def test_strength_stretches_the_ranges():
    x = TensorXray(torch.rand(50, 1, 16, 16, generator=torch.Generator().manual_seed(0)))
    change = [(XrayAugment(0, strength)(x, split_idx=0) - x).abs().mean() for strength in (.25, 1, 2)]
    assert change[0] < change[1] < change[2]
    for strength in (0, -1, 5, float('nan')):
        with pytest.raises(UserError, match='above 0 and at most 4'): XrayAugment(strength=strength)


def test_the_strength_reaches_the_loaders(small):
    dls = loaders(ChestDataset(small), augment_strength=.5)
    assert [step.strength for step in dls.train.after_batch.fs if isinstance(step, XrayAugment)] == [.5]


# -- masks

def test_masks_may_lie_elsewhere(bare, tmp_path):
    file = write_segmentation(masks_of(NAMES[:6]), tmp_path/'drawn.csv')
    plain, dataset = ChestDataset(bare), ChestDataset(bare, masks=file)
    assert plain.masks_path is None and dataset.masks_path == file and dataset.masked_images == set(NAMES[:6])
    other = plain.with_masks(str(file))
    assert other.masked_images == dataset.masked_images and plain.masks_path is None and not plain.masked_images
    assert np.array_equal(other.mask(NAMES[0], 'Left Lung'), dataset.mask(NAMES[0], 'Left Lung')) and other.table is plain.table
    assert other.with_masks(None).masks_path is None
    assert other.subset(NAMES[4:]).masked_images == set(NAMES[4:6]) == plain.subset(NAMES[4:]).with_masks(file).masked_images
    with pytest.raises(UserError, match='drawn.csv: has no row'): dataset.mask(NAMES[7], 'Heart')


def test_masks_elsewhere_come_before_those_of_the_folder(small, tmp_path):
    file = write_segmentation(masks_of(NAMES[3:5]), tmp_path/'drawn.csv')
    assert ChestDataset(small).masks_path == small/'segmentation.csv'
    assert ChestDataset(small, masks=file).masked_images == set(NAMES[3:5])


def test_a_pack_of_other_masks_is_not_used(small, tmp_path):
    dataset = ChestDataset(small)
    pack_images(dataset, 32, workers=1, crop=lungs_crop(dataset), progress=False)
    other = dataset.with_masks(write_segmentation(masks_of(NAMES[3:5]), tmp_path/'drawn.csv'))
    with pytest.warns(UserWarning, match='32_lungs.json: this pack is not used.*--views lungs'): assert GreyImages(other, 32, ['lungs']).packs == [None]


def test_a_file_of_masks_that_is_not_there_is_one_sentence(bare, tmp_path):
    for ask in (lambda: ChestDataset(bare, masks=tmp_path/'no.csv'), lambda: ChestDataset(bare).with_masks(tmp_path/'no.csv')):
        with pytest.raises(UserError, match='no.csv: there is no such file of masks'): ask()
    done = typed('chestnb_check', bare, '--masks', 'no.csv', cwd=tmp_path)
    assert done.returncode == 2 and 'no such file of masks' in done.stderr and 'Traceback' not in done.stderr


def test_masks_of_another_size_are_refused_with_the_remedy(small, tmp_path):
    larger = write_segmentation(resize_segmentation(masks_of(NAMES), 100, 120), tmp_path/'larger.csv')
    with pytest.raises(UserError, match='100×120.*50×60.*resize_segmentation'): ChestDataset(small).with_masks(larger)
    assert ChestDataset(small).masked_images == set(NAMES[:10]) # nothing is lost
    again = write_segmentation(resize_segmentation(resize_segmentation(masks_of(NAMES), 100, 120), 50, 60), tmp_path/'right.csv')
    assert ChestDataset(small).with_masks(again).masked_images == set(NAMES)


def test_no_masks_at_all(bare):
    dataset = ChestDataset(bare)
    for ask in (lambda: loaders(dataset, views=BOTH), lambda: image_dataloader(dataset, NAMES, views=['lungs']), lambda: lungs_crop(dataset)):
        with pytest.raises(UserError, match='no segmentation.csv, so nothing says where the lungs are'): ask()
    loaders(dataset)


def test_masks_of_some_images_are_counted(small):
    dataset = ChestDataset(small)
    with pytest.warns(UserWarning, match='2 of 12 images have no lung mask in segmentation.csv and are shown whole in the view lungs'):
        chest_dataloaders(dataset, split_of(dataset), image_size=32, batch_size=4, views=BOTH, device='cpu')


def test_masks_of_no_image_are_refused_for_training_and_packing_but_one_image_may_be_looked_at(bare, tmp_path):
    write_segmentation(masks_of(NAMES, empty=NAMES), bare/'segmentation.csv')
    dataset = ChestDataset(bare)
    with pytest.raises(UserError, match='12 of 12 images have no lung mask.*nothing to learn'): loaders(dataset, views=BOTH)
    assert images_of(image_dataloader(dataset, NAMES[:1], image_size=32, views=BOTH, device='cpu')).shape == (1, 2, 32, 32)
    done = typed('chestnb_pack', bare, '--size', 32, '--views', 'whole,lungs', cwd=tmp_path)
    assert done.returncode == 2 and '12 of 12 images have no lung mask' in done.stderr and 'Traceback' not in done.stderr and not (bare/'packs').exists()


def test_commands_speak_of_masks(small, bare, tmp_path):
    done = typed('chestnb_check', small, cwd=tmp_path)
    assert 'Masks: 10 of 12 images have a mask of a lung in segmentation.csv; the view lungs shows the others whole.' in done.stdout
    done = typed('chestnb_pack', small, '--size', 32, '--views', 'lungs', '--workers', 1, cwd=tmp_path)
    assert '2 of 12 images have no lung mask' in done.stdout and '32 px, lungs: 12 images' in done.stdout
    (small/'segmentation.csv').rename(tmp_path/'drawn.csv')
    assert 'No masks' in typed('chestnb_check', small, cwd=tmp_path).stdout
    assert 'Masks: 10 of 12 images' in typed('chestnb_check', small, '--masks', 'drawn.csv', cwd=tmp_path).stdout
    done = typed('chestnb_pack', small, '--size', 32, '--views', 'lungs', '--masks', 'drawn.csv', '--workers', 1, cwd=tmp_path)
    assert done.returncode == 0 and 'made before' in done.stdout # the same file, moved: its size and time are the same


@pytest.mark.parametrize('seed', range(30))
def test_where_masks_lie_is_read_off_the_runs(bare, tmp_path, seed):
    "Drawing both masks of 1024×1024 pixels for a box took 10 ms an image: a quarter of an hour for NIH before the first square"
    rng, rows = np.random.default_rng(seed), masks_of(NAMES)
    for i in range(len(rows)):
        for side in ('Left Lung', 'Right Lung'):
            mask = np.zeros((50, 60), bool)
            upper, left = rng.integers(0, 50), rng.integers(0, 60)
            mask[upper:upper + rng.integers(0, 30), left:left + rng.integers(0, 40)] = True
            rows.loc[i, side] = encode_mask(mask & (rng.random((50, 60)) > rng.choice([0, .5, .99])) if rng.random() < .9 else rng.random((50, 60)) > .98)
    dataset = ChestDataset(bare, masks=write_segmentation(rows, tmp_path/'random.csv'))
    crop = lungs_crop(dataset)
    for name in NAMES:
        box = lung_box(dataset.mask(name, 'Left Lung') | dataset.mask(name, 'Right Lung'), LUNG_MARGIN)
        assert crop.box(name) == (box and (*box, 60, 50)) and crop.has(name) == (box is not None)


# -- views of one's own

def test_a_view_of_ones_own_is_read_packed_and_counted(small, own):
    boxes = {name: (0, 0, 1, .5, 1, 1) for name in NAMES[1:]}
    define_view('upper', lambda dataset: Crop('any', {'lower': .5}, boxes.get))
    dataset, views = ChestDataset(small), ['whole', 'upper', 'lungs']
    expected = GreyImages(dataset, 30, views).batch(NAMES)
    half = np.asarray(dataset.open_image(NAMES[1]).crop((0, 0, 60, 25)).resize((30, 12), Image.BILINEAR)).astype(int)
    assert expected.shape == (12, 3, 30, 30) and not expected[1, 1, :8].any() and not expected[1, 1, 22:].any()
    assert abs(expected[1, 1, 9:21].numpy().mean() - half.mean()) < 8
    with pytest.warns(UserWarning, match='1 of 12 images has no box and is shown whole in the view upper'):
        chest_dataloaders(dataset, split_of(dataset), image_size=30, batch_size=4, views=['upper'], device='cpu')
    crop, = view_crops(dataset, ['upper'])
    assert pack_images(dataset, 30, workers=1, crop=crop, progress=False).path.name == '30_upper.json'
    assert torch.equal(GreyImages(dataset, 30, views).batch(NAMES), expected)
    define_view('upper', lambda dataset: Crop('upper', {'lower': .7}, lambda name: (0, 0, 1, .7, 1, 1)))
    with pytest.warns(UserWarning, match='30_upper.json: this pack is not used'): assert GreyImages(dataset, 30, ['upper']).packs == [None]


@pytest.mark.parametrize('box, message', [
    ((.5, 0, .5, 1, 1, 1), 'empty box'), ((.6, 0, .5, 1, 1, 1), 'empty box'), ((0, 0, 0, 0, 0, 0), 'empty box'),
    ((-1, 0, 20, 20, 60, 50), 'leaves its picture of 60×50'), ((0, 0, 61, 20, 60, 50), 'leaves its picture'), ((0, 0, 1, float('inf'), 1, 1), 'leaves its picture'),
    ((float('nan'), 0, 1, 1, 1, 1), 'empty box'), ((0, 0, 1, 1), 'Give'), (3, 'Give'), (('a', 0, 1, 1, 1, 1), 'Give'), ((0, 0, 1, 1, 1e4, 1e4), 'holds no pixel')])
def test_a_bad_box_names_view_and_image(small, own, box, message):
    define_view('mine', lambda dataset: Crop('mine', {}, lambda name: box if name == NAMES[7] else (0, 0, 1, 1, 1, 1)))
    reader = GreyImages(ChestDataset(small), 32, ['whole', 'mine'])
    reader.batch(NAMES[:7])
    with pytest.raises(UserError, match=message) as error: reader.batch(NAMES)
    assert NAMES[7] in str(error.value) and 'mine' in str(error.value)


@pytest.mark.parametrize('function, message', [(lambda dataset: (0, 0, 1, 1), 'must give'), (lambda dataset: Crop('m', {'a': {1, 2}}, None), 'no JSON')])
def test_a_bad_function_is_one_sentence(small, own, function, message):
    define_view('mine', function)
    with pytest.raises(UserError, match=message): GreyImages(ChestDataset(small), 32, ['mine'])


# -- showing

def test_views_stand_side_by_side_under_their_names(small):
    import matplotlib.pyplot as plt
    joined = side_by_side(torch.stack([torch.zeros(32, 32), torch.full((32, 32), 9.)]))
    assert joined.shape == (32, 65) and (joined[:, :32] == 0).all() and (joined[:, 32] == 255).all() and (joined[:, 33:] == 9).all()
    assert side_by_side(torch.ones(1, 5, 5)).shape == (5, 5)
    dls = loaders(ChestDataset(small), views=BOTH)
    dls.show_batch(max_n=3)
    pictures = [ax for ax in plt.gcf().axes if ax.images]
    assert plt.gcf()._suptitle.get_text() == 'whole | lungs' and len(pictures) == 3 and pictures[0].images[0].get_array().shape == (32, 65)
    dls.show_batch(max_n=2, title='made up')
    assert plt.gcf()._suptitle.get_text() == 'whole | lungs · made up'
    x, y = dls.valid.one_batch()
    dls.valid.show_results((x, y), y, max_n=2)
    assert plt.gcf()._suptitle.get_text() == 'whole | lungs · label / predicted'
    loaders(ChestDataset(small), views=['lungs']).show_batch(max_n=2)
    assert plt.gcf()._suptitle is None
    plt.close('all')
