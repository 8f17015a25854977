"""Runs one notebook in a process that is forked from one which has imported the large libraries already.

Importing torch, fastai, pandas and scikit-learn takes 4 s, and there are more than a hundred notebooks. The server process imports them once;
each notebook still gets a process of its own, and the chestnb that it imports is read anew.
"""
import contextlib
import io
import os
import sys
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context, set_start_method
from pathlib import Path

LIBRARIES = ('fastai.vision.all', 'IPython', 'matplotlib.pyplot', 'nbdev.test', 'pandas', 'scipy.stats', 'sklearn.ensemble', 'sklearn.linear_model', 'timm', 'torch')


def run_notebook(path):
    "Run one notebook as nbdev_test does; returns (path, passed, seconds, what was printed)."
    from nbdev.config import get_config
    from nbdev.test import test_nb
    started, printed = time.time(), io.StringIO()
    set_start_method(None, force=True) # What a notebook finds in a process of its own
    os.chdir(get_config().nbs_path)
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        passed, _ = test_nb(Path(path), skip_flags=get_config().tst_flags.split(), basepath=get_config().config_path)
    return path, passed, time.time() - started, printed.getvalue()


def run_notebooks(paths, side_by_side):
    "Run notebooks, some at a time, in the given order; yields (path, passed, seconds, printed) as each one ends."
    context = get_context('forkserver')
    context.set_forkserver_preload(list(LIBRARIES))
    with ProcessPoolExecutor(side_by_side, mp_context=context, max_tasks_per_child=1) as pool:
        running = {pool.submit(run_notebook, path): path for path in paths}
        for done in as_completed(running):
            try: yield done.result()
            except Exception as error: yield running[done], False, float('nan'), f'{type(error).__name__}: {error}' # The process itself ended
