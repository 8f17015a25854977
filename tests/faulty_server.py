"""A file server on 127.0.0.1 that fails on command, for the tests of `chestnb.data.download`."""
import threading
import time
from collections import Counter, defaultdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

END = -1  # the position of a fault that spoils the answer as a whole


class Handler(BaseHTTPRequestHandler):
    "Takes the next fault of the path it serves, a pair (kind, value), if there is one."
    protocol_version = 'HTTP/1.1'

    def log_message(self, *args): pass

    def do_HEAD(self):
        body = self.server.files.get(self.path.lstrip('/'))
        self.headers_only(404 if body is None else 200, {'Content-Length': 0 if body is None else len(body)})

    def headers_only(self, status, headers):
        self.send_response(status)
        for name, value in headers.items(): self.send_header(name, value)
        self.send_header('Connection', 'close')
        self.end_headers()
        self.close_connection = True

    def do_GET(self):
        server, name = self.server, self.path.lstrip('/')
        body = server.files.get(name)
        with server.lock:
            kind, value = server.faults[name].pop(0) if server.faults[name] else ('none', None)
            server.requests[name].append(self.headers.get('Range'))
        if body is None: return self.headers_only(404, {'Content-Length': 0})
        if kind == 'status':
            status, extra = value if isinstance(value, tuple) else (value, {})
            return self.headers_only(status, {'Content-Length': 0, **extra})
        if kind == 'wrong bytes': body = bytes(len(body) - value) + body[len(body) - value:] if value else bytes(len(body))
        if kind == 'short file': body = body[:value]
        if kind == 'long file': body = body + bytes(value)
        self.send_body(name, body, *self.start(body, kind), kind, value)

    def start(self, body, kind):
        "First byte to send, and whether a range is answered."
        asked, valid = self.headers.get('Range'), self.headers.get('If-Range')
        if kind == 'no range' or not self.server.ranges or not asked: return 0, False
        if valid and valid != self.server.etag: return 0, False
        return int(asked.removeprefix('bytes=').rstrip('-')), True

    def send_body(self, name, body, start, ranged, kind, value):
        if ranged and start >= len(body): return self.headers_only(416, {'Content-Range': f'bytes */{len(body)}', 'Content-Length': 0})
        headers = {'ETag': self.server.etag} if self.server.etag else {}
        if ranged: headers['Content-Range'] = f'bytes {start + (kind == "wrong range")}-{len(body) - 1}/{len(body)}'
        if kind == 'no length': self.protocol_version = 'HTTP/1.0'
        else: headers['Content-Length'] = len(body) - start
        self.headers_only(206 if ranged else 200, headers)
        piece = body[start:] if kind not in ('drop', 'hold') else body[start:][:value]
        self.server.sent[name] += len(piece)
        try:
            self.wfile.write(piece)
            self.wfile.flush()
            if kind == 'hold': self.server.released.wait(60)
        except OSError: pass


class FaultyServer(ThreadingHTTPServer):
    "Serves `files`; `faults[name]` is a list of (kind, value), one for each coming answer."
    daemon_threads = True

    def __init__(self, files):
        super().__init__(('127.0.0.1', 0), Handler)
        self.files, self.etag, self.ranges, self.lock = dict(files), '"version-1"', True, threading.Lock()
        self.released = threading.Event()
        self.forget()
        threading.Thread(target=self.serve_forever, args=(.02,), daemon=True).start()

    def forget(self):
        "Start counting anew."
        self.faults, self.requests, self.sent = defaultdict(list), defaultdict(list), Counter()
        self.released.set()
        self.released = threading.Event()

    def url(self, name): return f'http://127.0.0.1:{self.server_port}/{name}'

    def handle_error(self, request, client_address): pass  # a client that was killed is no news


def wait_until(condition, seconds=60):
    "Wait for something that another process does."
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, 'it did not happen in time'
        time.sleep(.01)
