"""Maps against boxes: conversions, regions, scores, baselines, intervals, and the refusal of seen boxes."""
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings, strategies as st
from PIL import Image

from chestnb.data.findings import FINDINGS
from chestnb.data.tables import NIH_HEADER
from chestnb.data.dataset import ChestDataset, image_size
from chestnb.data.boxes import nih_boxes, write_boxes
from chestnb.core.errors import UserError
from chestnb.evaluation.localisation import (IOBB_THRESHOLDS, LOCALISATION_MEASURES, baseline_scores, box_mask, box_pairs, box_targets, boxes_on_map, centre_prior,
    energy_inside, localisation_differences, localisation_table, map_region, masks_on_map, on_grid, overlap, pointing_hit, random_maps,
    random_scores, readable_localisation, scale_boxes, score_maps, structure_table, upsample_grid, location_prior)
from chestnb.data.leakage import LeakageError, refuse_trained_patients
from chestnb.data.parts import images_in
from chestnb.data.official import official_split
from chestnb.data.split import patient_split


def frame(*boxes): return pd.DataFrame(boxes, columns=['x', 'y', 'width', 'height'], dtype=float)


@pytest.fixture(scope='module')
def case(embedded):
    "Test pairs of the embedded set with their targets, at a size that is quick."
    dataset = ChestDataset(embedded)
    split = patient_split(dataset.table, seed=0)
    table = dataset.table[dataset.table.image.isin(images_in(split, 'test'))]
    pairs = box_pairs(dataset.boxes, table)
    return dataset, split, pairs, box_targets(pairs, dataset.boxes, dataset, 32)


# coordinates

@settings(max_examples=60, deadline=None)
@given(st.integers(20, 200), st.integers(20, 200), st.integers(8, 96), st.data())
def test_box_goes_where_the_pixels_go(height, width, size, data):
    "A white box on a black image, padded by the reader's own function and shrunk exactly, covers the same part of each pixel."
    from chestnb.data.squares import pad_to_square
    x, y = data.draw(st.integers(0, width - 2)), data.draw(st.integers(0, height - 2))
    w, h = data.draw(st.integers(1, width - x)), data.draw(st.integers(1, height - y))
    pixels = np.zeros((height, width), np.uint8)
    pixels[y:y + h, x:x + w] = 255
    square = np.asarray(pad_to_square(Image.fromarray(pixels))) > 0
    seen_down, seen_across = (square.any(axis).repeat(size).reshape(size, -1).mean(1) for axis in (1, 0)) # share of each map pixel that is box
    (left, upper, right, lower), = boxes_on_map(frame((x, y, w, h)), (height, width), size)
    edges = np.arange(size + 1)
    across = np.clip(np.minimum(right, edges[1:]) - np.maximum(left, edges[:-1]), 0, 1)
    down = np.clip(np.minimum(lower, edges[1:]) - np.maximum(upper, edges[:-1]), 0, 1)
    np.testing.assert_allclose(across, seen_across, atol=1e-9)
    np.testing.assert_allclose(down, seen_down, atol=1e-9)
    mask = box_mask(np.array([[left, upper, right, lower]]), size)
    assert mask.any() and (across[mask.any(0)] > 0).all() and (down[mask.any(1)] > 0).all()


@pytest.mark.parametrize('shape', [(100, 200), (200, 100), (101, 64), (64, 64)])
def test_targets_follow_the_reader_on_images_that_are_not_square(tmp_path, shape):
    "A data set with a bright rectangle where its box is: the brightest part of what the model sees is the target."
    from chestnb.data.items import GreyImages
    height, width = shape
    (tmp_path/'images').mkdir()
    pixels = np.full(shape, 20, np.uint8)
    y, x, h, w = height//4, width//3, height//2, width//4
    pixels[y:y + h, x:x + w] = 250
    Image.fromarray(pixels).save(tmp_path/'images'/'90000001_000.png')
    (tmp_path/'data.csv').write_text(f'{NIH_HEADER}\n90000001_000.png,Mass,0,90000001,50,F,PA,{width},{height},0.1,0.1\n')
    write_boxes(pd.DataFrame({'image': ['90000001_000.png'], 'finding': ['Mass'], 'x': [x], 'y': [y], 'width': [w], 'height': [h]}), tmp_path/'boxes.csv')
    dataset = ChestDataset(tmp_path)
    pairs = box_pairs(dataset.boxes, dataset.table)
    target = box_targets(pairs, dataset.boxes, dataset, 64)[0]
    bright = GreyImages(dataset, 64).read('90000001_000.png') > 135
    both, either = (target & bright).sum(), (target | bright).sum()
    assert both/either > .85, (both, either)


def test_crop_moves_and_clips():
    boxes = frame((10, 10, 20, 20), (50, 5, 40, 40))
    corners = boxes_on_map(boxes, (80, 100), 60, crop=(20, 0, 80, 60))
    np.testing.assert_allclose(corners, [[0, 10, 10, 30], [30, 5, 60, 45]])


@settings(max_examples=40, deadline=None)
@given(st.integers(20, 120), st.integers(20, 120), st.integers(8, 64), st.data())
def test_box_follows_the_lung_crop(height, width, size, data):
    "Cut out first, then padded and shrunk: the part of the box that is left lies where the function says."
    from chestnb.data.squares import pad_to_square
    left, upper = data.draw(st.integers(0, width//2)), data.draw(st.integers(0, height//2))
    crop = (left, upper, data.draw(st.integers(left + 5, width)), data.draw(st.integers(upper + 5, height)))
    x, y = data.draw(st.integers(0, crop[2] - 1)), data.draw(st.integers(0, crop[3] - 1))
    w, h = data.draw(st.integers(max(1, left - x + 1), 200)), data.draw(st.integers(max(1, upper - y + 1), 200))
    pixels = np.zeros((height, width), np.uint8)
    pixels[y:y + h, x:x + w] = 255
    square = np.asarray(pad_to_square(Image.fromarray(pixels).crop(crop))) > 0
    seen_down, seen_across = (square.any(axis).repeat(size).reshape(size, -1).mean(1) for axis in (1, 0))
    (low_x, low_y, high_x, high_y), = boxes_on_map(frame((x, y, w, h)), (height, width), size, crop)
    edges = np.arange(size + 1)
    for low, high, seen in ((low_x, high_x, seen_across), (low_y, high_y, seen_down)):
        np.testing.assert_allclose(np.clip(np.minimum(high, edges[1:]) - np.maximum(low, edges[:-1]), 0, 1), seen, atol=1e-9)


def test_scale_boxes_equals_the_data_sets_own_scaling(tmp_path, shared_nih):
    "ChestDataset scales a BBox_List_2017.csv in its folder; the function gives the same numbers."
    boxes = nih_boxes()
    folder = shared_nih/'dataset'
    names = set(pd.read_csv(folder/'data.csv', index_col=False)['Image Index'])
    few = boxes[boxes.image.isin(names)].drop_duplicates('image').head(5)
    (tmp_path/'images').mkdir()
    for name in few.image: (tmp_path/'images'/name).symlink_to((folder/'images'/name).resolve())
    rows = (folder/'data.csv').read_text().splitlines()
    (tmp_path/'data.csv').write_text('\n'.join([rows[0], *(r for r in rows[1:] if r.split(',')[0] in set(few.image))]) + '\n')
    write_boxes(boxes[boxes.image.isin(few.image)], tmp_path/'BBox_List_2017.csv')
    own = ChestDataset(tmp_path).boxes.sort_values(['image', 'finding', 'x']).reset_index(drop=True)
    scaled = scale_boxes(boxes[boxes.image.isin(few.image)], (1024, 1024), (224, 224)).sort_values(['image', 'finding', 'x']).reset_index(drop=True)
    pd.testing.assert_frame_equal(own, scaled)


def test_scale_boxes_for_unequal_sides():
    scaled = scale_boxes(frame((10, 20, 30, 40)), (100, 200), (50, 400))
    assert scaled.iloc[0].tolist() == [20, 10, 60, 20]
    with pytest.raises(UserError, match='above 0'): scale_boxes(frame((1, 1, 1, 1)), (100, 0), (50, 50))


@settings(max_examples=100, deadline=None)
@given(st.floats(0, 31.99), st.floats(0, 31.99), st.floats(1e-6, 32), st.floats(1e-6, 32))
def test_a_box_covers_the_pixels_whose_centres_it_holds(left, upper, width, height):
    right, lower = min(left + width, 32), min(upper + height, 32)
    mask = box_mask(np.array([[left, upper, right, lower]]), 32)
    loop = np.array([[left <= c + .5 < right and upper <= r + .5 < lower for c in range(32)] for r in range(32)])
    if loop.any(): assert (mask == loop).all()
    else: assert mask.any() and min(mask.any(0).sum(), mask.any(1).sum()) == 1


def test_a_box_at_the_last_pixel_edge_is_inside():
    assert np.argwhere(box_mask(np.array([[31.9, 31.9, 32., 32.]]), 32)).tolist() == [[31, 31]]


# pairs

def test_pairs_count_each_image_and_finding_once(case):
    dataset, split, pairs, targets = case
    assert not pairs.duplicated(['image', 'finding']).any()
    assert pairs.boxes.sum() == dataset.boxes.image.isin(set(images_in(split, 'test'))).sum()
    order = [FINDINGS.index(f) for f in pairs.finding]
    assert order == sorted(order)
    patient = dataset.table.set_index('image').patient_id
    assert (patient.loc[pairs.image].to_numpy() == pairs.patient_id.to_numpy()).all()
    assert targets.shape == (len(pairs), 32, 32) and targets.any((1, 2)).all()
    several = pairs.index[pairs.boxes > 1][0]
    own = dataset.boxes[(dataset.boxes.image == pairs.image[several]) & (dataset.boxes.finding == pairs.finding[several])]
    size = image_size(dataset.image_path(pairs.image[several]))
    union = np.any([box_mask(boxes_on_map(own.iloc[[i]], size, 32), 32) for i in range(len(own))], axis=0)
    assert (union == targets[several]).all()


def test_pairs_of_other_images_are_refused(case):
    with pytest.raises(UserError, match='none of the'): box_pairs(nih_boxes(), case[0].table)


# pointing

@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10**6))
def test_pointing_equals_the_mean_over_tied_maxima(seed):
    random = np.random.default_rng(seed)
    map_, target = random.integers(0, 4, (9, 9)).astype(float), random.random((9, 9)) < .3
    places = [(r, c) for r in range(9) for c in range(9) if map_[r, c] == map_.max()]
    assert pointing_hit(map_, target) == pytest.approx(np.mean([target[p] for p in places]))


def test_pointing_tolerance_is_a_distance():
    target = np.zeros((20, 20), bool); target[5:8, 5:8] = True
    map_ = np.zeros((20, 20)); map_[10, 11] = 1                              # 3 down and 4 right of the corner (7, 7)
    assert [pointing_hit(map_, target, t) for t in (0, 4.9, 5)] == [0, 0, 1]


# regions and overlap

def test_components_touch_at_corners_and_peak_keeps_only_its_own():
    map_ = np.zeros((10, 10)); map_[1, 1] = map_[2, 2] = 1; map_[7, 7] = .9
    assert map_region(map_, as_box=False).sum() == 2
    assert map_region(map_, as_box=True).sum() == 4
    assert map_region(map_, component='all', as_box=False).sum() == 3
    map_[7, 7] = 1                                                           # two maxima: both components stay
    assert map_region(map_, as_box=False).sum() == 3


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10**6), st.floats(.02, 1.))
def test_area_keeps_that_share(seed, area):
    map_ = np.random.default_rng(seed).random((12, 12))
    assert map_region(map_, area=area, component='all', as_box=False).sum() == max(1, round(area*144))


@pytest.mark.parametrize('settings_', [dict(fraction=0), dict(fraction=1.2), dict(area=0.), dict(area=-1), dict(component='biggest'), dict(fraction=np.nan)])
def test_impossible_regions_are_refused(settings_):
    with pytest.raises(UserError): map_region(np.ones((4, 4)), **settings_)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10**6))
def test_overlap_against_sets(seed):
    random = np.random.default_rng(seed)
    region, target = random.random((2, 7, 7)) < .4
    region[0, 0] = target[6, 6] = True
    a, b = set(map(tuple, np.argwhere(region))), set(map(tuple, np.argwhere(target)))
    assert overlap(region, target) == pytest.approx((len(a & b)/len(a | b), len(a & b)/len(a)))


def test_scores_of_a_constant_map_are_the_area(case):
    targets = case[3]
    for value in (0., 3.):
        scores = score_maps(np.full(targets.shape, value), targets)
        for measure in ('pointing', 'energy', 'IoU', 'IoBB'): np.testing.assert_allclose(scores[measure], targets.mean((1, 2)))


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10**6), st.floats(1e-6, 1e6))
def test_energy_against_a_plain_sum(seed, scale):
    random = np.random.default_rng(seed)
    map_, target = random.random((7, 7))**3, random.random((7, 7)) < .4
    target[0, 0] = True
    wanted = sum(map_[r, c] for r, c in np.argwhere(target))/map_.sum()
    assert energy_inside(scale*map_, target) == pytest.approx(wanted) and energy_inside(map_, ~target) == pytest.approx(1 - wanted)


def test_energy_of_a_large_float32_map_does_not_lose_small_values():
    map_, target = np.full((1024, 1024), .1, np.float32), np.zeros((1024, 1024), bool)
    target[:256] = True
    assert energy_inside(map_, target) == pytest.approx(.25, abs=1e-9)


def test_any_measure_has_a_table_and_differences():
    pairs = pd.DataFrame({'image': list('abcd'), 'finding': ['Mass', 'Mass', 'Edema', 'Edema'], 'patient_id': [1, 2, 3, 4]})
    scores = {'m': pd.DataFrame({'drop': [1., 2, 3, 4]}), 'n': pd.DataFrame({'drop': [0., 0, 1, 1]})}
    table = localisation_table(scores, pairs, n_resamples=100).set_index(['finding', 'method'])
    assert table.value['macro', 'm'] == pytest.approx(2.5) and set(table.measure) == {'drop'}
    difference = localisation_differences(scores, pairs, 'n', 'drop', 100).set_index('finding').difference
    assert difference['macro'] == pytest.approx(2) and difference['Edema'] == pytest.approx(2.5)


def test_thresholds_are_strict():
    target = np.zeros((1, 10, 10), bool); target[0, :, :5] = True
    scores = score_maps(np.ones((1, 10, 10)), target)                         # IoBB is exactly .5
    assert scores['T(IoBB) 0.25'][0] == 1 and scores['T(IoBB) 0.5'][0] == 0
    assert list(scores.columns) == list(LOCALISATION_MEASURES) and IOBB_THRESHOLDS == (.1, .25, .5, .75, .9)


@pytest.mark.parametrize('bad', [np.nan, np.inf, -1.])
def test_maps_that_cannot_be_scored_are_refused(case, bad):
    maps = np.ones(case[3].shape); maps[3, 0, 0] = bad
    with pytest.raises(UserError, match='1 of'): score_maps(maps, case[3])


def test_other_shapes_and_empty_targets_are_refused(case):
    with pytest.raises(UserError, match='shape'): score_maps(np.ones((2, 32, 32)), case[3])
    with pytest.raises(UserError, match='empty'): score_maps(np.ones((1, 4, 4)), np.zeros((1, 4, 4), bool))


# baselines

def test_random_maps_are_seeded_coarse_and_right_on_average():
    assert (random_maps(4, seed=3) == random_maps(4, seed=3)).all() and (random_maps(4, seed=3) != random_maps(4, seed=4)).any()
    maps = random_maps(400, grid=4, map_size=32)
    np.testing.assert_allclose(maps.mean(), .5, atol=.02)
    np.testing.assert_allclose(maps[:, :4, :4], maps[:, :1, :1].repeat(4, 1).repeat(4, 2), atol=1e-6)  # flat to the middle of the corner cell


def test_upsampling_equals_pytorchs():
    torch = pytest.importorskip('torch')
    grid = np.random.default_rng(0).random((5, 5)).astype(np.float32)
    wanted = torch.nn.functional.interpolate(torch.tensor(grid)[None, None], size=(64, 64), mode='bilinear', align_corners=False)[0, 0]
    np.testing.assert_allclose(upsample_grid(grid, 64), wanted, atol=1e-5)


def test_a_map_on_a_grid_keeps_its_cells_and_its_mean():
    "Cell means, enlarged: fine detail is gone, the mean stays but for the border that bilinear enlarging stretches."
    maps = np.random.default_rng(0).random((3, 32, 32))
    coarse = on_grid(maps, 4)
    for own, map_ in zip(coarse, maps): np.testing.assert_allclose(own, upsample_grid(map_.reshape(4, 8, 4, 8).mean((1, 3)), 32), atol=1e-6)
    np.testing.assert_allclose(on_grid(np.full((1, 16, 16), 3.), 8), 3)
    np.testing.assert_allclose(on_grid(maps, 32), maps, atol=1e-6)
    with pytest.raises(UserError, match='7 cells do not divide'): on_grid(maps, 7)


def test_centre_prior_is_a_bell():
    bell = centre_prior(64, .2)
    np.testing.assert_allclose(bell, bell[::-1].T[::-1], atol=1e-12)
    assert bell[31:33, 31:33].min() == bell.max() and bell[0, 0] < .01
    with pytest.raises(UserError): centre_prior(64, 0)


def test_location_prior_never_uses_the_own_patient(case):
    _, _, pairs, targets = case
    prior = location_prior(pairs, targets)
    for row in np.random.default_rng(0).choice(len(pairs), 25, replace=False):
        others = ((pairs.finding == pairs.finding[row]) & (pairs.patient_id != pairs.patient_id[row])).to_numpy()
        np.testing.assert_allclose(prior[row], targets[others].mean(0), atol=1e-6)
    changed = targets.copy(); changed[0] = ~changed[0]                        # a pair's own box does not change its map
    np.testing.assert_array_equal(location_prior(pairs, changed)[0], prior[0])
    alone = pairs.iloc[[0]]
    assert location_prior(alone, targets[:1]).max() == 0


def test_random_scores_are_means_over_draws(case):
    targets = case[3][:6]
    both = random_scores(targets, 4, n_draws=2, seed=5)
    single = [score_maps(random_maps(6, 4, 32, [5, i]), targets) for i in range(2)]
    pd.testing.assert_frame_equal(both, (single[0] + single[1])/2)
    with pytest.raises(UserError): random_scores(targets, component='no')    # settings reach score_maps


# tables

def test_table_against_a_plain_loop(case):
    _, _, pairs, targets = case
    scores = {'location prior': score_maps(location_prior(pairs, targets), targets), 'centre': score_maps(np.broadcast_to(centre_prior(32), targets.shape), targets)}
    table = localisation_table(scores, pairs, n_resamples=100, seed=7).set_index(['finding', 'method', 'measure'])
    random, patients, draws = np.random.default_rng(7), np.unique(pairs.patient_id), []
    rows_of = {p: np.flatnonzero(pairs.patient_id == p) for p in patients}
    hit = scores['centre'].pointing.to_numpy()
    for _ in range(100):
        rows = np.concatenate([rows_of[patients[i]] for i in random.integers(len(patients), size=len(patients))])
        each = pd.Series(hit[rows]).groupby(pairs.finding.to_numpy()[rows]).mean()
        full = len(each) == pairs.finding.nunique()
        draws.append((each.get('Cardiomegaly', np.nan), each.mean() if full else np.nan, hit[rows].mean()))
    for name, values in zip(('Cardiomegaly', 'macro', 'all pairs'), np.array(draws).T):
        row = table.loc[name, 'centre', 'pointing']
        np.testing.assert_allclose([row.low, row.high], np.nanpercentile(values, [2.5, 97.5]))
        assert row.resamples == np.isfinite(values).sum()
    for finding, own in pairs.groupby('finding'):
        row = table.loc[finding, 'location prior', 'IoU']
        assert row.value == pytest.approx(scores['location prior'].IoU[own.index].mean())
        assert (row.pairs, row.patients) == (len(own), own.patient_id.nunique())
    assert table.loc['macro', 'centre', 'IoU'].value == pytest.approx(scores['centre'].groupby(pairs.finding).IoU.mean().mean())


def test_a_finding_of_one_patient_has_no_interval():
    pairs = pd.DataFrame({'image': list('abcd'), 'finding': ['Mass', 'Mass', 'Hernia', 'Mass'], 'patient_id': [1, 1, 2, 3]})
    scores = pd.DataFrame(np.random.default_rng(0).random((4, len(LOCALISATION_MEASURES))), columns=LOCALISATION_MEASURES)
    table = localisation_table({'m': scores}, pairs, n_resamples=200).query("measure == 'pointing'").set_index('finding')
    assert np.isfinite(table.value).all()
    assert table.low.isna().to_dict() == {'Mass': False, 'Hernia': True, 'macro': True, 'all pairs': False}
    assert '[' not in readable_localisation(table.reset_index()).loc['Hernia', 'm']


def test_an_interval_of_no_width_is_not_shown():
    pairs = pd.DataFrame({'image': list('abcdef'), 'finding': ['Mass']*3 + ['Edema']*3, 'patient_id': [1, 2, 3, 1, 2, 3]})
    scores = pd.DataFrame(np.array([1., 1, 1, 0, .5, 1])[:, None].repeat(len(LOCALISATION_MEASURES), 1), columns=LOCALISATION_MEASURES)
    table = localisation_table({'m': scores}, pairs, n_resamples=200)
    text = readable_localisation(table)
    assert text.loc['Mass', 'm'] == '1.00' and text.loc['Edema', 'm'].startswith('0.50 [')
    mass = table[(table.finding == 'Mass') & (table.measure == 'pointing')].iloc[0]
    assert (mass.low, mass.high) == (1, 1)    # the table itself keeps what was computed


def test_no_resamples_no_intervals(case):
    _, _, pairs, targets = case
    table = localisation_table({'m': score_maps(targets.astype(float), targets)}, pairs, n_resamples=0)
    assert table.low.isna().all() and np.isfinite(table.value).all()


def test_same_seed_same_table(case):
    _, _, pairs, targets = case
    one, two = (localisation_table(baseline_scores(pairs, targets, n_draws=2, seed=1), pairs, 50, seed=2) for _ in range(2))
    pd.testing.assert_frame_equal(one, two)


def test_rows_must_match(case):
    _, _, pairs, targets = case
    with pytest.raises(UserError, match='one for each'): localisation_table({'m': score_maps(targets[:3].astype(float), targets[:3])}, pairs)
    table = localisation_table({'m': score_maps(targets.astype(float), targets)}, pairs, 0)
    with pytest.raises(UserError, match='measure is'): readable_localisation(table, 'accuracy')


def test_differences_are_paired(case):
    _, _, pairs, targets = case
    same = score_maps(location_prior(pairs, targets), targets)
    better = same.assign(pointing=same.pointing + .1)
    found = localisation_differences({'a': same, 'b': better}, pairs, 'a', n_resamples=100)
    np.testing.assert_allclose(found[['difference', 'low', 'high']], .1, atol=1e-9)
    with pytest.raises(UserError, match='no method'): localisation_differences({'a': same}, pairs, 'random')
    with pytest.raises(UserError, match='measure is'): localisation_differences({'a': same, 'b': better}, pairs, 'a', 'sharpness')


# boxes evaluate, never train

def test_seen_boxes_are_refused_by_patient(case):
    dataset, split, pairs, _ = case
    own = pairs.image
    report = refuse_trained_patients(own, dataset.table, split, 'boxed images')
    assert report.images.to_dict() == {'test': own.nunique()} and report.patients.to_dict() == {'test': pairs.patient_id.nunique()}
    for part in ('train', 'valid'):
        boxed = dataset.boxes.image[dataset.boxes.image.isin(images_in(split, part))]
        with pytest.raises(LeakageError, match='boxed images show patients that the model was trained or tuned on'):
            refuse_trained_patients(boxed, dataset.table, split, 'boxed images')
        assert refuse_trained_patients(boxed, dataset.table, split, allow_seen=True).images.to_dict() == {part: boxed.nunique()}


def test_another_image_of_a_training_patient_is_seen_too():
    split = pd.DataFrame({'image': ['a.png', 'b.png'], 'patient_id': [1, 1], 'part': ['train', 'test']})
    with pytest.raises(LeakageError, match='1 image among'): refuse_trained_patients(['b.png'], split, split)
    assert refuse_trained_patients(['b.png'], split, split, allow_seen=True).images.to_dict() == {'test': 1}
    with pytest.raises(LeakageError): refuse_trained_patients(['b.png'], split, split.assign(part=['fold0', 'test']))


@pytest.mark.parametrize('patients', [(1, 2), ('1', '2'), (1., 2.), ('1.0', '2.0'), ('001', '002')])
def test_a_boxed_image_outside_the_split_is_refused_if_its_patient_was_trained_on(patients):
    "It passed as 'not in the split', whoever's chest it showed, and 5 and '5.0' were two patients."
    split = pd.DataFrame({'image': ['a.png'], 'patient_id': [1], 'part': ['train']})
    table = pd.DataFrame({'image': ['y.png', 'z.png'], 'patient_id': patients})
    assert refuse_trained_patients(['z.png'], table, split).images.to_dict() == {'not in the split': 1}
    with pytest.raises(LeakageError, match='1 image among these images show.*: y.png') as caught: refuse_trained_patients(['y.png', 'z.png'], table, split)
    assert caught.value.shared.image.tolist() == ['y.png']
    assert refuse_trained_patients(['y.png'], table, split, allow_seen=True).patients.to_dict() == {'not in the split': 1}


def test_boxed_images_of_nobody_knows_whom_are_refused():
    split = pd.DataFrame({'image': ['a.png'], 'patient_id': [1], 'part': ['train']})
    with pytest.raises(UserError, match='is not known: z.png'): refuse_trained_patients(['z.png'], split, split)
    with pytest.raises(UserError, match='is not known: z.png'): refuse_trained_patients(['z.png'], pd.DataFrame({'image': ['y.png', 'z.png'], 'patient_id': [3, np.nan]}), split)


def test_where_nobody_knows_the_patients_images_are_compared():
    table = pd.DataFrame({'image': ['a.png', 'b.png', 'c.png'], 'patient_id': [np.nan]*3})
    split = table.assign(part=['train', 'valid', 'test'])
    for seen in ('a.png', 'b.png'):
        with pytest.raises(LeakageError): refuse_trained_patients([seen], table, split)
    assert refuse_trained_patients(['c.png'], table, split).loc['test'].tolist() == [1, 'not known']


def test_boxes_of_other_findings_than_nihs_are_scored():
    "RSNA's Lung Opacity ended in a ValueError, and left the table."
    table = pd.DataFrame({'image': list('ab'), 'patient_id': [1, 2]})
    table.attrs['findings'] = ('Lung Opacity', 'Edema')
    boxes = pd.DataFrame({'image': ['b', 'a', 'b'], 'finding': ['Edema', 'Lung Opacity', 'Aneurysm']})
    pairs = box_pairs(boxes, table)
    assert pairs.finding.tolist() == ['Lung Opacity', 'Edema', 'Aneurysm']
    scores = pd.DataFrame(np.ones((3, len(LOCALISATION_MEASURES))), columns=LOCALISATION_MEASURES)
    named = localisation_table({'m': scores}, pairs, 10).finding.unique().tolist()
    assert named == ['Lung Opacity', 'Edema', 'Aneurysm', 'macro', 'all pairs']


def test_scoring_maps_needs_neither_torch_nor_a_model():
    import subprocess, sys
    code = 'import sys, chestnb.evaluation.localisation; print([m for m in ("torch", "fastai", "timm", "chestnb.model") if m in sys.modules])'
    assert subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout.strip() == '[]'


def test_all_real_boxes_are_official_test_images(shared_nih):
    dataset = ChestDataset(shared_nih/'dataset')
    boxes = nih_boxes()
    boxes = boxes[boxes.image.isin(dataset.table.image)]
    assert refuse_trained_patients(boxes.image, dataset.table, official_split(dataset.table)).images.to_dict() == {'test': boxes.image.nunique()}
    with pytest.raises(LeakageError, match='trained or tuned on'): refuse_trained_patients(boxes.image, dataset.table, patient_split(dataset.table, seed=0))


# structures

def test_share_inside_against_a_plain_sum(case):
    dataset, _, pairs, _ = case
    names = pairs.image[:8].tolist()
    maps = np.random.default_rng(0).random((8, 128, 128))
    table = structure_table({'m': maps}, names, dataset, n_resamples=50).set_index('region')
    lungs = np.stack([dataset.mask(n, 'Left Lung') | dataset.mask(n, 'Right Lung') for n in names])
    assert (masks_on_map(dataset, names, ('Left Lung', 'Right Lung')) == lungs).all()
    share = np.mean([(m*k).sum()/m.sum() for m, k in zip(maps, lungs)])
    assert table.loc['lungs', 'share_of_map'] == pytest.approx(share)
    assert table.loc['lungs', 'share_of_area'] == pytest.approx(lungs.mean())
    assert table.loc['lungs', 'ratio'] == pytest.approx(share/lungs.mean())


def test_empty_maps_are_counted_not_averaged(case):
    dataset, _, pairs, _ = case
    names = pairs.image[:4].tolist()
    maps = np.ones((4, 128, 128)); maps[1] = 0
    table = structure_table({'m': maps}, names, dataset, n_resamples=20)
    assert (table['empty'] == 1).all()
    np.testing.assert_allclose(table.ratio, 1)
    nothing = structure_table({'m': np.zeros((4, 128, 128))}, names, dataset, n_resamples=20)
    assert nothing.ratio.isna().all() and (nothing['empty'] == 4).all()


def test_masks_of_images_that_are_not_square():
    class Tall:
        def mask(self, name, structure): return np.ones((40, 20), bool)
    mask = masks_on_map(Tall(), ['a'], ('Heart',), 40)[0]
    assert mask[:, 10:30].all() and mask.sum() == 800
