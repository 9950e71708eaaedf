"""What both example web apps share and what has little to do with Incoming!!: safe file names,
doing a thing once, signatures, the list of uploaded files, downloads, and a server with threads."""

import concurrent.futures
import hashlib
import hmac
import os
import shutil
import socketserver
import sys
import threading
import time
import wsgiref.simple_server
from urllib.parse import quote

import bottle

NAME_BYTES_MAX = 200
SIGNATURE_AGE_S_MAX = 300


def is_signed(signature, body, secret):
    """Whether a callback was sent by someone who knows the secret, not long ago, and arrived as it
    was sent. `signature` is the header `Incoming-Signature`, `body` the bytes of the request."""
    fields = dict(it.split("=", 1) for it in (signature or "").split(",") if "=" in it)
    sent_s = fields.get("t", "")
    if not (sent_s.isascii() and sent_s.isdecimal() and len(sent_s) <= 12):
        return False
    if abs(time.time() - int(sent_s)) > SIGNATURE_AGE_S_MAX:
        return False
    expected = hmac.new(secret.encode(), sent_s.encode() + b"." + body, hashlib.sha256).hexdigest()
    # In constant time: otherwise the time it takes tells how much of a guess is right.
    return hmac.compare_digest(expected.encode(), fields.get("v1", "").encode())


class Once:
    """Does a thing once for each key, however often it is asked to, and in however many threads.

    Who asks while it is being done waits for the same result. What fails is tried again by the
    next who asks.
    """

    def __init__(self):
        self._results = {}
        self._lock = threading.Lock()

    def __call__(self, key, work):
        with self._lock:
            is_first = key not in self._results
            result = self._results.setdefault(key, concurrent.futures.Future())
        if is_first:
            try:
                result.set_result(work())
            except BaseException as error:
                with self._lock:
                    del self._results[key]
                result.set_exception(error)
        return result.result()


def safe_name(name):
    """A file name that is safe to create, made of the one that the browser gave.

    That one is only data: it may be `../../etc/passwd`, empty, endless, or not a name at all.
    """
    name = (name or "").replace("\\", "/").rsplit("/", 1)[-1]
    name = "".join(it for it in name if it.isprintable()).strip().lstrip(".")
    stem, extension = os.path.splitext(name)
    while len((stem + extension).encode()) > NAME_BYTES_MAX:
        if stem:
            stem = stem[:-1]
        else:
            extension = extension[:-1]
    return (stem + extension).strip() or "unnamed"


def keep(source_path, uploads_dir, name):
    """Moves a file into `uploads_dir` under a safe name, replacing nothing. Returns the name."""
    stem, extension = os.path.splitext(safe_name(name))
    number = 1
    while True:
        kept_name = stem + extension if number == 1 else "%s (%d)%s" % (stem, number, extension)
        kept_path = os.path.join(uploads_dir, kept_name)
        try:
            # Reserves the name; the move then puts the file in its place.
            os.close(os.open(kept_path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644))
            break
        except FileExistsError:
            number += 1
    try:
        shutil.move(source_path, kept_path)
    except OSError:
        os.unlink(kept_path)
        raise
    return kept_name


def is_inside(path, directory):
    """Whether a path leads to a regular file in a directory, symbolic links followed."""
    path, directory = os.path.realpath(path), os.path.realpath(directory)
    return os.path.isfile(path) and os.path.commonpath([path, directory]) == directory


def uploaded_files(uploads_dir):
    """Name, length in bytes and download path of each uploaded file, by name."""
    with os.scandir(uploads_dir) as entries:
        files = sorted((it.name, it.stat().st_size) for it in entries if it.is_file())
    return [
        {"name": name, "length_bytes": length, "url": "/downloads/" + quote(name, safe="")}
        for name, length in files
    ]


def download(uploads_dir, name):
    """The answer to a download. Always an attachment: an uploaded page must not run as ours."""
    response = bottle.static_file(name, root=uploads_dir, mimetype="application/octet-stream")
    if response.status_code in (200, 206):
        response.set_header(
            "Content-Disposition", "attachment; filename*=UTF-8''" + quote(name, safe="")
        )
        response.set_header("X-Content-Type-Options", "nosniff")
    return response


class ThreadingWSGIServer(socketserver.ThreadingMixIn, wsgiref.simple_server.WSGIServer):
    """Bottle's default server takes one connection at a time, and browsers open some in advance."""

    daemon_threads = True


def serve(app, listen, uploads_dir):
    """Runs the web app until it is interrupted."""
    os.makedirs(uploads_dir, exist_ok=True)
    bottle.TEMPLATE_PATH.insert(0, os.path.dirname(os.path.abspath(sys.argv[0])))
    host, _, port = listen.rpartition(":")
    app.route("/style.css", callback=lambda: bottle.static_file("style.css", root=HERE))
    bottle.run(app, host=host, port=int(port), quiet=True, server_class=ThreadingWSGIServer)


HERE = os.path.dirname(os.path.abspath(__file__))
