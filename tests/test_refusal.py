"""What a model refuses: pixels that say nothing, pictures that are no chest, chests that were turned or cut; and that the gate is the same everywhere."""
import json
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pydicom
import pytest
import torch
from PIL import Image
from pydicom.data import get_testdata_file
from sklearn.datasets import load_sample_images

from chestnb.core.errors import UserError
from chestnb.data.dataset import ChestDataset
from chestnb.data.items import GreyImages
from chestnb.data.split import patient_split
from chestnb.data.squares import grey_square
from chestnb.model.fusion import FusionModel
from chestnb.using.cheap_checks import CHECKS, checks_of, colour_share, picture_facts, why_odd, why_strange
from chestnb.using.deployed import Deployed
from chestnb.using.gate import read_gate, save_gate
from chestnb.using.refusal import BUDGET, cell_features, choose_limits, fit_refusal, gate_network, gate_numbers, spoil, SPOILT

SIDE = 64


def untrained(**config):
    "A network that was never trained, and whose features are good enough for these tests."
    torch.manual_seed(0)
    return FusionModel(('test_resnet', 'test_resnet'), reduced_channels=16, **config).eval()


@pytest.fixture(scope='module')
def fitted(embedded):
    "A two-view model, its gate and limits, and squares of test images."
    dataset = ChestDataset(embedded)
    split, model = patient_split(dataset.table, seed=0), untrained(views=('lungs', 'whole'))
    split = split[split.groupby('part').cumcount() < 300] # enough, and quick
    gate, refusal = fit_refusal(model, dataset, split, image_size=SIDE, progress=False)
    squares = GreyImages(dataset, SIDE).squares(split.image[split.part == 'test'].tolist())[:, 0]
    return model, gate, refusal, squares


def refused(fitted, squares):
    "Which squares the gate refuses."
    model, gate, refusal, _ = fitted
    return np.array([bool(why_strange(row, refusal['scores'])) for row in gate_numbers(gate, cell_features(gate_network(model), squares))])


def test_test_images_pass(fitted):
    assert refused(fitted, fitted[3]).mean() <= .02


@pytest.mark.parametrize('kind', SPOILT)
def test_spoilt_test_images_do_not(fitted, kind):
    assert refused(fitted, spoil(kind, fitted[3][:150], np.random.default_rng(5))).mean() >= .98


def test_photographs_do_not(fitted):
    pictures = [Image.fromarray(pixels) for pixels in load_sample_images().images]
    if find_spec('skimage'):
        folder = Path(find_spec('skimage').origin).parent/'data'
        pictures += [Image.open(path).convert('RGB') for path in sorted(folder.iterdir()) if path.suffix in ('.png', '.jpg')]
    assert refused(fitted, np.stack([grey_square(image.convert('L'), SIDE) for image in pictures])).all()
    assert sum(colour_share(np.asarray(image)) > CHECKS['colour'][0] for image in pictures) >= 2 # and the coloured ones by their pixels alone


@pytest.mark.parametrize('name', ['CT_small.dcm', 'MR_small.dcm'])
def test_slices_do_not(fitted, name):
    pixels = pydicom.dcmread(get_testdata_file(name)).pixel_array.astype(float)
    grey = (255*(pixels - pixels.min())/np.ptp(pixels)).astype(np.uint8)
    assert refused(fitted, grey_square(Image.fromarray(grey), SIDE)[None]).all()


def test_the_gate_listens_to_the_branch_of_the_whole_image_and_changes_no_answer(fitted):
    "In the deployed graph the numbers are those that limits were chosen for, whatever the lungs view shows; logits and maps stay."
    _, gate, _, squares = fitted
    model, x = untrained(views=('lungs', 'whole')), torch.rand(6, 2, SIDE, SIDE)
    x[:, 1] = torch.from_numpy(squares[:6])/255
    expected = gate_numbers(gate, cell_features(gate_network(model), squares[:6]))
    with torch.inference_mode():
        before, after = Deployed(model, tta=3)(x), Deployed(model, gate, tta=3)(x)
        x[:, 0] = 0
        blind = Deployed(model, gate)(x)
    assert before[2].shape == (6, 0)
    assert torch.allclose(before[0], after[0], atol=1e-4) and torch.allclose(before[1], after[1], atol=1e-4)
    assert np.allclose(after[2].numpy(), expected, atol=1e-3) and torch.allclose(blind[2], after[2], atol=1e-4)


def test_a_gate_comes_back_from_its_file(fitted, tmp_path):
    gate, scores = fitted[1], fitted[2]['scores']
    again = read_gate(save_gate(gate, tmp_path/'refusal.safetensors'), scores)
    assert all(torch.equal(t, gate.state_dict()[name]) for name, t in again.state_dict().items())
    (tmp_path/'refusal.safetensors').write_bytes((tmp_path/'refusal.safetensors').read_bytes()[:-9])
    with pytest.raises(UserError, match='make_ready'): read_gate(tmp_path/'refusal.safetensors', scores)


def test_what_is_kept_names_no_patient(fitted, embedded):
    text = json.dumps(fitted[2])
    assert not any(Path(name).stem in text for name in ChestDataset(embedded).table.image)
    assert {score['name'] for score in fitted[2]['scores']} == {'distance', *SPOILT} and all(score['says'].endswith('.') for score in fitted[2]['scores'])


def test_a_model_of_lungs_alone_has_a_gate_too(embedded):
    dataset = ChestDataset(embedded)
    split = patient_split(dataset.table, seed=0)
    split = split[split.groupby('part').cumcount() < 60]
    model = untrained(views=('lungs',))
    gate, refusal = fit_refusal(model, dataset, split, image_size=SIDE, progress=False)
    squares = GreyImages(dataset, SIDE, ['lungs']).squares(split.image[split.part == 'test'].tolist())[:, 0]
    found = [bool(why_strange(row, refusal['scores'])) for row in gate_numbers(gate, cell_features(gate_network(model), np.concatenate([squares, 255 - squares])))]
    assert np.mean(found[:len(squares)]) <= .1 and np.mean(found[len(squares):]) >= .9


@pytest.mark.parametrize('seed', range(5))
def test_limits_keep_to_the_budget(seed):
    rng = np.random.default_rng(seed)
    good = rng.standard_t(3, size=(rng.integers(30, 800), 4))
    limits = choose_limits(good, [rng.normal(3, 1, (80, 4)) for _ in range(4)])
    assert (good > limits).any(1).mean() <= max(BUDGET, 4*int(.001*len(good))/len(good))


def test_too_few_images_are_refused_in_words(embedded):
    dataset = ChestDataset(embedded)
    split = patient_split(dataset.table, seed=0)
    with pytest.raises(UserError, match='a gate needs'): fit_refusal(untrained(), dataset, split[split.groupby('part').cumcount() < 3], image_size=SIDE, progress=False)


@pytest.mark.parametrize('name, grey', [
    ('flat', np.zeros((200, 200), np.uint8)), ('flat', np.full((200, 200), 255, np.uint8)), ('small', np.arange(900, dtype=np.uint8).reshape(30, 30)),
    ('long', np.tile(np.arange(200, dtype=np.uint8), (90, 1))), ('one_grey', np.pad((np.arange(1024)//4).astype(np.uint8).reshape(32, 32), 62))])
def test_pixels_that_say_nothing(name, grey):
    assert CHECKS[name][1] in why_odd(picture_facts(grey), checks_of([]))
