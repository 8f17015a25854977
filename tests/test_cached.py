"""Trainings that lessons keep in the user's cache."""
import os
import subprocess
import sys
from dataclasses import replace

import pandas as pd
import pytest

from chestnb.core.cache import cache_folder
from chestnb.core.errors import UserError
from chestnb.data.dataset import ChestDataset, embedded_dataset
from chestnb.data.split import patient_split
from chestnb.model.cached import cached_training, training_key
from chestnb.model.config import TrainConfig

CONFIG = TrainConfig(model=dict(branches=['test_byobnet'], reduced_channels=8), image_size=32, epochs=1)
TWICE = '''
import pandas as pd
from chestnb.data.dataset import ChestDataset, embedded_dataset
from chestnb.data.split import patient_split
from chestnb.model.cached import cached_training
from chestnb.model.config import TrainConfig
dataset = ChestDataset(embedded_dataset())
split = patient_split(dataset.table)
few = pd.concat([split[split.part == part].head(64) for part in ('train', 'valid')])
cached_training(dataset, few, TrainConfig(model=dict(branches=['test_byobnet'], reduced_channels=8), image_size=32, epochs=1), 'the same')
'''


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch): monkeypatch.setenv('CHESTNB_CACHE', str(tmp_path/'cache'))


@pytest.fixture(scope='module')
def dataset(): return ChestDataset(embedded_dataset())


@pytest.fixture(scope='module')
def few(dataset):
    split = patient_split(dataset.table)
    return pd.concat([split[split.part == part].head(64) for part in ('train', 'valid')])


@pytest.mark.filterwarnings('ignore:no training image')
def test_trained_once_and_again_when_something_changes(dataset, few, capsys):
    model = cached_training(dataset, few, CONFIG, 'one', progress=False)
    again = cached_training(dataset, few, replace(CONFIG, num_workers=2), 'one', progress=False)
    said = capsys.readouterr().out.splitlines()
    assert 'trained now' in said[0] and 'from the cache' in said[1] and len(said) == 2
    assert again.history.equals(model.history) and len(again.history) == 1 and again.info == model.info
    cached_training(dataset, few, replace(CONFIG, seed=1), 'one', progress=False)
    assert 'trained now' in capsys.readouterr().out


@pytest.mark.filterwarnings('ignore:no training image')
def test_an_interrupted_training_leaves_nothing(dataset, few, capsys, monkeypatch):
    def cut(*args, **kwargs): raise KeyboardInterrupt
    with monkeypatch.context() as power:
        power.setattr('chestnb.model.cached.train_model', cut)
        with pytest.raises(KeyboardInterrupt): cached_training(dataset, few, CONFIG, progress=False)
    assert not [path for path in cache_folder('trained').iterdir() if path.is_dir()]
    cached_training(dataset, few, CONFIG, progress=False)
    assert 'trained now' in capsys.readouterr().out


def test_what_shapes_a_training_is_in_its_key(dataset, few):
    key = training_key(dataset, few, CONFIG)
    assert key == training_key(dataset, few.iloc[::-1], replace(CONFIG, num_workers=7))
    for other in (replace(CONFIG, augment=False), replace(CONFIG, learning_rate=1e-3), replace(CONFIG, model=CONFIG.model | {'reduced_channels': 16})):
        assert training_key(dataset, few, other) != key
    assert training_key(dataset.subset(few.image.tolist()), few, CONFIG) != key


def test_a_cache_that_cannot_be_made_is_named(dataset, few, tmp_path, monkeypatch):
    (tmp_path/'file').write_text('')
    monkeypatch.setenv('CHESTNB_CACHE', str(tmp_path/'file'))
    with pytest.raises(UserError, match='CHESTNB_CACHE'): cached_training(dataset, few, CONFIG)


def test_two_processes_train_it_once():
    both = [subprocess.Popen([sys.executable, '-W', 'ignore', '-c', TWICE], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ | {'OMP_NUM_THREADS': '1'})
            for _ in range(2)]
    said = sorted(process.communicate()[0] for process in both)
    assert ['from the cache' in said[0], 'trained now' in said[1]] == [True, True], said
