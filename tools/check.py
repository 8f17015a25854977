"""The checks behind `make test`, one step after another, each with its own message.

python tools/check.py all            every step
python tools/check.py clean sync     only these
python tools/check.py --fix clean    mend instead of complain (clean, sync, readme)
"""
import filecmp
import os
import re
import shutil
import stat
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
NBS = ROOT/'nbs'
BIN = Path(sys.executable).parent
SIDE_BY_SIDE = min(2, os.cpu_count() or 1) # Notebooks, and pytest workers, that run at the same time
QUIET = {'OMP_WAIT_POLICY': 'PASSIVE', 'OMP_NUM_THREADS': '1', 'MPLBACKEND': 'agg'} # One thread each, that sleeps while it waits
SLOW_FIRST = ('03_datablock', '04_fusion', '08_saliency', '09_lungs', '10_using', '05_train', 'distributed', '06_evaluate', '07_trust', '02_split', 'pack', 'common', 'train', 'predict') # So that none is left for the end; 06 takes its models from what 04 trained


def call(*command, cwd=ROOT, env=None):
    "Run a command; a failure ends the check."
    subprocess.run([str(c) for c in command], cwd=cwd, env={**os.environ, **(env or {})}, check=True)


def notebooks(root=NBS):
    "Every notebook of the course: lessons, exercises and modules."
    return sorted(p for p in root.rglob('*.ipynb') if not any(part.startswith(('_', '.')) for part in p.relative_to(root).parts))


def copy_of_sources(folder):
    "A copy of what nbdev needs, so that a check never writes into the working tree."
    for name in ('nbs', 'chestnb'): shutil.copytree(ROOT/name, folder/name, ignore=shutil.ignore_patterns('__pycache__'))
    for name in ('settings.ini', 'README.md', 'setup.py', 'pyproject.toml', '_quarto.yml'): shutil.copy(ROOT/name, folder/name)
    return folder


def differing(left, right, pattern):
    "Names of files that differ between two folders or are in one of them only."
    names = {p.relative_to(side) for side in (left, right) for p in side.rglob(pattern) if '.ipynb_checkpoints' not in p.parts}
    return sorted(str(n) for n in names if not ((left/n).is_file() and (right/n).is_file()
                                                and filecmp.cmp(left/n, right/n, shallow=False)))


def clean(fix=False):
    "notebooks are clean (nbdev_clean would change nothing)"
    if fix: return call(BIN/'nbdev_clean')
    with tempfile.TemporaryDirectory() as folder:
        copy = copy_of_sources(Path(folder))
        call(BIN/'nbdev_clean', cwd=copy)
        wrong = differing(NBS, copy/'nbs', '*.ipynb')
    if wrong: sys.exit(f'Not clean: {", ".join(wrong)}. Run: python tools/check.py --fix clean')


def sync(fix=False):
    "library and notebooks are in sync (nbdev_export would change nothing)"
    if fix: return call(BIN/'nbdev_export')
    with tempfile.TemporaryDirectory() as folder:
        copy = copy_of_sources(Path(folder))
        for module in (copy/'chestnb').rglob('*.py'):
            if module.name != '__init__.py': module.unlink()
        call(BIN/'nbdev_export', cwd=copy)
        wrong = differing(ROOT/'chestnb', copy/'chestnb', '*.py')
    if wrong: sys.exit(f'Out of sync with the notebooks: {", ".join(wrong)}. Change the notebook, then run nbdev_export.')


def readme(fix=False):
    "README.md equals nbs/index.ipynb; CONTRIBUTING's map, sidebar, course map, API index and commands equal the notebooks; exercises equal their sources"
    sys.path.insert(0, str(ROOT/'tools'))
    from make_map import contributing_text
    from make_pages import wanted as pages
    from make_readme import readme_text
    from make_exercises import differing, MADE, wanted
    if fix:
        for path, text in wanted().items(): path.write_text(text, encoding='utf-8')
    elif differing(): sys.exit(f'{", ".join(differing())} in {MADE.relative_to(ROOT)} differ from tools/exercises. Run: make readme')
    made = {**pages(), ROOT/'CONTRIBUTING.md': contributing_text()}
    for path, text in made.items():
        if fix: path.write_text(text, encoding='utf-8')
        elif not path.is_file() or path.read_text(encoding='utf-8') != text: sys.exit(f'{path.relative_to(ROOT)} differs from the notebooks. Run: make readme')
    text = readme_text(NBS/'index.ipynb')   # after the start page got its course map
    if fix: (ROOT/'README.md').write_text(text, encoding='utf-8')
    elif (ROOT/'README.md').read_text(encoding='utf-8') != text: sys.exit('README.md differs from nbs/index.ipynb. Run: make readme')


def run(fix=False):
    "every lesson and module notebook runs from its first cell to its last, two at a time (exercises: tests/test_exercises.py)"
    sys.path.insert(0, str(ROOT/'tools'))
    os.environ.update(QUIET)
    from notebook_worker import run_notebooks
    order = sorted((p for p in notebooks() if p.parent.name != 'exercises'), key=lambda p: SLOW_FIRST.index(p.stem) if p.stem in SLOW_FIRST else len(SLOW_FIRST))
    failed = []
    for path, passed, seconds, printed in run_notebooks(order, SIDE_BY_SIDE):
        name = path.relative_to(NBS)
        print(f'   {name}: {seconds:.0f} s' if passed else f'   {name}: FAILED\n{printed[-12000:]}', flush=True)
        if not passed: failed.append(str(name))
    if failed: sys.exit(f'== run FAILED: {", ".join(failed)}')


def site(fix=False):
    "every page of the site is made (nbdev_proc_nbs; Quarto itself is not needed), mended, and its links, figures and outputs are looked at"
    sys.path.insert(0, str(ROOT/'tools'))
    from site_checks import problems
    from site_pages import mend
    with tempfile.TemporaryDirectory() as folder:
        copy, stand_in = copy_of_sources(Path(folder)), Path(folder)/'bin'/'quarto'
        stand_in.parent.mkdir()
        stand_in.write_text('#!/bin/sh\nexit 0\n') # nbdev asks whether there is a quarto, and would install one
        stand_in.chmod(stand_in.stat().st_mode | stat.S_IEXEC)
        call(BIN/'nbdev_proc_nbs', cwd=copy, env={**QUIET, 'PATH': f'{stand_in.parent}{os.pathsep}{BIN}{os.pathsep}{os.environ["PATH"]}', 'PYTHONPATH': str(copy)})
        mend(copy/'_proc', NBS)
        wrong = problems(copy/'_proc', [p.relative_to(NBS) for p in notebooks()])
    if wrong: sys.exit('\n'.join([f'{len(wrong)} mistakes on the pages of the site:', *wrong[:40]]))


def package(fix=False):
    "pytest on the installed package (a wheel, imported from outside the working tree), two workers"
    shutil.rmtree(ROOT/'build', ignore_errors=True)   # or a module deleted long ago would be packed again
    with tempfile.TemporaryDirectory() as folder:
        call(sys.executable, '-m', 'pip', 'wheel', '--quiet', '--no-deps', '--wheel-dir', folder, ROOT)
        wheel, place = next(Path(folder).glob('chestnb-*.whl')), Path(folder)/'site'
        call(sys.executable, '-m', 'pip', 'install', '--quiet', '--no-deps', '--target', place, wheel)
        call(BIN/'pytest', '--rootdir', ROOT, '-c', ROOT/'pyproject.toml', '-n', str(SIDE_BY_SIDE), '--dist', 'loadfile', ROOT/'tests', cwd=ROOT/'tests',
             env={**QUIET, 'PYTHONPATH': str(place), 'CHESTNB_INSTALLED_IN': str(place), 'PATH': f'{BIN}{os.pathsep}{os.environ["PATH"]}'})


STEPS = dict(clean=clean, sync=sync, readme=readme, site=site, run=run, package=package)


if __name__ == '__main__':
    fix, names = '--fix' in sys.argv, [a for a in sys.argv[1:] if a != '--fix']
    unknown = set(names) - {*STEPS, 'all'}
    if unknown or not names: sys.exit(f'Steps: {", ".join(STEPS)} or all; given: {names}')
    for name in STEPS if 'all' in names else names:
        started = time.time()
        print(f'== {name}: {STEPS[name].__doc__}', flush=True)
        try: STEPS[name](fix)
        except subprocess.CalledProcessError as error:
            sys.exit(f'== {name} FAILED: {Path(error.cmd[0]).name} exited with {error.returncode}')
        print(f'== {name}: ok ({time.time() - started:.0f} s)', flush=True)
