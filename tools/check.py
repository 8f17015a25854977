"""The checks behind `make test`, one step after another, each with its own message.

python tools/check.py all            every step
python tools/check.py clean sync     only these
python tools/check.py --fix clean    mend instead of complain (clean, sync, readme)
"""
import filecmp
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
NBS = ROOT/'nbs'
BIN = Path(sys.executable).parent
os.environ.setdefault('OMP_WAIT_POLICY', 'PASSIVE') # threads that wait for each other sleep: on a busy machine the checks take a fraction of the time


def call(*command, cwd=ROOT, env=None):
    "Run a command; a failure ends the check."
    subprocess.run([str(c) for c in command], cwd=cwd, env={**os.environ, **(env or {})}, check=True)


def notebooks():
    return sorted(NBS.glob('[!_.]*.ipynb'))


def copy_of_sources(folder):
    "A copy of what nbdev needs, so that a check never writes into the working tree."
    for name in ('nbs', 'chestnb'): shutil.copytree(ROOT/name, folder/name, ignore=shutil.ignore_patterns('__pycache__'))
    for name in ('settings.ini', 'README.md', 'setup.py', 'pyproject.toml'): shutil.copy(ROOT/name, folder/name)
    return folder


def differing(left, right, pattern):
    "Names of files that differ between two folders or are in one of them only."
    names = {p.relative_to(left) for p in left.rglob(pattern)} | {p.relative_to(right) for p in right.rglob(pattern)}
    return sorted(str(n) for n in names if not ((left/n).is_file() and (right/n).is_file()
                                                and filecmp.cmp(left/n, right/n, shallow=False)))


def clean(fix=False):
    "notebooks are clean (nbdev_clean would change nothing)"
    if fix: return call(BIN/'nbdev_clean')
    with tempfile.TemporaryDirectory() as folder:
        copy = copy_of_sources(Path(folder))
        call(BIN/'nbdev_clean', cwd=copy)
        wrong = differing(NBS, copy/'nbs', '[!_.]*.ipynb')
    if wrong: sys.exit(f'Not clean: {", ".join(wrong)}. Run: python tools/check.py --fix clean')


def sync(fix=False):
    "library and notebooks are in sync (nbdev_export would change nothing)"
    if fix: return call(BIN/'nbdev_export')
    with tempfile.TemporaryDirectory() as folder:
        copy = copy_of_sources(Path(folder))
        for module in (copy/'chestnb').glob('*.py'):
            if module.name != '__init__.py': module.unlink()
        call(BIN/'nbdev_export', cwd=copy)
        wrong = differing(ROOT/'chestnb', copy/'chestnb', '*.py')
    if wrong: sys.exit(f'Out of sync with the notebooks: {", ".join(wrong)}. Change the notebook, then run nbdev_export.')


def readme(fix=False):
    "README.md equals nbs/index.ipynb"
    sys.path.insert(0, str(ROOT/'tools'))
    from make_readme import readme_text
    text, path = readme_text(NBS/'index.ipynb'), ROOT/'README.md'
    if fix: return path.write_text(text, encoding='utf-8')
    if path.read_text(encoding='utf-8') != text: sys.exit('README.md differs from nbs/index.ipynb. Run: make readme')


def run(fix=False):
    "every notebook runs from its first cell to its last"
    for path in notebooks():
        started = time.time()
        call(BIN/'nbdev_test', '--path', path, '--n_workers', '0', env={'MPLBACKEND': 'agg'})
        print(f'   {path.name}: {time.time() - started:.0f} s', flush=True)


def package(fix=False):
    "pytest on the installed package (a wheel, imported from outside the working tree)"
    shutil.rmtree(ROOT/'build', ignore_errors=True)   # or a module deleted long ago would be packed again
    with tempfile.TemporaryDirectory() as folder:
        call(sys.executable, '-m', 'pip', 'wheel', '--quiet', '--no-deps', '--wheel-dir', folder, ROOT)
        wheel, site = next(Path(folder).glob('chestnb-*.whl')), Path(folder)/'site'
        call(sys.executable, '-m', 'pip', 'install', '--quiet', '--no-deps', '--target', site, wheel)
        call(BIN/'pytest', '--rootdir', ROOT, '-c', ROOT/'pyproject.toml', ROOT/'tests', cwd=ROOT/'tests',
             env={'PYTHONPATH': str(site), 'CHESTNB_INSTALLED_IN': str(site), 'MPLBACKEND': 'agg',
                  'PATH': f'{BIN}{os.pathsep}{os.environ["PATH"]}'})


STEPS = dict(clean=clean, sync=sync, readme=readme, run=run, package=package)


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
