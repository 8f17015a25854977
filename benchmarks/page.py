"""What a page of chestnb_page costs its reader: python benchmarks/page.py runs/page

Opens it in a headless Chromium and prints: bytes of the first visit, time until it is ready, time from file to answer of small and of very large
files, and the memory of its worker after 100 images. Times are of this machine, from loopback.
"""
import argparse
import http.server
import shutil
import statistics
import tempfile
import threading
import time
from functools import partial
from pathlib import Path

import numpy as np
import psutil
from PIL import Image
from playwright.sync_api import sync_playwright

from chestnb.data.dicom import write_dicom
from chestnb.data.phantom.anatomy import Anatomy
from chestnb.data.phantom.cohort import render

ARGS = '--no-sandbox --headless --disable-gpu --disable-quic --no-first-run --disable-background-networking --disable-component-update --disable-sync'.split()
WAIT = 120_000 # ms


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args): pass


def films(folder):
    "A small radiograph, one of 30 megapixels, and a DICOM file of 3000×3000 pixels of 16 bits; all drawn."
    drawn = Image.fromarray(render(Anatomy(3, 'F'), {'Effusion': .8}, 'PA', 512, 1).image)
    noise = np.random.default_rng(0)
    drawn.resize((1024, 1024)).save(folder/'small.png')
    large = np.asarray(drawn.resize((5000, 6000))).astype(np.int16) + noise.integers(-3, 4, (6000, 5000))
    Image.fromarray(large.clip(0, 255).astype(np.uint8)).save(folder/'large.png', compress_level=1)
    deep = np.asarray(drawn.resize((3000, 3000))).astype(np.int32)*240 + noise.integers(0, 240, (3000, 3000))
    write_dicom(deep.astype(np.uint16), folder/'deep.dcm', dict(WindowCenter=30000, WindowWidth=60000), bits=16)
    return {name: folder/name for name in ('small.png', 'large.png', 'deep.dcm')}


def answered(tab, paths):
    "Seconds from choosing files to the last answer on the page, and the seconds of each that the worker took."
    before, started = int(tab.evaluate("document.documentElement.dataset.done ?? '0'")), time.perf_counter()
    tab.set_input_files('#files', paths)
    tab.wait_for_selector(f'html[data-done="{before + len(paths)}"]', state='attached', timeout=WAIT)
    return time.perf_counter() - started, [ms/1000 for ms in tab.evaluate(f'items.slice(-{len(paths)}).map(item => item.answer.milliseconds)')]


def renderers():
    "The browser's pages that this process started."
    return [p for p in psutil.Process().children(recursive=True) if '--type=renderer' in p.cmdline()]


def megabytes(): return sum(p.memory_info().rss for p in renderers())/1e6


def cpu_seconds(): return sum(p.cpu_times().user + p.cpu_times().system for p in renderers())


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('page', type=Path)
    parser.add_argument('--visits', type=int, default=3)
    args = parser.parse_args()
    if not (args.page/'index.html').is_file(): parser.error(f'{args.page} holds no page; make one: chestnb_page RUN --to {args.page}')
    chromium = next(filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome'))))
    server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), partial(Quiet, directory=str(args.page)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f'http://localhost:{server.server_port}/'
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        files = films(Path(folder))
        browser = playwright.chromium.launch(executable_path=chromium, args=ARGS)
        ready, seen = [], 0
        for visit in range(args.visits):
            context = browser.new_context()
            tab = context.new_page()
            sizes = []
            tab.on('response', lambda response: sizes.append(int(response.headers.get('content-length', 0))))
            tab.goto(address)
            tab.wait_for_selector('html[data-ready]', state='attached', timeout=WAIT)
            ready.append(int(tab.evaluate('document.documentElement.dataset.ready')))
            seen = seen or sum(sizes)
            if visit < args.visits - 1: context.close()
        print(f'first visit: {seen/1e6:.1f} MB; ready after {statistics.median(ready)/1000:.2f} s (median of {len(ready)}: {", ".join(f"{ms/1000:.2f}" for ms in ready)})')
        tab.reload()
        tab.wait_for_selector('html[data-ready]', state='attached', timeout=WAIT)
        print(f"second visit: ready after {int(tab.evaluate('document.documentElement.dataset.ready'))/1000:.2f} s")
        answered(tab, [files['small.png']])
        alone = [answered(tab, [files['small.png']])[0] for _ in range(7)]
        print(f'1024×1024 PNG: {statistics.median(alone):.3f} s from file to page (median of 7)')
        for name in ('large.png', 'deep.dcm'): print(f'{name} ({files[name].stat().st_size/1e6:.0f} MB): {answered(tab, [files[name]])[0]:.2f} s')
        counts, before = [megabytes()], cpu_seconds()
        for _ in range(4):
            answered(tab, [files['small.png']]*25)
            counts.append(megabytes())
        print(f'processor time of an image, mean of 100: {(cpu_seconds() - before)/100:.3f} s, the same on a busy machine')
        print('memory of the page after 0, 25, 50, 75, 100 more images: ' + ', '.join(f'{mb:.0f}' for mb in counts) + ' MB')
        browser.close()


if __name__ == '__main__': main()
