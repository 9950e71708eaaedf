#!/usr/bin/env python3
"""Example web app 1: a file upload page that the backend renders with its ticket in it."""

import os
import sys

import click
import requests
from bottle import Bottle, abort, request, response, template

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), os.pardir))
import webapp

app = Bottle()
_config = {}
_uploads = set()  # the ids of our uploads
_once = webapp.Once()


@app.get("/")
def main_page():
    # Get an upload ticket from Incoming!!
    req = requests.post(
        "http://%s/incoming/0.1/backend/new_upload" % _config["internal_incoming_host"],
        data={
            # Where Incoming!! tells us that the file has arrived.
            "signalFinishURL": "http://%s/api/backend/upload_finished"
            % _config["internal_app_host"],
            # We move the file away, so there is nothing to remove.
            "removeFileWhenFinished": "false",
        },
        timeout=10,
    )

    # The body of the answer is the ticket's id, or what went wrong.
    if req.status_code != requests.codes.ok:
        abort(502, "Incoming!! said: %d %s" % (req.status_code, req.text))
    upload_id = req.text
    _uploads.add(upload_id)

    response.set_header("Cache-Control", "no-store")  # the ticket in the page is for one file
    return template(
        "frontend_tmpl.html",
        scheme=request.urlparts.scheme,
        public_incoming_host=_config["public_incoming_host"],
        upload_id=upload_id,
        uploads=webapp.uploaded_files(_config["uploads"]),
    )


@app.post("/api/backend/upload_finished")
def retrieve_incoming_file():
    # In production a web server stands in front, which denies /api/backend/ to the outside. A
    # signature tells that it is Incoming!! who speaks, even where that is not so.
    secret = _config["callback_secret"]
    signature = request.get_header("Incoming-Signature")
    if secret and not webapp.is_signed(signature, request.body.read(), secret):
        abort(403, "Incoming-Signature not given, wrong or too old")

    upload_id = request.forms.getunicode("id")
    if upload_id not in _uploads:
        abort(404, "There is no upload with that id")

    if request.forms.getunicode("cancelled") == "yes":
        print("Upload was cancelled: %s" % request.forms.getunicode("cancelReason"), flush=True)
        _uploads.remove(upload_id)
        return ""  # what we answer does not matter here

    # Incoming!! asks again when it did not get our answer, so this may be the second time, perhaps
    # while the first is still moving the file. The id is the same each time; whoever does not read
    # the form finds it in the header Idempotency-Key.
    _once(upload_id, keep_file)
    return "done"


def keep_file():
    incoming_path = request.forms.getunicode("filename") or ""
    if not webapp.is_inside(incoming_path, _config["storage_dir"]):
        abort(403, "That is not a file in the storage directory of Incoming!!")
    name = webapp.keep(
        incoming_path, _config["uploads"], request.forms.getunicode("filenameFromBrowser")
    )
    print("Upload has arrived: %s" % name, flush=True)


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
def main(**options):
    _config.update(options)
    _config["internal_app_host"] = options["internal_app_host"] or options["listen"]
    webapp.serve(app, options["listen"], options["uploads"])


if __name__ == "__main__":
    main()
