"""The shape of the library: imports point down, light modules stay light, start-up is quick."""
import ast
import importlib.util
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

import chestnb

PACKAGE = Path(chestnb.__file__).parent
LAYERS = [  # a module may import only from the rows above its own
    {'files'},
    {'metrics', 'dicom'},
    {'dataset', 'resampling'},
    {'phantom', 'eda', 'split', 'audit', 'pack'},
    {'fetch', 'datablock', 'fusion', 'distributed'},
    {'train'},
    {'saliency'},
    {'evaluate'},
    {'calibration', 'localisation'},
    {'thresholds'},
    {'trust'},
    {'report'},
    {'commands'},
]
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}
NEEDS_TORCH = {'datablock', 'fusion', 'distributed', 'train', 'saliency'}
LIGHT = sorted(set(LEVEL) - NEEDS_TORCH)
EVALUATION = ['resampling', 'evaluate', 'calibration', 'thresholds', 'localisation', 'trust', 'report']
COMMANDS = [f'chestnb_{name}' for name in ('train', 'evaluate', 'demo', 'check', 'phantom', 'nih', 'chestmnist', 'audit', 'pack', 'report')]


def imported(tree):
    "Names of chestnb modules that a syntax tree imports, wherever in it."
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            module = node.module or ''
            if node.level: yield module.split('.')[0] or next(a.name for a in node.names)
            elif module.startswith('chestnb.'): yield module.split('.')[1]
        elif isinstance(node, ast.Import):
            for name in node.names:
                if name.name.startswith('chestnb.'): yield name.name.split('.')[1]


def test_package_under_test_is_the_installed_one():
    "In `make test` the wheel is tested, not the working tree."
    expected = os.environ.get('CHESTNB_INSTALLED_IN')
    if expected is None: pytest.skip('CHESTNB_INSTALLED_IN is not set: this run tests the working tree')
    assert PACKAGE.resolve().is_relative_to(Path(expected).resolve())
    assert (PACKAGE/'resources'/'official_test_patients.txt').exists()


def test_every_module_has_its_layer():
    modules = {p.stem for p in PACKAGE.glob('*.py')} - {'__init__', '_modidx'}
    assert modules == set(LEVEL)


@pytest.mark.parametrize('name', sorted(LEVEL))
def test_imports_point_down(name):
    used = set(imported(ast.parse((PACKAGE/f'{name}.py').read_text(encoding='utf-8'))))
    wrong = {u for u in used if LEVEL[u] >= LEVEL[name]}
    assert not wrong, f'{name} imports {wrong}, which lie beside or above it'


@pytest.mark.parametrize('name', EVALUATION)
def test_evaluation_does_not_need_a_model(name):
    used = set(imported(ast.parse((PACKAGE/f'{name}.py').read_text(encoding='utf-8'))))
    assert not used & NEEDS_TORCH


def test_light_modules_do_not_import_torch():
    lines = '; '.join(f'import chestnb.{name}' for name in LIGHT)
    code = f'import sys; {lines}; print([m for m in ("torch", "fastai", "timm", "torchxrayvision") if m in sys.modules])'
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == '[]'


def quickest(command, tries=3):
    "The shortest of a few runs: a noisy machine makes a run longer, never shorter."
    times = []
    for _ in range(tries):
        started = time.perf_counter()
        done = subprocess.run(command, capture_output=True, text=True)
        times.append(time.perf_counter() - started)
        assert done.returncode == 0, done.stderr
    return min(times), done.stdout


def test_import_is_quick():
    assert quickest([sys.executable, '-c', 'import chestnb'])[0] < 1


@pytest.mark.parametrize('command', COMMANDS)
def test_help_is_quick_and_says_what_it_is_not_for(command):
    seconds, text = quickest([str(Path(sys.executable).with_name(command)), '--help'])
    assert seconds < 1, f'{command} --help took {seconds:.2f} s'
    assert 'not for clinical use' in ' '.join(text.split()).lower()
    assert 'show this help' in text
