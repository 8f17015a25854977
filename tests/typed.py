"""Commands as a person types them, without importing torch anew each time.

A server process has imported the large libraries; every command is a process of its own, forked from it, with its own folder, arguments, output
and exit status. That the installed scripts themselves start, and fast, is tested in test_layers.py.
"""
import os
import subprocess
import sys
from configparser import ConfigParser
from importlib.metadata import EntryPoint, entry_points
from multiprocessing import get_context, set_start_method
from pathlib import Path
from tempfile import TemporaryDirectory

LIBRARIES = ('fastai.vision.all', 'matplotlib.pyplot', 'pandas', 'sklearn.linear_model', 'timm', 'torch')
CONTEXT = get_context('forkserver')
CONTEXT.set_forkserver_preload(list(LIBRARIES))


def _type(words, cwd, environment, out, err):
    "In the new process: become that command line."
    os.environ.clear()
    os.environ.update(environment)
    set_start_method(None, force=True)
    os.chdir(cwd)
    for number, path in ((1, out), (2, err)): os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), number)
    sys.argv = list(words)
    command = next(iter(entry_points(group='console_scripts', name=words[0])), None) or from_settings(words[0])
    sys.exit(command.load()())


def from_settings(name):
    "A command that settings.ini names and an older installation does not have; that every command is installed is tested in test_layers.py."
    settings = ConfigParser(delimiters=['='])
    settings.read(Path(__file__).resolve().parent.parent/'settings.ini', encoding='utf-8')
    return EntryPoint(name, dict(line.split('=', 1) for line in settings['DEFAULT']['console_scripts'].split())[name], 'console_scripts')


def typed(*words, cwd='.'):
    "Run a command line of chestnb; returns its exit status and what it printed."
    words = [str(w) for w in words]
    with TemporaryDirectory() as folder:
        out, err = Path(folder)/'out', Path(folder)/'err'
        process = CONTEXT.Process(target=_type, args=(words, str(cwd), dict(os.environ), str(out), str(err)))
        process.start()
        process.join()
        texts = [path.read_text(encoding='utf-8') if path.is_file() else '' for path in (out, err)]
    return subprocess.CompletedProcess(words, process.exitcode, *texts)
