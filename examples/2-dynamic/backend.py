#!/usr/bin/env python3
"""Example web app 2: tickets on demand, a secret, and a hand-over that takes its time."""

import hmac
import json
import os
import sys
import threading
import time
import uuid

import click
import requests
from bottle import Bottle, abort, request, response, template

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), os.pardir))
import webapp

FINISH_ATTEMPTS_MAX = 10

app = Bottle()
_config = {}
_uploads = {}  # upload id -> what we know about it
_uploads_lock = threading.Lock()


@app.get("/")
def main_page():
    return template(
        "frontend_tmpl.html",
        scheme=request.urlparts.scheme,
        public_incoming_host=_config["public_incoming_host"],
    )


@app.get("/api/frontend/request_upload")
def request_upload():
    filename = request.query.getunicode("filename")
    if not filename:
        abort(400, "filename not given")

    # Incoming!! gives this back to us with whatever it says about the upload, and wants to hear it
    # from us with whatever we say. The ticket's id is known to the browser, so it proves nothing.
    secret = str(uuid.uuid4())

    # Get an upload ticket from Incoming!!
    req = requests.post(
        "http://%s/incoming/0.1/backend/new_upload" % _config["internal_incoming_host"],
        data={
            "destType": "file",
            "signalFinishURL": "http://%s/api/backend/upload_finished"
            % _config["internal_app_host"],
            "removeFileWhenFinished": "false",  # we do this ourselves, by moving the file
            "backendSecret": secret,
        },
        timeout=10,
    )
    if req.status_code != requests.codes.ok:
        abort(502, "Incoming!! said: %d %s" % (req.status_code, req.text))

    upload_id = req.text
    with _uploads_lock:
        _uploads[upload_id] = {
            "filename": filename,
            "secret": secret,
            "arrived": False,
            "processed": False,
            "finished": False,
        }
    response.content_type = "text/plain; charset=utf-8"
    response.set_header("Cache-Control", "no-store")
    return upload_id


@app.post("/api/backend/upload_finished")
def retrieve_incoming_file():
    callback_secret = _config["callback_secret"]
    signature = request.get_header("Incoming-Signature")
    if callback_secret and not webapp.is_signed(signature, request.body.read(), callback_secret):
        abort(403, "Incoming-Signature not given, wrong or too old")

    upload_id = request.forms.getunicode("id")
    upload = _uploads.get(upload_id)
    if upload is None:
        abort(404, "There is no upload with that id")
    secret = request.forms.getunicode("backendSecret") or ""
    if not hmac.compare_digest(secret.encode(), upload["secret"].encode()):
        print("upload_finished: wrong secret for an upload", flush=True)
        abort(403, "backendSecret not given or wrong")

    if request.forms.getunicode("cancelled") == "yes":
        print("Upload was cancelled: %s" % request.forms.getunicode("cancelReason"), flush=True)
        with _uploads_lock:
            _uploads.pop(upload_id, None)
        return ""  # what we answer does not matter here

    if upload["finished"]:
        return "done"  # Incoming!! has forgotten that we said so, perhaps in a power cut

    incoming_path = request.forms.getunicode("filename") or ""
    with _uploads_lock:
        # Incoming!! asks again when it did not get our answer: then the work is already under way.
        first_time = not upload["arrived"]
        if first_time and not webapp.is_inside(incoming_path, _config["storage_dir"]):
            abort(403, "That is not a file in the storage directory of Incoming!!")
        upload["arrived"] = True
    # A thread started in a request handler is fine in an example, and does not scale. Use a queue.
    threading.Thread(
        target=move_deferred, args=(upload_id, upload, incoming_path if first_time else None)
    ).start()
    return "wait"


def move_deferred(upload_id, upload, incoming_path):
    """Processes the file, which takes as long as it takes, and only then says that we have it."""
    if incoming_path is not None:
        ts_start = time.time()
        try:
            kept_name = webapp.keep(incoming_path, _config["uploads"], upload["filename"])
        except OSError as error:
            print("Upload could not be moved: %s" % error, flush=True)
            upload["arrived"] = False  # try again when Incoming!! asks again
            return
        time.sleep(max(0, ts_start + _config["processing_s"] - time.time()))
        upload["processed"] = True
        print("Upload has been processed: %s" % kept_name, flush=True)
    if not upload["processed"]:
        return  # the thread of the first request will say it

    # Now tell the Incoming!! server that we are done. It may not have read our "wait" yet (412).
    for _ in range(FINISH_ATTEMPTS_MAX):
        try:
            req = requests.post(
                "http://%s/incoming/0.1/backend/finish_upload" % _config["internal_incoming_host"],
                data={"id": upload_id, "backendSecret": upload["secret"]},
                timeout=10,
            )
            answer = "%d %s" % (req.status_code, req.text)
            if req.status_code == requests.codes.ok:
                upload["finished"] = True
            if req.status_code != requests.codes.precondition_failed:
                break
        except requests.RequestException as error:
            answer = str(error)
        time.sleep(1)
    print("finish_upload: %s" % answer, flush=True)


@app.get("/api/frontend/uploads")
def list_uploads():
    response.content_type = "application/json"
    response.set_header("Cache-Control", "no-store")
    return json.dumps(webapp.uploaded_files(_config["uploads"]))


@app.get("/downloads/<name>")
def download(name):
    return webapp.download(_config["uploads"], name)


@click.command()
@click.option("--listen", default="127.0.0.1:4080", help="host:port of this web app")
@click.option(
    "--public-incoming-host", default="127.0.0.1:4000", help="Incoming!! as browsers reach it"
)
@click.option(
    "--internal-incoming-host", default="127.0.0.1:4000", help="Incoming!! as this app reaches it"
)
@click.option("--internal-app-host", help="this app as Incoming!! reaches it; default: --listen")
@click.option("--storage-dir", required=True, help="the storage directory of Incoming!!")
@click.option("--uploads", default="uploads", help="where uploaded files are kept")
@click.option(
    "--callback-secret",
    envvar="INCOMING_CALLBACK_SECRET",
    help="the callback_secret of Incoming!!; without it, signatures are not checked",
)
@click.option("--processing-s", default=10.0, help="how long the processing of a file takes")
def main(**options):
    _config.update(options)
    _config["internal_app_host"] = options["internal_app_host"] or options["listen"]
    webapp.serve(app, options["listen"], options["uploads"])


if __name__ == "__main__":
    main()
