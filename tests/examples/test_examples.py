"""The example web apps, each as a process of its own, against a stand-in for the Incoming!! server."""

import hashlib
import hmac
import http.server
import json
import os
import pathlib
import queue
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import unittest
import urllib.error
import urllib.parse
import urllib.request

EXAMPLES = pathlib.Path(__file__).resolve().parents[2] / "examples"
sys.path.insert(0, str(EXAMPLES))

try:
    import webapp
except ModuleNotFoundError as error:
    sys.exit(
        '%s: run `"$(examples/run --venv)" -m unittest discover tests/examples`' % error
    )

# No step takes so long on any machine: whoever waits longer waits for nothing.
WAIT_S = 60


class SafeNames(unittest.TestCase):
    def test_only_a_plain_name_is_left(self):
        for given, expected in [
            ("report.pdf", "report.pdf"),
            ("../../etc/passwd", "passwd"),
            ("..\\..\\boot.ini", "boot.ini"),
            ("C:\\Users\\me\\a b.txt", "a b.txt"),
            ("", "unnamed"),
            (None, "unnamed"),
            ("..", "unnamed"),
            (".", "unnamed"),
            ("a/", "unnamed"),
            (".bashrc", "bashrc"),
            ("a\0b\nc\x1b.txt", "abc.txt"),
            ("  spaced  ", "spaced"),
            ("Übergröße – 東京 🎉.bin", "Übergröße – 東京 🎉.bin"),
        ]:
            with self.subTest(given):
                self.assertEqual(webapp.safe_name(given), expected)

    def test_a_long_name_is_cut_and_keeps_its_extension(self):
        name = webapp.safe_name("ü" * 5000 + ".tar")
        self.assertLessEqual(len(name.encode()), webapp.NAME_BYTES_MAX)
        self.assertTrue(name.startswith("üüü") and name.endswith(".tar"))
        self.assertLessEqual(
            len(webapp.safe_name("a." + "ü" * 5000).encode()), webapp.NAME_BYTES_MAX
        )

    def test_nothing_is_replaced(self):
        with tempfile.TemporaryDirectory() as directory:
            uploads = os.path.join(directory, "uploads")
            os.mkdir(uploads)
            names = []
            for content in ("one", "two", "three"):
                source = pathlib.Path(directory, "source")
                source.write_text(content)
                names.append(webapp.keep(str(source), uploads, "x/a.txt"))
                self.assertFalse(source.exists())
            self.assertEqual(names, ["a.txt", "a (2).txt", "a (3).txt"])
            contents = [pathlib.Path(uploads, it).read_text() for it in names]
            self.assertEqual(contents, ["one", "two", "three"])

    def test_a_failed_move_leaves_no_name_behind(self):
        with tempfile.TemporaryDirectory() as directory:
            with self.assertRaises(OSError):
                webapp.keep(os.path.join(directory, "missing"), directory, "a.txt")
            self.assertEqual(os.listdir(directory), [])

    def test_inside_means_inside(self):
        with tempfile.TemporaryDirectory() as directory:
            storage = pathlib.Path(directory, "storage")
            storage.mkdir()
            good = storage / "file"
            good.write_text("")
            outside = pathlib.Path(directory, "storage-other")
            outside.write_text("")
            (storage / "link").symlink_to(outside)
            self.assertTrue(webapp.is_inside(str(good), str(storage)))
            for path in ("", "/etc/passwd", str(storage), str(outside), str(storage / "link"),
                         str(storage / ".." / "storage-other"), str(storage / "missing")):
                self.assertFalse(webapp.is_inside(path, str(storage)), path)


def sign(body, secret, sent_s=None):
    sent_s = str(int(time.time()) if sent_s is None else sent_s)
    code = hmac.new(secret.encode(), sent_s.encode() + b"." + body, hashlib.sha256).hexdigest()
    return "t=%s,v1=%s" % (sent_s, code)


class Signatures(unittest.TestCase):
    def test_a_known_one(self):
        # The same stands in the tests of the server.
        self.assertEqual(
            sign(b"id=1&secret=x", "a secret of 16 bytes or more", 1700000000),
            "t=1700000000,v1=92bd12992599ec5fed92c77c985ba4f64f96dc9bc84b77442c175ee2a75660b6",
        )

    def test_only_what_is_right_is_believed(self):
        body, secret, now_s = b"id=1&secret=x", "secret \u00fc", int(time.time())
        good = sign(body, secret)
        self.assertTrue(webapp.is_signed(good, body, secret))
        self.assertTrue(webapp.is_signed(sign(body, secret, now_s - 200), body, secret))
        self.assertTrue(webapp.is_signed(sign(b"", secret), b"", secret))
        for signature in (
            None, "", "v1=", "t=", "t=,v1=", good.split(",")[0], good.split(",")[1],
            good[:-1], good + "0", good.replace("t=", "t= "), good.replace("v1", "v0"),
            "t=%d,%s" % (now_s - 1, good.split(",")[1]),
            "t=\u0661,v1=x", "t=" + "9" * 5000 + ",v1=x", "t=%d,v1=\u00fc" % now_s, "=,=,,",
            sign(body, secret, now_s - 1000), sign(body, secret, now_s + 1000),
            sign(body, "other"), sign(body + b"&", secret),
        ):
            self.assertFalse(webapp.is_signed(signature, body, secret), signature)


class OnlyOnce(unittest.TestCase):
    def test_all_who_ask_get_the_result_of_one(self):
        once, door, calls = webapp.Once(), threading.Event(), []

        def work():
            calls.append(1)
            door.wait(WAIT_S)
            return "result"

        results = []
        threads = [
            threading.Thread(target=lambda: results.append(once("key", work))) for _ in range(8)
        ]
        for it in threads:
            it.start()
        door.set()
        for it in threads:
            it.join(WAIT_S)
        self.assertEqual((results, calls), (["result"] * 8, [1]))
        self.assertEqual(once("other", lambda: 2), 2)

    def test_what_failed_is_tried_again(self):
        once = webapp.Once()
        with self.assertRaises(ZeroDivisionError):
            once("key", lambda: 1 / 0)
        self.assertEqual(once("key", lambda: "second"), "second")
        self.assertEqual(once("key", lambda: "third"), "second")


class Example(unittest.TestCase):
    """What both have in common: an app on its port, and the stand-in it talks to."""

    name = None
    options = []

    def setUp(self):
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.directory = pathlib.Path(directory.name)
        (self.directory / "storage").mkdir()
        self.uploads = self.directory / "uploads"
        self.incoming = StandIn()
        self.addCleanup(self.incoming.close)
        self.listen = "127.0.0.1:%d" % free_port()
        app = subprocess.Popen(
            [sys.executable, str(EXAMPLES / self.name / "backend.py"), "--listen", self.listen,
             "--internal-incoming-host", self.incoming.address,
             "--public-incoming-host", "uploads.example:4000",
             "--storage-dir", str(self.directory / "storage"), "--uploads", str(self.uploads),
             *self.options],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        self.log = []
        reader = threading.Thread(target=lambda: self.log.extend(app.stdout))

        def stop():
            app.send_signal(signal.SIGTERM)
            app.wait(WAIT_S)
            reader.join(WAIT_S)
            app.stdout.close()
            self.assertNotIn("Traceback", "".join(self.log))

        reader.start()
        self.addCleanup(stop)
        self.wait_for(lambda: self.request("/style.css"))

    def request(self, path, form=None, secret=None):
        """Status and text of an answer; None while nobody listens."""
        data = None if form is None else urllib.parse.urlencode(form).encode()
        headers = {"Incoming-Signature": sign(data, secret)} if secret else {}
        request = urllib.request.Request("http://" + self.listen + path, data, headers)
        try:
            with urllib.request.urlopen(request, timeout=WAIT_S) as answer:
                self.headers = answer.headers
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()
        except urllib.error.URLError:
            return None

    def wait_for(self, condition):
        deadline = time.monotonic() + WAIT_S
        while not condition():
            self.assertLess(time.monotonic(), deadline, "waited too long")
            time.sleep(0.02)

    def arrived(self, ticket, content=b"content", **changes):
        """The callback of a file that has arrived, and the answer to it."""
        path = self.directory / "storage" / ticket
        path.write_bytes(content)
        return self.callback(ticket, filename=str(path), **changes)

    def callback(self, ticket, signed_with=None, **changes):
        form = {"id": ticket, "backendSecret": "", "filename": "", "cancelled": "no",
                "filenameFromBrowser": "a.txt", "cancelReason": "", **changes}
        return self.request("/api/backend/upload_finished", form, signed_with)

    def kept(self):
        return sorted(os.listdir(self.uploads))


class Simple(Example):
    name = "1-simple"

    def ticket(self):
        status, self.page = self.request("/")
        self.assertEqual(status, 200)
        return self.incoming.tickets[-1]

    def test_page_carries_a_new_ticket_and_the_library(self):
        ticket = self.ticket()
        self.assertIn("upload_file('%s', this.files[0])" % ticket, self.page)
        self.assertIn(
            '"http://uploads.example:4000/incoming/0.1/frontend/incoming.js"', self.page
        )
        self.assertIn('incoming.set_server_hostname("uploads.example:4000")', self.page)
        path, form = self.incoming.requests.get(timeout=WAIT_S)
        self.assertEqual(path, "/incoming/0.1/backend/new_upload")
        self.assertEqual(form["removeFileWhenFinished"], "false")
        self.assertEqual(
            form["signalFinishURL"], "http://%s/api/backend/upload_finished" % self.listen
        )
        self.assertNotEqual(self.ticket(), ticket)

    def test_file_is_moved_listed_and_downloaded(self):
        ticket = self.ticket()
        name = "Über <b>größe</b> 東京.bin"
        self.assertEqual(
            self.arrived(ticket, b"\0\xff" * 1000, filenameFromBrowser="../" + name)[1], "done"
        )
        kept_name = "b> 東京.bin"  # a slash in a name is a directory to us
        self.assertEqual(self.kept(), [kept_name])
        self.assertEqual(os.listdir(self.directory / "storage"), [])
        self.ticket()
        url = "/downloads/" + urllib.parse.quote(kept_name)
        self.assertIn('<a href="%s">b&gt; 東京.bin</a>' % url, self.page)
        with urllib.request.urlopen("http://" + self.listen + url) as answer:
            self.assertEqual(answer.read(), b"\0\xff" * 1000)
            self.assertTrue(answer.headers["Content-Disposition"].startswith("attachment"))

    def test_second_request_for_the_same_file_is_answered_alike(self):
        ticket = self.ticket()
        self.assertEqual(self.arrived(ticket), (200, "done"))
        self.assertEqual(self.callback(ticket, filename="/gone"), (200, "done"))
        self.assertEqual(self.kept(), ["a.txt"])

    def test_empty_file(self):
        self.assertEqual(self.arrived(self.ticket(), b""), (200, "done"))
        self.assertEqual((self.uploads / "a.txt").stat().st_size, 0)

    def test_vandals(self):
        self.assertEqual(self.arrived("no-such-ticket")[0], 404)
        self.assertEqual(self.request("/api/backend/upload_finished", {})[0], 404)
        precious = self.directory / "precious"
        precious.write_text("")
        ticket = self.ticket()
        self.assertEqual(self.callback(ticket, filename=str(precious))[0], 403)
        self.assertTrue(precious.exists())
        self.assertEqual(self.kept(), [])
        for path in ("/downloads/..%2fprecious", "/downloads/%2e%2e/precious"):
            self.assertIn(self.request(path)[0], (403, 404))

    def test_cancelled(self):
        ticket = self.ticket()
        self.assertEqual(
            self.callback(ticket, cancelled="yes", cancelReason="upload timed out"), (200, "")
        )
        self.assertEqual(self.callback(ticket, cancelled="yes")[0], 404)
        self.wait_for(lambda: "Upload was cancelled: upload timed out\n" in self.log)

    def test_refused_ticket_is_an_error_page(self):
        self.incoming.refuse_new = True
        self.assertEqual(self.request("/")[0], 502)


class SimpleSigned(Example):
    name = "1-simple"
    options = ["--callback-secret", "the secret"]

    def test_only_signed_callbacks_are_taken(self):
        self.request("/")
        ticket = self.incoming.tickets[-1]
        self.assertEqual(self.arrived(ticket)[0], 403)
        self.assertEqual(self.arrived(ticket, signed_with="other")[0], 403)
        self.assertEqual(self.kept(), [])
        self.assertEqual(self.arrived(ticket, signed_with="the secret"), (200, "done"))
        self.assertEqual(self.kept(), ["a.txt"])


class DynamicSigned(Example):
    name = "2-dynamic"
    options = ["--processing-s", "0", "--callback-secret", "the secret"]

    def test_only_signed_callbacks_are_taken(self):
        ticket = self.request("/api/frontend/request_upload?filename=a.txt")[1]
        form = {"backendSecret": self.incoming.requests.get(timeout=WAIT_S)[1]["backendSecret"]}
        self.assertEqual(self.arrived(ticket, **form)[0], 403)
        self.assertEqual(self.arrived(ticket, signed_with="other", **form)[0], 403)
        self.assertEqual(self.arrived(ticket, signed_with="the secret", **form), (200, "wait"))


class Dynamic(Example):
    name = "2-dynamic"
    options = ["--processing-s", "0"]

    def ticket(self, name="a.txt"):
        path = "/api/frontend/request_upload?filename=" + urllib.parse.quote(name)
        status, ticket = self.request(path)
        self.assertEqual((status, ticket), (200, self.incoming.tickets[-1]))
        self.secret = self.incoming.requests.get(timeout=WAIT_S)[1]["backendSecret"]
        return ticket

    def test_page_and_missing_name(self):
        self.assertIn("encodeURIComponent(f.name)", self.request("/")[1])
        self.assertEqual(self.incoming.tickets, [])
        self.assertEqual(self.request("/api/frontend/request_upload")[0], 400)

    def test_wait_then_finish_with_the_secret(self):
        name = "Ärger & 100 %.txt"
        ticket = self.ticket(name)
        self.incoming.finish_answers = [(412, "no waiting handover routine")]
        self.assertEqual(self.arrived(ticket, backendSecret=self.secret), (200, "wait"))
        for _ in range(2):
            path, form = self.incoming.requests.get(timeout=WAIT_S)
            self.assertEqual(path, "/incoming/0.1/backend/finish_upload")
            self.assertEqual(form, {"id": ticket, "backendSecret": self.secret})
        self.assertEqual(self.kept(), [name])
        listed = json.loads(self.request("/api/frontend/uploads")[1])
        self.assertEqual([it["name"] for it in listed], [name])
        self.assertEqual(self.request(listed[0]["url"]), (200, "content"))

    def test_second_request_finishes_again_and_moves_once(self):
        ticket = self.ticket()
        self.incoming.finish_answers = [(500, "")]
        self.assertEqual(self.arrived(ticket, backendSecret=self.secret), (200, "wait"))
        self.incoming.requests.get(timeout=WAIT_S)
        self.assertEqual(
            self.callback(ticket, filename="/gone", backendSecret=self.secret), (200, "wait")
        )
        self.assertEqual(self.incoming.requests.get(timeout=WAIT_S)[1]["id"], ticket)
        self.assertEqual(self.kept(), ["a.txt"])

    def test_who_asks_again_after_the_end_hears_done(self):
        ticket = self.ticket()
        self.assertEqual(self.arrived(ticket, backendSecret=self.secret), (200, "wait"))
        self.incoming.requests.get(timeout=WAIT_S)
        self.wait_for(
            lambda: self.callback(ticket, filename="/gone", backendSecret=self.secret)
            == (200, "done")
        )
        self.assertEqual(self.kept(), ["a.txt"])

    def test_wrong_secret_is_refused(self):
        ticket = self.ticket()
        for secret in ("", self.secret[:-1], self.secret + "x", "ü"):
            self.assertEqual(self.arrived(ticket, backendSecret=secret)[0], 403)
            self.assertEqual(self.callback(ticket, cancelled="yes", backendSecret=secret)[0], 403)
        self.assertEqual(self.kept(), [])
        self.assertEqual(self.arrived("no-such-ticket", backendSecret=self.secret)[0], 404)

    def test_path_outside_the_storage_directory_is_refused(self):
        ticket = self.ticket()
        answer = self.callback(ticket, filename="/etc/hostname", backendSecret=self.secret)
        self.assertEqual(answer[0], 403)

    def test_cancelled(self):
        ticket = self.ticket()
        self.assertEqual(
            self.callback(ticket, cancelled="yes", backendSecret=self.secret), (200, "")
        )
        self.assertEqual(self.callback(ticket, backendSecret=self.secret)[0], 404)


class StandIn:
    """Answers as the Incoming!! server does, and remembers what it was asked."""

    def __init__(self):
        self.requests = queue.Queue()
        self.tickets = []
        self.refuse_new = False
        self.finish_answers = []
        stand_in = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self):
                body = self.rfile.read(int(self.headers["Content-Length"])).decode()
                form = dict(urllib.parse.parse_qsl(body, keep_blank_values=True))
                status, text = stand_in.answer(self.path, form)
                self.send_response(status)
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text.encode())

            def log_message(self, *_):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = "127.0.0.1:%d" % self.server.server_port
        self.thread = threading.Thread(target=self.server.serve_forever)
        self.thread.start()

    def answer(self, path, form):
        if path.endswith("/new_upload"):
            if self.refuse_new:
                return 400, "signalFinishURL invalid"
            self.tickets.append("00000000-0000-4000-8000-%012d" % len(self.tickets))
            answer = 200, self.tickets[-1]
        else:
            answer = self.finish_answers.pop() if self.finish_answers else (200, "ok")
        self.requests.put((path, form))
        return answer

    def close(self):
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


def load_tests(loader, tests, _):
    """`Example` itself is no test."""
    cases = (
        SafeNames, Signatures, OnlyOnce, Simple, SimpleSigned, Dynamic, DynamicSigned
    )
    return unittest.TestSuite(loader.loadTestsFromTestCase(it) for it in cases)


if __name__ == "__main__":
    unittest.main()
