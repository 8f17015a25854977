"""The shape of the library: packages in layers, imports that point down, modules of a readable size, one meaning a name, a quick start."""
import ast
import configparser
import json
import os
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import chestnb

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = Path(chestnb.__file__).parent
BELOW = {  # what a package may import, beside itself
    'core': set(),
    'data': {'core'},
    'model': {'core', 'data', 'evaluation.metrics'},
    'evaluation': {'core', 'data'},
    'using': {'core', 'data', 'model', 'evaluation'},
    'commands': {'core', 'data', 'model', 'evaluation', 'using'},
    'all': {'core', 'data', 'model', 'evaluation', 'using'},
}
NEEDS_TORCH = {'data.items', 'data.augment', 'data.loaders', 'data.datablock'}  # and `model` but for these:
NO_TORCH_IN_MODEL = {'model.config', 'model.history'}
TORCH_IN_USING = {'using.deployed', 'using.export', 'using.gate', 'using.ready', 'using.predict', 'using.refusal'}
MOST_LINES = 500


def name_of(path):
    "data/split.py -> data.split"
    return '.'.join(path.relative_to(PACKAGE).with_suffix('').parts)


MODULES = {name_of(p): p for p in sorted(PACKAGE.rglob('*.py')) if p.name not in ('__init__.py', '_modidx.py') and '.ipynb_checkpoints' not in p.parts}
LIGHT = sorted(m for m in MODULES if m not in NEEDS_TORCH | TORCH_IN_USING and m != 'all' and not (m.startswith('model.') and m not in NO_TORCH_IN_MODEL))
SETTINGS = configparser.ConfigParser(delimiters=['='])
SETTINGS.read(ROOT/'settings.ini')
COMMANDS = [line.split('=')[0].strip() for line in SETTINGS['DEFAULT']['console_scripts'].split()]


def tree_of(module): return ast.parse(MODULES[module].read_text(encoding='utf-8'))


def imported(module, anywhere=True):
    "Modules of chestnb that a module imports: anywhere in it, or at its top only."
    tree, here = tree_of(module), module.split('.')
    for node in ast.walk(tree) if anywhere else tree.body:
        if isinstance(node, ast.ImportFrom):
            base = here[:len(here) - node.level] if node.level else []
            whole = '.'.join(base + (node.module.split('.') if node.module else []))
            if not node.level and not whole.startswith('chestnb'): continue
            whole = whole.removeprefix('chestnb').lstrip('.')
            yield from ([whole] if whole in MODULES else [f'{whole}.{a.name}'.lstrip('.') for a in node.names if f'{whole}.{a.name}'.lstrip('.') in MODULES])
        elif isinstance(node, ast.Import):
            yield from (a.name.removeprefix('chestnb.') for a in node.names if a.name.startswith('chestnb.'))


def test_package_under_test_is_the_installed_one():
    "In `make test` the wheel is tested, not the working tree."
    expected = os.environ.get('CHESTNB_INSTALLED_IN')
    if expected is None: pytest.skip('CHESTNB_INSTALLED_IN is not set: this run tests the working tree')
    assert PACKAGE.resolve().is_relative_to(Path(expected).resolve())
    assert (PACKAGE/'resources'/'official_test_patients.txt').exists()


def test_the_package_holds_every_module_that_the_notebooks_export():
    "The wheel finds its packages: a module that a notebook names is there, and no other."
    books = [b for b in (ROOT/'nbs').rglob('*.ipynb') if not any(part.startswith(('_', '.')) for part in b.relative_to(ROOT/'nbs').parts)]
    exported = {line.split()[2] for book in books for line in sources_of(book) if line.startswith('#| default_exp ')}
    assert exported == set(MODULES)


def sources_of(book):
    "Lines of the code cells of a notebook."
    return [line for cell in json.loads(book.read_text(encoding='utf-8'))['cells'] if cell['cell_type'] == 'code' for line in ''.join(cell['source']).splitlines()]


@pytest.mark.parametrize('module', MODULES)
def test_imports_point_down(module):
    own = module.split('.')[0]
    wrong = [m for m in set(imported(module)) if m.split('.')[0] != own and m.split('.')[0] not in BELOW[own] and m not in BELOW[own]]
    assert not wrong, f'{module} imports {wrong}, which lie beside or above it'


def test_no_circles():
    "Not at the top of a module, and not hidden in a function either."
    graph = {module: set(imported(module)) - {module} for module in MODULES}
    try: order = list(TopologicalSorter(graph).static_order())
    except CycleError as error: pytest.fail(f'modules import each other in a circle: {" -> ".join(error.args[1])}')
    assert set(order) == set(MODULES)


@pytest.mark.parametrize('module', [m for m in MODULES if m.startswith('evaluation.')])
def test_evaluation_needs_neither_a_model_nor_torch(module):
    names = {a.name.split('.')[0] for node in ast.walk(tree_of(module)) if isinstance(node, (ast.Import, ast.ImportFrom))
             for a in ([ast.alias(node.module or '')] if isinstance(node, ast.ImportFrom) and not node.level else node.names if isinstance(node, ast.Import) else [])}
    assert not names & {'torch', 'fastai', 'timm'}
    assert not any(m.startswith('model') or m in NEEDS_TORCH for m in imported(module))


@pytest.mark.parametrize('module', MODULES)
def test_a_module_is_of_a_readable_size(module):
    lines = len(MODULES[module].read_text(encoding='utf-8').splitlines())
    assert lines <= MOST_LINES, f'{module} has {lines} lines: split it'


def exports(module):
    "Names in a module's `__all__`."
    for node in tree_of(module).body:
        if isinstance(node, ast.Assign) and any(getattr(t, 'id', '') == '__all__' for t in node.targets): return ast.literal_eval(node.value)
    return []


def test_one_name_has_one_meaning():
    "No two modules export the same name."
    owners = {}
    for module in MODULES:
        if module != 'all':
            for name in exports(module): owners.setdefault(name, []).append(module)
    assert len(owners) > 300
    assert {name: where for name, where in owners.items() if len(where) > 1} == {}


def test_all_has_about_twenty_documented_names():
    import chestnb.all as everything
    assert 15 <= len(everything.__all__) <= 25
    for name in everything.__all__:
        thing = getattr(everything, name)
        if callable(thing): assert (thing.__doc__ or '').strip(), f'{name} has no docstring'


def test_light_modules_do_not_import_torch():
    lines = '; '.join(f'import chestnb.{name}' for name in LIGHT)
    code = f'import sys; {lines}; print([m for m in ("torch", "fastai", "timm", "torchxrayvision") if m in sys.modules])'
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
    assert len(LIGHT) > 30 and done.stdout.strip() == '[]'


def quickest(command, tries=3):
    "The shortest of a few runs: a noisy machine makes a run longer, never shorter."
    times, spent = [], lambda: sum(os.times()[2:4]) # Processor time of finished child processes: a busy machine makes the wait longer, this hardly
    for _ in range(tries):
        before = spent()
        done = subprocess.run(command, capture_output=True, text=True)
        times.append(spent() - before)
        assert done.returncode == 0, done.stderr
        if times[-1] < 1: break
    return min(times), done.stdout


def test_import_is_quick():
    assert quickest([sys.executable, '-c', 'import chestnb'])[0] < 1


@pytest.mark.parametrize('command', COMMANDS)
def test_help_is_quick_and_says_what_it_is_not_for(command):
    seconds, text = quickest([str(Path(sys.executable).with_name(command)), '--help'])
    assert seconds < 1, f'{command} --help took {seconds:.2f} s'
    assert 'not for clinical use' in ' '.join(text.split()).lower()
    assert 'show this help' in text
