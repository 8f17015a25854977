"""Fetching: every fault of line, server, disk and client, on whole small data sets; nothing here reaches the internet."""
import errno
import hashlib
import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tarfile
import threading
import time
from dataclasses import asdict, replace
from email.utils import formatdate
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings, strategies as st
from PIL import Image

import chestnb.data.archives as data_archives
import chestnb.data.chestmnist as data_chestmnist
import chestnb.data.download as data_download
from typed import typed
from chestnb.data.dataset import ChestDataset
from chestnb.data.findings import FINDINGS, NO_FINDING
from chestnb.data.nih import is_official_test, nih_metadata
from chestnb.data.provenance import CHESTMNIST_PROVENANCE, NIH_PROVENANCE
from chestnb.data.tables import patients_unknown
from chestnb.data.download import FetchRecord, RemoteFile, bytes_of, fetch_file, md5_of, request_headers, retry_after
from chestnb.data.archives import NIH_ARCHIVES, chosen_archives, fetch_nih, images_of_archives, run_all, unpack, write_ours
from chestnb.data.chestmnist import chestmnist_file, chestmnist_findings, fetch_chestmnist, npz_stream
from chestnb.core.errors import UserError
from chestnb.core.locks import folder_lock
from chestnb.data.leakage import audit_split
from chestnb.data.parts import images_in, load_split
from chestnb.data.official import official_split
from chestnb.data.folds import patient_kfold
from chestnb.data.split import patient_split, split_report

sys.path.insert(0, str(Path(__file__).parent))
from faulty_server import FaultyServer, wait_until

COUNTS = (3, 5, 4)
MADE = {'data.csv', 'dataset.json', 'split.csv', 'BBox_List_2017.csv', 'NIH_ATTRIBUTION.txt', 'fetch_record.json', 'images'}


@pytest.fixture(scope='module')
def nih(): return nih_metadata()


@pytest.fixture(scope='module')
def table(nih):
    "The first twelve names of NIH's table: real rows; their pixels below are synthetic noise."
    return nih[nih.image.isin(sorted(nih.image)[:sum(COUNTS)])].reset_index(drop=True)


@pytest.fixture(autouse=True)
def impatient(monkeypatch): monkeypatch.setattr(data_download, 'FIRST_WAIT', .001)


def png(seed, side=48):
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (side, side), dtype=np.uint8)).save(buffer, 'png')
    return buffer.getvalue()


def tar_of(members):
    "A tar.gz of (TarInfo or name, bytes) pairs."
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode='w:gz') as tar:
        for member, content in members:
            info = tarfile.TarInfo(member) if isinstance(member, str) else member
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def md5(content): return hashlib.md5(content).hexdigest()


class Nih:
    "Three small archives on a server of faults, and a folder to fetch them into."
    def __init__(self, table, folder):
        self.table, self.folder = table, folder
        deal = images_of_archives(table.image, {n: RemoteFile('', '', '', 0, count) for n, count in enumerate(COUNTS, 1)})
        self.pixels = {name: png(seed) for seed, name in enumerate(sorted(table.image))}
        folder_entry = tarfile.TarInfo('images/')
        folder_entry.type = tarfile.DIRTYPE
        files = {f'images_{n:03}.tar.gz': tar_of([(folder_entry, b'')] + [(f'images/{name}', self.pixels[name]) for name in sorted(names)])
                 for n, names in deal.items()}
        self.deal, self.server = deal, FaultyServer(files)
        self.archives = {n: RemoteFile(name, self.server.url(name), md5(body), len(body), COUNTS[n - 1])
                         for n, (name, body) in enumerate(files.items(), 1)}

    def fetch(self, **options):
        return fetch_nih(self.folder, **{'catalogue': self.archives, 'metadata': self.table, 'progress': False, **options})

    def is_right(self, parts=(1, 2, 3), archives=True):
        "The right files and nothing else."
        names = {self.archives[n].name for n in parts} if archives else set()
        assert {path.name for path in self.folder.iterdir()} == MADE | names
        images = {path.name: path.read_bytes() for path in (self.folder/'images').iterdir()}
        assert images == {name: self.pixels[name] for n in parts for name in self.deal[n]}
        for n in parts if archives else (): assert md5((self.folder/self.archives[n].name).read_bytes()) == self.archives[n].md5
        dataset = ChestDataset(self.folder)
        assert set(dataset.table.image) == set(images) and dataset.provenance == NIH_PROVENANCE and not dataset.is_synthetic

    def sent(self): return {n: self.server.sent[remote.name] for n, remote in self.archives.items()}
    def sizes(self): return {n: remote.n_bytes for n, remote in self.archives.items()}


@pytest.fixture
def small(table, tmp_path):
    made = Nih(table, tmp_path/'nih')
    yield made
    made.server.shutdown()
    made.server.server_close()


# What NIH has


def test_the_table_of_archives(nih):
    assert sum(r.n_images for r in NIH_ARCHIVES.values()) == len(nih) == 112_120
    assert [r.n_images for r in NIH_ARCHIVES.values()] == [4_999, *[10_000]*10, 7_121]
    assert len({r.md5 for r in NIH_ARCHIVES.values()}) == len({r.url for r in NIH_ARCHIVES.values()}) == 12
    for r in NIH_ARCHIVES.values():
        assert re.fullmatch('[0-9a-f]{32}', r.md5) and re.fullmatch(r'https://nihcc\.box\.com/shared/static/[0-9a-z]{32}\.gz', r.url)
        assert 2e9 < r.n_bytes < 4.2e9


def test_archives_are_cut_from_the_sorted_names(nih):
    first = '00000001_000 00001336_000 00003923_014 00006585_007 00009232_004 00011558_008 00013774_026 00016051_010 00018387_035 ' \
            '00020945_050 00024718_000 00028173_003'.split()   # first file of Kaggle's folders images_001 ... images_012
    parts = images_of_archives(nih.image.sample(frac=1, random_state=0), NIH_ARCHIVES)
    assert [min(names) for names in parts.values()] == [f'{name}.png' for name in first]
    assert set().union(*parts.values()) == set(nih.image) and sum(map(len, parts.values())) == len(nih)


# The straight way


def test_all_archives_become_a_data_set(small, capsys, nih):
    small.fetch()
    small.is_right()
    assert small.sent() == small.sizes()
    said = capsys.readouterr().out
    for word in ('images_001.tar.gz', 'NIH Clinical Center', 'GB needed at most', 'GB free', str(small.folder), 'not a medical device'):
        assert word in said, word
    split = load_split(small.folder/'split.csv', ChestDataset(small.folder).table)
    whole = official_split(nih).set_index('image').part
    assert split.part.tolist() == whole[split.image].tolist()
    assert set(images_in(split, 'test')) == set(small.table.image[is_official_test(small.table)])


def test_what_is_there_is_never_fetched_again(small):
    small.fetch()
    for options in ({}, {'remove_archives': True}, {}, {'archives': '2'}):
        small.server.forget()
        small.fetch(**options)
        assert not small.server.requests
    small.is_right(archives=False)


def test_nothing_is_read_again_either(small, monkeypatch):
    small.fetch()
    (small.folder/'images'/min(small.deal[1])).unlink()          # so that archive 1 is unpacked again
    monkeypatch.setattr(data_download.hashlib, 'md5', lambda *a, **k: pytest.fail('an archive was hashed again'))
    small.server.forget()
    fetch_nih(small.folder, catalogue=small.archives, metadata=small.table, progress=False)
    assert not small.server.requests
    monkeypatch.undo()
    small.is_right()


def test_archives_come_one_after_the_other(small):
    small.fetch(archives='1')
    small.is_right([1])
    small.fetch(archives=[3])                                      # data.csv grows: it is ours
    small.is_right([1, 3])
    first = pd.read_csv(small.folder/'split.csv').set_index('image').part
    small.fetch()
    small.is_right()
    last = pd.read_csv(small.folder/'split.csv').set_index('image').part
    assert (last[first.index] == first).all()                   # nobody changes sides


def test_a_dry_run_touches_nothing(small, capsys):
    small.fetch(dry_run=True)
    assert not small.folder.exists() and not small.server.requests
    assert f'to fetch: {sum(small.sizes().values()):,} bytes' in capsys.readouterr().out


def test_a_dry_run_on_a_small_disk_prints_the_plan_and_warns(small, monkeypatch, capsys):
    monkeypatch.setattr(data_archives.shutil, 'disk_usage', lambda path: type('', (), {'free': 100})())
    assert small.fetch(dry_run=True) == small.folder
    said = capsys.readouterr().out
    for text in ('images_003.tar.gz', f'to fetch: {sum(small.sizes().values()):,} bytes', 'NIH Clinical Center', 'not a medical device'): assert text in said
    assert re.search(r'Warning: .*GB are needed at most, 0\.0 GB are free\. Make room', said.split('not a medical device')[1])
    assert not small.folder.exists() and not small.server.requests


@pytest.mark.parametrize('parts, numbers', [(None, [1, 2, 3]), ('', [1, 2, 3]), ('1,3', [1, 3]), ('2-3', [2, 3]), ([2, 2], [2]), (' 3 , 1', [1, 3]), (2, [2]), ('1 - 2', [1, 2])])
def test_chosen_archives(small, parts, numbers): assert chosen_archives(parts, small.archives) == numbers


@pytest.mark.parametrize('parts', ['0', '4', '1,x', '3-1', '1;2', '-1', [9], '1,3-2', '1,', [], '1-2-3'])
def test_wrong_archives_are_refused_1_5_2_too(small, parts):
    with pytest.raises(UserError, match='expected numbers from 1 to 3'): chosen_archives(parts, small.archives)


# Faults of line and server, on the whole data set


FAULTS = {
    'dropped at a tenth': lambda size: [[('drop', size*tenth//10)] for tenth in range(10)],
    'dropped nine times': lambda size: [[('drop', size//10)]*9],
    'wrong bytes': lambda size: [[('wrong bytes', 0)], [('wrong bytes', size//2)], [('wrong bytes', 0)]*2],
    'short file': lambda size: [[('short file', 1)], [('short file', size//2)], [('short file', size - 1)]],
    'long file': lambda size: [[('long file', 1)]],
    '503 with Retry-After': lambda size: [[('status', (503, {'Retry-After': '1'}))]],
    '500, 502, 429': lambda size: [[('status', 500), ('status', 502), ('status', 429)]],
    'drop, then 503': lambda size: [[('drop', size//3), ('status', 503)]],
    'drop, then no range': lambda size: [[('drop', size//3), ('no range', None)]],
    'drop, then another range': lambda size: [[('drop', size//3), ('wrong range', None)]],
    'no length': lambda size: [[('no length', None)], [('drop', size//3), ('no length', None)]],
}
REPEATS_NOTHING = {'dropped at a tenth', 'dropped nine times', '503 with Retry-After', '500, 502, 429', 'drop, then 503'}


def cases(): return [(fault, i) for fault, make in FAULTS.items() for i in range(len(make(1000)))]


@pytest.mark.parametrize('fault, case', cases())
def test_faults_that_a_single_run_survives(small, fault, case):
    target = small.archives[2]
    small.server.faults[target.name] = list(FAULTS[fault](target.n_bytes)[case])
    small.fetch()
    small.is_right()
    if fault in REPEATS_NOTHING: assert small.sent() == small.sizes()
    assert not small.server.faults[target.name], 'the fault did not happen'
    small.server.forget()
    small.fetch()
    assert not small.server.requests


@pytest.mark.parametrize('status', [404, 403, 410])
def test_a_lost_archive_is_named_and_the_others_arrive(small, status):
    small.server.faults['images_002.tar.gz'] = [('status', status)]
    with pytest.raises(UserError, match=rf'images_002\.tar\.gz: the server answers {status}.*download it with a browser'): small.fetch()
    assert not list(small.folder.glob('*.part'))
    small.fetch()
    small.is_right()
    assert small.sent() == small.sizes()


def test_wrong_bytes_for_ever(small):
    small.server.faults['images_001.tar.gz'] = [('wrong bytes', 0)]*data_download.WRONG_TRIES
    with pytest.raises(UserError, match='3 times the server sent bytes whose MD5 is not'): small.fetch(archives='1')
    assert not (small.folder/'images_001.tar.gz.part').exists() and not (small.folder/'images_001.tar.gz').exists()
    small.fetch(archives='1')
    small.is_right([1])


def test_a_server_that_never_gets_past_the_middle_is_given_up(small):
    "No ranges and always cut: each attempt starts over, so none brings anything new."
    size = small.archives[1].n_bytes
    small.server.ranges = False
    small.server.faults['images_001.tar.gz'] = [('drop', size//2)]*30
    with pytest.raises(UserError, match='8 attempts brought nothing new'): small.fetch(archives='1')
    assert len(small.server.requests['images_001.tar.gz']) <= 1 + data_download.FRUITLESS_TRIES
    small.server.forget()
    small.server.ranges = True
    small.fetch(archives='1')
    small.is_right([1])
    assert small.sent()[1] == size - size//2                   # what had arrived was kept


def unplugged(small, url='http://127.0.0.1:9/'):
    "The same archives at an address where nobody listens."
    return {n: replace(remote, url=f'{url}{remote.name}') for n, remote in small.archives.items()}


def count_attempts(monkeypatch):
    "The names asked for, in order."
    asked, original = [], data_download.fetch_once
    monkeypatch.setattr(data_download, 'fetch_once', lambda session, remote, *rest: asked.append(remote.name) or original(session, remote, *rest))
    return asked


def test_nobody_listens(small, monkeypatch, capsys):
    asked = count_attempts(monkeypatch)
    with pytest.raises(UserError) as error: small.fetch(catalogue=unplugged(small), connections=1)
    said = str(error.value)
    assert said.startswith('127.0.0.1:9 cannot be reached: connection refused. Nothing has arrived of images_001.tar.gz, images_002.tar.gz, images_003.tar.gz.')
    assert 'Check the internet connection and the proxy' in said and 'same command' in said and len(said) < 400
    for raw in ('HTTPConnection', 'Errno', 'Max retries', ' object at '): assert raw not in said
    assert asked == ['images_001.tar.gz']*data_download.FIRST_TRIES + ['images_002.tar.gz', 'images_003.tar.gz']   # no patience for the others
    told = capsys.readouterr().err
    assert told.count('connection refused') == data_download.FIRST_TRIES - 1 and 'images_001.tar.gz: connection refused; attempt 2 in' in told
    assert not small.folder.exists()                            # nothing has arrived: nothing is left
    small.fetch()
    small.is_right()


def test_no_connection_costs_seconds_not_a_minute(small, monkeypatch):
    monkeypatch.setattr(data_download, 'FIRST_WAIT', .5)
    started = time.monotonic()
    with pytest.raises(UserError, match='cannot be reached'): small.fetch(catalogue=unplugged(small))
    assert time.monotonic() - started < 15


def test_what_is_kept_is_said(small):
    small.folder.mkdir()
    (small.folder/'images_002.tar.gz.part').write_bytes(small.server.files['images_002.tar.gz'][:1234])
    with pytest.raises(UserError) as error: small.fetch(catalogue=unplugged(small))
    assert 'Nothing has arrived of images_001.tar.gz, images_003.tar.gz. Kept are 1,234 bytes of images_002.tar.gz.' in str(error.value)
    small.fetch()
    small.is_right()
    assert small.sent()[2] == small.sizes()[2] - 1234


@pytest.mark.parametrize('code, reason', [(socket.EAI_NONAME, 'its name cannot be looked up'), (errno.EHOSTUNREACH, 'no route to host'),
                                          (errno.ENETUNREACH, 'network is unreachable'), (None, 'no answer within 10 seconds')])
def test_reasons_are_given_in_words(small, monkeypatch, code, reason):
    def connect(*args, **options):
        if code is None: raise TimeoutError('timed out')
        raise socket.gaierror(code, 'Name or service not known') if code == socket.EAI_NONAME else OSError(code, os.strerror(code))
    monkeypatch.setattr('urllib3.util.connection.create_connection', connect)
    with pytest.raises(UserError) as error: small.fetch(catalogue=unplugged(small, 'http://nih.invalid/'), archives='1')
    assert str(error.value).startswith(f'nih.invalid cannot be reached: {reason}. Nothing has arrived of images_001.tar.gz.')


def test_a_proxy_that_is_not_there(small, monkeypatch):
    for name in ('http_proxy', 'HTTP_PROXY'): monkeypatch.setenv(name, 'http://127.0.0.1:9')
    for name in ('no_proxy', 'NO_PROXY'): monkeypatch.delenv(name, raising=False)
    with pytest.raises(UserError, match='nih.invalid cannot be reached: the proxy cannot be reached or refuses'):
        small.fetch(catalogue=unplugged(small, 'http://nih.invalid/'), archives='1')


def test_a_line_that_was_there_before_is_waited_for(small, monkeypatch):
    "After an answer, a line that is gone for seven attempts costs patience and nothing else."
    size, asked, original, gone = small.sizes()[1], [], data_download.fetch_once, [data_download.FRUITLESS_TRIES - 1]
    def fetch_once(session, remote, partial, *rest):
        asked.append(bytes_of(partial))
        if bytes_of(partial) and gone[0]:
            gone[0] -= 1
            remote = unplugged(small)[1]
        return original(session, remote, partial, *rest)
    monkeypatch.setattr(data_download, 'fetch_once', fetch_once)
    small.server.faults['images_001.tar.gz'] = [('drop', size//2)]
    small.fetch(archives='1')
    small.is_right([1])
    assert asked == [0] + [size//2]*data_download.FRUITLESS_TRIES and small.sent()[1] == size


def test_a_line_that_stays_away_names_what_is_kept(small, monkeypatch):
    size, original = small.sizes()[1], data_download.fetch_once
    monkeypatch.setattr(data_download, 'fetch_once', lambda session, remote, partial, *rest:
                        original(session, unplugged(small)[1] if bytes_of(partial) else remote, partial, *rest))
    small.server.faults['images_001.tar.gz'] = [('drop', size//2)]
    with pytest.raises(UserError, match=rf'cannot be reached: connection refused\. Kept are {size//2:,} bytes of images_001\.tar\.gz\.'): small.fetch(archives='1')
    monkeypatch.setattr(data_download, 'fetch_once', original)
    small.fetch(archives='1')
    small.is_right([1])
    assert small.sent()[1] == size


def test_a_server_that_only_fails_is_named_with_its_answer(small, capsys):
    small.server.faults['images_001.tar.gz'] = [('status', 502)]*data_download.FRUITLESS_TRIES
    with pytest.raises(UserError, match=r'images_001\.tar\.gz: 8 attempts brought nothing new \(the server answers 502 Bad Gateway\)\. '
                                        r'Nothing has arrived of images_001\.tar\.gz\.'): small.fetch(archives='1')
    assert 'images_001.tar.gz: the server answers 502 Bad Gateway; attempt 8 in' in capsys.readouterr().err


@pytest.mark.parametrize('text, seconds', [('7', 7), (' 1.5 ', 1.5), ('0', 0), ('', 0), ('soon', 0), ('-1', 0), ('1e3', 0), ('nan', 0), ('inf', 0), ('1.5.2', 0),
                                           (formatdate(0, usegmt=True), 0), ('Fri, 99 Dec 99999 99:99:99 GMT', 0)])
def test_any_retry_after_is_read_or_says_nothing(text, seconds): assert retry_after(text) == seconds


def test_a_retry_after_with_decimals_is_no_traceback(small):
    small.server.faults['images_001.tar.gz'] = [('status', (503, {'Retry-After': '0.05'})), ('status', (429, {'Retry-After': 'later'}))]
    small.fetch(archives='1')
    small.is_right([1])


def test_retry_after_is_honoured_as_seconds_and_as_a_date(small):
    waited = []
    class Stop(threading.Event):
        def wait(self, seconds=None): return waited.append(seconds) or False
    remote, record = small.archives[1], FetchRecord(small.folder)
    small.server.faults[remote.name] = [('status', (503, {'Retry-After': '7'})), ('status', (429, {'Retry-After': formatdate(time.time() + 20, usegmt=True)}))]
    small.folder.mkdir()
    fetch_file(remote, small.folder, record, Stop())
    assert waited[0] == 7 and 15 < waited[1] <= 20


def test_a_server_that_asks_for_a_day_is_not_waited_for(small):
    small.server.faults['images_001.tar.gz'] = [('status', (503, {'Retry-After': '86400'}))]
    with pytest.raises(UserError, match='stay away for more than an hour'): small.fetch(archives='1')


def test_a_file_that_changed_on_the_server_is_not_spliced(small):
    "The old start is here; the server has a new version of the same size, and says so."
    old, name = small.server.files['images_001.tar.gz'], 'images_001.tar.gz'
    small.server.files[name] = other = bytes(len(old))          # an old version
    small.server.faults[name] = [('drop', 500), ('status', 404)]
    with pytest.raises(UserError): small.fetch(archives='1')
    assert (small.folder/f'{name}.part').read_bytes() == other[:500]
    small.server.files[name], small.server.etag = old, '"version-2"'
    small.server.forget()
    small.fetch(archives='1')
    small.is_right([1])
    assert small.server.requests[name] == ['bytes=500-'] and small.sent()[1] == len(old)   # one request, answered with the whole


def test_a_weak_or_absent_etag_still_resumes(small):
    for etag in ('W/"1"', None):
        small.server.etag = etag
        small.server.faults['images_001.tar.gz'] = [('drop', 700)]
        small.fetch(archives='1')
        assert small.sent()[1] == small.sizes()[1]
        (small.folder/'images_001.tar.gz').unlink()
        for name in small.deal[1]: (small.folder/'images'/name).unlink()
        small.server.forget()


def test_a_part_that_is_too_long_or_foreign_is_replaced(small):
    small.folder.mkdir()
    for junk in (bytes(small.sizes()[1] + 5), b'junk', bytes(small.sizes()[1])):
        (small.folder/'images_001.tar.gz.part').write_bytes(junk)
        small.fetch(archives='1')
        small.is_right([1])
        (small.folder/'images_001.tar.gz').unlink()
        for name in small.deal[1]: (small.folder/'images'/name).unlink()


def test_headers():
    assert 'Range' not in request_headers(0, '"a"') and request_headers(5, '"a"')['If-Range'] == '"a"'
    assert 'If-Range' not in request_headers(5, 'W/"a"') and request_headers(5)['Range'] == 'bytes=5-'


@settings(max_examples=25, deadline=None)
@given(st.binary(min_size=1, max_size=3000), st.lists(st.integers(0, 3000), max_size=6))
def test_however_often_the_line_drops_each_byte_is_sent_once(content, cuts):
    server = FaultyServer({'f': content})
    import tempfile
    with tempfile.TemporaryDirectory() as folder:
        server.faults['f'] = [('drop', cut) for cut in cuts]
        path = fetch_file(RemoteFile('f', server.url('f'), md5(content), len(content)), folder, FetchRecord(folder))
        assert path.read_bytes() == content and server.sent['f'] == len(content)
        assert {p.name for p in Path(folder).iterdir()} == {'f', 'fetch_record.json'}
    server.shutdown()
    server.server_close()


# A full disk


@pytest.mark.parametrize('room', [0, 1, 1000, 5000])
def test_disk_full_while_fetching(small, monkeypatch, room):
    left, original = [room], data_download.append_block
    def append(file, block):
        original(file, block[:left[0]])
        full = len(block) > left[0]
        left[0] = max(0, left[0] - len(block))
        if full: raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), file.name)
    monkeypatch.setattr(data_download, 'append_block', append)
    with pytest.raises(UserError, match='the disk is full. Nothing is broken'): small.fetch()
    monkeypatch.undo()
    monkeypatch.setattr(data_download, 'FIRST_WAIT', .001)
    kept = {n: (small.folder/f'{r.name}.part').stat().st_size if (small.folder/f'{r.name}.part').exists() else 0 for n, r in small.archives.items()}
    small.server.forget()
    small.fetch()
    small.is_right()
    for n in small.archives:
        if not kept[n]: continue
        assert small.sent()[n] == small.sizes()[n] - kept[n]


def test_disk_full_while_unpacking(small, monkeypatch):
    written, original = [], Path.write_bytes
    def write_bytes(self, content):
        if self.name.endswith('.tmp') and 'png' in self.name:
            written.append(self.name)
            if len(written) > 4:
                original(self, content[:10])
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self))
        return original(self, content)
    monkeypatch.setattr(Path, 'write_bytes', write_bytes)
    with pytest.raises(UserError, match='the disk is full'): small.fetch(connections=1)
    assert not list((small.folder/'images').glob('.*')) and len(list((small.folder/'images').iterdir())) == 4
    monkeypatch.undo()
    small.fetch()
    small.is_right()
    assert small.sent() == small.sizes()


def test_a_real_full_disk(small, tmp_path):
    "A file system of 64 KiB, where this process may mount one."
    place = tmp_path/'tiny_disk'
    place.mkdir()
    if subprocess.run(['mount', '-t', 'tmpfs', '-o', 'size=64k', 'tmpfs', str(place)], capture_output=True).returncode:
        pytest.skip('cannot mount a small file system here')
    try:
        content = np.random.default_rng(0).bytes(200_000)
        small.server.files['big'] = content
        remote = RemoteFile('big', small.server.url('big'), md5(content), len(content))
        with pytest.raises(OSError) as error: fetch_file(remote, place, FetchRecord(place))
        assert error.value.errno == errno.ENOSPC
        kept = (place/'big.part').stat().st_size
        assert 0 < kept <= 65_536 and (place/'big.part').read_bytes() == content[:kept]
        subprocess.run(['mount', '-o', 'remount,size=1m', str(place)], check=True)      # somebody made room
        small.server.forget()
        assert fetch_file(remote, place, FetchRecord(place)).read_bytes() == content
        assert small.server.sent['big'] == len(content) - kept
        assert {path.name for path in place.iterdir()} == {'big', 'fetch_record.json'}
    finally: subprocess.run(['umount', str(place)], check=True)


def test_too_little_room_is_said_before_anything_is_transferred(small, monkeypatch):
    monkeypatch.setattr(data_archives.shutil, 'disk_usage', lambda path: type('', (), {'free': 100})())
    with pytest.raises(UserError, match='GB are needed at most, 0.0 GB are free'): small.fetch()
    assert not small.server.requests


# A client that dies


CLIENT = '''
import json, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler) # what a shell runs in the background inherits that it is ignored
import chestnb.data.archives as data_archives, chestnb.data.download as data_download
from chestnb.data.nih import nih_metadata
data_download.FIRST_WAIT = .001
given = json.loads(sys.argv[1])
nih = nih_metadata()
data_archives.fetch_nih(given['to'], catalogue={int(n): data_download.RemoteFile(**r) for n, r in given['archives'].items()},
                metadata=nih[nih.image.isin(given['images'])].reset_index(drop=True), progress=False)
'''


def start_client(small):
    given = dict(to=str(small.folder), images=list(small.table.image), archives={n: asdict(r) for n, r in small.archives.items()})
    return subprocess.Popen([sys.executable, '-c', CLIENT, json.dumps(given)], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


@pytest.mark.parametrize('tenths', [1, 5, 9])
def test_kill_minus_9_while_fetching(small, tenths):
    name, size = small.archives[2].name, small.sizes()[2]
    small.server.faults[name] = [('hold', size*tenths//10)]
    part, client = small.folder/f'{name}.part', start_client(small)
    wait_until(lambda: part.exists() and part.stat().st_size == size*tenths//10 or client.poll() is not None)
    client.send_signal(signal.SIGKILL)
    said = client.communicate()[1]
    assert client.returncode == -9, said
    here = {n: sum(path.stat().st_size for path in small.folder.glob(f'{r.name}*')) for n, r in small.archives.items()}
    assert here[2] == size*tenths//10 and not (small.folder/'data.csv').exists()
    small.server.forget()
    small.fetch()
    small.is_right()
    assert small.sent() == {n: small.sizes()[n] - here[n] for n in here}      # the second run asked for the rest only


@pytest.mark.parametrize('when', ['after a part was complete', 'while unpacking', 'while an image is written', 'before the record'])
def test_killed_between_two_steps(small, when):
    "States that a kill can leave, made by hand."
    small.folder.mkdir()
    body, name = small.server.files['images_001.tar.gz'], 'images_001.tar.gz'
    if when == 'after a part was complete': (small.folder/f'{name}.part').write_bytes(body)
    else: (small.folder/name).write_bytes(body)
    (small.folder/'images').mkdir()
    first, *others = sorted(small.deal[1])
    if when in ('while unpacking', 'while an image is written'): (small.folder/'images'/first).write_bytes(small.pixels[first])
    if when == 'while an image is written': (small.folder/'images'/f'.{others[0]}.0123456789ab.tmp').write_bytes(b'\x89PNG')
    (small.folder/'.data.csv.4711.tmp').write_text('half')
    (small.folder/'.fetch_record.json.4711.tmp').write_text('{')
    small.fetch(archives='1')
    small.is_right([1])
    assert not small.server.requests


def test_ctrl_c_leaves_a_state_to_go_on_from(small):
    size = small.sizes()[2]
    small.server.faults['images_002.tar.gz'] = [('hold', size//2)]
    part, client = small.folder/'images_002.tar.gz.part', start_client(small)
    wait_until(lambda: part.exists() and part.stat().st_size == size//2 or client.poll() is not None)
    client.send_signal(signal.SIGINT)
    time.sleep(.3)
    small.server.released.set()                                 # the line moves again, and the client looks up
    assert b'type the same command to go on' in client.communicate(timeout=60)[1]
    small.fetch()
    small.is_right()
    assert small.sent()[2] == size


def test_two_runs_in_one_folder(small):
    small.folder.mkdir()
    with folder_lock(small.folder, 'chestnb_nih'):
        with pytest.raises(UserError, match=rf'chestnb_nih \(process {os.getpid()} on .*\) is at work here'): small.fetch()
    small.fetch()
    small.is_right()


# What people bring along


@pytest.mark.parametrize('name', ['images_001.tar.gz', 'images_01.tar.gz'])
def test_archives_that_were_downloaded_by_hand(small, name):
    small.folder.mkdir()
    (small.folder/name).write_bytes(small.server.files['images_001.tar.gz'])
    small.fetch(archives='1')
    assert not small.server.requests and (small.folder/name).exists()
    assert {p.name for p in (small.folder/'images').iterdir()} == small.deal[1]
    small.fetch(archives='1', remove_archives=True)
    assert not (small.folder/name).exists() and not small.server.requests


def test_a_half_downloaded_archive_is_not_touched(small):
    small.folder.mkdir()
    path = small.folder/'images_01.tar.gz'
    path.write_bytes(small.server.files['images_001.tar.gz'][:1000])
    with pytest.raises(UserError, match=r'rename it to images_001\.tar\.gz\.part'): small.fetch()
    assert path.stat().st_size == 1000 and not small.server.requests
    path.rename(small.folder/'images_001.tar.gz.part')          # the advice works
    small.fetch(archives='1')
    small.is_right([1])
    assert small.sent()[1] == small.sizes()[1] - 1000


def test_a_spoilt_archive_of_the_right_size_is_refused(small):
    small.folder.mkdir()
    (small.folder/'images_001.tar.gz').write_bytes(bytes(small.sizes()[1]))
    with pytest.raises(UserError, match='has the right size, but its MD5 is not'): small.fetch(archives='1')
    assert (small.folder/'images_001.tar.gz').exists()


def test_an_unpacked_folder(small):
    (small.folder/'images').mkdir(parents=True)
    for name in small.deal[1] | small.deal[2]: (small.folder/'images'/name).write_bytes(small.pixels[name])
    small.fetch(archives='1,2')
    assert not small.server.requests
    small.is_right([1, 2], archives=False)
    small.fetch()
    assert set(small.server.requests) == {'images_003.tar.gz'}


def test_kaggles_folders(small):
    for n, names in small.deal.items():
        inner = small.folder/f'images_{n:03}'/'images'
        inner.mkdir(parents=True)
        for name in names: (inner/name).write_bytes(small.pixels[name])
    gone = max(small.deal[3])
    (small.folder/'images_003'/'images'/gone).unlink()
    small.fetch()
    assert set(small.server.requests) == {'images_003.tar.gz'}
    assert [path.name for path in (small.folder/'images').iterdir()] == [gone]     # only what was missing
    assert set(ChestDataset(small.folder).table.image) == set(small.table.image)


def test_a_complete_kaggle_folder_gets_no_images_folder(small):
    for n, names in small.deal.items():
        (small.folder/f'images_{n:03}'/'images').mkdir(parents=True)
        for name in names: (small.folder/f'images_{n:03}'/'images'/name).write_bytes(small.pixels[name])
    small.fetch()
    assert not (small.folder/'images').exists() and not small.server.requests
    assert len(ChestDataset(small.folder)) == len(small.table)


@pytest.mark.parametrize('name', ['data.csv', 'dataset.json', 'split.csv', 'BBox_List_2017.csv', 'NIH_ATTRIBUTION.txt'])
def test_a_file_of_the_users_is_not_overwritten(small, name):
    small.folder.mkdir()
    (small.folder/name).write_text('mine')
    with pytest.raises(UserError, match='is not a file of this command'): small.fetch()
    assert (small.folder/name).read_text() == 'mine' and not small.server.requests


def test_nihs_own_boxes_may_be_there(small):
    small.fetch(archives='1')
    boxes = (small.folder/'BBox_List_2017.csv').read_bytes()
    assert md5(boxes) == 'c288912caf65ab8b6c7aff6717d11005'     # NIH's file, byte by byte


def test_an_edited_data_csv_becomes_the_users(small):
    small.fetch(archives='1')
    (small.folder/'data.csv').write_text('edited')
    with pytest.raises(UserError, match='is not a file of this command'): small.fetch()
    assert (small.folder/'data.csv').read_text() == 'edited'


def test_other_images_are_refused(small):
    (small.folder/'images').mkdir(parents=True)
    (small.folder/'images'/'holiday.png').write_bytes(png(0))
    with pytest.raises(UserError, match='is not an image of NIH'): small.fetch()
    assert not small.server.requests


def test_a_resized_image_is_not_overwritten(small):
    (small.folder/'images').mkdir(parents=True)
    mine = small.folder/'images'/min(small.deal[1])
    mine.write_bytes(b'resized')
    with pytest.raises(UserError, match="is there already with another content than NIH's"): small.fetch(archives='1')
    assert mine.read_bytes() == b'resized'


@pytest.mark.parametrize('archives', [True, False])
def test_an_empty_image_does_not_count_as_finished(small, archives):
    small.fetch(remove_archives=not archives)
    (small.folder/'images'/min(small.deal[1])).write_bytes(b'')
    small.server.forget()
    small.fetch()
    small.is_right(archives=True) if archives else small.fetch(remove_archives=True)
    assert set(small.server.requests) == (set() if archives else {'images_001.tar.gz'})
    assert (small.folder/'images'/min(small.deal[1])).read_bytes() == small.pixels[min(small.deal[1])]


def test_images_are_on_the_disk_before_their_archive_goes(small, monkeypatch):
    done, fsync, unlink = [], os.fsync, Path.unlink
    def noted_fsync(handle):
        done.append(Path(os.readlink(f'/proc/self/fd/{handle}')).name)
        return fsync(handle)
    def noted_unlink(self, *args, **kwargs):
        done.append(f'removed {self.name}')
        return unlink(self, *args, **kwargs)
    if not Path('/proc/self/fd').exists(): pytest.skip('needs /proc')
    monkeypatch.setattr(os, 'fsync', noted_fsync)
    monkeypatch.setattr(Path, 'unlink', noted_unlink)
    small.fetch(archives='1', remove_archives=True, connections=1)
    gone = done.index('removed images_001.tar.gz')
    assert small.deal[1] | {'images'} <= set(done[:gone])


def test_an_empty_image_is_the_trace_of_a_power_cut(small):
    (small.folder/'images').mkdir(parents=True)
    (small.folder/'images'/min(small.deal[1])).write_bytes(b'')
    small.fetch(archives='1')
    small.is_right([1])


def test_a_file_instead_of_a_folder(small, tmp_path):
    (tmp_path/'file').write_text('')
    with pytest.raises(UserError, match='is a file'): fetch_nih(tmp_path/'file', catalogue=small.archives, metadata=small.table)


@pytest.mark.parametrize('connections', [0, -1])
def test_no_connections(small, connections):
    with pytest.raises(UserError, match='expected 1 or more'): small.fetch(connections=connections)


@pytest.mark.parametrize('connections', [1, 2, 8])
def test_any_number_of_connections(small, connections):
    for remote in small.archives.values(): small.server.faults[remote.name] = [('drop', 1000)]*3
    small.fetch(connections=connections)
    small.is_right()
    assert small.sent() == small.sizes()


# Hostile archives


def info(name, **other):
    member = tarfile.TarInfo(name)
    for key, value in other.items(): setattr(member, key, value)
    return member


@pytest.mark.parametrize('member', [
    '/images/00000001_000.png', '../images/00000001_000.png', 'images/../00000001_000.png', 'images/../../00000001_000.png', '00000001_000.png',
    'images/00000001_000.PNG', 'images/00000001_000.png.exe', 'images/sub/00000001_000.png', 'images\\00000001_000.png', 'images/1_0.png',
    'images/00000001_000.png\n', info('images/00000001_000.png', type=tarfile.SYMTYPE, linkname='/etc/passwd'),
    info('images/00000001_000.png', type=tarfile.LNKTYPE, linkname='../x'), info('images/00000001_000.png', type=tarfile.FIFOTYPE),
    info('images/00000001_000.png', type=tarfile.CHRTYPE), info('other/', type=tarfile.DIRTYPE), info('../', type=tarfile.DIRTYPE)], ids=lambda m: repr(m) if isinstance(m, str) else f"{m.name}-{m.type}-{m.size}")
def test_hostile_members(tmp_path, member):
    archive = tmp_path/'a.tar.gz'
    archive.write_bytes(tar_of([(member, b'' if not isinstance(member, str) else b'x')]))
    target = tmp_path/'data'
    (target/'images').mkdir(parents=True)
    with pytest.raises(UserError, match='only regular files|is expected'): unpack(archive, target, {'00000001_000.png'}, progress=False)
    assert [p for p in tmp_path.rglob('*') if p.is_file()] == [archive]


def test_unexpected_missing_and_double_images(tmp_path):
    (tmp_path/'images').mkdir()
    def unpack_of(members, expected):
        (tmp_path/'a.tar.gz').write_bytes(tar_of([(f'images/{name}', name.encode()) for name in members]))
        return unpack(tmp_path/'a.tar.gz', tmp_path, set(expected), progress=False)
    a, b, c = (f'0000000{i}_000.png' for i in (1, 2, 3))
    with pytest.raises(UserError, match=f"holds {c}, which NIH's table puts elsewhere"): unpack_of([a, c], [a, b])
    with pytest.raises(UserError, match=f'lacks 1 of 2 images, first of all {b}'): unpack_of([a], [a, b])
    with pytest.raises(UserError, match='holds it twice'): unpack_of([a, a], [a, b])
    unpack_of([b, a], [a, b])
    assert {p.name for p in (tmp_path/'images').iterdir()} == {a, b}


@pytest.mark.parametrize('content', [b'', b'not gzip', tar_of([('images/00000001_000.png', bytes(9000))])[:60]], ids=['empty', 'no gzip', 'cut off'])
def test_a_broken_archive(tmp_path, content):
    (tmp_path/'a.tar.gz').write_bytes(content)
    (tmp_path/'images').mkdir()
    with pytest.raises(UserError, match='cannot be unpacked|lacks 1 of 1'): unpack(tmp_path/'a.tar.gz', tmp_path, {'00000001_000.png'}, progress=False)


def test_an_archive_goes_only_after_its_images_were_counted(small):
    short = tar_of([(f'images/{name}', small.pixels[name]) for name in sorted(small.deal[1])[:-1]])
    small.server.files['images_001.tar.gz'] = short
    small.archives[1] = replace(small.archives[1], md5=md5(short), n_bytes=len(short))
    with pytest.raises(UserError, match='lacks 1 of 3 images'): small.fetch(archives='1', remove_archives=True)
    assert (small.folder/'images_001.tar.gz').exists()


# Threads and memory


def test_a_full_disk_stops_the_others():
    def work(plan, stop):
        if plan: raise OSError(errno.ENOSPC, 'full')
        if not stop.wait(20): pytest.fail('was not stopped')
        raise data_download.Stopped()
    with pytest.raises(OSError, match='full'): run_all(work, [0, 0, 1], 3)


def test_all_messages_are_told():
    def work(plan, stop): raise UserError(f'archive {plan}')
    with pytest.raises(UserError) as error: run_all(work, [1, 2], 1)
    assert 'archive 1' in str(error.value) and 'archive 2' in str(error.value)


def test_a_bug_stays_a_bug():
    def work(plan, stop): return 1/0
    with pytest.raises(ZeroDivisionError): run_all(work, [1], 1)


def test_a_broken_record_is_no_disaster(small):
    small.fetch()
    (small.folder/'fetch_record.json').write_text('{"verified": ')
    (small.folder/'data.csv').unlink()
    small.server.forget()
    small.fetch()
    small.is_right()
    assert not small.server.requests


def test_record_notes_before_the_file_is_written(tmp_path, monkeypatch):
    record = FetchRecord(tmp_path)
    write_ours(tmp_path/'data.csv', b'1', record)
    monkeypatch.setattr(data_archives, 'write_atomically', lambda *a, **k: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt): write_ours(tmp_path/'data.csv', b'2', record)
    monkeypatch.undo()
    write_ours(tmp_path/'data.csv', b'2', FetchRecord(tmp_path))         # the old version is still known as ours
    assert (tmp_path/'data.csv').read_bytes() == b'2'


# ChestMNIST


def made_up(size=28, n=(6, 2, 3), seed=0):
    random = np.random.default_rng(seed)
    return {f'{part}_{what}': random.integers(0, 256 if what == 'images' else 2, (k, *shape), dtype=np.uint8)
            for part, k in zip(('train', 'val', 'test'), n) for what, shape in (('images', (size, size)), ('labels', (14,)))}


def npz_of(arrays, compressed=True):
    buffer = io.BytesIO()
    (np.savez_compressed if compressed else np.savez)(buffer, **arrays)
    return buffer.getvalue()


@pytest.fixture
def mnist(tmp_path):
    arrays = made_up()
    arrays['train_labels'][0] = 0
    content = npz_of(arrays)
    server = FaultyServer({'chestmnist.npz': content})
    yield tmp_path/'mnist', arrays, server, RemoteFile('chestmnist.npz', server.url('chestmnist.npz'), md5(content))
    server.shutdown()
    server.server_close()


def test_medmnist_record_is_read_without_importing_it():
    code = 'import sys; from chestnb.data.chestmnist import chestmnist_file; print(chestmnist_file(224).md5, [m for m in ("torch", "medmnist") if m in sys.modules])'
    assert subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout.strip() == '45bd33e6f06c3e8cdb481c74a89152aa []'
    assert chestmnist_file(28).url == 'https://zenodo.org/records/10519652/files/chestmnist.npz?download=1'
    assert chestmnist_findings() == list(FINDINGS)


@pytest.mark.parametrize('faults', [[], [('drop', 1000)]*3, [('wrong bytes', 0)], [('status', 503)], [('drop', 900), ('no range', None)]])
def test_chestmnist_becomes_a_data_set(mnist, faults, capsys):
    folder, arrays, server, remote = mnist
    server.faults['chestmnist.npz'] = list(faults)
    fetch_chestmnist(folder, 28, remote=remote, progress=False)
    assert {p.name for p in folder.iterdir()} == {'images', 'data.csv', 'chestmnist.npz', 'dataset.json', 'fetch_record.json', data_chestmnist.MEDMNIST_SPLIT, 'READ_THIS_FIRST.txt'}
    dataset = ChestDataset(folder)
    for part in ('train', 'val', 'test'):
        for number, pixels in enumerate(arrays[f'{part}_images']):
            name = f'chestmnist_{part}_{number:05}.png'
            assert np.array_equal(np.asarray(dataset.open_image(name)), pixels)
            assert np.array_equal(dataset.targets([name])[0], arrays[f'{part}_labels'][number])
    assert dataset.table.set_index('image').loc['chestmnist_train_00000.png', NO_FINDING]
    said = capsys.readouterr().out + (folder/'READ_THIS_FIRST.txt').read_text()
    for text in ('Patients are NOT known', "NOT NIH's official", 'CC BY 4.0', 'Patients: not known'): assert text in said
    server.forget()
    fetch_chestmnist(folder, 28, remote=remote, progress=False)
    assert not server.requests


def test_nothing_is_invented_and_nothing_pretended(mnist):
    folder, arrays, server, remote = mnist
    fetch_chestmnist(folder, 28, remote=remote, progress=False)
    dataset = ChestDataset(folder)
    table = dataset.table
    assert patients_unknown(table)
    for column in ('patient_id', 'follow_up', 'age', 'sex', 'view_position', 'width', 'height'): assert table[column].isna().all(), column
    for splitter in (patient_split, patient_kfold, official_split):
        with pytest.raises(UserError, match='no patient of this data set is known'): splitter(table)
    with pytest.raises(UserError, match='list of patients'): is_official_test(table)
    with pytest.warns(UserWarning, match='no patient of this data set is known'): split = load_split(folder/data_chestmnist.MEDMNIST_SPLIT, table)
    assert split.part.value_counts().to_dict() == {'train': 6, 'valid': 2, 'test': 3}
    with pytest.raises(UserError, match='no patient of this data set is known'): split_report(split, table)
    assert set(audit_split(split)['shared patients']) == {'not known'}
    assert set(audit_split(split, dataset)['shared patients']) == {'not known'}
    summary = dataset.summary()
    assert summary.patients.isna().all() and 'unknown patients' in repr(dataset)
    dataset._repr_html_()
    assert dataset.provenance == CHESTMNIST_PROVENANCE and not dataset.is_synthetic and dataset.release == 'subset/unknown'


def test_a_file_that_was_downloaded_before(mnist, tmp_path):
    folder, arrays, server, remote = mnist
    mine = tmp_path/'mine.npz'
    mine.write_bytes(server.files['chestmnist.npz'])
    fetch_chestmnist(folder, 28, file=mine, remote=remote, remove_archives=True, progress=False)
    assert not server.requests and mine.exists() and len(ChestDataset(folder)) == 11
    with pytest.raises(UserError, match='there is no such file'): fetch_chestmnist(tmp_path/'other', 28, file=tmp_path/'no.npz', remote=remote)
    mine.write_bytes(b'other')
    with pytest.raises(UserError, match='its MD5 is not'): fetch_chestmnist(tmp_path/'other', 28, file=mine, remote=remote)


@pytest.mark.parametrize('content', [b'', b'not a zip', npz_of({'x': np.zeros(3)})])
@pytest.mark.parametrize('there', [True, False])
def test_a_file_that_is_not_chestmnist_leaves_the_folder_as_it_was(mnist, tmp_path, content, there):
    folder, arrays, server, remote = mnist
    bad = tmp_path/'bad.npz'
    bad.write_bytes(content)
    if there:
        folder.mkdir()
        (folder/'notes.txt').write_text('mine')
    with pytest.raises(UserError, match='bad.npz: its MD5 is not'): fetch_chestmnist(folder, 28, file=bad, remote=remote, progress=False)
    assert [p.name for p in folder.iterdir()] == ['notes.txt'] if there else not folder.exists()
    fetch_chestmnist(folder, 28, remote=remote, progress=False)
    assert len(ChestDataset(folder)) == 11


def test_chestmnist_without_a_connection_leaves_nothing(mnist):
    folder, arrays, server, remote = mnist
    with pytest.raises(UserError, match=r'127\.0\.0\.1:9 cannot be reached: connection refused\. Nothing has arrived of chestmnist\.npz'):
        fetch_chestmnist(folder/'below', 28, remote=replace(remote, url='http://127.0.0.1:9/'), progress=False)
    assert not folder.exists()


def test_chestmnist_images_are_on_the_disk_before_the_file_goes(mnist, monkeypatch):
    folder, arrays, server, remote = mnist
    synced, original = [], data_chestmnist.sync_files
    def sync(paths):
        paths = [Path(path) for path in paths]
        assert (folder/remote.name).exists() and FetchRecord(folder).get('chestmnist', 'images') is None
        synced.extend(path.name for path in paths)
        original(paths)
    monkeypatch.setattr(data_chestmnist, 'sync_files', sync)
    fetch_chestmnist(folder, 28, remote=remote, remove_archives=True, progress=False)
    assert sorted(synced) == sorted(p.name for p in (folder/'images').iterdir()) and len(synced) == 11 and not (folder/remote.name).exists()


def test_an_empty_chestmnist_image_does_not_count_as_finished(mnist):
    folder, arrays, server, remote = mnist
    fetch_chestmnist(folder, 28, remote=remote, progress=False)
    path = folder/'images'/'chestmnist_val_00001.png'
    whole = path.read_bytes()
    path.write_bytes(b'')
    server.forget()
    fetch_chestmnist(folder, 28, remote=remote, progress=False)
    assert path.read_bytes() == whole and not server.requests


def test_two_sizes_do_not_mix(mnist):
    folder, arrays, server, remote = mnist
    fetch_chestmnist(folder, 28, remote=remote, progress=False)
    with pytest.raises(UserError, match='holds ChestMNIST of 28 pixels'): fetch_chestmnist(folder, 64, remote=remote, progress=False)
    with pytest.raises(UserError, match='is not an image of NIH'): fetch_nih(folder, archives='1', progress=False)


def test_a_wrong_size_does_not_block_the_folder(mnist):
    folder, arrays, server, remote = mnist
    with pytest.raises(UserError, match='is not a ChestMNIST file of 64 pixels'): fetch_chestmnist(folder, 64, remote=remote, progress=False)
    fetch_chestmnist(folder, 28, remote=remote, progress=False)
    assert len(ChestDataset(folder)) == 11


def test_other_folders_are_refused(mnist, embedded):
    folder, arrays, server, remote = mnist
    (folder/'images').mkdir(parents=True)
    (folder/'images'/'x.png').write_bytes(png(0))
    with pytest.raises(UserError, match='holds other images'): fetch_chestmnist(folder, 28, remote=remote, progress=False)
    (folder/'images'/'x.png').unlink()
    (folder/'data.csv').write_text('mine')
    with pytest.raises(UserError, match='is not a file of this command'): fetch_chestmnist(folder, 28, remote=remote, progress=False)
    assert (folder/'data.csv').read_text() == 'mine' and not server.requests


def test_killed_while_images_are_written(mnist, monkeypatch):
    folder, arrays, server, remote = mnist
    stored, original = [], Image.Image.save
    def save(self, *args, **options):
        if len(stored) == 4: raise KeyboardInterrupt
        stored.append(1)
        return original(self, *args, **options)
    monkeypatch.setattr(Image.Image, 'save', save)
    with pytest.raises(KeyboardInterrupt, match='type the same command'): fetch_chestmnist(folder, 28, remote=remote, progress=False)
    monkeypatch.undo()
    (folder/'images'/'.chestmnist_train_00004.png.99.tmp').write_bytes(b'half')
    before = {p.name: p.stat().st_mtime_ns for p in (folder/'images').glob('c*.png')}
    assert len(before) == 4
    server.forget()
    fetch_chestmnist(folder, 28, remote=remote, progress=False)
    assert not server.requests and len(ChestDataset(folder)) == 11
    assert {n: (folder/'images'/n).stat().st_mtime_ns for n in before} == before and not list((folder/'images').glob('.*'))


@pytest.mark.parametrize('spoil', [
    lambda a: a.pop('val_labels'), lambda a: a.update(train_images=a['train_images'].astype(float)), lambda a: a.update(test_labels=a['test_labels'] + 1),
    lambda a: a.update(test_labels=a['test_labels'][:, :13]), lambda a: a.update(train_images=a['train_images'][:, :20]),
    lambda a: a.update(train_labels=a['train_labels'][:-1]), lambda a: a.update(train_images=np.asfortranarray(a['train_images']))])
def test_a_file_of_another_form(tmp_path, spoil):
    arrays = made_up()
    spoil(arrays)
    (tmp_path/'x.npz').write_bytes(npz_of(arrays))
    (tmp_path/'data').mkdir()
    with pytest.raises(UserError, match='is not a ChestMNIST file'): data_chestmnist.write_pngs(tmp_path/'x.npz', tmp_path/'data', 28, progress=False)
    assert not list((tmp_path/'data').iterdir())


@pytest.mark.parametrize('compressed', [True, False])
def test_npz_is_read_like_numpy_reads_it(tmp_path, compressed):
    arrays = made_up(size=5, n=(7, 1, 2))
    (tmp_path/'x.npz').write_bytes(npz_of(arrays, compressed))
    import zipfile
    with zipfile.ZipFile(tmp_path/'x.npz') as archive:
        for name, expected in arrays.items():
            shape, *rows = npz_stream(archive, name)
            assert shape == expected.shape and np.array_equal(np.stack(rows), expected)


# The commands


def test_the_commands_call_these_functions(small, mnist, monkeypatch, capsys):
    from chestnb.commands.data import chestnb_chestmnist, chestnb_nih
    monkeypatch.setattr(data_archives, 'NIH_ARCHIVES', small.archives)
    monkeypatch.setattr(data_archives, 'nih_metadata', lambda: small.table.copy())
    monkeypatch.setattr(data_archives, 'nih_split', lambda: pd.DataFrame({'image': small.table.image, 'patient_id': small.table.patient_id, 'part': 'train'}))
    chestnb_nih(str(small.folder), archives='1,3', connections=2, remove_archives=True)
    small.is_right([1, 3], archives=False)
    folder, arrays, server, remote = mnist
    monkeypatch.setattr(data_chestmnist, 'chestmnist_file', lambda size: remote)
    chestnb_chestmnist(str(folder), size=28)
    assert len(ChestDataset(folder)) == 11
    assert 'not a medical device' in capsys.readouterr().out


def run(*words): return typed(*words)


def test_the_command_line(tmp_path):
    done = run('chestnb_nih', '--to', str(tmp_path/'nih'), '--archives', '1,13')
    assert done.returncode == 2 and 'expected numbers from 1 to 12' in done.stderr and 'Traceback' not in done.stderr
    done = run('chestnb_nih', '--to', str(tmp_path/'nih'), '--archives', '1', '--dry_run')
    assert done.returncode == 0 and '2,008,470,987' in done.stdout and not (tmp_path/'nih').exists()
    small_disk = "import shutil, sys; shutil.disk_usage = lambda path: type('', (), {'free': 100})(); from chestnb.commands.data import chestnb_nih; chestnb_nih()"
    (tmp_path/'chestnb_nih').write_text(small_disk)
    done = subprocess.run([sys.executable, str(tmp_path/'chestnb_nih'), '--to', str(tmp_path/'nih'), '--dry_run'], capture_output=True, text=True)
    assert done.returncode == 0 and '2,914,187,733' in done.stdout and 'Warning: ' in done.stdout and not done.stderr and not (tmp_path/'nih').exists()
    for name in ('chestnb_nih', 'chestnb_chestmnist'): assert '--to DIR' in run(name).stderr and 'Traceback' not in run(name).stderr
    done = run('chestnb_chestmnist', '--size', '100', '--to', str(tmp_path/'x'))
    assert done.returncode == 2 and '28, 64, 128, 224' in done.stderr and not (tmp_path/'x').exists()
