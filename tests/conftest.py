"""Fixtures that several test files share."""
import os
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
os.environ.setdefault('MPLBACKEND', 'agg')


@pytest.fixture(scope='session')
def root():
    "The top of the repository."
    return ROOT


@pytest.fixture(scope='session')
def embedded():
    "The committed synthetic data set."
    return ROOT/'dataset'


@pytest.fixture(scope='session')
def split(embedded):
    "Few images of the embedded set, for trainings of seconds: 64 to train on, 40 of other patients to validate."
    import pandas as pd
    from chestnb.data.dataset import ChestDataset
    from chestnb.data.split import patient_split
    whole = patient_split(ChestDataset(embedded).table)
    return pd.concat([whole[whole.part == part].head(n) for part, n in (('train', 64), ('valid', 40))])


@pytest.fixture(scope='session')
def shared_nih():
    "Real NIH material that lies beside the repository on some machines and is never part of it."
    folder = ROOT.parent/'shared'/'nih'
    if not (folder/'README.md').exists():
        pytest.skip(f'real NIH material is not here (looked in ../shared/nih beside the repository)')
    return folder


@pytest.fixture(autouse=True)
def no_ledger_of_the_user(monkeypatch, tmp_path_factory):
    "Each test begins with an empty ledger of the official test list, and never touches the user's."
    monkeypatch.setenv('CHESTNB_LEDGER', str(tmp_path_factory.mktemp('ledger')/'official_test.json'))


@pytest.fixture(autouse=True)
def no_figure_from_another_test():
    "Figures that a test leaves open in pyplot are closed, so that the next test sees only its own."
    yield
    pyplot = sys.modules.get('matplotlib.pyplot')
    if pyplot: pyplot.close('all')


@pytest.fixture
def cache(tmp_path, monkeypatch):
    "An empty cache of this test's own."
    monkeypatch.setenv('CHESTNB_CACHE', str(tmp_path/'cache'))
    return tmp_path/'cache'
