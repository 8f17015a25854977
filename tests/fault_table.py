"""Print the fault table of `chestnb.data.download`: python tests/fault_table.py

Every fault is tried on a small data set of three archives (real names and labels, synthetic pixels) served on
127.0.0.1. After each, the same command runs again and the folder must hold the right files and nothing else.
"""
import os
import signal
import sys
import tempfile
from contextlib import redirect_stdout
from pathlib import Path

import pandas as pd

sys.path.insert(0, str(Path(__file__).parent))
import chestnb.data.download as data_download
from chestnb.data.nih import nih_metadata
from chestnb.core.errors import UserError
from faulty_server import wait_until
from test_fetch import COUNTS, FAULTS, Nih, start_client

TARGET = 2   # the archive whose transfer is spoilt


def quietly(small):
    "Run the command; the message if it stopped with one."
    with redirect_stdout(open(os.devnull, 'w')):
        try: small.fetch()
        except UserError as error: return str(error)
    return ''


def spoil_server(small, faults):
    small.server.faults[small.archives[TARGET].name] = list(faults)
    return quietly(small)


def fill_disk(small, room):
    original, left = data_download.append_block, [room]
    def append(file, block):
        original(file, block[:left[0]])
        if len(block) > left[0]: raise OSError(28, 'No space left on device', file.name)
        left[0] -= len(block)
    data_download.append_block = append
    try: return quietly(small)
    finally: data_download.append_block = original


def kill_client(small, after):
    name = small.archives[TARGET].name
    small.server.faults[name] = [('hold', after)]
    part, client = small.folder/f'{name}.part', start_client(small)
    wait_until(lambda: part.exists() and part.stat().st_size == after)
    client.send_signal(signal.SIGKILL)
    client.communicate()


def one(table, spoil, value, from_disk=False):
    "Spoil one run, repeat the command; (stopped with a message, bytes sent beyond those that were missing)."
    with tempfile.TemporaryDirectory() as folder:
        small = Nih(table, Path(folder)/'nih')
        stopped = bool(spoil(small, value))
        kept = {n: sum(path.stat().st_size for path in small.folder.glob(f'{r.name}*')) for n, r in small.archives.items()}
        if from_disk: small.server.forget()     # what was on its way when the client broke is not counted
        assert not quietly(small)
        small.is_right()
        needed = sum(r.n_bytes - (kept[n] if from_disk else 0) for n, r in small.archives.items())
        small.server.shutdown()
        return stopped, sum(small.server.sent.values()) - needed


def fault_table():
    nih = nih_metadata()
    table = nih[nih.image.isin(sorted(nih.image)[:sum(COUNTS)])].reset_index(drop=True)
    with tempfile.TemporaryDirectory() as folder: size = Nih(table, Path(folder)).archives[TARGET].n_bytes
    cases = [(name, spoil_server, make(size), False) for name, make in FAULTS.items()]
    cases += [('404', spoil_server, [[('status', 404)]], False),
              ('wrong bytes, three times', spoil_server, [[('wrong bytes', 0)]*3], False),
              ('disk full', fill_disk, [size*tenth//10 for tenth in range(10)], True),
              ('kill -9 of the client', kill_client, [size*tenth//10 for tenth in (1, 3, 5, 7, 9)], True)]
    rows = []
    for name, spoil, values, from_disk in cases:
        results = [one(table, spoil, value, from_disk) for value in values]
        rows.append({'fault': name, 'tried': len(values), 'stopped with a message': sum(s for s, _ in results),
                     'right files, nothing else': len(values), 'bytes sent again': sum(b for _, b in results)})
    return pd.DataFrame(rows).set_index('fault'), size


if __name__ == '__main__':
    data_download.FIRST_WAIT = .001
    frame, size = fault_table()
    print(f'{frame.to_string()}\n\nThe spoilt archive has {size:,} bytes.')
