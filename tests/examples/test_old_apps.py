"""Backends as they were written for the first documents: Bottle, Requests, the paths without a
version, parameters in the query, `signalFinishSecret`. The real server must serve them unchanged."""

import json
import os
import pathlib
import shutil
import socket
import struct
import subprocess
import tempfile
import threading
import time
import unittest
import wsgiref.simple_server

import bottle
import requests

ROOT = pathlib.Path(__file__).resolve().parents[2]

# No step takes so long on any machine: whoever waits longer waits for nothing.
WAIT_S = 60


class Backend:
    """Gives out tickets and moves files away, at once or in a thread."""

    def __init__(self, server, uploads, is_slow):
        self.server, self.uploads, self.is_slow = server, uploads, is_slow
        self.tickets, self.cancelled, self.finished = {}, {}, []
        app = bottle.Bottle()
        app.post("/api/backend/upload_finished", callback=self.upload_finished)
        self.http = wsgiref.simple_server.make_server(
            "127.0.0.1", 0, app, handler_class=Quiet
        )
        self.thread = threading.Thread(target=self.http.serve_forever)
        self.thread.start()

    def ask(self, action, **params):
        url = "http://%s/incoming/backend/%s" % (self.server, action)
        return requests.post(url, params=params, timeout=WAIT_S)

    def ticket(self):
        params = {
            "signalFinishURL": "http://127.0.0.1:%d/api/backend/upload_finished"
            % self.http.server_port,
            "removeFileWhenFinished": "false",
        }
        if self.is_slow:
            params.update(destType="file", signalFinishSecret="a secret")
        answer = self.ask("new_upload", **params)
        assert answer.status_code == requests.codes.ok, answer.text
        self.tickets[answer.text] = "a secret" if self.is_slow else ""
        return answer.text

    def upload_finished(self):
        params = bottle.request.params
        upload_id = params["id"]
        if upload_id not in self.tickets:
            bottle.abort(404, "no such upload")
        if params["secret"] != self.tickets[upload_id]:
            bottle.abort(418, "wrong secret")
        if params["cancelled"] == "yes":
            self.cancelled[upload_id] = params["cancelReason"]
            return ""
        source, name = params["filename"], params["filenameFromBrowser"]
        if self.is_slow:
            threading.Thread(target=self.move_later, args=(upload_id, source, name)).start()
            return "wait"
        shutil.move(source, os.path.join(self.uploads, name))
        return "done"

    def move_later(self, upload_id, source, name):
        shutil.move(source, os.path.join(self.uploads, name))
        time.sleep(1)
        # Without a secret: so they did.
        self.finished.append(self.ask("finish_upload", id=upload_id))

    def close(self):
        self.http.shutdown()
        self.http.server_close()
        self.thread.join()


class Quiet(wsgiref.simple_server.WSGIRequestHandler):
    def log_message(self, *_):
        pass


class Browser:
    """One WebSocket connection that speaks just enough of the protocol."""

    def __init__(self, server):
        host, _, port = server.rpartition(":")
        self.socket = socket.create_connection((host, int(port)), WAIT_S)
        self.stream = self.socket.makefile("rb")
        self.socket.sendall(
            b"GET /incoming/0.1/frontend/upload_ws HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\n"
            b"Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
            b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        )
        assert b" 101 " in self.stream.readline()
        while self.stream.readline() != b"\r\n":
            pass

    def send(self, opcode, payload):
        length = len(payload)
        if length < 126:
            head = struct.pack("!BB", 0x80 | opcode, 0x80 | length)
        elif length < 1 << 16:
            head = struct.pack("!BBH", 0x80 | opcode, 0x80 | 126, length)
        else:
            head = struct.pack("!BBQ", 0x80 | opcode, 0x80 | 127, length)
        # Masked with zeros, which leaves it as it is.
        self.socket.sendall(head + bytes(4) + payload)

    def say(self, kind, **data):
        self.send(1, json.dumps({"MsgType": kind, "MsgData": data}).encode())

    def hear(self, kind):
        """The data of the next message, which is of this kind."""
        while True:
            opcode, length = self.stream.read(2)
            if length >= 126:
                length = int.from_bytes(self.stream.read(2 if length == 126 else 8), "big")
            payload = self.stream.read(length)
            if opcode & 15 == 1:
                message = json.loads(payload)
                assert message["MsgType"] == kind, message
                return message["MsgData"]
            assert opcode & 15 == 9, (opcode, payload)

    def begin(self, upload_id, name, content):
        self.say("MsgUploadReq", Id=upload_id, LengthBytes=len(content), Name=name)
        self.hear("MsgUploadConf")
        self.say("MsgAck", Ack=True)

    def upload(self, upload_id, name, content):
        self.begin(upload_id, name, content)
        self.send(2, content)
        self.hear("MsgChunkAck")
        assert self.hear("MsgAllDone")["Success"]

    def close(self):
        self.stream.close()
        self.socket.close()


class OldApps(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        binary = os.environ.get("INCOMING_BIN") or build()
        directory = tempfile.TemporaryDirectory()
        cls.addClassCleanup(directory.cleanup)
        cls.directory = pathlib.Path(directory.name)
        (cls.directory / "uploads").mkdir()
        environment = {k: v for k, v in os.environ.items() if not k.startswith("INCOMING_")}
        server = subprocess.Popen(
            [binary, "serve", "--listen", "127.0.0.1:0", "--storage-dir",
             str(cls.directory / "storage")],
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment,
        )
        cls.addClassCleanup(server.stdout.close)
        cls.addClassCleanup(server.wait, WAIT_S)
        cls.addClassCleanup(server.terminate)
        line = server.stdout.readline()
        assert line.startswith("listening on http://"), line
        cls.server = line.strip().rpartition("/")[2]

    def backend(self, is_slow=False):
        backend = Backend(self.server, str(self.directory / "uploads"), is_slow)
        self.addCleanup(backend.close)
        return backend

    def browser(self):
        browser = Browser(self.server)
        self.addCleanup(browser.close)
        return browser

    def wait_for(self, condition):
        deadline = time.monotonic() + WAIT_S
        while not condition():
            self.assertLess(time.monotonic(), deadline, "waited too long")
            time.sleep(0.02)

    def assert_moved(self, name, content):
        self.assertEqual((self.directory / "uploads" / name).read_bytes(), content)
        self.assertEqual(os.listdir(self.directory / "storage" / "arrived"), [])

    def test_a_file_is_moved_and_the_browser_hears_so(self):
        backend, content = self.backend(), os.urandom(300_000)
        self.browser().upload(backend.ticket(), "one.bin", content)
        self.assert_moved("one.bin", content)

    def test_a_slow_app_waits_and_finishes(self):
        backend, content = self.backend(is_slow=True), os.urandom(300_000)
        self.browser().upload(backend.ticket(), "slow.bin", content)
        self.assert_moved("slow.bin", content)
        self.wait_for(lambda: backend.finished)
        answers = [(it.status_code, it.text) for it in backend.finished]
        self.assertEqual(answers, [(200, "ok")])

    def test_a_browser_that_cancels(self):
        backend, browser = self.backend(), self.browser()
        upload_id = backend.ticket()
        browser.begin(upload_id, "x", b"content")
        browser.say("MsgCancel", Reason="changed my mind")
        browser.hear("MsgCancelAck")
        self.wait_for(lambda: backend.cancelled)
        self.assertEqual(backend.cancelled, {upload_id: "changed my mind"})

    def test_an_app_that_cancels(self):
        backend = self.backend(is_slow=True)
        upload_id = backend.ticket()
        self.assertEqual(backend.ask("cancel_upload", id=upload_id, secret="no").status_code, 403)
        answer = backend.ask("cancel_upload", id=upload_id, backendSecret="a secret")
        self.assertEqual((answer.status_code, answer.text), (200, "ok"))


def build():
    """The server, built as `examples/run` builds it."""
    subprocess.run(["cargo", "build", "--release", "--bin", "incoming"], cwd=ROOT, check=True)
    metadata = subprocess.run(
        ["cargo", "metadata", "--no-deps", "--format-version", "1"],
        cwd=ROOT, check=True, capture_output=True, text=True,
    )
    return os.path.join(json.loads(metadata.stdout)["target_directory"], "release", "incoming")


if __name__ == "__main__":
    unittest.main()
