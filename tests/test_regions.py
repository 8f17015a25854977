"""Painted versions of a data set (lesson 09): what is covered, what is kept, and what is refused."""
import numpy as np
import pytest

from chestnb.core.errors import UserError
from chestnb.data.dataset import ChestDataset, embedded_dataset
from chestnb.data.regions import OUTLINE, PAINT, VERSIONS, both_lungs, changed_dataset, rectangle


@pytest.fixture(scope='module')
def few():
    dataset = ChestDataset(embedded_dataset())
    return dataset.subset(dataset.table.image[:4])


def toy():
    "An image that is wider than high, and two lungs of different size."
    lungs = np.zeros((20, 30), bool)
    lungs[4:15, 5:12] = lungs[6:12, 18:26] = True
    return np.arange(600, dtype=np.uint32).reshape(20, 30).astype(np.uint8), lungs


def test_each_version_covers_what_it_says():
    image, lungs = toy()
    made = {name: change(image, lungs) for name, change in VERSIONS.items()}
    assert all(picture.dtype == np.uint8 for picture in made.values())
    assert (made['lungs covered'][lungs] == PAINT).all() and (made['lungs covered'][~lungs] == image[~lungs]).all()
    assert (made['lungs alone'][lungs] == image[lungs]).all() and (made['lungs alone'][~lungs] == PAINT).all()
    inside = np.zeros_like(lungs)
    inside[4:15, 5:26] = True
    assert (rectangle(lungs) == inside).all()
    assert (made['rectangle covered'][inside] == PAINT).all() and (made['rectangle covered'][~inside] == image[~inside]).all()
    assert set(np.unique(made['outline alone'])) == {OUTLINE, PAINT}
    assert made['crop'].shape == (30, 30)


def test_the_outline_depends_on_the_mask_alone():
    image, lungs = toy()
    assert (VERSIONS['outline alone'](image, lungs) == VERSIONS['outline alone'](255 - image, lungs)).all()


def test_the_image_itself_stays():
    image, lungs = toy()
    before = image.copy()
    for change in VERSIONS.values(): change(image, lungs)
    assert (image == before).all()


def test_a_changed_data_set_keeps_names_labels_patients_and_provenance(few, tmp_path):
    made = changed_dataset(few, VERSIONS['lungs covered'], tmp_path/'covered')
    columns = ['image', 'patient_id', *few.findings]
    assert made.table[columns].equals(few.table[columns]) and made.is_synthetic and made.masks_path is None and made.boxes is None
    name = few.table.image[2]
    assert (np.asarray(made.open_image(name))[both_lungs(few, name)] == PAINT).all()


def test_it_is_replaced_but_nobody_elses_folder_is(few, tmp_path):
    changed_dataset(few, VERSIONS['whole'], tmp_path/'x')
    again = changed_dataset(few, VERSIONS['outline alone'], tmp_path/'x')
    assert set(np.unique(np.asarray(again.open_image(few.table.image[0])))) <= {OUTLINE, PAINT}


def test_images_without_a_mask_are_refused_with_a_way_out(few, tmp_path):
    with pytest.raises(UserError, match='4 of 4 images have no lung mask.*with_lungs'): changed_dataset(few.with_masks(None), VERSIONS['crop'], tmp_path/'x')
    assert not (tmp_path/'x').exists()
