"""Run lessons top to bottom and keep their outputs: python tools/run_notebooks.py [name ...]

Each notebook is run in its own folder by nbclient, two at a time. Progress bars and stderr are not kept (stderr is shown here),
execution counts are dropped, and a machine path in an output is an error. Nothing is written if a cell fails.
"""
import json
import os
import re
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nbformat
from nbclient import NotebookClient

NBS = Path(__file__).resolve().parent.parent/'nbs'
NOT_RUN = re.compile(r'\s*#\|\s*eval:\s*false')
MACHINE_PATH = re.compile(r'/(root|home|tmp|work|Users)/')


def is_progress_bar(output):
    "True for the display that a progress bar leaves behind."
    html = output.get('data', {}).get('text/html', '')
    return output.output_type == 'display_data' and 'image/png' not in output.get('data', {}) \
        and ('<progress' in html or not html.strip())


def keep(output, where):
    "True for an output that belongs in a committed notebook."
    if output.output_type == 'stream' and output.name == 'stderr':
        print(f'  {where}: stderr not kept: {output.text[:300]}')
        return False
    if MACHINE_PATH.search(json.dumps(output)): raise SystemExit(f'{where}: the output shows a path of this machine')
    return not is_progress_bar(output)


def run(path):
    "Execute one notebook and write it back with its outputs."
    started, book = time.time(), nbformat.read(path, as_version=4)
    sources = {cell.id: cell.source for cell in book.cells}
    for cell in book.cells:
        if cell.cell_type == 'code' and NOT_RUN.match(cell.source): cell.source = 'pass'
    NotebookClient(book, timeout=1800, kernel_name='python3', resources={'metadata': {'path': str(path.parent)}}).execute()
    for number, cell in enumerate(book.cells):
        cell.source = sources[cell.id]
        if cell.cell_type != 'code': continue
        cell.execution_count = None
        cell.metadata.clear()
        cell.outputs = [o for o in cell.outputs if keep(o, f'{path.name}, cell {number}')]
        for output in cell.outputs:
            if 'execution_count' in output: output['execution_count'] = None
    temporary = path.with_suffix('.tmp')
    nbformat.write(book, temporary)
    os.replace(temporary, path)
    print(f'{path.name}: {time.time() - started:.0f} s, {path.stat().st_size/1e6:.2f} MB', flush=True)


def attempt(path):
    "Run one notebook; a failure is said and does not stop the others."
    try: run(path)
    except (Exception, SystemExit) as error:
        print(f'{path.name}: FAILED\n{str(error)[-3000:]}', flush=True)
        return False
    return True


if __name__ == '__main__':
    os.environ.setdefault('OMP_WAIT_POLICY', 'PASSIVE') # as in check.py
    os.environ.pop('MPLBACKEND', None)   # with agg the figures would not be in the outputs
    every = {str(p.relative_to(NBS).with_suffix('')): p for p in sorted(NBS.rglob('*.ipynb')) if not any(part.startswith(('_', '.')) for part in p.relative_to(NBS).parts)}
    asked = [name.removesuffix('.ipynb').removeprefix('nbs/') for name in sys.argv[1:]] or [name for name in every if not name.endswith('_ex')]
    unknown = [name for name in asked if name not in every]
    if unknown: raise SystemExit(f'{unknown[0]} is no notebook. Names are such as 02_split or api/data/masks.')
    with ThreadPoolExecutor(2) as pool: outcomes = list(pool.map(attempt, [every[name] for name in asked]))
    subprocess.run([Path(sys.executable).with_name('nbdev_clean')], check=True)
    if not all(outcomes): raise SystemExit(1)
